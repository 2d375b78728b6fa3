"""CUDA in a fixed time: parity with the CPU, then speed and memory at the published models' sizes with random weights.

    python benchmarks/gpu.py [--until EPOCH] [--out DIR] [--peer FILE] [--device cpu --small]

The sections run in the order of their importance. A section whose estimated time does not fit is skipped, and one that
fails does not stop the others. Each prints one line of JSON, and the last line has all of them; it is OUT/measure.json
too. --small runs all sections at the small model's size, for a machine without a GPU. tools/measure_on_gpu.sh calls it.
"""

import argparse
import copy
import json
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from common import matmul_peak, prompt2prompt_class, randomize, rounded, training_side, unet_tflop
from edit import CROSS, EIGHT, GUIDANCE, SELF, SOURCE, Size, run_grid, run_minip2p, run_peer
from invert import run_minip2p as run_null_text
from torch import Tensor

import minip2p
from minip2p import LocalBlend
from minip2p.attention.contract import fused
from minip2p.checkpoints.components import Components
from minip2p.config import SchedulerConfig, UNetConfig, VAEConfig
from minip2p.metrics.image import psnr
from minip2p.pipeline import Pipeline
from minip2p.sampling.guidance import unet_inputs
from minip2p.sched import DDIMScheduler
from minip2p.text.encoder import ClipEncoder, TextEncoder
from minip2p.unet import UNet
from minip2p.vae import VAE

Figures = dict[str, Any]
TOLERANCE = 1e-3  # of latents, in float32
ATTENTION_KERNEL = re.compile("flash|fmha|sdpa|attention|mha", re.IGNORECASE)
SCHEDULE: Figures = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
SD15 = UNetConfig(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
SDXL = UNetConfig(
    sample_size=128,
    cross_attention_dim=2048,
    attention_head_dim=(5, 10, 20),
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 10),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
SMALL_SDXL = UNetConfig(
    sample_size=16,
    cross_attention_dim=192,
    attention_head_dim=(1, 1, 2),
    block_out_channels=(64, 64, 128),
    down_block_types=SDXL.down_block_types,
    up_block_types=SDXL.up_block_types,
    transformer_layers_per_block=(1, 1, 2),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=6 * 8 + 128,
)
SD_VAE = VAEConfig(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
)
CLIP_L: Figures = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G: Figures = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
SMALL_CLIP: Figures = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 1}


# --- the device


class NotBuilt(Exception):
    """A model that a section needs, and whose own section was skipped or failed."""


class Models(dict[str, Pipeline]):
    """The models that are built, by name."""

    def __missing__(self, name: str) -> Pipeline:
        raise NotBuilt(f"the model {name} was not built")


@dataclass
class Report:
    """Runs sections, and keeps what they measure. until: the time by which all must be over, in seconds of the epoch.

    file: where the figures go after each section. sections: name -> figures.
    """

    until: float
    file: Path
    sections: dict[str, Figures] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.until - time.time()

    def section(self, name: str, estimate: float, measure: Callable[[], Figures]) -> None:
        """Runs a section, unless its estimated seconds do not fit, and prints its figures as one line."""
        began, figures = time.time(), Figures()
        if estimate > self.left:
            figures = {"skipped": f"{estimate:.0f} s do not fit in {self.left:.0f}"}
        else:
            try:
                figures = measure()
            except NotBuilt as error:
                figures = {"skipped": str(error)}
            except Exception as error:
                figures = failure(error)
        figures["section_s"] = time.time() - began
        self.sections[name] = rounded(figures)
        print(json.dumps({"section": name, **self.sections[name]}), flush=True)
        self.file.write_text(json.dumps(self.sections) + "\n")


