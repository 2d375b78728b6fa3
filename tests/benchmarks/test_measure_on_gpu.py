"""The measurements on a GPU: the time is obeyed, a failure does not stop what follows, and waits are counted."""

import json
import os
import stat
import subprocess
import sys
import time
import warnings

import pytest
import torch
from paths import ROOT

import minip2p


@pytest.fixture(scope="module")
def gpu():
    """benchmarks/gpu.py as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu

    yield gpu
    sys.path.remove(str(ROOT / "benchmarks"))
    for name in ("gpu", "common", "edit", "invert"):
        del sys.modules[name]


def test_a_section_that_fails_or_does_not_fit_does_not_stop_the_others(gpu, tmp_path, capsys):
    report = gpu.Report(time.time() + 60, tmp_path / "measure.json")

    def fail():
        raise RuntimeError("on different devices")

    report.section("fails", 1, fail)
    report.section("long", 100, fail)
    report.section("fits", 1, lambda: {"seconds": 2.0})
    figures = json.loads((tmp_path / "measure.json").read_text())
    assert figures["fails"]["error"] == "RuntimeError: on different devices"
    assert "test_measure_on_gpu.py" in figures["fails"]["at"][-1]
    assert "do not fit" in figures["long"]["skipped"] and figures["fits"]["seconds"] == 2.0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["section"] == "fits"


def test_a_section_without_its_model_is_skipped(gpu, tmp_path):
    models, report = gpu.Models(), gpu.Report(time.time() + 60, tmp_path / "measure.json")
    report.section("calls", 1, lambda: {"rows": len(models["fp16"].unet.sites)})
    assert json.loads((tmp_path / "measure.json").read_text())["calls"]["skipped"] == "the model fp16 was not built"


def test_a_model_with_two_text_encoders_runs_on_the_device(gpu, device, tmp_path):
    """SDXL's kind, with random weights: latents as on the CPU, to 1e-4 in float32."""
    sizes = {"text_encoder": gpu.SMALL_CLIP, "text_encoder_2": gpu.SMALL_CLIP | {"hidden_size": 128}}
    encoders = [gpu.random_encoder(name, each, "cpu", projects=name[-1] == "2") for name, each in sizes.items()]
    original = gpu.random_pipeline(gpu.SMALL_SDXL, minip2p.load().vae.config, encoders, "cpu")
    original.save(tmp_path / "model")
    latents = []
    for where in ("cpu", str(device)):
        pipe = minip2p.load(tmp_path / "model", device=where)
        run = pipe.generate("a cat", seed=1, steps=2, size=(64, 64))
        latents.append(pipe.edit(run, "a dog", local_blend=("cat", "dog")).latents)
    assert torch.allclose(*latents, atol=1e-4) and torch.isfinite(latents[0]).all()


def test_the_script_names_what_is_wrong_with_its_settings(tmp_path):
    settings = {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "DRY": "1", "SECONDS_LIMIT": "20", "TESTS": "0"}
    wrong = {"OUT": "", "SECONDS_LIMIT": "soon", "TESTS": "some", "PYTHON": "nothere"}
    if not torch.cuda.is_available():
        wrong["DRY"] = ""
    for name, value in wrong.items():
        environment = os.environ | settings | {name: value}
        run = subprocess.run([ROOT / "tools/measure_on_gpu.sh"], env=environment, capture_output=True, text=True)
        assert run.returncode == 2 and run.stderr.count("\n") == 1, (name, run.stderr)
    assert not (tmp_path / "out").exists()


def test_places_that_wait_for_the_gpu_are_counted(gpu, model):
    def attend(q, k, v, site):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return v.mean(-2, keepdim=True).expand_as(q)

    places = gpu.synchronisations(lambda: model.generate("a cat", steps=2, size=(64, 64), attend=attend))
    assert sum(places.values()) == 2 * len(model.unet.sites)
    assert all(place.endswith(tuple("0123456789")) for place in places)


def test_the_script_obeys_its_time_and_leaves_its_log(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\necho "options: $*"\nsleep 1000\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    out = tmp_path / "out"
    environment = os.environ | {"OUT": str(out), "SECONDS_LIMIT": "1", "PYTHON": str(python), "DRY": "1"}
    begin = time.monotonic()
    run = subprocess.run([ROOT / "tools/measure_on_gpu.sh"], env=environment, capture_output=True, text=True)
    assert run.returncode == 124 and time.monotonic() - begin < 20
    assert "--device cpu --small" in (out / "measure.log").read_text()
