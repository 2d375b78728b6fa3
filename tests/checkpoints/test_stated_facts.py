"""What a single file states is heard: its prediction type in every spelling, its noise schedule, and a .yaml beside."""

import sys
from unittest.mock import patch

import pytest
import torch
import yaml
from families import copy_folder, update_json
from safetensors.torch import load_file, save_file

import minip2p
from minip2p.checkpoints import single_file
from minip2p.checkpoints.single_file import SingleFile
from minip2p.checkpoints.stated_facts import (
    ARCHITECTURES,
    PREDICTION_TYPES,
    TELLING_WEIGHT,
    V_SPREAD,
    check_schedule,
    guess_prediction_type,
    read_facts,
)
from minip2p.config import SchedulerConfig
from minip2p.errors import Notice
from minip2p.sched import DDIMScheduler

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V_ZERO_SNR = BETAS | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
MARKER = torch.zeros(0)


def schedule(fields):
    return DDIMScheduler(SchedulerConfig.from_dict(fields)).alphas_cumprod.clone()


def buffers(alphas):
    """The noise schedule by the names that files have it under."""
    return {
        "alphas_cumprod": alphas,
        "betas": 1 - alphas / torch.cat([torch.ones(1), alphas[:-1]]),
        "denoiser.sigmas": ((1 - alphas) / alphas).sqrt(),
    }


def facts(tmp_path, tensors=None, **metadata):
    return read_facts(tmp_path / "model.safetensors", tensors or {}, metadata)


@pytest.mark.parametrize("spelling", [*PREDICTION_TYPES, "V-Prediction", " EPS ", "v prediction"])
def test_every_spelling_of_the_prediction_type_in_use(tmp_path, spelling):
    expected = "v_prediction" if spelling.strip().lower().startswith("v") else "epsilon"
    assert facts(tmp_path, **{"modelspec.prediction_type": spelling}).prediction_type == expected


@pytest.mark.parametrize("value", ["sample", "x0", "flow", "3"])
def test_another_prediction_type_is_one_clear_line(tmp_path, value):
    message = f"model.safetensors: modelspec.prediction_type of its metadata is '{value}': minip2p knows epsilon and v_"
    with pytest.raises(ValueError, match=message):
        facts(tmp_path, **{"modelspec.prediction_type": value})


def test_nothing_stated_is_nothing(tmp_path):
    for metadata in ({}, {"modelspec.prediction_type": ""}):
        stated = facts(tmp_path, **metadata)
        assert (stated.prediction_type, stated.is_zero_snr, stated.betas) == (None, False, {})


def test_the_architecture_of_stable_diffusion_2_states_what_it_predicts(tmp_path):
    """As modelspec names them, where nothing else states it; the architecture of a model of both kinds does not."""
    for name, expected in ARCHITECTURES.items():
        assert facts(tmp_path, **{"modelspec.architecture": name}).prediction_type == expected
    assert ARCHITECTURES["stable-diffusion-v2-768-v"] == "v_prediction"
    assert facts(tmp_path, **{"modelspec.architecture": "stable-diffusion-xl-v1-base"}).prediction_type is None
    both = {"modelspec.architecture": "stable-diffusion-v2-512", "modelspec.prediction_type": "v"}
    assert facts(tmp_path, **both).prediction_type == "v_prediction"


def test_the_markers_of_comfyui(tmp_path):
    assert facts(tmp_path, {"v_pred": MARKER}).prediction_type == "v_prediction"
    assert not facts(tmp_path, {"v_pred": MARKER}).is_zero_snr
    assert facts(tmp_path, {"v_pred": MARKER, "ztsnr": MARKER}).is_zero_snr


@pytest.mark.parametrize("last, expected", [(0.0, True), (2**-24, True), (1e-5, False), (0.0047, False)])
def test_a_schedule_ends_without_signal_at_0_or_the_tiny_number_that_stands_for_it(tmp_path, last, expected):
    """diffusers' Euler schedulers write 2^-24. That of Stable Diffusion ends at 0.0047."""
    assert facts(tmp_path, {"alphas_cumprod": torch.tensor([0.999, last])}).is_zero_snr == expected


