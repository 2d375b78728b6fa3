"""What a single file states about the model besides its weights: in metadata, marker tensors, its own noise schedule,
and a .yaml file of the same name beside it."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from minip2p.checkpoints.key_maps import UNET_PREFIX
from minip2p.config import SchedulerConfig
from minip2p.errors import Notice
from minip2p.io.files import read_text
from minip2p.io.tensors import printable
from minip2p.sched import DDIMScheduler
from minip2p.validation import is_finite

METADATA_FIELD, ARCHITECTURE_FIELD = "modelspec.prediction_type", "modelspec.architecture"
# Stable Diffusion 2 by modelspec's names of architectures, which tell what it predicts where no field does.
ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {"stable-diffusion-v2-512": "epsilon", "stable-diffusion-v2-768-v": "v_prediction"}
)
# The spellings in use, in lower case and with underscores -> diffusers' prediction_type. modelspec and kohya write
# epsilon and v; others write diffusers' names, CompVis' eps, or ComfyUI's v_pred.
PREDICTION_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "epsilon": "epsilon",
        "eps": "epsilon",
        "noise": "epsilon",
        "v": "v_prediction",
        "v_prediction": "v_prediction",
        "v_pred": "v_prediction",
        "vpred": "v_prediction",
        "vprediction": "v_prediction",
        "velocity": "v_prediction",
    }
)
# The scalings of Stability's denoisers, by the ends of the names of their classes.
DENOISERS: Mapping[str, str] = MappingProxyType({"EpsScaling": "epsilon", "VScaling": "v_prediction"})
V_MARKER, ZERO_SNR_MARKER = "v_pred", "ztsnr"
# A weight of Stable Diffusion 2 whose standard deviation is larger in the models that predict v, and the limit: as in
# ComfyUI (SD20.model_type).
TELLING_WEIGHT, V_SPREAD = UNET_PREFIX + "output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09


@dataclass(frozen=True)
class StatedFacts:
    """Facts that a single file states. None, False or empty where it does not.

    prediction_type: diffusers' name of it. is_zero_snr: whether the schedule ends without any signal. betas: fields of
    a scheduler's configuration. scaling_factor: of the VAE. metadata: of the file.
    """

    prediction_type: str | None = None
    is_zero_snr: bool = False
    betas: dict[str, Any] = field(default_factory=dict)
    scaling_factor: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_facts(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> StatedFacts:
    """Reads what a single file states. Raises ValueError, with one line, for unknown or contradictory statements."""
    stated: dict[str, str] = {}  # what states a prediction type -> which
    if metadata.get(METADATA_FIELD, "").strip():
        stated["its metadata"] = prediction_type(metadata[METADATA_FIELD], f"{file}: {METADATA_FIELD} of its metadata")
    if V_MARKER in tensors:
        stated[f"its tensor {V_MARKER}"] = "v_prediction"
    yaml_file = file.with_suffix(".yaml")
    original = read_original_config(yaml_file) if yaml_file.is_file() else {}
    if "parameterization" in original:
        stated[str(yaml_file)] = prediction_type(original["parameterization"], f"{yaml_file}: parameterization")
    elif "denoiser" in original:
        stated[str(yaml_file)] = original["denoiser"]
    if not stated and metadata.get(ARCHITECTURE_FIELD) in ARCHITECTURES:
        stated["its architecture"] = ARCHITECTURES[metadata[ARCHITECTURE_FIELD]]
    if len(set(stated.values())) > 1:
        statements = " and ".join(f"{source} states {value}" for source, value in stated.items())
        raise ValueError(f"{file}: {statements}: remove the wrong one")
    betas: dict[str, Any] = {
        name: original[name] for name in ("beta_start", "beta_end", "num_train_timesteps") if name in original
    }
    return StatedFacts(
        next(iter(stated.values()), None),
        ZERO_SNR_MARKER in tensors or ends_without_signal(tensors),
        betas,
        original.get("scaling_factor"),
        dict(metadata),
    )


def prediction_type(value: Any, location: str) -> str:
    """diffusers' name of a prediction type, from one of the spellings in use. Raises ValueError for another value."""
    spelling = str(value).strip().lower().replace("-", "_").replace(" ", "_")
    if spelling not in PREDICTION_TYPES:
        raise ValueError(f"{location} is {printable(str(value))!r}: minip2p knows epsilon and v_prediction")
    return PREDICTION_TYPES[spelling]


def guess_prediction_type(file: Path, tensors: Mapping[str, Tensor]) -> str | None:
    """What a Stable Diffusion 2 predicts that does not state it, with a Notice; None where its weights do not tell.

    Guessed as in ComfyUI: v by the spread of one weight; noise in models with more inputs, such as inpainting.
    """
    weight, first = tensors.get(TELLING_WEIGHT), tensors.get(UNET_PREFIX + "input_blocks.0.0.weight")
    if weight is None or first is None or first.ndim != 4:
        return None
    is_v = first.shape[1] == 4 and float(weight.float().std(correction=0)) > V_SPREAD
    kind = "v_prediction" if is_v else "epsilon"
    warnings.warn(
        f"{file}: does not state what it predicts; {kind} is guessed from its weights: if its pictures are noise, give "
        "a folder as config whose scheduler states it",
        Notice,
        stacklevel=2,
    )
    return kind


