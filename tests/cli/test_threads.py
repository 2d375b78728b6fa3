"""The number of threads that the command line chooses, and how they wait."""

import os
import subprocess
import sys

import pytest
import torch
from paths import ROOT

from minip2p.cli import main, threads
from minip2p.errors import Notice


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT"])
def test_threads_wait_passively_unless_the_user_says_otherwise(name):
    environment = {}
    threads.wait_passively(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    chosen = {name: "x"}
    threads.wait_passively(chosen)
    assert chosen == {name: "x"}


def test_the_policy_is_set_before_torch_is_imported():
    """In a process, as a program runs: importing the command line imports neither torch nor sets anything."""
    code = (
        "import os, sys; import minip2p.cli.main as m; "
        "assert 'torch' not in sys.modules and 'OMP_WAIT_POLICY' not in os.environ; "
        "sys.argv = ['minip2p', 'words']; m.main(); print(os.environ['OMP_WAIT_POLICY'])"
    )
    names = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | {"PYTHONPATH": str(ROOT)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.splitlines()[-1] == "PASSIVE"


def test_calling_main_from_python_leaves_the_process_as_it_is(monkeypatch, capsys):
    for name in ("wait_passively", "choose_threads"):
        monkeypatch.setattr(main, name, lambda: pytest.fail("called"))
    assert main.main(["words"]) == 0


@pytest.mark.parametrize(
    "seconds, best",
    [
        ({4: 1.0, 2: 1.4, 1: 2.0}, 4),
        ({4: 1.0, 2: 0.9, 1: 0.8}, 4),
        ({4: 9.0, 2: 3.0, 1: 2.5}, 2),
        ({2: 90.0, 1: 1.0}, 1),
    ],
)
def test_fewer_threads_are_chosen_only_where_they_are_much_faster(seconds, best):
    assert threads.fastest(seconds) == best


def test_halves():
    assert threads.halves(8) == [4, 2, 1] and threads.halves(6) == [3, 1] and threads.halves(1) == []


@pytest.fixture
def two_threads(monkeypatch):
    for name in threads.THREADS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "seconds, load, number, text",
    [
        ({2: 90.0, 1: 1.0}, 8.0, 1, r"busy \(load 8.0 on 2 cores\).* computing with 1 of 2 threads"),
        ({2: 1.0, 1: 1.6}, 8.0, 2, r"busy \(load 8.0 on 2 cores\).* computing with 2 threads"),
        ({2: 1.0, 1: 1.6}, 0.5, 2, None),
    ],
)
def test_a_busy_machine_is_named(two_threads, monkeypatch, recwarn, seconds, load, number, text):
    monkeypatch.setattr(threads, "measure", lambda numbers: seconds)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0, 0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    if text is None:
        threads.choose_threads()
        assert not recwarn.list
    else:
        with pytest.warns(Notice, match=text):
            threads.choose_threads()
    assert torch.get_num_threads() == number


def test_the_users_number_is_not_measured(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(threads, "measure", lambda numbers: pytest.fail("measured"))
    threads.choose_threads()


def test_measuring_leaves_the_number_as_it_was(two_threads, monkeypatch):
    monkeypatch.setattr(threads, "SECONDS", 0.001)
    seconds = threads.measure([2, 1])
    assert torch.get_num_threads() == 2 and all(0 < value < 60 for value in seconds.values())