def test_contradictory_statements_are_one_clear_line(tmp_path):
    message = "its metadata states epsilon and its tensor v_pred states v_prediction: remove the wrong one"
    with pytest.raises(ValueError, match=message):
        facts(tmp_path, {"v_pred": MARKER}, **{"modelspec.prediction_type": "epsilon"})


# In a model


def tokenizers(folder, tmp_path):
    """A folder with the tokenizers of a model alone."""
    for name in ("tokenizer", "tokenizer_2"):
        if (folder / name).is_dir():
            copy_folder(folder / name, tmp_path / "small" / name)
    return tmp_path / "small"


def test_the_markers_make_a_model_of_v_and_zero_snr(family, tmp_path):
    """It is sampled from its last timestep, where there is no signal, as its training demands."""
    _, folder, file = family("SDXL")
    save_file(load_file(file) | {"v_pred": MARKER, "ztsnr": MARKER}, tmp_path / "v.safetensors")
    model = minip2p.load(tmp_path / "v.safetensors", config=tokenizers(folder, tmp_path))
    config = model.scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert model.scheduler.steps(10)[0].t == 999 and model.scheduler.steps(10)[0].alpha_cumprod == 0
    assert model.default_guidance == 5.0
    with pytest.raises(ValueError, match="prediction_type is 'epsilon', but .*v.safetensors states 'v_prediction'"):
        minip2p.load(tmp_path / "v.safetensors", config=folder)
    folder = copy_folder(folder, tmp_path / "v")
    update_json(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    with pytest.raises(ValueError, match="rescale_betas_zero_snr is False, but .*v.safetensors states True"):
        minip2p.load(tmp_path / "v.safetensors", config=folder)
    update_json(folder / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True)
    assert minip2p.load(tmp_path / "v.safetensors", config=folder).scheduler.config.rescale_betas_zero_snr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_files_own_schedule_that_ends_without_signal_is_taken(family, tmp_path, dtype):
    _, folder, file = family("SD 1")
    tensors = load_file(file) | {"alphas_cumprod": schedule(V_ZERO_SNR).to(dtype)}
    path, small = tmp_path / "v.safetensors", tokenizers(folder, tmp_path)
    save_file(tensors, path, {"modelspec.prediction_type": "v"})
    assert minip2p.load(path, config=small).scheduler.config.rescale_betas_zero_snr
    save_file(tensors, path)
    with pytest.raises(ValueError, match="zero terminal SNR.* needs a model that predicts v, but .* is 'epsilon'"):
        minip2p.load(path, config=small)


@pytest.mark.parametrize("name", ["alphas_cumprod", "betas", "denoiser.sigmas"])
@pytest.mark.parametrize("beta_end", [0.0119, 0.014])
def test_another_schedule_in_the_file_is_one_clear_line(tmp_path, name, beta_end):
    config, tensors = SchedulerConfig.from_dict(BETAS), buffers(schedule(BETAS | {"beta_end": beta_end}))
    file = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=rf"its own noise schedule \({name}\) is not the one of folder") as error:
        check_schedule(file, {name: tensors[name]}, config, "folder")
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)
    check_schedule(file, {name: tensors[name]}, SchedulerConfig.from_dict(BETAS | {"beta_end": beta_end}), "folder")


def test_a_schedule_of_another_length_is_another_schedule(tmp_path):
    with pytest.raises(ValueError, match="its own noise schedule"):
        config = SchedulerConfig.from_dict(BETAS)
        check_schedule(tmp_path / "a", {"alphas_cumprod": schedule(BETAS)[:10]}, config, "folder")


