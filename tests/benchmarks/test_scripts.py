"""The benchmarks of the model that ships, each once through, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def said(folder, script, *options):
    """The JSON of a benchmark's last line, run beside the checkout."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *options],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_reconstruction_by_directs_offsets_meets_the_vaes_own_picture(tmp_path):
    """Direct inversion's offsets, rolled out, end at the picture's latents; nothing else that edits nothing does better
    than the VAE, and what is done is not done again."""
    found = said(tmp_path, "reconstruct.py", "--count", "1", "--steps", "3")
    assert found["pictures"] == 1
    for w in ("4", "7.5"):
        assert found[f"direct_psnr_{w}"] == pytest.approx(found[f"vae_psnr_{w}"], abs=0.01)
        assert found[f"ddim_psnr_{w}"] < found[f"null-text_psnr_{w}"] < found[f"vae_psnr_{w}"] + 0.5
    (row,) = (tmp_path / "out" / "reconstruct" / "3-4").iterdir()
    kept = json.loads(row.read_text())
    row.write_text(json.dumps({**kept, "ddim": {**kept["ddim"], "psnr": 1.0}}))
    assert said(tmp_path, "reconstruct.py", "--count", "1", "--steps", "3")["ddim_psnr_4"] == 1.0


def test_masks_beside_the_truth(tmp_path):
    found = said(tmp_path, "masks.py", "--count", "2", "--steps", "4")
    assert found["pictures"] == 2 and found["stride 1, smooth, Otsu"] > found["recipe at stride 2"] + 0.1
    assert (tmp_path / "out" / "masks.png").exists()


def test_what_carries_a_picture(tmp_path):
    """With the seed, both maps keep more of the structure than nothing does."""
    found = said(tmp_path, "carries.py", "--count", "1", "--steps", "4")
    assert found["seed, both maps, structure"] < found["nothing, structure"]
    assert found["τ 1, structure"] < found["τ 0, structure"] and found["cases"] == 1