def ends_without_signal(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the file's own schedule ends at ᾱ = 0 (or the tiny number that stands for it)."""
    schedule = tensors.get("alphas_cumprod")
    return schedule is not None and schedule.ndim == 1 and len(schedule) > 1 and abs(float(schedule[-1])) < 1e-6


def check_schedule(file: Path, tensors: Mapping[str, Tensor], config: SchedulerConfig, location: str) -> None:
    """Raises ValueError, with one line, unless the file's own noise schedule is the one that `config` describes.

    Compared are ᾱ, β and the σ = √((1 − ᾱ) / ᾱ) of Stability's denoisers, as far as the file has them: to 1e-3 of each
    value in float32, and to 1e-2 in 16 bits. The other buffers follow from these. A model of zero terminal SNR may have
    the schedule from before the rescaling: ComfyUI's marker leaves it in the file. location: of the configuration.
    """
    before_rescaling = replace(config, rescale_betas_zero_snr=False)
    schedules = [derived_schedules(config), derived_schedules(before_rescaling)]
    for name in schedules[0]:
        if name in tensors and not any(is_schedule(name, tensors[name], derived[name]) for derived in schedules):
            raise ValueError(
                f"{file}: its own noise schedule ({name}) is not the one of {location}: minip2p has linear and "
                "scaled_linear betas, and zero terminal SNR; pass a folder as config whose scheduler describes it"
            )


def derived_schedules(config: SchedulerConfig) -> dict[str, Tensor]:
    """The noise schedule of a configuration, float64, by the names of the tensors that files have it in."""
    schedule = DDIMScheduler(config).alphas_cumprod.double()
    previous = torch.cat([torch.ones(1, dtype=torch.float64), schedule[:-1]])
    return {
        "alphas_cumprod": schedule,
        "betas": 1 - schedule / previous,
        "denoiser.sigmas": ((1 - schedule) / schedule).sqrt(),
    }


def is_schedule(name: str, stored: Tensor, expected: Tensor) -> bool:
    """Whether a file's schedule is the expected one. It stores σ in either order."""
    actual = stored.double()
    if name == "denoiser.sigmas" and actual.ndim == 1 and len(actual) > 1 and actual[0] > actual[-1]:
        actual = actual.flip(0)
    tolerance = 1e-2 if stored.dtype.itemsize == 2 else 1e-3
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=tolerance, atol=1e-6)


def read_original_config(file: Path) -> dict[str, Any]:
    """What a configuration of CompVis' or Stability's code states, which users keep beside a file; it is not executed.

    Returns the fields "parameterization", "denoiser" (a prediction type), "beta_start", "beta_end",
    "num_train_timesteps" and "scaling_factor", as far as it has them. Raises ValueError with one line for a file that
    cannot be read. PyYAML comes with transformers; where it is missing, a Notice says that the file is not read.
    """
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        warnings.warn(f"{file}: is not read, because PyYAML is not installed", Notice, stacklevel=2)
        return {}
    try:
        content = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as YAML ({' '.join(str(error).split())[:200]})") from None
    parameters = lookup(content, "model", "params")
    if not isinstance(parameters, dict):
        return {}
    fields: dict[str, Any] = {}
    if "parameterization" in parameters:
        fields["parameterization"] = parameters["parameterization"]
    scaling = lookup(parameters, "denoiser_config", "params", "scaling_config", "target")
    for name, kind in DENOISERS.items():
        if isinstance(scaling, str) and scaling.endswith(name):
            fields["denoiser"] = kind
    numbers = {
        "linear_start": "beta_start",
        "linear_end": "beta_end",
        "timesteps": "num_train_timesteps",
        "scale_factor": "scaling_factor",
    }
    for original, name in numbers.items():
        if original in parameters:
            fields[name] = number(parameters[original], f"{file}: {original}")
    return fields


def number(value: Any, location: str) -> float:
    """A number of a YAML file, where 1e-4 without a point is text. Raises ValueError for anything else."""
    try:
        parsed: Any = float(value) if isinstance(value, str) else value
    except ValueError:
        parsed = None
    if isinstance(parsed, bool) or not is_finite(parsed):
        raise ValueError(f"{location} is {printable(str(value))!r}, and not a number")
    return parsed


def lookup(content: Any, *path: str) -> Any:
    """A value inside of nested mappings, None where one is missing."""
    for name in path:
        content = content.get(name) if isinstance(content, dict) else None
    return content
