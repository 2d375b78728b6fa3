"""The fingerprint of a model tells models apart, also those whose weights are equal."""

from dataclasses import replace

import pytest
import torch
from families import PROMPT, copy_folder, update_json

import minip2p
from minip2p.checkpoints.components import RowCounter
from minip2p.sched import DDIMScheduler


@pytest.mark.parametrize(
    "component, fields",
    [
        ("unet", {"attention_head_dim": 4}),
        ("text_encoder", {"hidden_act": "gelu"}),
        ("vae", {"scaling_factor": 0.2}),
    ],
)
def test_a_run_of_a_model_with_another_configuration_is_refused(family, tmp_path, component, fields):
    folder = copy_folder(family("SD 1")[1], tmp_path / "other")
    minip2p.load(family("SD 1")[1]).generate(PROMPT, steps=1).save(tmp_path / "run.safetensors")
    minip2p.load(folder).open(tmp_path / "run.safetensors")
    update_json(folder / component / "config.json", **fields)
    with pytest.raises(ValueError, match="another model"):
        minip2p.load(folder).open(tmp_path / "run.safetensors")


def test_every_setting_that_changes_results_changes_the_fingerprint(model):
    components, unet, vae = model.components, model.unet, model.vae

    def with_config(network, **fields):
        changed = torch.nn.Module()
        changed.__dict__.update(network.__dict__)
        changed.config = replace(network.config, **fields)
        return changed

    schedule = model.scheduler.config
    changed_schedule = replace(schedule, steps_offset=1 - schedule.steps_offset)
    others = [
        replace(components, text=replace(model.text, zero_empty_prompt=not model.text.zero_empty_prompt)),
        replace(components, scheduler=DDIMScheduler(changed_schedule)),
        replace(components, unet=with_config(unet, freq_shift=1)),
        replace(components, unet=with_config(unet, flip_sin_to_cos=not unet.config.flip_sin_to_cos)),
        replace(components, unet=with_config(unet, norm_eps=1e-3)),
        replace(components, unet=with_config(unet, norm_num_groups=1)),
        replace(components, vae=with_config(vae, norm_num_groups=1)),
        replace(components, vae=with_config(vae, shift_factor=0.5)),
    ]
    fingerprints = [each.fingerprint for each in [components, *others]]
    assert len(set(fingerprints)) == len(fingerprints)


@pytest.mark.parametrize("name", ["unet", "vae", "text", "scheduler"])
def test_components_share_networks_only_if_all_four_are_the_same(model, name):
    components = model.components
    assert components.shares_networks(replace(components, counter=RowCounter()))
    assert not components.shares_networks(replace(components, **{name: object()}))


def test_the_latent_size_of_a_picture(model):
    components = model.components
    stride, smallest = model.vae.stride, model.vae.stride * model.unet.stride
    assert components.latent_size((64, 8 * 9)) == (64 // stride, 72 // stride)
    with pytest.raises(ValueError, match=f"of at least {smallest} pixels"):
        components.latent_size((smallest - stride, 64))


def test_decoded_pictures_lie_between_minus_1_and_1(model, device):
    latents = 20 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    picture = model.components.decode(latents.to(device))
    assert picture.min() == -1 and picture.max() == 1
