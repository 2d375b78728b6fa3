"""Loading a model, from nothing until the first call of the UNet returns, beside diffusers:

    python benchmarks/load.py --model FOLDER [--rounds N]

Both read a prompt and call the UNet once on small latents, so that every weight is used and the call itself is short;
each time in a process of its own, in turn, with the files in the system's cache. The last line is JSON.
"""

import time
from pathlib import Path
from typing import Any

import torch
from common import alone, finish, options, peak_mb

import minip2p

LATENTS = 8  # rows and columns


def imported() -> None:
    """What both sides import is there before the clock runs."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # noqa: F401


def ours(folder: Path) -> tuple[float, float]:
    """Seconds, and the most memory held, MB."""
    imported()
    began = time.perf_counter()
    model = minip2p.load(folder)
    with torch.inference_mode():
        model.unet(torch.zeros(1, 4, LATENTS, LATENTS), 500, model.text("a cat"))
    return time.perf_counter() - began, peak_mb()


def theirs(folder: Path) -> tuple[float, float]:
    """As people load it; with accelerate, if it is installed, which diffusers then loads by."""
    from diffusers import StableDiffusionPipeline

    imported()
    began = time.perf_counter()
    pipe: Any = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    with torch.inference_mode():
        words = pipe.tokenizer("a cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
        context = pipe.text_encoder(words).last_hidden_state
        pipe.unet(torch.zeros(1, 4, LATENTS, LATENTS), 500, context)
    return time.perf_counter() - began, peak_mb()


def before(folder: Path) -> float:
    """What the process holds when the clock begins, MB."""
    imported()
    return peak_mb()


def main() -> None:
    given = options(__doc__.splitlines()[0] if __doc__ else "", steps=1).parse_args()
    files = [file for file in given.model.rglob("*.safetensors")]
    size = sum(file.stat().st_size for file in files) / 1e6
    for file in files:
        with open(file, "rb") as f:
            while f.read(2**24):
                pass
    held, seconds, peaks = alone(before, given.model), {"ours": [], "theirs": []}, {"ours": [], "theirs": []}
    for _ in range(given.rounds):
        for name, side in (("ours", ours), ("theirs", theirs)):
            took, most = alone(side, given.model)
            seconds[name].append(took)
            peaks[name].append(most)
    mine, peer = min(seconds["ours"]), min(seconds["theirs"])
    most = max(peaks["ours"])
    print(f"weights {size:,.0f} MB; before loading {held:,.0f} MB are held by what is imported")
    for name in seconds:
        print(f"{name}: {min(seconds[name]):.2f} s, at most {max(peaks[name]):,.0f} MB")
    print(f"time: {mine / peer:.2f} of diffusers'; memory: {most / size:.2f} of the weights' size")
    finish({"load_time": mine / peer, "load_memory": most / size, "load_memory_peer": max(peaks["theirs"]) / size})


if __name__ == "__main__":
    main()
