"""The server behind a real socket: clients that leave, many at once, slow ones, and the end."""

import http.client
import json
import resource
import socket
import threading
import time
import urllib.request

import pytest
from web import CAT, TIGER, Stream, served, wait_until

from minip2p.web import server
from minip2p.web.app import make_app
from minip2p.web.guard import Access
from minip2p.web.limits import Limits
from minip2p.web.server import bind

CLIENTS = 50
LIMITS = Limits(runs=8, photos=2, body_seconds=0.5)


@pytest.fixture(scope="module")
def app(pipe):
    return make_app(pipe, limits=LIMITS)


@pytest.fixture(scope="module")
def port(app):
    with served(app, LIMITS) as port:
        yield port


def get(port, path, **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return response.read()


def generate(port, **more):
    """The last event of a job."""
    *_, last = Stream(port, "generate", **{"prompt": CAT, "steps": 1, "guidance": 1, **more})
    return last


def idle(app):
    return not app.state.site.worker.jobs


# --- clients that leave


def test_a_job_ends_when_its_client_leaves(app, port):
    before = len(app.state.site.studio.runs)
    stream = Stream(port, "generate", prompt=CAT, steps=100)
    for event in stream:
        if event["type"] == "step":
            break
    start = time.monotonic()
    stream.close()
    wait_until(lambda: idle(app))
    assert time.monotonic() - start < 5 and len(app.state.site.studio.runs) == before


def test_a_client_that_waits_and_leaves_gives_up_its_place(app, port):
    first = Stream(port, "generate", prompt=CAT, steps=100)
    second, third = (Stream(port, "generate", prompt=CAT, steps=1) for _ in range(2))
    events = iter(third)
    assert next(events) == {"type": "queued", "position": 2}
    second.close()
    assert next(events) == {"type": "queued", "position": 1}
    first.close()
    assert [event["type"] for event in events][-1] == "result"
    wait_until(lambda: idle(app))


def test_the_last_request_of_a_slider_wins(app, port):
    """Each movement leaves the request before it."""
    run = generate(port, steps=4)["run"]["id"]
    streams = []
    for n in range(6):
        streams.append(Stream(port, "edit", run=run, target=TIGER, cross=n / 5))
        for stream in streams[:-1]:
            stream.close()
    *_, last = streams[-1]
    assert last["type"] == "result" and app.state.site.studio.runs.get(last["run"]["id"]).recipe.request.cross == 1
    wait_until(lambda: idle(app))
    assert len(app.state.site.studio.runs) <= LIMITS.runs


def test_a_client_that_leaves_before_its_maps_are_there_ends_their_job(app, port, monkeypatch):
    run = generate(port, steps=2)["run"]["id"]
    studio = app.state.site.studio
    progress, was_cancelled = studio.progress, []

    def until_the_client_leaves(steps):
        was_cancelled.append(studio.job.cancelled.wait(20))
        return progress(steps)

    monkeypatch.setattr(studio, "progress", until_the_client_leaves)
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"GET /api/run/{run}/maps HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    wait_until(lambda: not idle(app))
    connection.close()
    wait_until(lambda: idle(app))
    assert was_cancelled == [True] and studio.maps.get(run) is None
    monkeypatch.undo()
    assert len(get(port, f"/api/run/{run}/maps")) > 1000


# --- slow and broken clients


def answer(port, request, *pieces):
    """What the server answers to raw bytes: the status line and the body."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        for piece in pieces:
            time.sleep(0.05)
            connection.sendall(piece)
        received = b""
        while part := connection.recv(65536):
            received += part
    return received.split(b"\r\n", 1)[0].decode(), received.rpartition(b"\r\n\r\n")[2]


HEAD = b"POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"


def test_a_body_that_does_not_arrive_ends_in_time(port):
    status, body = answer(port, HEAD + b"Content-Length: 100\r\n\r\n{")
    assert status == "HTTP/1.1 408 Request Timeout"
    assert json.loads(body) == {"error": "the request did not arrive in time"}


def test_a_chunked_body_is_limited_on_a_real_connection(port):
    chunk = b"%x\r\n" % 2**19 + b" " * 2**19 + b"\r\n"
    status, body = answer(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk)
    assert status.startswith("HTTP/1.1 413") and "1 MB are the most" in json.loads(body)["error"]


def test_connections_on_which_nobody_asks_anything_are_closed(port, monkeypatch):
    """Only so many may be open at once. Those that have asked something stay open for the next request."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    silent, slow = (socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(2))
    slow.sendall(b"GET /api/model HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    for _ in range(2):
        asking.request("GET", "/api/model")
        used = asking.sock
        assert json.loads(asking.getresponse().read())["name"] == "tiny" and asking.sock is used is not None
        time.sleep(0.3)
    assert silent.recv(1) == slow.recv(1) == b""
    for connection in (silent, slow, asking):
        connection.close()


def test_requests_that_are_no_http_are_refused(port):
    hosts = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n"
    for request in (b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n", hosts):
        status, _ = answer(port, request)
        assert status.startswith("HTTP/1.1 400")
    status, body = answer(port, b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert status == "HTTP/1.1 400 Bad Request" and "name" in json.loads(body)["error"]
    absolute = b"GET http://evil.example/api/model HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    assert answer(port, absolute)[0] == "HTTP/1.1 404 Not Found"


def test_uploads_do_not_hold_up_the_page(app, port):
    """While a file is read, in a thread, other requests are answered. Files are read one at a time."""
    reading, go_on = threading.Semaphore(0), threading.Event()
    original = app.state.site.studio.pipe

    class Slow:
        @property
        def components(self):
            reading.release()
            go_on.wait(10)
            return original.components

    app.state.site.studio.pipe = Slow()
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n--x--\r\n'
    head = f"POST /api/photo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(answer(port, head.encode() + body))) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        assert reading.acquire(timeout=10) and not reading.acquire(timeout=0.2)
        assert json.loads(get(port, "/api/model"))["name"] == "tiny"
    finally:
        go_on.set()
        for thread in threads:
            thread.join(10)
        app.state.site.studio.pipe = original
    assert [status for status, _ in answers] == ["HTTP/1.1 400 Bad Request"] * 2


# --- many clients


def visit(port, until, log):
    """A client that makes pictures, edits and maps until a time, at least one picture. log: gets what happened."""
    rounds = 0
    try:
        while rounds == 0 or time.monotonic() < until:
            events = list(Stream(port, "generate", prompt=CAT, steps=1, guidance=1, seed=rounds))
            log.append([event.get("position") for event in events if event["type"] == "queued"])
            assert events[-1]["type"] == "result", events[-1]
            if time.monotonic() < until:
                run = events[-1]["run"]["id"]
                stream = Stream(port, "edit", run=run, target=TIGER)
                if stream.status == 404:  # others have made many runs since
                    stream.close()
                else:
                    *_, last = stream
                    assert last["type"] == "result", last
            rounds += 1
    except Exception as error:
        log.append(error)


def crowd(port, seconds):
    """Many clients at once. Returns the positions that they were told, and raises what went wrong."""
    log, until = [], time.monotonic() + seconds
    threads = [threading.Thread(target=visit, args=(port, until, log)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
        assert not thread.is_alive()
    assert not [entry for entry in log if isinstance(entry, Exception)], log
    return log


def test_fifty_clients_at_once_are_all_served_and_told_where_they_stand(app, port):
    log = crowd(port, 0)
    assert len(log) == CLIENTS
    for positions in log:
        assert positions == sorted(positions, reverse=True) and positions[-1] == 0
    assert max(positions[0] for positions in log) >= CLIENTS // 2
    wait_until(lambda: idle(app))
    studio = app.state.site.studio
    assert len(studio.runs) == LIMITS.runs


@pytest.mark.full
def test_fifty_clients_for_two_minutes_lose_nothing_and_fill_no_memory(pipe):
    limits = Limits(runs=16)
    with served(make_app(pipe, limits=limits), limits) as port:
        crowd(port, 10)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        log = crowd(port, 120)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{len(log)} pictures, {grown / 1e3:.0f} MB more")
    assert len(log) > 2 * CLIENTS and grown < 200_000  # KB


def test_too_many_at_once_get_a_clear_line(pipe):
    limits = Limits(queue=1)
    app = make_app(pipe, limits=limits)
    with served(app, limits) as port:
        running = Stream(port, "generate", prompt=CAT, steps=100)
        assert next(iter(running))["position"] == 0
        waiting = Stream(port, "generate", prompt=CAT, steps=1)
        refused = Stream(port, "generate", prompt=CAT, steps=1)
        assert refused.status == 503
        message = "1 requests are waiting, and no more are accepted: try again in a moment"
        assert json.loads(refused.response.read()) == {"error": message, "position": 1}
        running.close()
        *_, last = waiting
        assert last["type"] == "result"


# --- the end, and the beginning


def test_the_end_of_the_server_ends_streams_at_once(pipe):
    app = make_app(pipe)
    with served(app, Limits()) as port:
        running, waiting = (Stream(port, "generate", prompt=CAT, steps=100) for _ in range(2))
        for event in running:
            if event["type"] == "step":
                break
        start = time.monotonic()
    assert time.monotonic() - start < 10
    assert [event for event in running][-1] == {"type": "error", "error": "the server stops"}
    assert [event for event in waiting][-1]["type"] == "error"


def test_a_port_that_is_used_is_named(port):
    with pytest.raises(ValueError, match=rf"port {port} of 127.0.0.1 cannot be used \(Address already in use\): stop"):
        bind("127.0.0.1", port)
    with pytest.raises(ValueError, match="port must be a number from 0 to 65535, not 70000"):
        bind("127.0.0.1", 70000)
    with pytest.raises(ValueError, match="host 'no.such.host.invalid' is not known"):
        bind("no.such.host.invalid", 0)


def test_by_default_only_this_computer_reaches_the_server():
    listener = bind("127.0.0.1", 0)
    assert listener.getsockname()[0] == "127.0.0.1" and Access().host == "127.0.0.1"
    listener.close()
