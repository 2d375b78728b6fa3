"""Loading a model until its first call of the UNet returns, compared with diffusers:

    python benchmarks/load.py --model FOLDER [--rounds N] [--dtype bf16]

Both encode a prompt and call the UNet once on small latents, so that every weight is read and the call itself is short.
Each run is in a process of its own, in turn, with the files in the system's cache. The last line is JSON.
"""

import time
from pathlib import Path
from typing import Any

import torch
from common import DTYPES, in_new_process, make_parser, peak_memory_mb, print_figures

import minip2p

LATENT_SIDE = 8  # rows and columns
CHUNK = 2**24  # bytes


def import_libraries() -> None:
    """Imports what both sides use, before the clock starts."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # noqa: F401


def run_minip2p(folder: Path, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds, and the most memory held, in MB."""
    import_libraries()
    began = time.perf_counter()
    pipe = minip2p.load(folder, dtype=dtype)
    with torch.inference_mode():
        pipe.unet(torch.zeros(1, 4, LATENT_SIDE, LATENT_SIDE, dtype=dtype), 500, pipe.text("a cat").tokens)
    return time.perf_counter() - began, peak_memory_mb()


def run_diffusers(folder: Path, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds, and the most memory held, in MB. The usual way to load, which uses accelerate where it is installed."""
    from diffusers import StableDiffusionPipeline

    import_libraries()
    began = time.perf_counter()
    pipe: Any = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    with torch.inference_mode():
        ids = pipe.tokenizer("a cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
        context = pipe.text_encoder(ids).last_hidden_state
        pipe.unet(torch.zeros(1, 4, LATENT_SIDE, LATENT_SIDE, dtype=dtype), 500, context)
    return time.perf_counter() - began, peak_memory_mb()


def memory_after_import(folder: Path) -> float:
    """The memory that a process holds when the clock starts, in MB."""
    import_libraries()
    return peak_memory_mb()


def main() -> None:
    parser = make_parser("Loading a model until its first call of the UNet returns, compared with diffusers", steps=1)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the weights in memory (default fp32)")
    args = parser.parse_args()
    files = list(args.model.rglob("*.safetensors"))
    weights_mb = sum(file.stat().st_size for file in files) / 1e6
    for file in files:  # into the system's cache
        with open(file, "rb") as stream:
            while stream.read(CHUNK):
                pass
    imported_mb = in_new_process(memory_after_import, args.model)
    results: dict[str, list[tuple[float, float]]] = {"minip2p": [], "diffusers": []}
    for _ in range(args.rounds):
        for name, run in (("minip2p", run_minip2p), ("diffusers", run_diffusers)):
            results[name].append(in_new_process(run, args.model, DTYPES[args.dtype]))
    seconds = {name: min(took for took, _ in runs) for name, runs in results.items()}
    memory = {name: max(held for _, held in runs) for name, runs in results.items()}
    time_ratio, memory_ratio = seconds["minip2p"] / seconds["diffusers"], memory["minip2p"] / weights_mb
    print(f"weights {weights_mb:,.0f} MB; the imported libraries hold {imported_mb:,.0f} MB before loading")
    for name in results:
        print(f"{name}: {seconds[name]:.2f} s, at most {memory[name]:,.0f} MB")
    print(f"time: {time_ratio:.2f} of diffusers'; memory: {memory_ratio:.2f} of the weights' size")
    print_figures(
        {"load_time": time_ratio, "load_memory": memory_ratio, "load_memory_peer": memory["diffusers"] / weights_mb}
    )


if __name__ == "__main__":
    main()
