"""Grids: what a grid file may say, its cells in order, and each cell as the target of an edit."""

import re

import pytest

from minip2p.sweeps.grid import AXES, Grid, label
from minip2p.sweeps.sweep import plan_jobs

TOML = """
source = "a cat on the beach"
target = "a tiger on the beach"
seed = [1, 2, 3]
cross = [0.4, 1.0]
self = [0.0, 0.5, 1.0]
blend = ["", "cat:tiger"]
heads = ["all", [0]]
steps = 2
size = [64, 64]
"""


def test_a_grid_is_every_combination_in_order():
    fields = {
        "source": "a cat on the beach",
        "target": ["a tiger on the beach", "a cat on the beach at night"],
        "seed": [1, 2],
        "cross": [0.4, {"default_": 0.8, "the": 0.2}],
        "self": [[0.2, 0.6]],
        "steps": 3,
        "size": [64, 72],
        "guidance": 5.0,
        "negative": "fog",
        "guidance_interval": [0.1, 0.8],
        "uncond_every": 2,
    }
    grid = Grid.from_fields(fields)
    assert grid.compared == ["seed", "target", "cross"]
    expected = {"steps": 3, "size": (64, 72), "guidance_scale": 5.0, "negative_prompt": "fog"}
    assert grid.run_options == expected | {"guidance_interval": (0.1, 0.8), "uncond_every": 2}
    cells = grid.cells(2)
    assert [(cell["seed"], cell["target"][-5:], label(cell["cross"])) for cell in cells] == [
        (2, "beach", "0.4"),
        (2, "beach", "default_=0.8 the=0.2"),
        (2, "night", "0.4"),
        (2, "night", "default_=0.8 the=0.2"),
    ]
    assert all(cell["self"] == [0.2, 0.6] and cell["heads"] == "all" and cell["reweight"] == {} for cell in cells)


def test_an_axis_that_is_not_named_has_the_default_of_an_edit():
    grid = Grid.from_fields({"source": "a cat", "target": "a dog"})
    (cell,) = grid.cells(0)
    assert cell == {**AXES, "target": "a dog"}
    assert (cell["cross"], cell["self"], cell["self_max_queries"], cell["threshold"]) == (0.8, 0.4, 1024, 0.3)


@pytest.mark.parametrize(
    "line, message",
    [
        ("seeds = [1]", "a grid has no 'seeds', only source, seed, target"),
        ("cross = []", "cross has no values"),
        ("cross = 2", "0 <= start <= end <= 1"),
        ('cross = "much"', "0 <= start <= end <= 1"),
        ("places = [['left']]", "places must be some of"),
        ("strides = [[3]]", "strides must be some of [1, 2, 4], as a tuple, not (3,)"),
        ("heads = [[9]]", "heads must be"),
        ("blend = 'cow'", "'cow' is not in the prompt"),
        ("reweight = {cow = 2}", "'cow' is not in the prompt"),
        ("seed = 'x'", "seed must lie"),
        ("steps = 0", "steps must lie between 1 and 1000"),
        ("x = = 1", "Invalid value"),
        ("threshold = 2", "a local blend's threshold must lie between 0 and 1"),
        ("size = [3]", "size must be two multiples"),
        ("places = 'up'", 'places: each value is "all" or a list'),
        ("heads = 3", "heads: each value"),
        ("self_max_queries = 'x'", "self_max_queries must be a whole number from 0 on"),
        ("self_max_queries = 99999999999999999999999", "self_max_queries must be a whole number from 0 on"),
        ("reweight = 3", "reweight: each value is weights by word"),
        ("blend = 3", "blend: each value is a word"),
        ("size = 64", "size must be two multiples"),
        ("heads = [[[0]]]", "heads: each value"),
        ("reweight = 0", "reweight: each value is weights by word"),
        ("seed = [1, 1]", "seed has 1 twice"),
        ("threshold = [1, 0.3, 1.0]", "threshold has 1.0 twice"),
        ("split = 0", "split must be a whole number from 1 on, not 0"),
        ("split = true", "split must be a whole number from 1 on, not True"),
        ("split = [1, 2]", "split must be a whole number from 1 on, not [1, 2]"),
    ],
)
def test_a_wrong_grid_is_an_error_in_one_line(model, tmp_path, line, message):
    name = line.split()[0]
    others = [other for other in TOML.splitlines() if not other.startswith(f"{name} ")]
    (tmp_path / "grid.toml").write_text("\n".join([*others, line]))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        plan_jobs(model, Grid.read(tmp_path / "grid.toml"))
    assert "\n" not in str(error.value)


def test_a_grid_needs_a_source_a_target_and_a_file(tmp_path):
    file = tmp_path / "grid.toml"
    for text, message in (('target = "a"', "grid.toml: a grid needs a source"), ('source = "a"', "needs a target")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            Grid.read(file)
    with pytest.raises(FileNotFoundError, match=r"none.toml: no such file"):
        Grid.read(tmp_path / "none.toml")
    with pytest.raises(FileNotFoundError, match="is a folder, not a file"):
        Grid.read(tmp_path)


def test_a_grid_may_be_written_by_any_editor(tmp_path):
    file = tmp_path / "grid.toml"
    file.write_text(TOML, encoding="utf-8")
    grid = Grid.read(file)
    file.write_bytes(b"\xef\xbb\xbf" + TOML.replace("\n", "\r\n").encode())
    assert Grid.read(file) == grid
    file.write_text(TOML, encoding="utf-16")
    with pytest.raises(ValueError, match="grid.toml: is UTF-16 text; save it as UTF-8"):
        Grid.read(file)
