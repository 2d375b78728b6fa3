"""Recipes: the Python and the command line that a run is told make exactly this run, to the bit."""

import base64
import io
import shlex

import numpy as np
import pytest
import torch
from command_line import PHOTO, run
from PIL import Image
from web import CAT, PAIR, TIGER, result

import minip2p
from minip2p.cli import options
from minip2p.cli.app import model_source
from minip2p.cli.main import parser
from minip2p.web.limits import Limits
from minip2p.web.recipes import SOURCE_RUN, Edited, Generated, ModelSource, command_text, python_text
from minip2p.web.requests import Edit, Generation, read_objects

HALF = np.zeros((8, 8), np.uint8)
HALF[:, :4] = 255
REGION, BELOW = (
    {"rows": 8, "columns": 8, "cells": base64.b64encode(half.tobytes()).decode()} for half in (HALF, HALF.T[::-1])
)
BLEND = {"source": ["cat"], "target": ["tiger"], "threshold": 0.4}


def generated(client):
    return result(client, "generate", prompt=CAT, seed=2, steps=2, guidance=3.5, negative="-fog")["run"]


def pair(client):
    return result(client, "generate", prompt=PAIR, seed=1, steps=2)["run"]


def edited(client, cat, **more):
    return result(client, "edit", **{"run": cat["id"], "target": TIGER, **more})["run"]


@pytest.fixture(scope="module")
def photo(client):
    """A photograph that was inverted."""
    told = client.post("/api/photo", files={"file": PHOTO.read_bytes()}).json()
    return result(client, "invert", photo=told["photo"], prompt=CAT, method="ddim", steps=2, guidance=2)["run"]


EVERYTHING = {"cross": 0.6, "self": 0.5, "weights": {"tiger": 2, "beach": -0.5}, "blend": BLEND, "region": REGION}
OBJECTS = [
    {"word": "cat", "kind": "duplicate", "x": -8, "y": 0.5, "scale": 0.7},
    {"word": "house", "x": -12, "y": 0, "scale": 1.25},
]
REMOVED = {"word": "house", "kind": "remove"}
RUNS = {
    "generated": lambda client, cat, photo: generated(client),
    "edited": lambda client, cat, photo: edited(client, generated(client), **EVERYTHING, paste=True),
    "plain": lambda client, cat, photo: result(client, "edit", run=cat["id"], target=TIGER, compare=True)["plain"],
    "photo": lambda client, cat, photo: photo,
    "edited photo": lambda client, cat, photo: edited(client, photo, region=REGION, paste=True),
    "edited twice": lambda client, cat, photo: edited(
        client, edited(client, photo, region=REGION), region=BELOW, cross=0.1, paste=True
    ),
    "moved": lambda client, cat, photo: edited(client, pair(client), target=PAIR, objects=OBJECTS),
    "moved and edited": lambda client, cat, photo: edited(
        client, pair(client), target=PAIR.replace("cat", "tiger"), objects=OBJECTS[::-1], blend=BLEND, paste=True
    ),
    "moved photo": lambda client, cat, photo: edited(client, photo, objects=OBJECTS[:1], region=REGION),
}


@pytest.mark.parametrize("name", RUNS)
def test_python_and_the_command_line_make_the_same_picture(name, client, cat, photo, pipe, tmp_path, monkeypatch):
    told = RUNS[name](client, cat, photo)
    recipe = client.get(f"/api/run/{told['id']}/recipe").json()
    for file in recipe["files"]:
        (tmp_path / file["name"]).write_bytes(client.get(file["url"]).content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minip2p, "load", lambda: pipe, raising=False)
    monkeypatch.setattr(options, "load", lambda *args, **more: pipe)
    content = client.get(told["picture"]).content
    picture = Image.open(io.BytesIO(content))

    namespace = {}
    exec(recipe["python"], namespace)
    entry = client.app.state.site.studio.runs.get(told["id"])
    assert torch.equal(namespace["run"].latents, entry.run.latents)
    assert Image.open("picture.png").tobytes() == picture.tobytes()
    (tmp_path / "picture.png").unlink()

    assert recipe["command"].startswith("minip2p ")
    assert run(*shlex.split(recipe["command"])[1:]) == 0
    written = Image.open("picture.png")
    assert written.tobytes() == picture.tobytes() and written.text == picture.text


