"""What the benchmarks share: pipelines of diffusers, timing in turn, memory, and the last line of JSON."""

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import minip2p
from minip2p.io.files import shipped_weights
from minip2p.sampling.guidance import unet_noise

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_parser(description: str, steps: int) -> argparse.ArgumentParser:
    """A parser with the options of all benchmarks of speed. steps: the default of --steps."""
    parser = argparse.ArgumentParser(description=description)
    model = shipped_weights("tiny")
    parser.add_argument("--model", type=Path, default=model, help="the folder of a model (default: the one that ships)")
    parser.add_argument("--steps", type=int, default=steps, help=f"steps of each run (default {steps})")
    parser.add_argument(
        "--rounds", type=int, default=2, help="how often each side runs, in turn; the fastest run counts"
    )
    return parser


def positive_int(text: str) -> int:
    """A number of cases or steps on the command line: at least 1."""
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return count


def read_figures(file: Path, names: Iterable[str]) -> dict[str, Any]:
    """The figures of a finished case, under these names. Raises ValueError where the file does not have them."""
    try:
        row = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or row.keys() != set(names):
        raise ValueError(f"{file}: not the figures of a case: remove it to run it again")
    return row


def diffusers_pipeline(folder: Path, dtype: torch.dtype, pipeline_class: Any = None) -> Any:
    """A pipeline of diffusers with the weights of a folder; StableDiffusionPipeline where no class is given."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    pipeline = (pipeline_class or StableDiffusionPipeline)(
        unet=UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype),
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def prompt2prompt_class(path: Path) -> Any:
    """The class of the community's Prompt-to-Prompt pipeline, from its file."""
    spec = importlib.util.spec_from_file_location("pipeline_prompt2prompt", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Prompt2PromptPipeline


def randomize(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Draws matrices of variance 1 / fan-in, norms near one and biases near zero."""
    for name, p in module.named_parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5, generator=generator)
        else:
            torch.nn.init.normal_(
                p, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.1, generator=generator
            )


def time_in_turn(rounds: int, **functions: Callable[[], Any]) -> dict[str, float]:
    """The fewest seconds that each function takes. They run in turn, so that other work on the machine affects all."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
    return {name: min(times) for name, times in seconds.items()}


def training_side(pipe: minip2p.Pipeline) -> int:
    """The side, in pixels, of the square pictures that a model was trained on."""
    side = pipe.unet.config.sample_size
    assert isinstance(side, int)
    return side * pipe.vae.stride


def peak_memory_mb() -> float:
    """The most memory that this process has held, in MB: Linux's VmHWM. (ru_maxrss is inherited from the parent.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, since a process does not give back memory that it has held."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def matmul_peak(dtype: torch.dtype, size: int = 4096) -> float:
    """What this machine reaches in a square matrix multiplication, in TFLOP/s: the best of eight."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / time_in_turn(8, matmul=lambda: a @ b)["matmul"] / 1e12


def unet_tflop(pipe: minip2p.Pipeline, rows: int, side: int) -> float:
    """The floating-point operations of a call of the UNet, in TFLOP. side: rows and columns of the latents."""
    from torch.utils.flop_counter import FlopCounterMode

    text, x = pipe.text(["a cat"] * rows), torch.zeros(rows, 4, side, side, dtype=pipe.dtype, device=pipe.device)
    with FlopCounterMode(display=False) as counter:
        unet_noise(pipe.components, x, 1, text)
    return counter.get_total_flops() / 1e12


def rounded(value: Any) -> Any:
    """Numbers rounded to four places, inside of lists and mappings too."""
    if isinstance(value, Mapping):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def print_figures(figures: Mapping[str, Any]) -> None:
    """Prints what was measured with, and the figures as one last line of JSON."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(json.dumps(rounded(figures)))
