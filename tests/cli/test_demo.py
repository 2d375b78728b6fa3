"""`minip2p demo`."""

import re

import pytest
from command_line import error_line, png_settings, run

from minip2p.cli import demo

NAMES = ["1-swap.png", "2-phrase.png", "3-style.png", "4-reweight.png", "5-maps.png", "demo.png"]


def test_the_demo_writes_five_pictures_and_a_sheet_and_says_what_to_look_at(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "STEPS", 1)
    assert run("demo", "-o", tmp_path) == 0
    *lines, time_taken = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [str(tmp_path / name) for name in NAMES]
    assert {path.name for path in tmp_path.iterdir()} == set(NAMES)
    assert all(len(line.split("  ")[1]) > 5 for line in lines)
    assert re.fullmatch(r"the demo's own work took \d+ s", time_taken)
    prompt, _, settings = png_settings(tmp_path / "1-swap.png")
    assert prompt == "a sheep on the grass" and settings["Source"] == "a pig on the grass" and settings["Seed"] == "0"


def test_a_folder_that_cannot_be_written_is_reported_before_the_first_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "load", lambda: pytest.fail("it ran"))
    (tmp_path / "file").touch()
    assert "file" in error_line(capsys, "demo", "-o", tmp_path / "file")