@pytest.mark.parametrize("name", ["alphas_cumprod", "betas", "denoiser.sigmas"])
def test_a_marked_model_may_have_the_schedule_from_before_the_rescaling(tmp_path, name):
    """ComfyUI's ztsnr decides there; a schedule that is neither one stays an error."""
    config = SchedulerConfig.from_dict(V_ZERO_SNR)
    for fields in (BETAS, V_ZERO_SNR):
        check_schedule(tmp_path / "a", {name: buffers(schedule(fields))[name]}, config, "folder")
    with pytest.raises(ValueError, match=rf"its own noise schedule \({name}\) is not the one of folder"):
        check_schedule(tmp_path / "a", {name: buffers(schedule(BETAS | {"beta_end": 0.013}))[name]}, config, "folder")
    with pytest.raises(ValueError, match=rf"its own noise schedule \({name}\) is not the one of folder"):
        ordinary = SchedulerConfig.from_dict(BETAS)
        check_schedule(tmp_path / "a", {name: buffers(schedule(V_ZERO_SNR))[name]}, ordinary, "folder")


@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 1e-3), (torch.float16, 1e-2)])
def test_how_exactly_a_schedule_is_compared(tmp_path, dtype, allowed):
    """A part of each value, by the dtype of the file: σ, whose values are far from the absolute tolerance of 1e-6."""
    config, sigmas = SchedulerConfig.from_dict(BETAS), buffers(schedule(BETAS))["denoiser.sigmas"].double()
    check_schedule(tmp_path / "a", {"denoiser.sigmas": (sigmas * (1 + 0.9 * allowed)).float().to(dtype)}, config, "x")
    with pytest.raises(ValueError, match="its own noise schedule"):
        check_schedule(
            tmp_path / "a", {"denoiser.sigmas": (sigmas * (1 + 1.2 * allowed)).float().to(dtype)}, config, "x"
        )
    check_schedule(tmp_path / "a", {"denoiser.sigmas": sigmas.flip(0)}, config, "x")


# A guess


@pytest.mark.parametrize(
    "channels, spread, expected", [(4, 1.1, "v_prediction"), (4, 0.9, "epsilon"), (9, 1.1, "epsilon")]
)
def test_what_a_stable_diffusion_2_predicts_is_guessed_aloud_by_a_weight(tmp_path, channels, spread, expected):
    """As in ComfyUI: its weight and its limit. A standard deviation of all numbers, not of a sample."""
    weight = torch.tensor([1.0, -1.0]) * spread * V_SPREAD
    tensors = {TELLING_WEIGHT: weight, "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, channels, 3, 3)}
    with pytest.warns(Notice, match=f"a.safetensors: does not state what it predicts; {expected} is guessed"):
        assert guess_prediction_type(tmp_path / "a.safetensors", tensors) == expected
    assert V_SPREAD == 0.09
    for name in tensors:
        assert guess_prediction_type(tmp_path / "a", {n: t for n, t in tensors.items() if n != name}) is None


def test_a_folder_with_the_scheduler_alone_says_what_a_stable_diffusion_2_predicts(family, tmp_path):
    """Which the size of its pictures depends on as well: 96 latents where it predicts v."""
    _, folder, file = family("SD 2, v")
    small = tokenizers(folder, tmp_path)
    copy_folder(folder / "scheduler", small / "scheduler")
    model = minip2p.load(file, config=small)
    assert model.scheduler.config.prediction_type == "v_prediction" and model.components.latent_size(None) == (96, 96)
    update_json(small / "scheduler/scheduler_config.json", prediction_type="epsilon")
    assert minip2p.load(file, config=small).components.latent_size(None) == (64, 64)


def test_a_guess_is_made_once_and_not_for_a_vae(family, tmp_path):
    _, folder, file = family("SD 2, v")
    with patch.object(single_file, "guess_prediction_type", return_value="v_prediction") as guess:
        model = minip2p.load(file, config=tokenizers(folder, tmp_path))
        assert model.scheduler.config.prediction_type == "v_prediction" and guess.call_count == 1
        minip2p.load(folder, vae=file)
        assert guess.call_count == 1


# A .yaml file beside


V2_INFERENCE = {  # the fields that Stability's v2-inference-v.yaml has, as far as they concern us
    "model": {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            "parameterization": "v",
            "linear_start": 0.00085,
            "linear_end": 0.0120,
            "timesteps": 1000,
            "scale_factor": 0.18215,
            "unet_config": {"params": {"in_channels": 4}},
        },
    }
}


