"""The cases of an editing benchmark: run-length encoded masks, the cases that ship, and PIE-Bench's layout."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pie_cases import write_pie_case
from PIL import Image

from minip2p.evaluation.pie_bench import Case, decode_runs, encode_runs, published_picture, read_cases

CASES = read_cases()


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_runs_encode_a_mask(bits):
    mask = np.array(bits)[None]
    assert torch.equal(decode_runs(encode_runs(mask), mask.shape), torch.from_numpy(mask))


def test_runs_by_hand():
    assert encode_runs(np.array([[0, 1, 1], [1, 0, 1]], bool)) == [1, 3, 5, 1]
    assert decode_runs([1, 3, 5, 9], (2, 3)).tolist() == [[False, True, True], [True, False, True]]  # ends at the end


def test_the_cases_that_ship():
    """301 of seven kinds, 43 each. Each has its picture, its true mask, and prompts that differ in what is edited."""
    kinds = ("object", "add", "remove", "colour", "background", "style", "two")
    assert len(CASES) == 301 and len({case.name for case in CASES}) == 301
    assert {kind: sum(case.kind == kind for case in CASES) for kind in kinds} == dict.fromkeys(kinds, 43)
    for case in CASES:
        with Image.open(case.picture) as picture:
            assert picture.size == (128, 128)
        mask, fixed = case.mask((128, 128)), decode_runs(list(case.kept_runs), (128, 128))
        assert mask.any() and not (mask & fixed).any() and (mask.all() == (case.kind == "style"))
        assert case.source != case.target and case.expected is not None
        for name, words in case.blend.items():
            prompt = case.source if "source" in name else case.target
            assert all(word in re.findall(r"\w+", prompt) for word in words)


def test_a_mask_counts_the_pictures_own_pixels_whatever_size_it_is_measured_at(tmp_path):
    """The upper 10 of 40 × 60 pixels may change: a quarter at every size, and PIE-Bench's border."""
    (case,) = read_cases(write_pie_case(tmp_path, mask=[0, 600]))
    for rows, columns in ((40, 60), (80, 120), (128, 128)):
        mask = case.mask((rows, columns))
        assert mask[: rows // 4].all() and not mask[rows // 4 : -1, 1:-1].any()
    shipped = CASES[0]
    small, large = shipped.mask((128, 128)), shipped.mask((512, 512))
    assert torch.equal(large, small.repeat_interleave(4, 0).repeat_interleave(4, 1))
    fixed = decode_runs(list(shipped.kept_runs), (128, 128))
    assert torch.equal(shipped.area(shipped.kept_runs, (128, 128)), fixed)


def test_a_case_of_pie_bench_has_prompts_without_brackets_and_a_mask_with_a_border(tmp_path):
    (case,) = read_cases(write_pie_case(tmp_path))
    assert (case.source, case.target) == ("a red car on the street", "a blue car on the street")
    assert case.blend == {"source": ["car"], "target": ["car"]} and case.expected is None and case.kind == "6"
    mask = case.mask((40, 60))
    assert mask[0].all() and mask[-1].all() and mask[:, 0].all()
    assert mask[10, :50].all() and not mask[10, 51:59].any()


def test_a_case_without_expected_objects_has_the_border_of_pie_bench():
    case = Case("a", "0", CASES[0].picture, "a cat", "a dog", [])
    assert case.mask((4, 5)).sum() == 14


def test_a_published_picture_is_cut_off_to_8_bits_and_read_back_from_its_file(tmp_path):
    """A PNG by hand: .999 of 255 steps is 254. A JPEG: the pixels that Pillow reads from the file it wrote."""
    greys = torch.tensor([-1.0, -0.999, 0.999, 1.0]).expand(3, 2, 4)
    pixels = (published_picture(greys, ".png") + 1) * 127.5
    assert pixels[0, 0].tolist() == pytest.approx([0, 0, 254, 255])
    assert torch.equal(published_picture(greys, ".of_no_format"), published_picture(greys, ".png"))
    noise = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    Image.fromarray(((noise + 1) * 127.5).to(torch.uint8).permute(1, 2, 0).numpy()).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    read = (published_picture(noise, ".JPG") + 1) * 127.5
    assert torch.equal(read.round().to(torch.uint8), expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mask": [1]}, "a mask is a list of starts and lengths"),
        ({"mask": None}, "a mask is a list"),
        ({"image_path": "../../x.png"}, "leads out of the folder"),
        ({"editing_prompt": 3}, "must have image_path"),
        ({"kept": None}, "a mask is a list"),
        ({"kept": [2, -1]}, "a mask is a list"),
        ({"blend": {"words": ["car"]}}, "blend has lists of words under some of source, target"),
        ({"blend": {"source": "car"}}, "blend has lists of words"),
        ({"blend": []}, "blend has lists of words"),
    ],
)
def test_a_wrong_case_is_an_error_in_one_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        read_cases(write_pie_case(tmp_path, **changes))
    assert "mapping_file.json: case '000'" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["..", "", "a/b", "../x", "a\\b"])
def test_a_name_that_cannot_be_a_file_name_is_an_error_in_one_line(tmp_path, name):
    file = write_pie_case(tmp_path) / "mapping_file.json"
    file.write_text(json.dumps({name: json.loads(file.read_text())["000"]}))
    with pytest.raises(ValueError, match="the name of a case is also the name of its files, and this cannot be one"):
        read_cases(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "\ufeff[]"])
def test_a_wrong_mapping_file_is_an_error_in_one_line(tmp_path, content):
    (tmp_path / "mapping_file.json").write_text(content)
    with pytest.raises(ValueError, match="mapping_file.json: (cannot be read as JSON|must be an object)") as error:
        read_cases(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_mapping_file_may_be_written_by_any_editor(tmp_path, encoding):
    file = write_pie_case(tmp_path) / "mapping_file.json"
    text = file.read_text()
    cases = read_cases(tmp_path)
    file.write_text(text, encoding=encoding, newline="\r\n")
    assert read_cases(tmp_path) == cases
    file.write_text(text, encoding="utf-16")
    with pytest.raises(ValueError, match="mapping_file.json: is UTF-16 text; save it as UTF-8"):
        read_cases(tmp_path)


def test_a_missing_mapping_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="mapping_file.json: no such file"):
        read_cases(tmp_path)
