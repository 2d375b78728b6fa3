"""The settings of a run as text, as other tools write them into PNG files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minip2p.checkpoints.origin import CheckpointOrigin
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.metadata import parameters, quote_value


@pytest.fixture(scope="module")
def run(model):
    return model.generate("a cat on the beach", seed=7, steps=2, size=(64, 72))


def test_the_settings_of_a_run(run):
    expected = "a cat on the beach\nSteps: 2, Sampler: DDIM, CFG scale: 4.0, Seed: 7, Size: 72x64, Model: tiny"
    assert parameters(run) == expected


def test_a_negative_prompt_has_a_line_of_its_own(run):
    lines = parameters(replace(run, negative_prompt="fog, rain")).split("\n")
    assert len(lines) == 3 and lines[1] == "Negative prompt: fog, rain"


def test_given_latents_and_photographs_have_no_seed(run):
    assert "Seed" not in parameters(replace(run, seed=None))


def test_an_edit_names_its_source(model, run):
    edit = model.edit(run, "a dog on the beach", cross_replace=0, self_replace=0)
    text = parameters(edit, Method="swap, refine", Weight=2)
    assert text.startswith("a dog on the beach\n")
    assert text.endswith('Model: tiny, Source: a cat on the beach, Method: "swap, refine", Weight: 2')


def test_the_method_of_an_inversion_is_named_in_its_run_and_in_edits_of_it(model, run):
    inverted = replace(run, seed=None, inversion="ddim")
    assert parameters(inverted).endswith("Model: tiny, Method: ddim")
    edit = model.edit(inverted, "a dog on the beach", cross_replace=0, self_replace=0)
    assert parameters(model.edit(edit, "a dog on the grass")).endswith("Source: a dog on the beach, Method: ddim")


def test_steps_with_noise_are_ddpms_and_ddcms_where_it_replaces_the_old_noise(run):
    noise = torch.zeros_like(run.latents[1:])
    noisy, fresh = (replace(run, conditioning=Conditioning(variance_noise=noise, eta=eta)) for eta in (None, 1.0))
    assert "Sampler: DDPM" in parameters(noisy) and "Sampler: DDIM" in parameters(run)
    assert "Sampler: LCM" in parameters(fresh)
    virtual = replace(fresh, conditioning=replace(fresh.conditioning, source_guidance_scale=1.0))
    assert "Sampler: DDCM" in parameters(virtual)
    assert parameters(virtual).endswith("Eta: 1.0, Source CFG scale: 1.0") and "Eta" not in parameters(fresh)


def test_another_dtype_and_the_files_of_the_model_are_named(run):
    labels = {"Model": "tiny", "VAE": "a:b", "LoRA": "style"}
    components = replace(run.components, origin=CheckpointOrigin({"unet": Path("x")}, labels))
    assert parameters(replace(run, components=components)).endswith('Model: tiny, VAE: "a:b", LoRA: style')
    half = replace(components, unet=torch.nn.Module())
    half.unet.conv_in = torch.nn.Conv2d(4, 4, 1, dtype=torch.bfloat16)
    assert parameters(replace(run, components=half)).endswith("LoRA: style, Dtype: bfloat16")


@pytest.mark.parametrize(
    "value, text",
    [
        (4.0, "4.0"),
        ("a cat", "a cat"),
        ("a, b", '"a, b"'),
        ("a: b", '"a: b"'),
        ('a "b"', '"a \\"b\\""'),
        ("a\nb ü", '"a\\nb ü"'),
        ((1, 2), '"(1, 2)"'),
    ],
)
def test_values_with_separators_are_json_strings(value, text):
    assert quote_value(value) == text


def test_approximations_are_named(run):
    conditioning = replace(run.conditioning, guidance_interval=(0.1, 0.8), uncond_every=2)
    text = parameters(replace(run, conditioning=conditioning))
    assert "Seed: 7, Guidance interval: 0.1-0.8, Unconditional every: 2, Size" in text


def test_clip_skip_is_named_unless_it_is_1(run):
    assert "Clip skip" not in parameters(run)
    assert "Seed: 7, Clip skip: 2, Size" in parameters(replace(run, clip_skip=2))
