"""Helpers to talk to the server of the page: in the test's process, and through a real socket."""

import http.client
import json
import struct
import threading
import time
from contextlib import contextmanager
from math import prod

import numpy as np

from minip2p.web.server import AppServer, bind

BASE = "http://127.0.0.1:7860"
CAT, TIGER = "a cat on the beach", "a tiger on the beach"
PAIR = "a cat and a house on grass"  # of which each has a place


def events_of(text):
    """The events in the body of a stream."""
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line]


def result(client, kind, **body):
    """The last event of a job that succeeds."""
    response = client.post(f"/api/{kind}", json=body)
    assert response.status_code == 200, response.text
    last = events_of(response.text)[-1]
    assert last["type"] == "result", last
    return last


def error(response, status):
    """The error of a response: one line, in JSON."""
    assert response.status_code == status, (response.status_code, response.text)
    message = response.json()["error"]
    assert message and "\n" not in message and "Traceback" not in message and "/tmp" not in message
    return message


def unpack(packed):
    """The packed maps of a run: the header, and each block in float64: cross-attention t h i n, self-attention i i."""
    (length,) = struct.unpack("<I", packed[:4])
    header = json.loads(packed[4 : 4 + length])
    data = (np.frombuffer(packed, np.uint8, offset=4 + length) / 255.0) ** 2
    blocks = {}
    for kind in ("cross", "self"):
        for site in header[kind]:
            queries = site["rows"] * site["columns"]
            shape = (
                (site["steps"], site["heads"], queries, len(header["tokens"])) if kind == "cross" else (queries,) * 2
            )
            start = site["offset"]
            block = data[start : start + prod(shape)].reshape(shape)
            blocks[site["place"], site["index"], kind == "cross"] = block
    return header, blocks


@contextmanager
def served(app, limits):
    """The app on a free port, answered by uvicorn in a thread. Yields the port."""
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = AppServer(app, limits)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


class Stream:
    """A job's stream of events over a socket of its own, which can be closed at any time."""

    def __init__(self, port, kind, **body):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"Content-Type": "application/json"}
        self.connection.request("POST", f"/api/{kind}", json.dumps(body), headers)
        self.response = self.connection.getresponse()
        self.status = self.response.status

    def __iter__(self):
        while line := self.response.readline():
            if line.strip():
                yield json.loads(line.removeprefix(b"data: "))

    def close(self):
        self.response.close()
        self.connection.close()
