"""Prompts of pairs: from a file, from the small world, and from a language model in the published layout."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import ClassVar

import pytest
from paths import ROOT

from minip2p.errors import Notice
from minip2p.pairs import prompts
from minip2p.pairs.prompts import Target, Unit, ask_prompts, draw_prompts, read_prompts, write_prompts
from minip2p.planner.planners import plan

LINE = {"input": "a cat", "edit": "make it a dog", "output": "a dog"}


def test_a_unit_is_a_source_with_all_its_targets():
    first, second = read_prompts(ROOT / "tests/data/pairs.jsonl")
    assert first.source == "a cat on the beach" and [target.kind for target in first.targets] == ["object", "style"]
    assert second.targets == (Target("a blue car on the street", "make the car blue"),)
    assert first.key != second.key == Unit(second.source, second.targets).key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no prompts; a line is"),
        ("[1]", "line 1: is not a JSON object but list"),
        ("{", "line 1: cannot be read as JSON"),
        (json.dumps(LINE | {"edit": " "}), "line 1: edit must be a text"),
        (json.dumps({"input": "a cat", "edit": "x"}), "line 1: output must be a text"),
        (json.dumps(LINE | {"kind": 3}), "line 1: kind must be a word, not 3"),
        (json.dumps(LINE | {"output": "A cat."}), "line 1: output is the input"),
        (f"{json.dumps(LINE)}\n\n{json.dumps(LINE)}", "line 3: this input and output are in the file twice"),
    ],
)
def test_a_line_that_is_no_prompt_is_one_line(text, message, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match="prompts.jsonl") as error:
        read_prompts(file)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_prompts_of_the_small_world_differ_in_what_their_instruction_says(tmp_path):
    lines = draw_prompts(12)
    write_prompts(tmp_path / "prompts.jsonl", lines)
    units = read_prompts(tmp_path / "prompts.jsonl")
    assert lines == draw_prompts(12) != draw_prompts(12, seed=1)
    assert {line["kind"] for line in lines} == {"object", "colour", "background", "style", "add", "two", "remove"}
    assert sum(len(unit.targets) for unit in units) == len(lines) > len(units)
    for line in lines:
        after = line["expected"]["after"]
        assert all(name in line["output"] for name in after["objects"])
        assert not any(name in line["output"].split() for name in after["gone"])
    swaps = [line for line in lines if line["kind"] == "object"]
    assert swaps and all(plan(line["edit"], line["input"]).target == line["output"] for line in swaps)


def test_no_edit_is_drawn_twice():
    """Among 200 sources the same caption and edit occur again: each is one line, so that the file can be read."""
    edits = [(line["input"], line["output"]) for line in draw_prompts(200)]
    assert len(set(edits)) == len(edits)


class Server(BaseHTTPRequestHandler):
    """Answers in the layout, except to captions that have "bad" in them."""

    bodies: ClassVar[list] = []

    def do_GET(self):
        self.answer({"data": [{"id": "small"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        caption = body["prompt"].removesuffix("\n##\n").rpartition("\nEND\n")[2]
        text = "no layout" if "bad" in caption else f"make it blue\n%%\n{caption} in blue"
        self.answer({"choices": [{"text": text}]} if "odd" not in caption else {"choices": []})

    def answer(self, content):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    Server.bodies = []
    server = HTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_language_model_completes_the_published_layout(url, tmp_path, capsys):
    (tmp_path / "captions.txt").write_text("a car\na bad car\na car\n")
    file = tmp_path / "prompts.jsonl"
    assert prompts.main(["--captions", str(tmp_path / "captions.txt"), "--by", url, "-o", str(file)]) == 0
    assert json.loads(file.read_text()) == {"input": "a car", "edit": "make it blue", "output": "a car in blue"}
    assert len(Server.bodies) == 1 + prompts.TRIES and "4 answers without the layout" in capsys.readouterr().err
    body = Server.bodies[0]
    assert body["prompt"].endswith("a pencil sketch of a woman\nEND\na car\n##\n")
    assert body["stop"] == ["\nEND"] and body["temperature"] == 0.7 and body["model"] == "small"


def test_answers_without_a_text_and_captions_without_a_server_are_one_line(url, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"the answer has no text: does this server complete texts, at /completions\?"):
        ask_prompts(["an odd car"], url)
    with pytest.warns(Notice, match="no edit of 'a bad car'"):
        assert ask_prompts(["a bad car"], url) == []
    assert prompts.main(["--captions", "x.txt"]) == 2 and "--by URL" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no prompt to write"):
        write_prompts(tmp_path / "none.jsonl", [])
