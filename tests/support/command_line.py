"""Helpers to run the command line in the test's process, and to read what it wrote."""

import json
import re
import subprocess
import sys

from paths import ROOT
from PIL import Image

from minip2p.cli import main

CAT, TIGER = "a cat on the beach", "a tiger on the beach"
PHOTO = ROOT / "tests" / "data" / "renders" / "00.png"


def run(*arguments):
    """Runs a command and returns its exit status."""
    try:
        return main.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code


def error_line(capsys, *arguments):
    """Runs a command that must fail with status 2 and one line on stderr, without warnings. Returns that line."""
    assert run(*arguments) == 2
    output = capsys.readouterr()
    errors = output.err.splitlines(True)
    assert output.out == "" and len(errors) == 1 and errors[0].startswith("minip2p: error: "), output
    return errors[0].removeprefix("minip2p: error: ").strip()


def run_python(code, **options):
    """Runs code in a new Python process, in the checkout, and returns what it prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, **{"cwd": ROOT, **options}).stdout


def pixels(path):
    """The pixels of a picture file as bytes."""
    with Image.open(path) as picture:
        return picture.tobytes()


def png_settings(path):
    """The prompt, the negative prompt and the settings of a PNG, parsed as other tools of the field do."""
    with Image.open(path) as picture:
        *prompt, last = picture.text["parameters"].split("\n")
    negative = prompt.pop().removeprefix("Negative prompt: ") if prompt[-1].startswith("Negative prompt: ") else ""
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    settings = {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}
    return "\n".join(prompt), negative, settings