def failure(error: Exception) -> Figures:
    """An error as figures: its text, and the last places of this project that it passed. Memory of the GPU is freed."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(f.filename).name}:{f.lineno} {f.line}" for f in frames if "site-packages" not in f.filename]
    last = [f"{Path(f.filename).name}:{f.lineno} {f.line}" for f in frames][-1:]
    print("".join(traceback.format_exception(error)[-6:]), flush=True)
    error.__traceback__ = None
    free_memory()
    return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", "at": [*places[-3:], *last]}


def attempt(measure: Callable[[], Any]) -> Any:
    """What a part of a section measures, or how it failed."""
    try:
        return measure()
    except Exception as error:
        return failure(error)


def free_memory() -> None:
    """Gives the GPU's unused memory back. After an error that ends CUDA, this fails too."""
    with suppress(RuntimeError):
        torch.cuda.empty_cache()


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(function: Callable[[], Any]) -> Figures:
    """The seconds of a call, and the most memory of the GPU that it allocated beyond what was there, as the weights."""
    synchronize()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    function()
    synchronize()
    figures: Figures = {"s": time.perf_counter() - began}
    if torch.cuda.is_available():
        figures["peak_beyond_weights_gb"] = (torch.cuda.max_memory_allocated() - before) / 1e9
    return figures


def seconds_a_call(function: Callable[[], Any], repeats: int = 10) -> float:
    """The mean seconds of a call, after three that are not counted: by CUDA's events where there is a GPU."""
    if not torch.cuda.is_available():
        return float(timed(function)["s"])
    for _ in range(3):
        function()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


# --- parity


def parity_cases(pipe: Pipeline, photo: Tensor, steps: int) -> dict[str, Callable[[], Tensor]]:
    """Name -> a function that returns the latents of a run, or its picture or maps. photo: 3 H W in [-1, 1]."""
    target, refined = "a dog on the beach", "a red cat on the beach"
    options: Figures = {"cross_replace": CROSS, "self_replace": SELF}

    @cache
    def source() -> Any:
        return pipe.generate(SOURCE, seed=1, steps=steps)

    @cache
    def recorded() -> Any:
        return pipe.record(source(), cross_replace=CROSS, self_replace=SELF)

    @cache
    def inverted(method: str) -> Any:
        more: Figures = {"num_inner_steps": 3} if method == "null-text" else {}
        return pipe.invert(photo, SOURCE, method=method, steps=steps, **more)

    blend = LocalBlend("cat", "dog")
    sharp = LocalBlend("cat", "dog", threshold="otsu", self_attention_hops=1, pool=False)
    return {
        "generate": lambda: source().latents,
        "edit": lambda: pipe.edit(source(), target, **options).latents,
        "edit, explicit": lambda: pipe.edit(source(), target, explicit=True, **options).latents,
        "edit, local blend": lambda: pipe.edit(source(), target, local_blend=blend, **options).latents,
        "picture": lambda: source().picture,
        "direct inversion": lambda: inverted("direct").latents,
        "edit of a photograph": lambda: pipe.edit(inverted("direct"), target, local_blend=blend, **options).latents,
        "record": lambda: recorded().latents,
        "replay": lambda: pipe.edit(recorded(), target, **options).latents,
        "null-text inversion": lambda: inverted("null-text").latents,
        "edit from a prompt": lambda: pipe.edit(SOURCE, [target, refined], seed=1, steps=steps, **options)[1].latents,
        "edit, sharp blend": lambda: pipe.edit(source(), target, local_blend=sharp, **options).latents,
        "reweight": lambda: pipe.edit(source(), SOURCE, reweight={"cat": 2.0}).latents,
        "move": lambda: pipe.edit(source(), SOURCE, move={"cat": (32, 0)}).latents,
        "remove": lambda: pipe.edit(source(), "the beach", remove="cat").latents,
        "live": lambda: pipe.live(source()).edit(target, **options).latents,
        "maps": lambda: source().maps(["cat", "beach"]),
        "edit-friendly inversion": lambda: inverted("edit-friendly").latents,
        "virtual inversion, edit": lambda: pipe.edit(inverted("virtual"), target, **options).latents,
    }


