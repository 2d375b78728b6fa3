"""How the cases that ship are built: each changes what its kind names, and nothing else."""

import json

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from minip2p.evaluation.make_cases import KINDS, make_case, scene_pair, write_cases
from minip2p.evaluation.pie_bench import read_cases
from minip2p.tiny.scenes import ANIMALS, THINGS, is_held_out
from minip2p.tiny.sprites import Sprites


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_changes_what_its_kind_names_and_nothing_else(kind):
    for number in range(5):
        before, after = scene_pair(kind, number)
        assert is_held_out(before) or is_held_out(after)
        names = [{thing.name for thing in scene.things} for scene in (before, after)]
        same = {
            "things": names[0] == names[1],
            "place": before.background == after.background,
            "style": before.style == after.style,
        }
        changed = {"background": "place", "style": "style", "colour": None}.get(kind, "things")
        assert same == {name: name != changed for name in same}
        if kind == "colour":
            (old,), (new,) = before.things, after.things
            assert old.colour != new.colour and new.colour in after.caption
        assert scene_pair(kind, number) == (before, after)


def test_the_committed_cases_are_those_that_the_recipe_makes():
    for case, kind in zip(read_cases()[:7], KINDS, strict=True):
        before, after = scene_pair(kind, 0)
        assert (case.kind, case.source, case.target) == (kind, before.caption, after.caption)


@pytest.fixture(scope="module")
def sprites():
    square = np.full((16, 16, 4), 200, np.uint8)
    return Sprites({name: square for name in ANIMALS + THINGS})


def test_the_words_and_expected_objects_of_a_case_are_the_committed_ones(sprites):
    """They do not depend on the objects' pictures, which are not in the repository; the masks do."""
    mapping = json.loads((ROOT / "weights" / "bench" / "mapping_file.json").read_text(encoding="utf-8"))
    for number, kind in enumerate(KINDS):
        committed = mapping[f"{number:03}"]
        _, fields = make_case(kind, 0, sprites)
        for name in fields.keys() - {"mask", "kept"}:
            assert fields[name] == committed[name], (kind, name)


def test_written_cases_can_be_read(sprites, tmp_path):
    write_cases(tmp_path, sprites, 1)
    cases = read_cases(tmp_path)
    assert [case.kind for case in cases] == list(KINDS)
    for case in cases:
        with Image.open(case.picture) as picture:
            assert picture.size == (128, 128)
        assert case.mask((128, 128)).any()
