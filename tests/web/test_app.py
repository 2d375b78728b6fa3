"""The addresses of the server, from a prompt to the files that are taken home."""

import base64
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import PHOTO
from paths import ROOT
from PIL import Image
from safetensors.numpy import load as load_tensors
from starlette.testclient import TestClient
from web import BASE, CAT, PAIR, TIGER, error, events_of, result

from minip2p.inversion.methods import METHODS
from minip2p.io.viz import heat_colours
from minip2p.p2p.options import EditOptions
from minip2p.p2p.places import place_objects
from minip2p.web import studio
from minip2p.web.app import EXAMPLES, METHOD_LABELS, difference_png, make_app
from minip2p.web.limits import Limits
from minip2p.web.maps import SELF_QUERIES
from minip2p.web.places import outline


def image(client, url):
    response = client.get(url)
    assert response.status_code == 200 and response.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(response.content))


def entry(client, run):
    return client.app.state.site.studio.runs.get(run["id"])


def test_the_page_is_served(client):
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert "</html>" in client.get("/").text and client.get("/static/index.html").text == client.get("/").text


def test_the_model_is_described(client, pipe):
    facts = client.get("/api/model").json()
    assert facts["name"] == "tiny" and facts["size"] == [64, 64] and facts["guidance"] == 4.0
    assert facts["words"] == sorted(pipe.text.known_words)
    assert [method["name"] for method in facts["methods"]] == list(METHODS)
    assert {name for name, _ in METHOD_LABELS} == set(METHODS)
    assert facts["limits"] == {"steps": 100}
    for example in EXAMPLES:  # the model knows their words
        for text in (example["prompt"], example["target"]):
            assert not pipe.text.unknown_words(pipe.text.prompt(text))


