"""Outdated configurations, and the default guidance: as diffusers' pipelines decide them, and a Notice where it is a
guess."""

import warnings

import diffusers
import pytest
import torch
from families import FAMILIES, copy_folder, pipeline_class, update_json
from parity import check

import minip2p
from minip2p.checkpoints.pipeline_rules import DISTILLED_NAME, correct_outdated, default_guidance
from minip2p.config import SchedulerConfig, UNetConfig
from minip2p.errors import Notice

PROMPT = "a cat on the beach"
SCHEDULER_FILE = "scheduler/scheduler_config.json"
# What an early file has wrong, in which configuration, and what the Notice says.
OUTDATED = {
    "steps_offset": (SCHEDULER_FILE, {"steps_offset": 0}, "steps_offset 0 is taken as 1"),
    "clip_sample": (SCHEDULER_FILE, {"clip_sample": True}, "clip_sample is switched off"),
    "sample_size": (
        "unet/config.json",
        {"_diffusers_version": "0.6.0"},
        "sample_size 16 of an early file is taken as 64",
    ),
}


def outdated_folder(family, name, tmp_path, outdated):
    folder = copy_folder(family(name)[1], tmp_path / "outdated")
    file, fields, message = OUTDATED[outdated]
    update_json(folder / file, **fields)
    return folder, message


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of diffusers, about the same fields
@pytest.mark.parametrize("outdated", ["steps_offset", "clip_sample"])
def test_an_outdated_folder_gives_the_latents_of_its_pipeline(family, tmp_path, outdated):
    """Float32, 1e-3 of the latents' standard deviation after 4 steps."""
    folder, message = outdated_folder(family, "SD 1", tmp_path, outdated)
    with pytest.warns(Notice, match=message):
        model = minip2p.load(folder)
    run = model.generate(PROMPT, seed=1, steps=4, negative_prompt="fog")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    options = dict(prompt=PROMPT, negative_prompt="fog", num_inference_steps=4, output_type="latent")
    expected = pipe(latents=run.latents[:1].clone(), **options).images
    check(f"{outdated}, float32", run.latents[-1:], expected, 1e-3)


def test_the_size_of_an_early_file_is_64_latents(family, tmp_path):
    """That of the pipeline's own pictures is compared in the next test."""
    folder, message = outdated_folder(family, "SD 1", tmp_path, "sample_size")
    with pytest.warns(Notice, match=message):
        model = minip2p.load(folder)
    assert model.components.latent_size(None) == (64, 64)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["SD 1", "inpainting", "InstructPix2Pix", "SDXL"])