def write_yaml(tmp_path, **params):
    content = {"model": {"params": V2_INFERENCE["model"]["params"] | params}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(content))


def test_a_yaml_beside_says_what_stable_diffusion_2_predicts(family, tmp_path):
    _, folder, file = family("SD 2, v")
    copied = tmp_path / "model.safetensors"
    copied.symlink_to(file)
    with pytest.raises(ValueError, match="predicts noise or v, and the file does not say which"):
        minip2p.load(copied, config=tokenizers(folder, tmp_path))
    write_yaml(tmp_path)
    model = minip2p.load(copied, config=tmp_path / "small")
    assert model.scheduler.config == minip2p.load(folder).scheduler.config
    assert model.vae.config.scaling_factor == 0.18215


@pytest.mark.parametrize(
    "params, expected",
    [
        ({"parameterization": "eps"}, {"prediction_type": "epsilon"}),
        ({"linear_start": "1e-4", "linear_end": 0.02}, {"beta_start": 1e-4, "beta_end": 0.02}),
        ({"scale_factor": 0.13025}, {"scaling_factor": 0.13025}),
        ({"timesteps": 500}, {"num_train_timesteps": 500}),
    ],
)
def test_what_a_yaml_states(family, tmp_path, params, expected):
    write_yaml(tmp_path, **params)
    (tmp_path / "model.safetensors").symlink_to(family("SD 1")[2])
    single = SingleFile(tmp_path / "model.safetensors", None)
    stated = single.config("scheduler") | {"scaling_factor": single.config("vae")["scaling_factor"]}
    assert {name: stated[name] for name in expected} == expected


@pytest.mark.parametrize("kind, expected", [("VScaling", "v_prediction"), ("EpsScaling", "epsilon")])
def test_the_denoiser_of_stabilitys_newer_code(tmp_path, kind, expected):
    target = {"target": f"sgm.modules.diffusionmodules.denoiser_scaling.{kind}"}
    content = {"model": {"params": {"denoiser_config": {"params": {"scaling_config": target}}}}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(content))
    assert facts(tmp_path).prediction_type == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [", "model.yaml: cannot be read as YAML"),
        ("!!python/object/apply:os.system ['exit 3']", "model.yaml: cannot be read as YAML"),
        ("model: {params: {parameterization: x0}}", "model.yaml: parameterization is 'x0': minip2p knows epsilon"),
        ("model: {params: {linear_start: [1]}}", "model.yaml: linear_start is .* and not a number"),
        ("model: {params: {linear_start: true}}", "model.yaml: linear_start is 'True', and not a number"),
        ("model: {params: {linear_start: .inf}}", "model.yaml: linear_start is 'inf', and not a number"),
    ],
)
def test_a_yaml_that_cannot_be_read_is_one_clear_line_and_is_never_executed(tmp_path, text, message):
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        facts(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "- a", "training: {steps: 3}", "model: 3"])
def test_a_yaml_of_another_program_is_not_ours(tmp_path, text):
    (tmp_path / "model.yaml").write_text(text)
    assert facts(tmp_path).prediction_type is None


def test_without_pyyaml_a_yaml_is_not_read_and_a_notice_says_so(tmp_path, monkeypatch):
    write_yaml(tmp_path)
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.warns(Notice, match="model.yaml: is not read, because PyYAML is not installed"):
        assert facts(tmp_path).prediction_type is None
