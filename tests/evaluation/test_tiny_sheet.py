"""The contact sheet of unchosen prompts."""

import re

import numpy as np
from PIL import Image

from minip2p.evaluation import tiny_sheet
from minip2p.evaluation.tiny_sheet import PLACES, draw, sheet_prompts
from minip2p.tiny.scenes import BACKGROUNDS, OBJECTS, PLACE_PHRASES


def test_every_object_has_two_prompts_in_two_places():
    prompts = sheet_prompts()
    assert len(set(prompts)) == len(prompts) == 60
    assert prompts[:4] == ["a cat on the grass", "a cat in the desert", "a dog on the beach", "a dog at night"]
    assert prompts[32:36] == [
        "a red car on the street",
        "a green car on the beach",
        "an orange balloon in the meadow",
        "a blue balloon in the snow",
    ]
    for name in OBJECTS:
        places = {prompt.split(f" {name} ")[1] for prompt in prompts if re.search(rf"\b{name}\b", prompt)}
        assert len(places) == 2 and places <= set(PLACES)
    for background, place in zip(BACKGROUNDS, PLACES, strict=True):
        assert place in PLACE_PHRASES[background]


def test_a_picture_is_of_its_prompt_at_seed_0(model):
    _, (image,) = draw(model, None, 7, "a cat on the grass", 1)
    assert image.tobytes() == model.generate("a cat on the grass", seed=0, steps=1).image.tobytes()


def test_the_sheet_has_ten_columns(monkeypatch, tmp_path, capsys):
    class InProcessPool:
        def __init__(self, folder, steps):
            assert folder == tmp_path and steps == 3

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def run_all(self, measure, prompts):
            assert measure is draw
            return [({}, [Image.new("RGB", (128, 128), "red")]) for _ in prompts]

    monkeypatch.setattr(tiny_sheet, "WorkerPool", InProcessPool)
    out = tmp_path / "a/sheet.png"
    monkeypatch.setattr("sys.argv", ["sheet", "--model", str(tmp_path), "--steps", "3", "-o", str(out)])
    assert tiny_sheet.main() == 0 and capsys.readouterr().out.strip() == str(out)
    sheet = Image.open(out)
    reds = (np.asarray(sheet.convert("RGB")) == (255, 0, 0)).all(-1).sum()
    assert reds >= 60 * 127 * 127
    assert 10 * 128 < sheet.width < 11 * 128
