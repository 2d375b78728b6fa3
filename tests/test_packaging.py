"""How minip2p is installed and imported: the Makefile's choice of torch, the import of the package."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from configparser import ConfigParser
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from command_line import run_python
from paths import ROOT

from minip2p.cli.main import main, parser

# Stands in for Python in the Makefile: it creates a venv with a link to itself, and logs every other call.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *"-m venv"*) mkdir -p "$3/bin" && ln -sf "$0" "$3/bin/python"; exit ;;
  *find_spec*) exit "$TORCH_INSTALLED" ;;
  *urlopen*) exec sh -c "$PROBE" ;;
esac
echo "$*" >> "$LOG"
"""
HAS_DRIVER = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def install(folder, *variables, torch_installed="0", probe="true"):
    """Runs the Makefile's installation with a fake Python. Returns its output, and the calls of pip."""
    python, log = folder / "python", folder / "log"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    environment = {**os.environ, "TORCH_INSTALLED": torch_installed, "PROBE": probe, "LOG": str(log)}
    environment.pop("MAKEFLAGS", None)
    stamp = folder / "venv" / "core"
    command = ["make", f"PYTHON={python}", f"VENV={folder / 'venv'}", *variables, str(stamp)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert stamp.exists()
    return done.stdout, log.read_text().splitlines()


@pytest.mark.skipif(sys.platform != "linux" or HAS_DRIVER, reason="the Makefile chooses torch on Linux without a GPU")
class TestTorchWithoutNvidiaDriver:
    def test_the_cpu_build_is_installed_first(self, tmp_path):
        output, calls = install(tmp_path, "TORCH_INDEX=http://index")
        assert "No NVIDIA driver: installed the CPU build of torch from http://index\n" in output
        assert calls[0].endswith("-c constraints.txt --no-deps --index-url http://index torch")
        assert calls[1].endswith("-c constraints.txt -e .") and len(calls) == 2

    @pytest.mark.parametrize("probe", ["false", "sleep 60"], ids=["refused", "hanging"])
    def test_an_index_that_cannot_be_reached_costs_one_line_and_three_seconds(self, probe, tmp_path):
        start = time.perf_counter()
        output, calls = install(tmp_path, "TORCH_INDEX=http://index", probe=probe)
        assert time.perf_counter() - start < 6
        line = "Cannot install the CPU build of torch from http://index: using the default index\n"
        assert output.count(line) == 1 and len(calls) == 1 and calls[0].endswith("-e .")

    def test_an_installed_torch_is_kept(self, tmp_path):
        output, calls = install(tmp_path, torch_installed="1")
        assert "CPU build" not in output and len(calls) == 1

    def test_an_empty_index_switches_it_off(self, tmp_path):
        output, calls = install(tmp_path, "TORCH_INDEX=")
        assert "CPU build" not in output and len(calls) == 1


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("active", [False, True])
def test_the_demo_ends_with_commands_to_try_as_they_work_in_the_shell(active, tmp_path):
    """With the path of the command, unless the environment is active and finds it."""
    install(tmp_path, "TORCH_INDEX=")
    binaries = tmp_path / "venv" / "bin"
    (binaries / "minip2p").write_text("#!/bin/sh\n")
    (binaries / "minip2p").chmod(0o755)
    environment = {**os.environ, "LOG": str(tmp_path / "log"), "TORCH_INSTALLED": "0", "PROBE": "true"}
    for name in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS"):  # of a make that runs this test
        environment.pop(name, None)
    environment["PATH"] = f"{binaries if active else tmp_path}:{os.environ['PATH']}"
    command = [
        "make",
        "--no-print-directory",
        f"PYTHON={tmp_path / 'python'}",
        f"VENV={tmp_path / 'venv'}",
        "TORCH_INDEX=",
        "demo",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    _, separator, lines = done.stdout.partition("Next, try:\n")
    assert separator and (tmp_path / "log").read_text().splitlines()[-1] == "-m minip2p demo -o out --overwrite"
    for line in lines.splitlines():
        program, *arguments = shlex.split(line)
        assert program == ("minip2p" if active else f"{binaries}/minip2p")
        if arguments != ["--help"]:
            parser().parse_args(arguments)
    assert len(lines.splitlines()) == 5


def test_importing_minip2p_does_not_import_torch_and_takes_less_than_two_seconds():
    start = time.perf_counter()
    output = run_python("import sys, minip2p; print('torch' in sys.modules, minip2p.__version__)")
    assert output.startswith("False ") and time.perf_counter() - start < 2


def test_the_package_is_found_from_the_folder_that_contains_the_checkout():
    """Where the checkout is called minip2p too, its folder must not be taken for the package."""
    assert run_python("import minip2p; print(minip2p.load())", cwd=ROOT.parent).startswith("Pipeline(")


def test_the_command_that_is_installed_can_be_called():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    name, value = config["options.entry_points"]["console_scripts"].strip().split(" = ")
    assert name == "minip2p" and EntryPoint(name, value, "console_scripts").load() is main