def test_objects_are_written_as_on_the_command_line():
    """Those that are moved in their order, which is that from back to front; duplicates are in front of them."""
    objects = [OBJECTS[0], REMOVED | {"kind": "move"}, {"word": "on", "kind": "remove"}]
    told = Edited(
        Edit(CAT, 0.8, 0.4, objects=read_objects(objects, Limits())), Generated(Generation(CAT, 1, 2, None, ""))
    )
    words = shlex.split(command_text(told, ModelSource()))
    assert [word for word in words if word.partition("=")[0] in ("--move", "--resize", "--duplicate", "--remove")] == [
        "--move=house:0,0",
        "--resize=cat:0.7",
        "--duplicate=cat:-8,0.5",
        "--remove=on",
    ]
    python = python_text(told, ModelSource())
    assert "move={'house': (0, 0)}, resize={'cat': 0.7}, duplicate={'cat': (-8, 0.5)}, remove=['on']" in python


def test_a_blend_of_several_words_has_no_command_line(client, cat):
    told = edited(client, cat, blend={"source": ["cat", "beach"], "target": ["tiger"]})
    recipe = client.get(f"/api/run/{told['id']}/recipe").json()
    assert recipe["command"] is None and "('cat', 'beach'), ('tiger',)" in recipe["python"]


def test_the_server_remembers_no_run_that_a_recipe_needs(client, cat):
    """The Python of an edit contains its source."""
    told = edited(client, cat, cross=0.1)
    python = client.get(f"/api/run/{told['id']}/recipe").json()["python"]
    assert f"source = pipe.generate({CAT!r}, seed=1, steps=2)" in python and cat["id"] not in python


def test_recipes_load_the_model_of_the_server():
    arguments = ["app", "--model", "a b", "--vae", "v", "--dtype", "float16", "--device", "cuda", "--lora", "l:0.5"]
    model = model_source(parser().parse_args([*arguments, "--embedding", "e"]))
    recipe = Generated(Generation("it's a cat", 1, 2, None, ""))
    assert python_text(recipe, model).splitlines()[2:7] == [
        "import torch",
        "",
        "pipe = minip2p.load('a b', dtype=torch.float16, vae='v', device='cuda')",
        "pipe = pipe.merged('l', 0.5)",
        "pipe = pipe.with_embedding('e')",
    ]
    words = shlex.split(command_text(recipe, model))
    loaded = parser().parse_args(words[1:])
    assert (loaded.model, loaded.vae, loaded.dtype, loaded.device) == ("a b", "v", "float16", "cuda")
    assert (loaded.lora, loaded.embedding, loaded.prompt, loaded.seed) == (["l:0.5"], ["e"], "it's a cat", "1")
    assert model_source(parser().parse_args(["app"])) == ModelSource()


@pytest.mark.parametrize("prompt", ["cat", "my photos/cat", "a cat.png", "~ cat", "a\\b c"])
def test_a_source_whose_prompt_could_be_a_file_is_a_file(prompt):
    recipe = Edited(Edit("a dog", 0.8, 0.4), Generated(Generation(prompt, 1, 2, None, "")))
    assert shlex.split(command_text(recipe, ModelSource()))[-2:] == [SOURCE_RUN, "a dog"]


@pytest.mark.parametrize("prompt", ["--overwrite", "-x", "$(reboot)", "`reboot`; ls", "a\"b'c", "\\"])
def test_a_prompt_is_never_more_than_a_prompt(prompt):
    recipe = Generated(Generation(prompt, 1, 2, None, ""))
    words = shlex.split(command_text(recipe, ModelSource()))
    assert words[0] == "minip2p" and parser().parse_args(words[1:]).prompt == prompt
    compile(python_text(recipe, ModelSource()), "recipe", "exec")