def test_generate_streams_its_steps_with_pictures(client, pipe):
    body = {"prompt": CAT, "seed": 3, "steps": 2, "preview": True}
    response = client.post("/api/generate", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    assert events[0] == {"type": "queued", "position": 0}
    steps = [event for event in events if event["type"] == "step"]
    assert [(event["phase"], event["step"], event["steps"]) for event in steps] == [("source", n, 2) for n in (1, 2)]
    assert steps[0]["preview"].startswith("data:image/webp;base64,")
    told = events[-1]["run"]
    expected = pipe.generate(CAT, seed=3, steps=2)
    assert entry(client, told).run.latents.equal(expected.latents)
    picture = image(client, told["picture"])
    assert picture.tobytes() == expected.image.tobytes() and picture.text["parameters"].startswith(f"{CAT}\nSteps: 2, ")
    assert (told["kind"], told["prompt"], told["seed"], told["rows"]) == ("generated", CAT, 3, 4)
    assert [word["text"] for word in told["words"]] == CAT.split() and told["source"] is None


def test_warnings_are_the_runs_notes(pipe):
    with TestClient(make_app(pipe), base_url=BASE) as client:
        run = result(client, "generate", prompt="a cat in the cellar", steps=1)["run"]
        assert run["notes"] == [
            "this model was trained without the word 'cellar': `minip2p words` lists those that it knows"
        ]
        assert result(client, "generate", prompt=CAT, steps=1)["run"]["notes"] == []


def test_an_edit_is_that_of_the_library(client, cat, pipe, source):
    options = {"cross": 0.6, "self": 0.5, "weights": {"beach": 2}, "blend": {"source": ["cat"], "target": ["tiger"]}}
    last = result(client, "edit", run=cat["id"], target=TIGER, compare=True, **options)
    expected = pipe.edit(
        source, TIGER, cross_replace=0.6, self_replace=0.5, reweight={"beach": 2}, local_blend=("cat", "tiger")
    )
    plain = pipe.edit(source, TIGER, cross_replace=0, self_replace=0)
    assert entry(client, last["run"]).run.latents.equal(expected.latents)
    assert entry(client, last["plain"]).run.latents.equal(plain.latents)
    assert entry(client, last["run"]).run.source_run is None  # the source's latents are not held
    assert last["run"]["source"] == cat["id"] and last["run"]["kind"] == "edited"
    mask = np.asarray(image(client, last["run"]["mask"]).convert("L"))
    assert mask.shape == (64, 64) and set(np.unique(mask)) <= {0, 255}
    assert last["plain"]["mask"] is None and last["run"]["psnr"] is None


def test_a_second_edit_does_not_run_the_source_again(client, cat):
    first = result(client, "edit", run=cat["id"], target="a dog on the beach", cross=0.4)["run"]
    second = result(client, "edit", run=cat["id"], target="a dog on the beach", cross=0.8)["run"]
    third = result(client, "edit", run=cat["id"], target="a dog on the beach", cross=0.8)["run"]
    assert second["rows"] < first["rows"] and third["rows"] == 0
    assert image(client, third["picture"]).tobytes() == image(client, second["picture"]).tobytes()


def test_a_source_whose_record_is_too_large_runs_again(pipe, source):
    with TestClient(make_app(pipe, limits=Limits(record_bytes=1000)), base_url=BASE) as client:
        cat = result(client, "generate", prompt=CAT, seed=1, steps=2)["run"]
        edit = result(client, "edit", run=cat["id"], target=TIGER)["run"]
        assert entry(client, edit).run.latents.equal(pipe.edit(source, TIGER).latents)
        assert not client.app.state.site.studio.live


def test_objects_are_moved_as_by_the_library_and_their_places_are_those_of_the_edit(client, cat, pipe):
    pair = result(client, "generate", prompt=PAIR, seed=1, steps=2)["run"]
    source = pipe.generate(PAIR, seed=1, steps=2)
    objects = [{"word": "house", "kind": "remove"}, {"word": "cat", "x": -16, "y": 8, "scale": 0.8}]
    body = {"run": pair["id"], "target": PAIR, "objects": objects, "cross": 0.7}
    places = result(client, "places", **body)["places"]
    last = result(client, "edit", **body)
    options = EditOptions(cross_replace=0.7, move={"cat": (-16, 8)}, resize={"cat": 0.8}, remove=["house"])
    placed = {each.edit.word: each for each in place_objects(pipe.components, pipe.live(source).source, options)}
    for word, place in places.items():
        assert place["outline"] == [list(map(list, line)) for line in outline(placed[word].mask)]
        assert place["centre"] == list(placed[word].centre[::-1])
    assert last["places"] == places and list(places) == ["cat", "house"]
    expected = pipe.edit(source, PAIR, cross_replace=0.7, move={"cat": (-16, 8)}, resize={"cat": 0.8}, remove=["house"])
    assert entry(client, last["run"]).run.latents.equal(expected.latents) and last["run"]["mask"]
    assert result(client, "edit", run=cat["id"], target=CAT)["places"] == {}


def test_a_slider_costs_as_much_with_a_moved_object_as_without(pipe):
    """The place of a word depends on cross τ alone, and is looked for once."""
    rows = []
    for objects in ([], [{"word": "cat", "x": -16}]):
        with TestClient(make_app(pipe), base_url=BASE) as client:
            cat = result(client, "generate", prompt=CAT, seed=1, steps=4)["run"]
            body = {"run": cat["id"], "target": CAT, "objects": objects}
            edits = [result(client, "edit", self=self_, **body)["run"] for self_ in (0.3, 0.9, 0.6, 0.3)]
            rows.append([edit["rows"] for edit in edits[1:]])
            if objects:
                (live,) = client.app.state.site.studio.live.values.values()
                assert live.find_place.cache_info().misses == 1
    assert rows[0] == rows[1] and rows[0][-1] == 0


def test_a_source_whose_record_is_too_large_has_places_too(pipe, source):
    with TestClient(make_app(pipe, limits=Limits(record_bytes=1000)), base_url=BASE) as client:
        cat = result(client, "generate", prompt=CAT, seed=1, steps=2)["run"]
        body = {"run": cat["id"], "target": CAT, "objects": [{"word": "cat", "x": -16}]}
        assert list(result(client, "places", **body)["places"]) == ["cat"]
        last = result(client, "edit", **body)
        assert entry(client, last["run"]).run.latents.equal(pipe.edit(source, CAT, move={"cat": (-16, 0)}).latents)
        assert last["places"] == {}  # which would run the source again


def test_a_run_is_told_again_with_its_settings(client, cat):
    objects = [{"word": "cat", "kind": "move", "x": -16.0, "y": 0.0, "scale": 0.8}]
    told = result(client, "edit", run=cat["id"], target=TIGER, cross=0.3, objects=objects)["run"]
    answer = client.get(f"/api/run/{told['id']}").json()
    assert answer["run"] == told
    assert (answer["settings"]["cross"], answer["settings"]["objects"]) == (0.3, objects)
    assert "no such run" in error(client.get("/api/run/x"), 404)


def test_previews_take_a_third_of_the_time(pipe, monkeypatch):
    """A preview that takes a second is followed by two seconds without."""
    now = [100.0]

    def slow(picture):
        now[0] += 1
        return f"preview at {now[0]:g}"

    monkeypatch.setattr(studio, "data_url", slow)
    monkeypatch.setattr(studio.time, "monotonic", lambda: now[0])
    tested, shown = studio.Studio(pipe, Limits()), []
    tested.job = SimpleNamespace(preview=None)
    show = tested.shower(True)
    for _ in range(5):
        tested.job.preview = None
        show(SimpleNamespace(images=["picture"]))
        shown.append(tested.job.preview)
        now[0] += 1
    assert shown == ["preview at 101", None, "preview at 104", None, "preview at 107"]


def test_a_region_limits_the_edit(client, cat):
    cells = np.zeros((16, 16), np.uint8)
    cells[:, :8] = 255
    region = {"rows": 16, "columns": 16, "cells": base64.b64encode(cells.tobytes()).decode()}
    last = result(client, "edit", run=cat["id"], target=TIGER, cross=0, self=0, region=region, paste=True)["run"]
    before, after = (np.asarray(image(client, run["picture"])) for run in (cat, last))
    assert (before[:, 32:] == after[:, 32:]).all() and (before[:, :32] != after[:, :32]).any()
    assert (np.asarray(image(client, f"/api/run/{last['id']}/region.png"))[:, :32] == 255).all()
    error(client.get(f"/api/run/{cat['id']}/region.png"), 404)


def test_a_photograph_is_inverted_and_edited(client, pipe):
    told = client.post("/api/photo", files={"file": ("../../x.png", PHOTO.read_bytes())}).json()
    assert told["size"] == [64, 64] and told["notes"] == [] and image(client, told["picture"]).size == (64, 64)
    body = {"photo": told["photo"], "prompt": CAT, "steps": 2, "preview": True}
    events = events_of(client.post("/api/invert", json=body).text)
    assert [event["phase"] for event in events if event["type"] == "step"] == ["invert"] * 2
    assert events[1]["preview"].startswith("data:image/webp;base64,")  # the photograph
    run = events[-1]["run"]
    assert client.app.state.site.studio.job is None
    assert entry(client, run).run.latents.equal(pipe.invert(PHOTO, CAT, steps=2).latents)
    assert run["kind"] == "photo" and run["method"] == "direct" and run["seed"] is None and 15 < run["psnr"] < 60
    assert image(client, run["original"]).tobytes() == image(client, told["picture"]).tobytes()
    blend = {"source": ["cat"], "target": ["tiger"], "threshold": 0.6}
    edited = result(client, "edit", run=run["id"], target=TIGER, blend=blend, paste=True)["run"]
    original, after = (np.asarray(image(client, url)) for url in (edited["original"], edited["picture"]))
    outside = np.asarray(image(client, edited["mask"]).convert("L")) == 0
    assert outside.any() and (original[outside] == after[outside]).all()


def huge():
    """A PNG of 64 million pixels in a few kilobytes."""
    file = io.BytesIO()
    Image.new("1", (8000, 8000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("post", ["photo", "settings"])
@pytest.mark.parametrize(
    "content, message",
    [
        (lambda: b"<svg/>", ""),
        (huge, "pixels"),
        (lambda: b"", ""),
        (lambda: PHOTO.read_bytes()[:500], "cannot be read"),
    ],
    ids=["text", "too many pixels", "empty", "cut off"],
)
def test_a_file_that_is_no_picture_is_one_line(client, post, content, message):
    line = error(client.post(f"/api/{post}", files={"file": ("cat.png", content())}), 400)
    assert line.startswith("the file: ") and message in line


def test_settings_are_read_from_a_png(client, cat):
    content = client.get(cat["picture"]).content
    settings = client.post("/api/settings", files={"file": content}).json()["settings"]
    assert (settings["prompt"], settings["seed"], settings["steps"], settings["guidance"]) == (CAT, 1, 2, 4.0)
    assert "no settings" in error(client.post("/api/settings", files={"file": PHOTO.read_bytes()}), 400)


def test_words_are_aligned(client):
    table = client.post("/api/align", json={"source": CAT, "target": TIGER}).json()
    assert table["kind"] == "swap" and table["links"] == [[n, n, 1.0] for n in range(5)]


def test_a_grid_tells_each_cell_as_it_is_done(client, cat, pipe, source):
    body = {"run": cat["id"], "target": TIGER, "x": {"name": "cross", "values": [0, 1]}}
    body |= {"y": {"name": "self", "values": [0, 0.7]}}
    events = events_of(client.post("/api/grid", json=body).text)
    cells = [event for event in events if event["type"] == "cell"]
    assert [(cell["x"], cell["y"]) for cell in cells] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    requests = [entry(client, cell["run"]).recipe.request for cell in cells]
    assert [(request.cross, request.self_) for request in requests] == [(0, 0), (1, 0), (0, 0.7), (1, 0.7)]
    assert events[-1]["type"] == "result" and events[-1]["run"]["id"] == cat["id"]
    expected = pipe.edit(source, TIGER, cross_replace=1.0, self_replace=0.7)
    assert entry(client, cells[3]["run"]).run.latents.equal(expected.latents)


def test_maps_are_computed_once_and_compressed_where_the_client_can(client, cat):
    url = f"/api/run/{cat['id']}/maps"
    compressed = client.get(url)
    assert compressed.headers["content-encoding"] == "gzip"
    plain = client.get(url, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.content == compressed.content
    assert int(compressed.headers["content-length"]) < len(plain.content)
    length = int.from_bytes(plain.content[:4], "little")
    header = json.loads(plain.content[4 : 4 + length])
    assert [token["text"] for token in header["tokens"]] == ["start", *CAT.split(), "end", "padding"]
    assert {(site["steps"], site["heads"]) for site in header["cross"]} == {(2, 4)}


def test_files_are_taken_home(client, cat, pipe, tmp_path):
    base = f"/api/run/{cat['id']}"
    response = client.get(f"{base}/animation.gif")
    animation = Image.open(io.BytesIO(response.content))
    assert response.headers["content-type"] == "image/gif"
    assert (animation.format, animation.n_frames, animation.size) == ("GIF", 2, (64, 64))
    content = client.get(f"{base}/run.safetensors").content
    assert load_tensors(content)["latents"].shape[0] == 3
    (tmp_path / "run.safetensors").write_bytes(content)
    assert pipe.open(tmp_path / "run.safetensors").latents.equal(entry(client, cat).run.latents)
    other = result(client, "edit", run=cat["id"], target=TIGER)["run"]
    difference = image(client, f"{base}/difference.png?to={other['id']}")
    same = np.asarray(image(client, f"{base}/difference.png?to={cat['id']}"))
    assert difference.size == (64, 64) and (same == same[0, 0]).all() and np.asarray(difference).std() > 1
    assert "no such run" in error(client.get(f"{base}/difference.png?to=x"), 404)
    error(client.get(f"{base}/mask.png"), 404)
    error(client.get(f"{base}/original.png"), 404)


def test_a_difference_of_half_of_the_range_is_as_bright_as_can_be():
    """The mean over the colours: of (0, 0, 51) it is 17 of 255."""
    before, after = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)
    after[0, 0], after[0, 1], before[1, 0] = (0, 0, 51), 64, 255
    shown = Image.open(io.BytesIO(difference_png(*(studio.png_bytes(Image.fromarray(x)) for x in (before, after)))))
    expected = heat_colours(np.array([[2 * 17 / 255, 2 * 64 / 255], [1, 0]]))
    np.testing.assert_array_equal(np.asarray(shown), expected)


def test_an_edit_can_be_edited_but_not_without_end(pipe, source):
    with TestClient(make_app(pipe, limits=Limits(edits=2)), base_url=BASE) as client:
        cat = result(client, "generate", prompt=CAT, seed=1, steps=2)["run"]
        first = result(client, "edit", run=cat["id"], target=TIGER)["run"]
        second = result(client, "edit", run=first["id"], target="a tiger on the grass")["run"]
        expected = pipe.edit(pipe.edit(source, TIGER), "a tiger on the grass")
        assert entry(client, second).run.latents.equal(expected.latents)
        line = error(client.post("/api/edit", json={"run": second["id"], "target": TIGER}), 400)
        assert line == "this is the edit of an edit, 2 times over: begin with a new picture"


@pytest.mark.parametrize(
    "kind, body, message",
    [
        ("edit", {"target": TIGER, "weights": {"dog": 2}}, "'dog' is not in the prompt"),
        ("edit", {"target": TIGER, "blend": {"source": ["dog"], "target": ["tiger"]}}, "'dog' is not in the prompt"),
        ("edit", {"target": TIGER, "weights": {"": 2}}, ""),
        ("edit", {"target": TIGER, "objects": [{"word": "dog"}]}, "'dog' is not in the prompt"),
        (
            "edit",
            {"target": TIGER, "objects": [{"word": "cat", "x": 90}]},
            "is outside of the picture of 64 x 64 pixels",
        ),
        (
            "places",
            {"target": TIGER, "objects": [{"word": "the"}]},
            "'the' stands for no object that has a place in the",
        ),
    ],
)
def test_what_the_library_refuses_is_the_last_event(client, cat, kind, body, message):
    response = client.post(f"/api/{kind}", json={"run": cat["id"], **body})
    last = events_of(response.text)[-1]
    assert response.status_code == 200 and last["type"] == "error" and message in last["error"]
    assert "\n" not in last["error"]


def test_a_job_has_its_source_although_the_server_forgets_it(pipe):
    """With room for a single run, the edit takes the place of its source, and is compared with it."""
    with TestClient(make_app(pipe, limits=Limits(runs=1)), base_url=BASE) as client:
        source = result(client, "generate", prompt=CAT, steps=1)["run"]
        last = result(client, "edit", run=source["id"], target=TIGER, compare=True)
        assert client.get(last["plain"]["picture"]).status_code == 200
        assert "forgets" in error(client.get(source["picture"]), 404)
        assert len(client.app.state.site.studio.runs) == 1


def test_the_limits_that_the_documentation_states_are_those_of_the_code():
    limits, page = Limits(), (ROOT / "docs" / "app.md").read_text(encoding="utf-8")
    for row in (
        f"| steps of a run | {limits.steps} |",
        f"| characters of a prompt | {limits.characters} |",
        f"| cells of a grid | {limits.cells} |",
        f"| edits of an edit, one after the other | {limits.edits} |",
        f"| a photograph | {limits.photo_bytes / 1e6:g} MB, {limits.photo_pixels / 1e6:g} million pixels |",
        f"| requests that wait | {limits.queue}; ",
        f"| runs, photographs that are remembered | {limits.runs}, {limits.photos} |",
        f"attention is recorded for further edits | {limits.sources}, of {limits.record_bytes / 1e9:g} GB each |",
    ):
        assert row in page, row
    assert f"all maps are at most {limits.map_bytes / 1e6:g} MB" in page and f"at most {SELF_QUERIES} queries" in page
