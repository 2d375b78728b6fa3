"""The tables of an editing benchmark, by hand."""

import json
import math

import pytest

from minip2p.evaluation.tables import difference, json_line, markdown_tables, summarize
from minip2p.metrics.image import interval

ROWS = [
    {"case": "0", "kind": "object", "method": "ddim", "psnr": 20.0, "success": 1.0, "rows": 8.0},
    {"case": "1", "kind": "style", "method": "ddim", "psnr": 22.0, "success": 0.0, "rows": 8.0},
    {"case": "0", "kind": "object", "method": "direct", "psnr": 25.0, "success": 1.0, "rows": 12.0},
    {"case": "1", "kind": "style", "method": "direct", "psnr": None, "success": 1.0, "rows": 12.0},
    {"case": "2", "kind": "style", "method": "direct", "psnr": 24.0, "success": 1.0, "rows": 12.0},
]


def test_a_summary_has_the_means_the_paired_gain_and_the_success_with_each_kind():
    summaries = summarize(ROWS, ["ddim", "direct"])
    assert summaries["ddim"]["psnr"] == interval([20.0, 22.0]) and summaries["ddim"]["gain"][0] == 0
    direct = summaries["direct"]
    assert direct["psnr"] == interval([25.0, 24.0]) and direct["cases"] == (3, 0)
    assert direct["gain"][0] == 5  # of the one case that both have
    assert direct["success_object"][0] == direct["success_style"][0] == 1
    assert "clip" not in direct and summaries["ddim"]["success_style"][0] == 0


def test_a_difference_needs_both_figures():
    assert difference({"psnr": 3.0}, {"psnr": 1.0}, "psnr") == 2
    assert math.isnan(difference({"psnr": 3.0}, {}, "psnr")) and math.isnan(difference({"psnr": None}, {}, "psnr"))


def test_the_tables_show_three_digits_and_a_dash_where_there_is_no_figure():
    lines = markdown_tables(summarize(ROWS, ["ddim", "direct"])).splitlines()
    assert lines[0] == "| method | PSNR ↑ | … over ddim | success % ↑ | rows |"
    assert lines[2].startswith("| ddim | 21.0 ± 2.0 | 0.00 ± 0.00 | 50.0 ± ")
    assert lines[5] == "| method | success %: object | style |"
    assert lines[7] == "| ddim | 100 | 0.00 |"
    only_rows = markdown_tables(
        summarize([*ROWS, {"case": "0", "kind": "a", "method": "x", "rows": 1.0}], ["ddim", "x"])
    )
    assert "| x | – | – | – | 1.00 |" in only_rows


def test_the_line_of_json_has_a_key_for_each_method_and_metric():
    values = json.loads(json_line(summarize(ROWS, ["ddim", "direct"])))
    assert values["cases"] == 3 and values["ddim_psnr"] == 21 and values["direct_rows"] == 12
    assert values["direct_gain"] == pytest.approx(5) and "\n" not in json_line(summarize(ROWS, ["ddim"]))