def gap_between(actual: Callable[[], Tensor], expected: Callable[[], Tensor]) -> float:
    """The largest difference of what two functions return."""
    return float((actual() - expected()).abs().max())


def measure_parity(report: Report, device: str, steps: int) -> Figures:
    """The small model in float32: the largest difference of each case between the CPU and the device, TF32 off.

    Then with torch's defaults, which use TF32 in convolutions, and in 16 bits: the PSNR of the generated picture.
    """
    use_tf32(False)
    on_cpu, on_device = (minip2p.load(device=name).with_progress(iter) for name in ("cpu", device))
    expected_run = on_cpu.generate(SOURCE, seed=1, steps=steps)
    photo = expected_run.picture
    expected, actual = (parity_cases(pipe, photo, steps) for pipe in (on_cpu, on_device))
    gaps: Figures = {}
    end = min(time.time() + 35, report.until - 10)
    for name in expected:
        if time.time() > end:
            gaps[name] = "no time"
            continue
        gaps[name] = attempt(partial(gap_between, actual[name], expected[name]))
    measured = [gap for gap in gaps.values() if isinstance(gap, float)]
    use_tf32(True)
    default = attempt(
        lambda: float((on_device.generate(SOURCE, seed=1, steps=steps).latents - expected_run.latents).abs().max())
    )

    def psnr_of(dtype: torch.dtype) -> float:
        pipe = minip2p.load(device=device, dtype=dtype).with_progress(iter)
        return psnr(pipe.generate(SOURCE, seed=1, steps=steps).picture, photo)

    return {
        "steps": steps,
        "tolerance": TOLERANCE,
        "cases": len(gaps),
        "within": sum(gap <= TOLERANCE for gap in measured),
        "failed": [name for name, gap in gaps.items() if isinstance(gap, dict)],
        "largest": max(measured, default=None),
        "gaps": {name: f"{gap:.1e}" if isinstance(gap, float) else gap for name, gap in gaps.items()},
        "generate with torch's default TF32": f"{default:.1e}" if isinstance(default, float) else default,
        "psnr_float16": attempt(lambda: psnr_of(torch.float16)),
        "psnr_bfloat16": attempt(lambda: psnr_of(torch.bfloat16)),
    }


def use_tf32(convolutions: bool) -> None:
    """torch's defaults, which use TF32 in convolutions alone; or no TF32 at all."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = convolutions


def synchronisations(function: Callable[[], Any]) -> Counter[str]:
    """The places of minip2p at which a call waits for the GPU, and how often."""
    places: Counter[str] = Counter()
    package = str(Path(minip2p.__file__).parent)

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):
            frames = [f for f in traceback.extract_stack() if f.filename.startswith(package)]
            places[f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "elsewhere"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
    return places


def measure_synchronisations(device: str) -> Figures:
    """How often a step waits for the GPU: of 8 steps, less those of 4 steps, a step."""
    pipe = minip2p.load(device=device).with_progress(iter)

    def count(run: Callable[[int], Any]) -> Figures:
        run(2)
        few, many = (synchronisations(partial(run, steps)) for steps in (4, 8))
        a_step = {place: (many[place] - few[place]) / 4 for place in many if many[place] != few[place]}
        return {
            "a_step": sum(a_step.values()),
            "places_a_step": a_step,
            "places_of_8_steps": dict(many.most_common(16)),
        }

    def edit(steps: int, **options: Any) -> None:
        pipe.edit(SOURCE, "a dog on the beach", steps=steps, cross_replace=1.0, self_replace=1.0, **options)

    return {
        "generate": attempt(lambda: count(lambda steps: pipe.generate(SOURCE, steps=steps))),
        "edit": attempt(lambda: count(edit)),
        "edit, local blend": attempt(lambda: count(lambda steps: edit(steps, local_blend=("cat", "dog")))),
    }


# --- models with random weights


def random_encoder(name: str, sizes: Figures, device: str, *, projects: bool = False) -> ClipEncoder:
    """A text encoder with the small model's tokenizer; its vocabulary is the published one."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    first = minip2p.load().text.clip_encoders[0]
    width = sizes["hidden_size"]
    config = CLIPTextConfig(
        **sizes,
        vocab_size=49408,
        projection_dim=width,
        hidden_act="gelu" if projects else "quick_gelu",
        bos_token_id=first.tokenizer.bos_token_id,
        eos_token_id=first.tokenizer.eos_token_id,
    )
    with torch.device(device):
        network: Any = CLIPTextModelWithProjection(config) if projects else CLIPTextModel(config)
    return ClipEncoder(name, network.to(device), first.tokenizer, first.tokenizer_path, width, width)


