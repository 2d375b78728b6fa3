"""What diffusers' pipelines decide about a model beyond its configuration files: outdated fields, default guidance."""

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from minip2p.config import LCMSchedulerConfig, SamplingDefaults, SchedulerConfig, UNetConfig
from minip2p.errors import Notice

# Names of models that are distilled for few steps: SDXL Turbo, SDXL Lightning, Hyper-SD, LCM, DMD2.
DISTILLED_NAME = re.compile(r"turbo|lightning|hyper-?sd|(?<![a-z])(lcm|dmd2?)(?![a-z])", re.IGNORECASE)
# The schedulers of consistency models, and that of SDXL Turbo, whose time steps are trailing as well.
CONSISTENCY_SCHEDULERS, TURBO_SCHEDULER = ("LCMScheduler", "TCDScheduler"), "EulerAncestralDiscreteScheduler"
LCM_GUIDANCE = 8.5  # the default of LatentConsistencyModelPipeline, whose UNet reads the guidance scale


def correct_outdated(
    unet: Mapping[str, Any], scheduler: Mapping[str, Any], unet_file: str, scheduler_file: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of a UNet and a scheduler as diffusers' pipelines take them.

    StableDiffusionPipeline and StableDiffusionInpaintPipeline correct three fields that early files have wrong. The
    pipelines of Stable Diffusion XL and of InstructPix2Pix correct nothing. Every correction that changes results
    raises a Notice. unet_file, scheduler_file: named in it.
    """
    unet, scheduler = dict(unet), dict(scheduler)
    inputs, outputs = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if unet.get("addition_embed_type") is not None or inputs == 2 * outputs:
        return unet, scheduler
    size, version = unet.get("sample_size"), re.match(r"(\d+)\.(\d+)", str(unet.get("_diffusers_version", "")))
    is_early = version is not None and (int(version[1]), int(version[2])) < (0, 9)
    if is_early and type(size) is int and 0 < size < 64:
        unet["sample_size"] = 64
        notify(f"{unet_file}: sample_size {size} of an early file is taken as 64, as diffusers' pipeline takes it")
    if scheduler.get("steps_offset", 0) == 0:
        scheduler["steps_offset"] = 1
        has_offset = scheduler.get("timestep_spacing", "leading") == "leading"
        if has_offset and scheduler.get("_class_name") != LCMSchedulerConfig.class_name:
            notify(f"{scheduler_file}: steps_offset 0 is taken as 1, as diffusers' pipeline takes it")
    if scheduler.get("clip_sample") is True:
        scheduler["clip_sample"] = False
        notify(f"{scheduler_file}: clip_sample is switched off, as diffusers' pipeline does")
    return unet, scheduler


def default_guidance(
    scheduler: SchedulerConfig, scheduler_class: str, names: Iterable[str], model: str, *, unet: UNetConfig
) -> float:
    """The guidance scale to use where neither the user nor the model's minip2p.json states one.

    It is the default of diffusers' text-to-image pipelines: 7.5, 5 for Stable Diffusion XL, and 8.5, that of the
    pipeline of latent consistency models, for a UNet that reads the guidance scale, whatever its family. Models that
    are distilled for few steps get 1, by which the conditional rows run alone. Those that LCM samples are distilled. Of
    others no field of the configurations says so: they are taken for distilled if their time steps are trailing, and a
    name says so or their scheduler is that of SDXL Turbo. Both decisions, where signs contradict each other, raise a
    Notice.

    scheduler_class: the class that the scheduler's file names. names: of the model, where its files state any.
    model: named in a Notice.
    """
    if unet.time_cond_proj_dim is not None:
        return LCM_GUIDANCE
    if isinstance(scheduler, LCMSchedulerConfig):
        return 1.0
    usual = 5.0 if unet.addition_embed_type is not None else SamplingDefaults().guidance
    is_trailing = scheduler.timestep_spacing == "trailing"
    name = next((name for name in names if DISTILLED_NAME.search(name)), None)
    is_turbo_scheduler = is_trailing and scheduler_class == TURBO_SCHEDULER and scheduler.prediction_type == "epsilon"
    if is_trailing and (name is not None or is_turbo_scheduler):
        reason = "by its name" if name is not None else f"by its {TURBO_SCHEDULER}"
        notify(
            f"{model}: is taken for a distilled model {reason} and its trailing time steps: guidance is 1 by default"
        )
        return 1.0
    sign = None
    if name is not None:
        sign = f"the name {name}"
    elif scheduler_class in CONSISTENCY_SCHEDULERS:
        sign = f"its {scheduler_class}"
    elif is_trailing and scheduler.prediction_type == "epsilon":  # v-prediction with zero SNR needs trailing steps
        sign = "timestep_spacing trailing"
    if sign is not None:
        notify(
            f"{model}: {sign} may mean a distilled model; guidance is {usual:g} by default, and such a model needs 1"
        )
    return usual


def notify(message: str) -> None:
    warnings.warn(message, Notice, stacklevel=3)
