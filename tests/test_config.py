"""Configurations: diffusers' own are read completely, and what cannot be honoured is one clear line."""

import json
from dataclasses import asdict

import pytest
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from parity import SD15_UNET, SD15_VAE, on_meta

from minip2p.config import SamplingDefaults, SchedulerConfig, UNetConfig, VAEConfig

SD15_SCHEDULER = dict(
    _class_name="PNDMScheduler",
    _diffusers_version="0.6.0",
    beta_end=0.012,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    clip_sample=False,
    num_train_timesteps=1000,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
    trained_betas=None,
)


def test_the_published_configurations_are_read_completely():
    expanded = on_meta(UNet2DConditionModel, **SD15_UNET).config
    unet = UNetConfig.from_dict(SD15_UNET)
    assert UNetConfig.from_dict(dict(expanded)) == unet
    assert unet.cross_attention_dim == 768 and unet.sample_size == 64
    assert VAEConfig.from_dict(dict(on_meta(AutoencoderKL, **SD15_VAE).config)) == VAEConfig.from_dict(SD15_VAE)
    scheduler = SchedulerConfig.from_dict(SD15_SCHEDULER)
    assert scheduler == SchedulerConfig.from_dict(dict(DDIMScheduler.from_config(SD15_SCHEDULER).config))
    assert (scheduler.beta_start, scheduler.beta_end) == (0.00085, 0.012)
    assert (scheduler.steps_offset, scheduler.set_alpha_to_one) == (1, False)


@pytest.mark.parametrize(
    "config_class, diffusers_class, exceptions",
    [
        (UNetConfig, UNet2DConditionModel, {}),
        (VAEConfig, AutoencoderKL, {}),
        # diffusers' default clips, which no latent model does; a folder that does not mention it does not clip.
        (SchedulerConfig, DDIMScheduler, {"clip_sample": False}),
    ],
)
def test_the_defaults_are_those_of_diffusers(config_class, diffusers_class, exceptions):
    default = on_meta(diffusers_class).config
    assert config_class.from_dict(dict(default) | exceptions) == config_class()
    assert set(asdict(config_class())) <= set(default)


@pytest.mark.parametrize(
    "config_class, fields, message",
    [
        (UNetConfig, {"frobnicate": 3}, "frobnicate = 3 is not a field that minip2p knows"),
        (UNetConfig, {"class_embed_type": "timestep"}, "class_embed_type = 'timestep' is not a field"),
        (UNetConfig, {"act_fn": "gelu"}, "act_fn = 'gelu' is not supported, only 'silu' is"),
        (UNetConfig, {"mid_block_type": None}, "mid_block_type = None is not supported"),
        (UNetConfig, {"resnet_time_scale_shift": "scale_shift"}, "only 'default' is"),
        (
            UNetConfig,
            {"_class_name": "UNetMotionModel"},
            "'UNetMotionModel', and only UNet2DConditionModel is supported",
        ),
        (VAEConfig, {"_class_name": "AutoencoderTiny"}, "is of the class 'AutoencoderTiny', and only AutoencoderKL is"),
        (VAEConfig, {"mid_block_add_attention": False}, "mid_block_add_attention = False is not supported"),
        (VAEConfig, {"latents_std": [1, 2, 3, 4]}, "latents_std = .* is not a field"),
        (SchedulerConfig, {"clip_sample": True}, "clip_sample = True is not supported, only False is"),
        (SchedulerConfig, {"thresholding": True}, "thresholding = True is not supported"),
        (SchedulerConfig, {"rescale_betas_zero_snr": True}, "needs a model that predicts v, but .* is 'epsilon'"),
        (SchedulerConfig, {"trained_betas": [0.1]}, "trained_betas = .* is not supported, only None is"),
        (UNetConfig, {"layers_per_block": 10**6}, "there are more than 100 levels, or layers in a block"),
        (VAEConfig, {"layers_per_block": 10**6}, "there are more than 100 levels, or layers in a block"),
        (UNetConfig, {"sample_size": 10**5}, "sample_size is more than 1024 latents a side"),
        (SchedulerConfig, {"prediction_type": "sample"}, "'sample' is not one of epsilon, v_prediction"),
        (SchedulerConfig, {"beta_schedule": "squaredcos_cap_v2"}, "is not one of linear, scaled_linear"),
        (SchedulerConfig, {"timestep_spacing": "random"}, "is not one of leading, trailing, linspace"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_an_error(tmp_path, config_class, fields, message):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=message) as error:
        config_class.read(tmp_path / "config.json")
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config_class, fields",
    [
        (UNetConfig, {"block_out_channels": ["a", "b", "c", "d"]}),
        (UNetConfig, {"block_out_channels": [], "down_block_types": [], "up_block_types": []}),
        (UNetConfig, {"sample_size": [16]}),
        (UNetConfig, {"sample_size": 0}),
        (UNetConfig, {"sample_size": -4}),
        (UNetConfig, {"layers_per_block": True}),
        (UNetConfig, {"frobnicate": 0}),
        (VAEConfig, {"down_block_types": [[1]]}),
        (VAEConfig, {"scaling_factor": 0}),
        (SchedulerConfig, {"beta_start": -1.0}),
        (SchedulerConfig, {"beta_end": 5.0}),
        (SchedulerConfig, {"steps_offset": -3}),
        (SchedulerConfig, {"steps_offset": 500}),
        (SchedulerConfig, {"num_train_timesteps": 0}),
        (SamplingDefaults, {"guidance": float("inf")}),
    ],
)
def test_invalid_values_are_refused_with_a_line_that_names_the_file(config_class, fields):
    with pytest.raises(ValueError, match="^file.json: "):
        config_class.from_dict(fields, "file.json")


@pytest.mark.parametrize(
    "config_class, fields",
    [
        (UNetConfig, {"addition_embed_type_num_heads": 64, "_any": 3, "num_class_embeds": None}),
        (VAEConfig, {"sample_size": 512, "force_upcast": True, "latents_mean": None}),
        (SchedulerConfig, {"clip_sample_range": 1.0, "final_sigmas_type": "zero", "skip_prk_steps": True}),
    ],
)
def test_a_field_that_changes_nothing_is_accepted(config_class, fields):
    assert config_class.from_dict(fields) == config_class()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json: no such file"):
        UNetConfig.read(tmp_path / "config.json")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"[1]", "found list"),
        (b"\xff\xfe{", "config.json: is UTF-16 text; save it as UTF-8"),
        (b"[" * 200_000, "cannot be read as JSON"),
        (b'{"a": ' + b"1" * 6000 + b"}", "cannot be read as JSON"),
    ],
    ids=["empty", "cut off", "a list", "UTF-16", "too deep", "too many digits"],
)
def test_a_file_that_is_not_a_json_object_is_one_clear_line(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        UNetConfig.read(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