def random_pipeline(unet: UNetConfig, vae: VAEConfig, encoders: list[ClipEncoder], device: str) -> Pipeline:
    """A model in float32, whose weights are drawn on the device."""
    with torch.device(device):
        components = Components(
            UNet(unet), VAE(vae), TextEncoder(tuple(encoders)), DDIMScheduler(SchedulerConfig(**SCHEDULE))
        )
    generator = torch.Generator(device).manual_seed(0)
    for network in components.networks.values():
        randomize(network, generator)
        network.eval().requires_grad_(False)
    return Pipeline(components, GUIDANCE, iter)


def in_dtype(pipe: Pipeline, dtype: torch.dtype, *, vae_dtype: torch.dtype | None = None) -> Pipeline:
    """A copy of a model in another dtype, its convolutions in channels-last in 16 bits, as `load` makes it."""

    def cast(network: Any, dtype: torch.dtype) -> Any:
        network = copy.deepcopy(network).to(dtype)
        return network.to(memory_format=torch.channels_last) if dtype.itemsize == 2 else network

    source = pipe.components
    encoders = {name: copy.deepcopy(network).to(dtype) for name, network in source.text.encoders.items()}
    text = source.text.with_encoders(encoders)
    return Pipeline(
        Components(cast(source.unet, dtype), cast(source.vae, vae_dtype or dtype), text, source.scheduler),
        GUIDANCE,
        iter,
    )


def unet_call(pipe: Pipeline, rows: int) -> Callable[[], Tensor]:
    """A call of the UNet on so many rows. All that it reads is on the device, the time step too."""
    side = training_side(pipe) // pipe.vae.stride
    noise = torch.randn(rows, 4, side, side, generator=torch.Generator().manual_seed(0))
    text = pipe.text([SOURCE] * rows)
    x, added_cond = unet_inputs(pipe.components, noise.to(pipe.device, pipe.dtype), text)
    t = torch.full((rows,), 500, device=pipe.device)
    return torch.no_grad()(lambda: pipe.unet(x, t, text.tokens, fused, added_cond))


