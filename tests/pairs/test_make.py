"""Making pairs: a run that is killed and shards that are joined end with the bytes of one run; the command."""

import os
import sys

import pytest
from command_line import error_line, run, run_python
from kills import Killed, kill_at_replacement
from paths import ROOT

from minip2p.pairs.make import make_pairs, unit_file, unit_rows, write_dataset
from minip2p.pairs.prompts import read_prompts
from minip2p.pairs.settings import PairSettings
from minip2p.sweeps.shards import Shard

PROMPTS = ROOT / "tests" / "data" / "pairs.jsonl"
FORMATS = ["parquet", "imagefolder", "webdataset"]
QUICK = PairSettings(samples=1, steps=1, size=(64, 64), noises=1, least={"psnr": None})


def contents(folder):
    """The bytes of every file, by its path inside of the folder, without those that a killed process left half."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial"]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def make(pipe, folder, **options):
    units = read_prompts(PROMPTS)
    make_pairs(pipe, units, QUICK, folder, **options)
    return write_dataset(folder, units, FORMATS) if options.get("shard") is None else None


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    make(model, folder)
    return contents(folder)


def test_killed_at_any_file_it_ends_with_the_same_bytes(model, expected, tmp_path, monkeypatch):
    for moment in (1, 3, len(expected) - 1):  # the first unit, the data set, its last file
        with monkeypatch.context() as patches, pytest.raises(Killed):
            kill_at_replacement(patches, moment)
            make(model, tmp_path / str(moment))
        assert contents(tmp_path / str(moment)) != expected
        make(model, tmp_path / str(moment))
        assert contents(tmp_path / str(moment)) == expected


def test_killed_at_three_random_moments_it_ends_with_the_same_bytes(expected, tmp_path):
    """SIGKILL of processes that share the loaded model, each in a folder that the one before it left."""
    code = (
        "import os, random, signal, sys, time\n"
        f"sys.path.insert(0, {str(ROOT / 'tests' / 'pairs')!r})\n"
        "from pathlib import Path\n"
        "import minip2p, test_make\n"
        f"model, folder = minip2p.load(), Path({str(tmp_path / 'killed')!r})\n"
        "start = time.monotonic(); test_make.make(model, Path(str(folder) + '-timed'))\n"
        "seconds, rng, ends = time.monotonic() - start, random.Random(7), []\n"
        "for _ in range(3):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        test_make.make(model, folder); os._exit(0)\n"
        "    time.sleep(rng.uniform(0.05, 0.6) * seconds); os.kill(child, signal.SIGKILL)\n"
        "    ends.append(os.waitpid(child, 0)[1] == signal.SIGKILL)\n"
        "test_make.make(model, folder)\n"
        "print(ends)"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    output = run_python(code, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths})
    assert output.startswith("[True") and contents(tmp_path / "killed") == contents(tmp_path / "killed-timed")
    assert contents(tmp_path / "killed").keys() == expected.keys()


def test_shards_joined_are_one_run_to_the_byte(model, expected, tmp_path):
    units, first, second = read_prompts(PROMPTS), tmp_path / "one", tmp_path / "two"
    make(model, first, shard=Shard(1, 2))
    with pytest.raises(ValueError, match=r"one: 1 of 2 results are missing, such as that of 'a red car on the street'"):
        make(model, first, join=[])
    make(model, second, shard=Shard(2, 2))
    assert unit_file(second, units[1]).exists() and not unit_file(second, units[0]).exists()
    make(model, first, join=[second])
    assert contents(first) == expected
    other = PairSettings(samples=1)
    with pytest.raises(
        ValueError, match=r"two: holds pairs of other prompts, settings or another model \(of other set"
    ):
        make_pairs(model, units, other, tmp_path / "new", join=[second])
    assert not (tmp_path / "new").exists()


def test_a_unit_is_finished_or_missing(model, expected, tmp_path, monkeypatch):
    """What is finished is not made again."""
    units = read_prompts(PROMPTS)
    make(model, tmp_path)
    unit_file(tmp_path, units[1]).unlink()
    made_units = []
    monkeypatch.setattr(
        "minip2p.pairs.make.unit_rows",
        lambda pipe, unit, *more: made_units.append(unit) or unit_rows(pipe, unit, *more),
    )
    make(model, tmp_path)
    assert made_units == units[1:] and contents(tmp_path) == expected


def test_the_command(tmp_path, capsys):
    command = "pairs", PROMPTS, "-o", tmp_path, "--samples", 1, "--steps", 1, "--size", "64x64", "--noises", 1
    command += "--least", "none", "--masks", "none,box", "--for", "style:masks=none", "--for", "edit:keep=2"
    assert run(*command, "--shard", "1/2") == 0
    assert capsys.readouterr().out == "shard 1/2: 1 of 2 sources; --join writes the tables of all shards\n"
    assert run(*command, "--format", "webdataset,parquet") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "edit: 2 pairs of 1 edits, from 2 candidates",
        "object: 1 pairs of 1 edits, from 2 candidates",
        "style: 1 pairs of 1 edits, from 1 candidates",
        "all: 4 pairs of 3 edits, from 5 candidates",
    ]
    names = "webdataset/train-00000-of-00001.tar", "data/train-00000-of-00001.parquet", "candidates.csv"
    assert lines[4:] == [str(tmp_path / name) for name in names]
    assert (tmp_path / "candidates.csv").read_text().count("\n") == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--least", "psnr"), "--least is none or SCORE=VALUE"),
        (("--least", "psnr=x"), "--least psnr=x: the value must be a number or none"),
        (("--least", "clip_image=.5"), "--least has clip_image, which needs a CLIP"),
        (("--for", "style:samples=2"), "--for is KIND:NAME=VALUE, as style:masks=none"),
        (("--for", "colour:masks=none"), "is of this kind; there are "),
        (("--for", "style:keep=x"), "--for style:keep=x: the value must be a number"),
        (("--cross-range", ".1:.2:.3"), "--cross-range is a range as .1:.9"),
        (("--masks", "none,ring"), "--masks are none, tight, grown, box"),
        (("--mask-threshold", "x"), "--mask-threshold is a number in 0 to 1"),
        (("--clip", "none"), "none: no CLIP"),
        (("--size", "100x100"), "--size must be two multiples of 8"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(arguments, message, tmp_path, capsys):
    assert message in error_line(capsys, "pairs", PROMPTS, *arguments, "-o", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_one_line(monkeypatch, capsys):
    for name in ("minip2p.pairs.dataset", "minip2p.pairs.make"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(name, raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert error_line(capsys, "pairs", PROMPTS) == "pairs need pyarrow: pip install 'minip2p[sweep]'"