def test_every_pipeline_corrects_what_it_corrects_in_diffusers(family, tmp_path, name):
    """SDXL and InstructPix2Pix correct nothing: their steps_offset of 0 stays, and a size of 16 of an early file."""
    folder, _ = outdated_folder(family, name, tmp_path, "steps_offset")
    update_json(folder / "unet/config.json", _diffusers_version="0.6.0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        model = minip2p.load(folder)
    options = {} if name == "SDXL" else {"safety_checker": None}
    pipe = pipeline_class(name).from_pretrained(folder, **options)
    assert model.scheduler.config.steps_offset == pipe.scheduler.config.steps_offset
    assert model.unet.config.sample_size == pipe.unet.config.sample_size


def test_a_folder_of_today_raises_no_notice(family):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        for name in ("SD 1", "SD 2, v", "SDXL"):
            minip2p.load(family(name)[1])


@pytest.mark.parametrize(
    "version, size, expected",
    [
        ("0.6.0", 32, 64),
        ("0.8.1", 32, 64),
        ("0.9.0", 32, 32),
        ("0.9.0.dev0", 32, 32),
        ("0.10.2", 32, 32),
        ("0.6.0", 96, 96),
        ("0.6.0", [32, 48], [32, 48]),
        (None, 32, 32),
    ],
)
def test_the_version_decides_over_the_size_as_in_diffusers(version, size, expected):
    fields = {"sample_size": size} | ({} if version is None else {"_diffusers_version": version})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        assert correct_outdated(fields, {"steps_offset": 1}, "unet", "scheduler")[0]["sample_size"] == expected


@pytest.mark.parametrize(
    "unet, scheduler",
    [
        ({"sample_size": 64, "_diffusers_version": "0.6.0"}, {"steps_offset": 1}),
        ({"sample_size": 64}, {"steps_offset": 0, "timestep_spacing": "trailing"}),
        ({"in_channels": 8, "sample_size": 32, "_diffusers_version": "0.6.0"}, {"clip_sample": True}),
        ({"addition_embed_type": "text_time", "sample_size": 32, "_diffusers_version": "0.6.0"}, {"clip_sample": True}),
    ],
    ids=["64 already", "an offset that is not read", "InstructPix2Pix", "SDXL"],
)
def test_what_changes_no_result_raises_no_notice(unet, scheduler):
    """And the pipelines of InstructPix2Pix and SDXL correct nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        corrected = correct_outdated(unet, scheduler, "unet", "scheduler")
    assert corrected[0] == unet
    if "steps_offset" not in scheduler:
        assert corrected[1] == scheduler


# The default guidance scale


TRAILING = {"timestep_spacing": "trailing"}
V_ZERO_SNR = TRAILING | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


@pytest.mark.parametrize(
    "fields, scheduler_class, names, is_xl, expected, message",
    [
        ({}, "PNDMScheduler", ["stable-diffusion-v1-5"], False, 7.5, None),
        ({}, "EulerDiscreteScheduler", ["sdxl"], True, 5.0, None),
        (TRAILING, "EulerDiscreteScheduler", ["my-model"], False, 7.5, "timestep_spacing trailing may mean a dist"),
        (TRAILING, "DDIMScheduler", ["my-model"], True, 5.0, "guidance is 5 by default, and such a model needs 1"),
        (V_ZERO_SNR, "EulerDiscreteScheduler", ["noobai-v"], True, 5.0, None),
        (TRAILING, "EulerDiscreteScheduler", ["stabilityai/sd-turbo"], False, 1.0, "by its name and its trailing time"),
        (TRAILING, "EulerAncestralDiscreteScheduler", ["copy"], True, 1.0, "by its EulerAncestralDiscreteScheduler"),
        (V_ZERO_SNR, "EulerAncestralDiscreteScheduler", ["copy"], True, 5.0, None),
        ({}, "EulerAncestralDiscreteScheduler", ["copy"], True, 5.0, None),
        (
            {},
            "DPMSolverSDEScheduler",
            ["DreamShaperXL_Turbo_v2"],
            True,
            5.0,
            "the name DreamShaperXL_Turbo_v2 may mean",
        ),
        ({}, "LCMScheduler", ["copy"], False, 7.5, "its LCMScheduler may mean a distilled model"),
    ],
)
def test_the_default_guidance_is_the_pipelines_unless_two_signs_tell_a_distilled_model(
    fields, scheduler_class, names, is_xl, expected, message
):
    config, unet = SchedulerConfig.from_dict(fields), UNetConfig(addition_embed_type="text_time" if is_xl else None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert default_guidance(config, scheduler_class, names, "model", unet=unet) == expected
    assert [str(w.message) for w in caught if message is None or message not in str(w.message)] == []
    assert len(caught) == (message is not None)


@pytest.mark.parametrize("name", ["SD Turbo", "SDXL Turbo"])
def test_a_folder_without_a_telling_name_keeps_the_guidance_of_diffusers(family, tmp_path, name):
    """Unless its model_index.json states the name of the model that it was made from."""
    folder = copy_folder(family(name)[1], tmp_path / "renamed")
    usual = 5.0 if "addition_embed_type" in FAMILIES[name][0] else 7.5
    with pytest.warns(Notice, match="renamed: timestep_spacing trailing may mean a distilled model"):
        assert minip2p.load(folder).default_guidance == usual
    update_json(folder / "model_index.json", _name_or_path="stabilityai/sd-turbo")
    with pytest.warns(Notice, match="renamed: is taken for a distilled model by its name"):
        assert minip2p.load(folder).default_guidance == 1.0


def test_the_names_that_tell_a_distilled_model():
    for name in ("sdxl-turbo", "SDXL_Lightning_4step", "Hyper-SD15", "x_lcm", "DMD2", "RealVisXL_V4_Turbo"):
        assert DISTILLED_NAME.search(name), name
    for name in ("stable-diffusion-v1-5", "welcome", "hyperreal", "dreamshaper", "tiny"):
        assert not DISTILLED_NAME.search(name), name


def test_zero_terminal_snr_gives_the_latents_of_the_pipeline(family, tmp_path):
    """v-prediction from no signal at all, with trailing steps. Float32, 1e-3 after 10 steps."""
    folder = copy_folder(family("SD 2, v")[1], tmp_path / "zero-snr")
    update_json(folder / SCHEDULER_FILE, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    model = minip2p.load(folder)
    run = model.generate(PROMPT, seed=1, steps=10)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.rescale_betas_zero_snr and model.scheduler.steps(10)[0].alpha_cumprod == 0
    with torch.no_grad():
        expected = pipe(PROMPT, latents=run.latents[:1].clone(), num_inference_steps=10, output_type="latent").images
    check("zero terminal SNR, float32", run.latents[-1:], expected, 1e-3)
    inverted = model.invert(run.image, PROMPT, steps=4, method="edit-friendly")
    assert inverted.latents.isfinite().all()
