"""What the benchmarks have in common: both sides loaded out of the box, and times taken in turn."""

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

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def options(does: str, steps: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=does)
    parser.add_argument(
        "--model", type=Path, default=shipped_weights("tiny"), help="a folder (default: the model that ships)"
    )
    parser.add_argument("--steps", type=int, default=steps, help=f"(default {steps})")
    parser.add_argument("--rounds", type=int, default=2, help="each side runs so often, in turn; the least counts")
    return parser


def some(text: str) -> int:
    """A number of cases or steps, as argparse reads it: at least one."""
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return count


def kept(file: Path, names: Iterable[str]) -> dict[str, Any]:
    """The figures of a case that is done, by these names. Raises ValueError where the file does not have them."""
    try:
        row = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or row.keys() != set(names):
        raise ValueError(f"{file}: not the figures of a case: remove it, to make it again")
    return row


def diffusers_pipeline(folder: Path, dtype: torch.dtype, kind: Any = None) -> Any:
    """A pipeline of diffusers with the folder's weights: StableDiffusionPipeline where no kind is given."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    parts = dict(
        unet=UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype),
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
    )
    pipeline = (kind or StableDiffusionPipeline)(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def prompt2prompt_pipeline(path: Path, folder: Path, dtype: torch.dtype) -> Any:
    """The community's Prompt-to-Prompt pipeline, from its file."""
    spec = importlib.util.spec_from_file_location("pipeline_prompt2prompt", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return diffusers_pipeline(folder, dtype, module.Prompt2PromptPipeline)


def in_turn(rounds: int, **sides: Callable[[], Any]) -> dict[str, float]:
    """The least seconds of each side: they run in turn, so that what else the machine does hits both."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            took[name].append(time.perf_counter() - began)
    return {name: min(times) for name, times in took.items()}


def pixels_of(model: minip2p.Pipeline) -> int:
    """The sides of the pictures that a model was trained on."""
    side = model.unet.config.sample_size
    assert isinstance(side, int)
    return 8 * side


def peak_mb() -> float:
    """The most memory that this process has held, MB: Linux's VmHWM. (ru_maxrss is inherited from the parent.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def alone(what: Callable[..., Any], *given: Any) -> Any:
    """What a function returns in a process of its own: a process does not give back the memory that it once held."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(what, *given).result()


def peak(dtype: torch.dtype, size: int = 4096) -> float:
    """What this machine does in a square matrix multiplication, TFLOP/s: the best of eight."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / in_turn(8, once=lambda: a @ b)["once"] / 1e12


def flops(model: minip2p.Pipeline, rows: int, size: int) -> float:
    """Of a call of the UNet on latents of so many rows and columns."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model.unet(torch.zeros(rows, 4, size, size, dtype=model.dtype), 1, model.text(["a cat"] * rows))
    return float(counter.get_total_flops())


def rounded(value: Any) -> Any:
    """Numbers, in lists and dicts too, to four places."""
    if isinstance(value, Mapping):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value


def finish(figures: Mapping[str, Any]) -> None:
    """What it was measured with, and last one JSON line."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(json.dumps(rounded(figures)))
