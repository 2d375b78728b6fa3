"""The settings of a run as text, for the `parameters` chunk of its PNG file."""

import json
import re
from typing import Any

import torch

from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import Trajectory


def parameters(run: Trajectory, **more: Any) -> str:
    """The settings of a run, in the form that other tools (A1111's web UI and its relatives) write and read:

        the prompt
        Negative prompt: what the picture should not show
        Steps: 50, Sampler: DDIM, CFG scale: 4.0, Seed: 1, Size: 128x96, Model: tiny, …

    The second line is missing where there is no negative prompt. Size is width x height. Model is followed by VAE and
    LoRA where there are some. Source is the source prompt of an edit, Method that of the inversion of a photograph;
    Eta and Source CFG scale are those of virtual inversion. A value with a comma, colon, quote or line break is written
    as a JSON string.

    more: further settings.
    """
    rows, columns = run.picture_size
    settings: dict[str, Any] = {
        "Steps": run.steps,
        "Sampler": run.conditioning.sampler,
        "CFG scale": run.guidance_scale,
    }
    if run.seed is not None:  # a photograph and given latents have none
        settings["Seed"] = run.seed
    if run.clip_skip != RunSettings.clip_skip:
        settings["Clip skip"] = run.clip_skip
    if run.conditioning.guidance_interval is not None:
        settings["Guidance interval"] = "{:g}-{:g}".format(*run.conditioning.guidance_interval)
    if run.conditioning.uncond_every != RunSettings.uncond_every:
        settings["Unconditional every"] = run.conditioning.uncond_every
    settings |= {"Size": f"{columns}x{rows}", **run.components.origin.labels}
    if run.components.dtype != torch.float32:  # another dtype makes another picture
        settings["Dtype"] = str(run.components.dtype).removeprefix("torch.")
    if run.source_run is not None:
        settings["Source"] = run.source_run.prompt
    if run.inversion:
        settings["Method"] = run.inversion
    if run.conditioning.source_guidance_scale is not None:
        settings |= {"Eta": run.conditioning.eta, "Source CFG scale": run.conditioning.source_guidance_scale}
    settings |= more
    negative = [f"Negative prompt: {run.negative_prompt}"] if run.negative_prompt else []
    last = ", ".join(f"{name}: {quote_value(value)}" for name, value in settings.items())
    return "\n".join([run.prompt, *negative, last])


def quote_value(value: Any) -> str:
    """A value as text; as a JSON string where it has characters that separate values."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n]', text) else text
