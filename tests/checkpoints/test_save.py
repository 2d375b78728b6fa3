"""A saved model opens here and in diffusers, and a failed save leaves nothing."""

import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import DiffusionPipeline
from families import FAMILIES, same_models, same_tensors
from safetensors.torch import load_file

import minip2p


@pytest.mark.parametrize("name", FAMILIES)
def test_diffusers_opens_a_saved_model_with_the_right_pipeline(family, tmp_path, name):
    minip2p.load(family(name)[1]).save(tmp_path / "saved")
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "saved")) is type(family(name)[0])


@pytest.mark.parametrize("name", ["SD 1", "SD 2, v", "SDXL Turbo"])
def test_a_saved_model_is_the_same_here_and_in_diffusers(family, tmp_path, name):
    """From a single file, with another default guidance."""
    pipe, folder, file = family(name)
    model = replace(minip2p.load(file, config=folder), default_guidance=3.0)
    model.save(tmp_path / "saved")
    opened = minip2p.load(tmp_path / "saved")
    assert same_models(opened, model)
    assert opened.default_guidance == 3.0 and opened.scheduler.config == model.scheduler.config
    assert opened.text.zero_empty_prompt == model.text.zero_empty_prompt
    expected = type(pipe).from_pretrained(tmp_path / "saved")
    assert same_tensors(model.unet, expected.unet) and same_tensors(model.vae, expected.vae)
    for component, encoder in model.text.encoders.items():
        assert same_tensors(encoder, getattr(expected, component), may_lack=["position_ids"])
    configs = [{key: value for key, value in p.scheduler.config.items() if key[0] != "_"} for p in (pipe, expected)]
    assert configs[0] == configs[1]


def test_a_model_is_saved_in_its_own_dtype(family, tmp_path):
    half = minip2p.load(family("SDXL Turbo")[1], dtype=torch.bfloat16)
    half.save(tmp_path / "half")
    assert load_file(tmp_path / "half/unet/diffusion_pytorch_model.safetensors")["conv_in.bias"].dtype == torch.bfloat16
    assert same_models(minip2p.load(tmp_path / "half", dtype=torch.bfloat16), half)


def test_an_existing_folder_is_not_overwritten(family, tmp_path):
    (tmp_path / "saved").mkdir()
    with pytest.raises(FileExistsError, match="saved: already exists: choose another name"):
        minip2p.load(family("SD 1")[1]).save(tmp_path / "saved")
    assert not list((tmp_path / "saved").iterdir())


def test_a_failed_save_leaves_nothing(family, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError("no room")

    model = minip2p.load(family("SD 1")[1])
    monkeypatch.setattr(shutil, "copytree", fail)
    with pytest.raises(OSError, match="no room"):
        model.save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_a_complete_save_leaves_no_temporary_folder(family, tmp_path):
    minip2p.load(family("SD 1")[1]).save(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
