"""TODO: describe."""

import json
import re
from typing import Any

import torch

from minip2p.sampling.trajectory import Trajectory


def parameters(run: Trajectory, **more: Any) -> str:
    """What a run was made with, in the form that the field's tools write and read:

        the prompt
        Negative prompt: what the picture should not show (where there is one)
        Steps: 50, Sampler: DDIM, CFG scale: 4.0, Seed: 1, Size: 128x96, Model: tiny, …

    Size is width x height, as there; a VAE or a LoRA besides stands after Model. Of an edit, Source is the prompt it
    began from. more: further settings. A value that has a comma, a colon, a quote or a line break in it is a JSON
    string.
    """
    stride = run.components.vae.stride
    rows, columns = (side * stride for side in run.latents.shape[-2:])
    settings = {
        "Steps": run.steps,
        "Sampler": "DDIM",
        "CFG scale": run.guidance_scale,
        "Seed": run.seed,
        "Size": f"{columns}x{rows}",
        **run.components.origin.labels,
    }
    if run.seed is None:  # it began from a photograph, or from latents that were given
        del settings["Seed"]
    if run.components.dtype != torch.float32:  # other numbers, another picture
        settings["Dtype"] = str(run.components.dtype).removeprefix("torch.")
    if run.source is not None:
        settings["Source"] = run.source.prompt
    settings |= more
    negative = [f"Negative prompt: {run.negative_prompt}"] if run.negative_prompt else []
    return "\n".join(
        [run.prompt, *negative, ", ".join(f"{name}: {quote_value(value)}" for name, value in settings.items())]
    )


def quote_value(value: Any) -> str:
    """A value as it stands in the last line."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n]', text) else text