def graph_call(call: Callable[[], Tensor]) -> Callable[[], Any]:
    """The same call as a CUDA graph, which is launched as one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measure_calls(pipe: Pipeline, rows: tuple[int, ...] = (2, 8)) -> Figures:
    """Calls of the UNet: seconds, and the fraction of the matrix peak."""
    size = 8192 if torch.cuda.is_available() else 512
    a, b = (torch.randn(size, size, device=pipe.device, dtype=pipe.dtype) for _ in range(2))
    peak = 2 * size**3 / seconds_a_call(lambda: a @ b) / 1e12
    figures: Figures = {"matmul_peak_tflops": peak}
    for count in rows:
        call = unet_call(pipe, count)
        figures[f"rows{count}_finite"] = bool(torch.isfinite(call()).all())
        seconds = seconds_a_call(call)
        with torch.no_grad():
            tflop = unet_tflop(pipe, count, training_side(pipe) // pipe.vae.stride)
        figures |= {f"rows{count}_s": seconds, f"rows{count}_tflop": tflop}
        figures[f"rows{count}_of_peak"] = tflop / seconds / peak
    return figures


def measure_graphs(pipe: Pipeline) -> Figures:
    """The same calls, each launched as one CUDA graph: what the launches of single kernels cost."""
    figures: Figures = {}
    for rows in (2, 8):
        call = unet_call(pipe, rows)
        figures |= {f"rows{rows}_s": seconds_a_call(call), f"rows{rows}_graph_s": seconds_a_call(graph_call(call))}
    return figures


def measure_generation(pipe: Pipeline, steps: int) -> Figures:
    """A picture, and its decoding alone."""
    size = Size(training_side(pipe), steps)
    settings: Figures = {"latents": size.noise, "guidance_scale": GUIDANCE}
    pipe.generate(SOURCE, steps=1, **settings)
    latents = size.noise.to(pipe.device)
    figures: Figures = {"steps": steps}
    figures["with_picture"] = attempt(lambda: timed(lambda: pipe.generate(SOURCE, steps=steps, **settings).image))
    with torch.no_grad():
        pipe.components.decode(latents)
        figures["decode"] = attempt(lambda: timed(lambda: pipe.components.decode(latents)))
    return figures


def measure_edits(pipe: Pipeline, steps: int, *targets: str) -> Figures:
    """Edits of one source, with their pictures."""
    size = Size(training_side(pipe), steps)
    run_minip2p(pipe, Size(size.pixels, 1), *targets)
    return {"steps": steps, **timed(lambda: run_minip2p(pipe, size, *targets))}


def measure_grid(pipe: Pipeline, steps: int) -> Figures:
    """A grid of 5 x 5 values of τ."""
    return {"steps": steps, **timed(lambda: run_grid(pipe, Size(training_side(pipe), steps)))}


def measure_null_text(pipe: Pipeline, steps: int, inner: int) -> Figures:
    """Null-text inversion of a random picture."""
    run_null_text(pipe, 1, 1)
    return {"steps": steps, "updates": inner, **timed(lambda: run_null_text(pipe, steps, inner))}


def measure_kernels(pipe: Pipeline) -> Figures:
    """Which kernels a call of the UNet runs, and which of them are attention's."""
    from torch.profiler import ProfilerActivity, profile

    call = unet_call(pipe, 2)
    call()
    synchronize()
    on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    with profile(activities=[ProfilerActivity.CPU, *on_gpu]) as profiler:
        call()
        synchronize()
    events = profiler.key_averages()
    chosen = {event.key: event.count for event in events if "scaled_dot_product" in event.key}
    kernels = [event for event in events if "CUDA" in str(event.device_type)]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in kernels)

    def table(events: list[Any]) -> list[Figures]:
        return [
            {"kernel": e.key[:100], "calls": e.count, "share": e.self_device_time_total / total}
            for e in events
            if total > 0
        ]

    return {
        "attention_operations": chosen,
        "kernels_ms": total / 1e3,
        "launches": sum(event.count for event in kernels),
        "attention_kernels": table([event for event in kernels if ATTENTION_KERNEL.search(event.key)][:8]),
        "longest": table(kernels[:12]),
    }


def measure_compiled(pipe: Pipeline) -> Figures:
    """torch.compile of the UNet: seconds of the first call, and of the ones after it."""
    eager = seconds_a_call(unet_call(pipe, 2))
    pipe.unet.compile()
    call = unet_call(pipe, 2)
    first = timed(call)["s"]
    return {"eager_s": eager, "first_call_s": first, "compiled_s": seconds_a_call(call)}


# --- peers


