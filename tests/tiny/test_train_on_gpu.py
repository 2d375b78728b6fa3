"""The scripts that train on a GPU in a fixed time: what is left when the time is over, and the parts put together."""

import os
import stat
import subprocess
import time

import pytest
from paths import ROOT

# In place of `python -m minip2p.tiny.train`: weights early, then an end, or work without one.
TRAINING = """#!/usr/bin/env bash
while [ $# -gt 0 ]; do case $1 in --work) work=$2 ;; --out) out=$2 ;; --judge-out) judge=$2 ;;
  --distil-out) fast=$2 ;; esac; shift; done
mkdir -p $work/preview/unet $work/unet
head -c 20000000 /dev/urandom > $work/preview/unet/weights; echo first > $work/preview/minip2p.json
echo picture > $work/unet/samples-000500.png; echo training
END
"""
ENDS = {
    "killed": "sleep 1000",
    "complete": "mkdir -p $out/unet $judge; cp $work/preview/unet/weights $out/unet; echo last > $out/minip2p.json; "
    "echo judge > $judge/config.json; mkdir -p $fast/unet $fast/vae; echo fast > $fast/unet/weights; "
    "echo fast > $fast/minip2p.json",
    "failed": "exit 3",
}


@pytest.fixture
def repository(tmp_path):
    """A folder with the scripts and a file in place of the sprites."""
    folder = tmp_path / "repository"
    (folder / "tools").mkdir(parents=True)
    for name in ("train_on_gpu.sh", "join_weights.sh"):
        (folder / "tools" / name).symlink_to(ROOT / "tools" / name)
    (folder / ".train/sprites").mkdir(parents=True)
    (folder / ".train/sprites/sprites.tgz").touch()
    return folder


def train(repository, end, minutes):
    python = repository / "python"
    python.write_text(TRAINING.replace("END", ENDS[end]))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {"OUT": str(repository / "out"), "MINUTES": str(minutes), "PYTHON": str(python)}
    return subprocess.run([repository / "tools/train_on_gpu.sh"], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "end, status, newest", [("killed", 124, "first"), ("complete", 0, "last"), ("failed", 3, "first")]
)
def test_the_time_is_obeyed_and_the_newest_weights_are_there(end, status, newest, repository):
    begin = time.monotonic()
    run = train(repository, end, minutes=0.05)
    assert run.returncode == status, run.stderr
    assert time.monotonic() - begin < 30 and (end != "killed" or time.monotonic() - begin >= 3)
    parts = sorted((repository / "out").iterdir())
    expected = ["log.txt", "samples.png", "weights.sha256", "weights.tgz.00", "weights.tgz.01"]
    assert [part.name for part in parts] == expected
    assert max(part.stat().st_size for part in parts) <= 16 * 1024**2
    assert "training" in (repository / "out/log.txt").read_text()
    joined = repository / "joined"
    subprocess.run([repository / "tools/join_weights.sh", repository / "out", joined], check=True)
    assert (joined / "tiny/minip2p.json").read_text() == f"{newest}\n"
    assert (joined / "tiny/unet/weights").stat().st_size == 20_000_000
    assert (joined / "judge").exists() == (joined / "tiny-fast/unet/weights").exists() == (end == "complete")
    assert not (joined / "tiny-fast/vae").exists()  # it is that of tiny


def test_parts_that_do_not_fit_are_refused(repository):
    train(repository, "failed", minutes=0.05)
    (repository / "out/weights.tgz.01").unlink()
    command = [repository / "tools/join_weights.sh", repository / "out", repository / "joined"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and "one is missing or damaged" in run.stderr and not (repository / "joined").exists()


def test_without_sprites_nothing_starts(repository):
    (repository / ".train/sprites/sprites.tgz").unlink()
    run = train(repository, "complete", minutes=0.05)
    assert run.returncode == 2 and "sprites are missing" in run.stderr
