"""The exam: what the filters keep and how often it is right, by hand; and by the judge on pictures of known scenes."""

import json

import numpy as np
import pytest
from paths import ROOT

from minip2p.pairs import exam
from minip2p.pairs.dataset import COLUMNS, write_unit
from minip2p.pairs.exam import examine, is_right, markdown, read_candidates
from minip2p.tiny.judge import Judge

RENDER = ROOT / "tests/data/renders/00.png"  # a blue umbrella and a red lamp


def row(edit, fits, psnr, **more):
    """A candidate of an edit."""
    values = {"original_prompt": "a", "edited_prompt": edit, "fits_source": 1.0, "fits_target": fits, "psnr": psnr}
    return dict.fromkeys(COLUMNS) | values | more


def test_what_is_kept_and_right_by_hand():
    rows = [row("b", 0.5, 20.0), row("b", 0.9, 5.0), row("b", -1.0, 30.0), row("c", 0.2, None), row("d", -0.1, 9.0)]
    results = {r["filter"]: (r["of"], r["kept_count"], r["right_count"]) for r in examine(rows, [1, 0, 0, 1, 1])}
    assert results == {
        "none": (5, 5, 3),
        "fits_source ≥ 0": (5, 5, 3),
        "fits_target ≥ 0": (5, 3, 2),
        "psnr ≥ 10": (5, 3, 2),
        "all of these": (5, 2, 2),
        "the best of each edit": (3, 3, 2),
        "the best of those that pass all": (3, 2, 2),
    }
    table = markdown(examine(rows[4:], [False]))
    assert "| none | 1 of 1 | 0% (0) |" in table and "| all of these | 0 of 1 | – |" in table


def test_the_judge_reads_both_pictures(tmp_path, capsys):
    picture = {"bytes": RENDER.read_bytes(), "path": None}
    shown, other = {"objects": ["umbrella", "lamp"], "gone": []}, {"objects": ["cat"], "gone": ["lamp"]}
    judge, texts = Judge.load(), {}
    for name, (before, after) in {"right": (shown, shown), "wrong": (shown, other), "source": (other, shown)}.items():
        texts[name] = json.dumps({"before": before, "after": after})
        candidate = {"input_image": picture, "edited_image": picture, "expected": texts[name]}
        assert is_right(judge, candidate) == (name == "right")
    pictures = {"input_image": picture, "edited_image": picture, "rank": 1}
    units = tmp_path / "units"
    write_unit(units / "a.parquet", [row("b", 1.0, 20.0, **pictures, expected=texts[name]) for name in texts])
    assert exam.main([str(tmp_path)]) == 0
    assert "| none | 3 of 3 | 33% (1) |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"rank": None, "expected": "{}"}, "some candidates were not kept"),
        ({"rank": 1, "expected": ""}, "the prompts do not say what is expected"),
    ],
)
def test_what_cannot_be_examined_is_one_line(more, message, tmp_path):
    with pytest.raises(ValueError, match="has no pairs"):
        read_candidates(tmp_path)
    write_unit(tmp_path / "units" / "a.parquet", [row("b", np.nan, None, **more)])
    with pytest.raises(ValueError, match=message):
        read_candidates(tmp_path)