def diffusers_of(pipe: Pipeline, pipeline_class: Any = None) -> Any:
    """A pipeline of diffusers with the same weights, in the same dtype, on the same device."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    def copy_of(network: Any, network_class: Any) -> Any:
        fields = {name: value for name, value in asdict(network.config).items() if value is not None}
        with torch.device(pipe.device):
            other = network_class(**fields)
        other.load_state_dict(network.state_dict(), strict=True)
        return other.to(pipe.dtype).eval().requires_grad_(False)

    peer: Any = (pipeline_class or StableDiffusionPipeline)(
        unet=copy_of(pipe.unet, UNet2DConditionModel),
        vae=copy_of(pipe.vae, AutoencoderKL),
        text_encoder=pipe.text.encoders["text_encoder"],
        tokenizer=pipe.text.tokenizer,
        scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    peer.set_progress_bar_config(disable=True)
    return peer


def measure_diffusers(pipe: Pipeline, steps: int) -> Figures:
    """diffusers' pipeline: a picture, as it is and with its UNet in channels-last; and the latents' difference."""
    peer, size = diffusers_of(pipe), Size(training_side(pipe), steps)
    noise = size.noise.to(pipe.device, pipe.dtype)

    def run(steps: int, output: str = "pil") -> Any:
        return peer(SOURCE, latents=noise, num_inference_steps=steps, guidance_scale=GUIDANCE, output_type=output)

    run(1)
    figures: Figures = {"steps": steps, "with_picture": timed(lambda: run(steps))}
    latents = pipe.generate(SOURCE, latents=size.noise, steps=2, guidance_scale=GUIDANCE).latents[-1:]
    theirs = run(2, "latent").images.float().cpu()
    figures["apart_after_2_steps_in_deviations"] = float((latents - theirs).abs().max() / theirs.std())
    peer.unet.to(memory_format=torch.channels_last)
    peer.vae.to(memory_format=torch.channels_last)
    run(1)
    figures["channels_last"] = timed(lambda: run(steps))
    return figures


def measure_prompt2prompt(pipe: Pipeline, file: Path, steps: int) -> Figures:
    """The community's Prompt-to-Prompt pipeline: one edit with the source's picture."""
    peer, size = diffusers_of(pipe, prompt2prompt_class(file)), Size(training_side(pipe), steps)
    is_half = pipe.dtype.itemsize == 2  # its edits mix float32 with the weights' dtype: autocast lets them
    with torch.autocast(pipe.device.type, pipe.dtype, enabled=is_half):
        run_peer(peer, Size(size.pixels, 1), EIGHT[0])
        figures = timed(lambda: run_peer(peer, size, EIGHT[0]))
    return {"steps": steps, "autocast": is_half, **figures}


# --- all of it


def measure_all(report: Report, args: argparse.Namespace) -> None:
    """All sections, in the order of their importance. The estimates are for an H100."""
    device, small, peer = args.device, args.small, args.peer
    steps, fewer, few = (3, 2, 2) if small else (50, 20, 10)
    report.section("machine", 0, lambda: machine(device))
    report.section("parity", 40, lambda: measure_parity(report, device, few))
    report.section("synchronisations", 6, lambda: measure_synchronisations(device))
    models = Models()

    def build_sd15() -> Figures:
        tiny = minip2p.load()
        unet, vae = (tiny.unet.config, tiny.vae.config) if small else (SD15, SD_VAE)
        sizes = CLIP_L | ({"hidden_size": tiny.text.width, "intermediate_size": 64} if small else {})
        sizes |= {"num_attention_heads": 2, "num_hidden_layers": 2} if small else {}
        models["fp32"] = random_pipeline(unet, vae, [random_encoder("text_encoder", sizes, device)], device)
        for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
            models[name] = in_dtype(models["fp32"], dtype)
        return weights(models["fp32"])

    report.section("sd15, build", 10, build_sd15)
    report.section("sd15, bf16, calls", 6, lambda: measure_calls(models["bf16"]))
    report.section("sd15, bf16, generation", 6, lambda: measure_generation(models["bf16"], steps))
    report.section("sd15, bf16, one edit", 6, lambda: measure_edits(models["bf16"], steps, EIGHT[0]))
    report.section("sd15, bf16, eight edits", 12, lambda: measure_edits(models["bf16"], steps, *EIGHT))
    report.section("sd15, bf16, grid", 8, lambda: measure_grid(models["bf16"], few))
    report.section("sd15, bf16, null-text", 6, lambda: measure_null_text(models["bf16"], 2, 10))
    report.section("sd15, bf16, diffusers", 18, lambda: measure_diffusers(models["bf16"], steps))
    report.section("sd15, bf16, kernels", 4, lambda: measure_kernels(models["bf16"]))
    report.section("sd15, fp16, calls", 4, lambda: measure_calls(models["fp16"]))

    def build_sdxl() -> Figures:
        sizes = [SMALL_CLIP, SMALL_CLIP | {"hidden_size": 128}] if small else [CLIP_L, CLIP_G]
        encoders = [
            random_encoder(f"text_encoder{'_2' * n}", each, device, projects=bool(n)) for n, each in enumerate(sizes)
        ]
        pipe = random_pipeline(SMALL_SDXL if small else SDXL, models["fp32"].vae.config, encoders, device)
        models["sdxl"] = in_dtype(pipe, torch.float16, vae_dtype=torch.float32)
        if not torch.isfinite(unet_call(models["sdxl"], 1)()).all():
            models["sdxl"] = in_dtype(pipe, torch.bfloat16)
        return {"dtype": str(models["sdxl"].dtype), **weights(models["sdxl"])}

    report.section("sdxl, build", 12, build_sdxl)
    report.section("sdxl, calls", 6, lambda: measure_calls(models["sdxl"], (2,)))
    report.section("sdxl, generation", 8, lambda: measure_generation(models["sdxl"], few))
    report.section("sd15, fp16, one edit", 6, lambda: measure_edits(models["fp16"], steps, EIGHT[0]))
    if peer is not None:
        report.section("sd15, fp16, community", 12, lambda: measure_prompt2prompt(models["fp16"], peer, steps))
    if torch.cuda.is_available():
        report.section("sd15, bf16, graphs", 4, lambda: measure_graphs(models["bf16"]))
        report.section("sdxl, graphs", 5, lambda: measure_graphs(models["sdxl"]))
    report.section("sdxl, one edit", 8, lambda: measure_edits(models["sdxl"], few, EIGHT[0]))
    report.section("sdxl, kernels", 4, lambda: measure_kernels(models["sdxl"]))
    report.section("sd15, fp32, calls", 5, lambda: measure_calls(models["fp32"]))
    report.section("sd15, fp32, one edit", 8, lambda: measure_edits(models["fp32"], fewer, EIGHT[0]))
    if peer is not None:
        report.section("sd15, fp32, community", 14, lambda: measure_prompt2prompt(models["fp32"], peer, fewer))
    report.section("sd15, fp32, diffusers", 12, lambda: measure_diffusers(models["fp32"], fewer))
    report.section("sd15, fp16, generation", 5, lambda: measure_generation(models["fp16"], steps))
    if not small:
        report.section("sd15, bf16, compiled", 100, lambda: measure_compiled(models["bf16"]))


def weights(pipe: Pipeline) -> Figures:
    """How large a model is."""
    parameters = [p for network in pipe.components.networks.values() for p in network.parameters()]
    return {
        "unet_parameters": sum(p.numel() for p in pipe.unet.parameters()),
        "weights_gb": sum(p.numel() * p.element_size() for p in parameters) / 1e9,
    }


def machine(device: str) -> Figures:
    """What is measured with."""
    is_cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if is_cuda else device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "cpu_matmul_tflops": matmul_peak(torch.float32, 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--until", type=float, default=time.time() + 200, help="the end, in seconds of the epoch")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="the folder of measure.json")
    parser.add_argument("--peer", type=Path, help="the file pipeline_prompt2prompt.py")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="the small model's size, for a machine without a GPU")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    report = Report(args.until, args.out / "measure.json")
    warnings.filterwarnings("ignore")
    measure_all(report, args)
    print(json.dumps(report.sections), flush=True)


if __name__ == "__main__":
    main()
