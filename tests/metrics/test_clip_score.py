"""CLIPScore against the logits of transformers; folders that are not a valid CLIP are refused."""

import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_clip import write_clip

from minip2p.metrics.clip_score import ClipScore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_the_score_equals_the_cosine_of_transformers_logits(folder):
    """The logits are cosines times exp(logit_scale). In float32, to 1e-4 of 100."""
    clip, rng = ClipScore(folder), np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    prompts = ["a cat on the beach", "a red car", "a sheep in the forest at night", "a lamp"]
    inputs = clip.processor(text=prompts, images=[Image.fromarray(pixels)], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = clip.model(**inputs).logits_per_image[0] / clip.model.logit_scale.exp()
    scores = [clip(image, prompt) for prompt in prompts]
    assert scores == pytest.approx([100 * max(0.0, float(cosine)) for cosine in logits], abs=1e-4)
    assert max(scores) > 0


def test_clip_inside_is_the_score_of_the_edited_image_with_black_outside_of_the_mask(folder):
    clip, mask = ClipScore(folder), torch.zeros(32, 32, dtype=torch.bool)
    before, after = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mask[8:20, 4:30] = True
    black = after.clone()
    black[:, ~mask] = -1
    assert clip.score(before, after, "a cat", "a dog", mask) == {
        "clip": clip(after, "a dog"),
        "clip_inside": clip(black, "a dog"),
        "clip_before": clip(before, "a dog"),
    }
    assert math.isnan(clip.score(before, after, "a cat", "a dog", None)["clip_inside"])


def test_a_folder_without_a_clip_is_refused_in_one_line(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no CLIP; its folder has model.safetensors"):
        ClipScore(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as a CLIP") as caught:
        ClipScore(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_the_text_files_may_be_written_by_any_editor(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    for file in (tmp_path / "copy").glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert ClipScore(tmp_path / "copy")(image, "a cat") == ClipScore(folder)(image, "a cat")
    (tmp_path / "copy" / "config.json").write_text("{}", encoding="utf-16")
    with pytest.raises(ValueError, match="config.json: is UTF-16 text; save it as UTF-8"):
        ClipScore(tmp_path / "copy")


def test_other_weights_have_another_name_and_missing_weights_are_refused(folder, tmp_path):
    """transformers alone would initialize missing weights at random."""
    shutil.copytree(folder, tmp_path / "other")
    tensors = load_file(folder / "model.safetensors")
    tensors["text_projection.weight"] += 1
    save_file(tensors, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    assert ClipScore(tmp_path / "other").name != ClipScore(folder).name == ClipScore(folder).name
    del tensors["text_projection.weight"]
    save_file(tensors, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="text_projection.weight is missing"):
        ClipScore(tmp_path / "other")
