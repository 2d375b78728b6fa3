"""Runs that are kept: recorded, so that edits need not run them again, and read back from their files.

Axes: t steps, c h w latents, n tokens, d width of their embedding.
"""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minip2p.checkpoints.components import Components, ImageConditioning
from minip2p.io.files import atomic_write
from minip2p.io.tensors import DTYPE_NAMES, Layout, SafetensorsBuffer, layout_bytes, read_metadata, read_tensors
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.progress import Progress
from minip2p.sampling.qk_cache import CachePolicy, QKCache, cache_layout, queries_per_site
from minip2p.sampling.settings import RunSettings, prepare_run
from minip2p.sampling.trajectory import FORMAT, SourceRun, Trajectory, conditioning_tensors, run_metadata


def record_run(
    parts: Components,
    origin: Trajectory | RunSettings,
    keeps: CachePolicy,
    *,
    dtype: torch.dtype,
    budget: float,
    file: Path | None = None,
    progress: Progress = iter,
) -> Trajectory:
    """Goes through a run once and keeps the (q, k) that `keeps` says: in memory, where they may take `budget` bytes, or
    memory-mapped in a file, which then is the run's. Raises ValueError, before it begins, where they would take more.
    """
    source = SourceRun(parts, origin)
    latent = source.latents[0].shape[-2:]
    if origin.guidance_scale == 0:  # no words are read, and so no attention
        keeps = CachePolicy((0, 0), (0, 0), 0)
    kept = cache_layout(parts.unet, latent, len(parts.text.prompt(origin.prompt).ids), origin.steps, keeps, dtype)
    if file is None and layout_bytes(kept) > budget:
        raise ValueError(
            f"the record would take {layout_bytes(kept) / 1e6:,.1f} MB of memory, its budget is "
            f"{budget / 1e6:,.1f}: give it a file, or keep fewer steps or a smaller dtype"
        )
    shapes: Layout = {"latents": (torch.float32, (origin.steps + 1, *source.latents[0].shape[1:]))}
    shapes |= {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in conditioning_tensors(origin.conditioning).items()
    }
    said = {} if file is None else run_metadata(parts, origin)
    if file is not None:
        parts.origin.refuse_overwrite(file)
    with nullcontext() if file is None else atomic_write(file) as partial:
        block = SafetensorsBuffer(shapes | kept, said, partial)
        made = QKCache({name: block.tensors[name] for name in kept}, queries_per_site(parts.unet, latent))
        for i, step in enumerate(progress(parts.scheduler.steps(origin.steps))):
            made.put(i, source.advance(i, step, keeps.at(i)))
        block.tensors["latents"].copy_(source.finish.latents)
        for name, tensor in conditioning_tensors(origin.conditioning).items():
            block.tensors[name].copy_(tensor)
    return replace(source.finish, latents=block.tensors["latents"], qk_cache=made)


def load_run(parts: Components, file: Path) -> Trajectory:
    """The run in a file, memory-mapped. Raises FileNotFoundError or ValueError with one line that names the file."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: {'a folder, not a file' if file.exists() else 'no such file'}")
    tensors, said = read_tensors(file), read_metadata(file)
    if said.get("format") != FORMAT:
        raise ValueError(f"{file}: not a run's file, which Trajectory.save and `minip2p generate --record` write")
    if said.get("model") != parts.fingerprint:
        raise ValueError(f"{file}: the run of another model, or of this in another dtype: open it with what made it")
    try:
        latents = tensors.pop("latents")
        way = read_conditioning(tensors, said)
        prompt, negative, guidance = said["prompt"], said["negative"], float(said["guidance"])
        seed = int(said["seed"]) if said["seed"] else None
        if latents.dtype != torch.float32 or latents.ndim != 4 or not latents.numel():
            raise ValueError("its latents are not t c h w, float32")
        steps, latent = len(latents) - 1, (latents.shape[-2], latents.shape[-1])
        parts.scheduler.timesteps(steps)
        prepare_run(
            parts,
            prompt,
            latents=latents[:1],
            steps=steps,
            guidance_scale=guidance,
            seed=seed or 0,
            negative_prompt=negative,
            image=way.image,
        )
        context, always = parts.text(prompt), CachePolicy((0, steps), (0, steps), math.prod(latent))
        shapes = cache_layout(parts.unet, latent, len(parts.text.prompt(prompt).ids), steps, always, torch.float32)
        shapes["unconditional"] = torch.float32, (steps, *context.shape[1:])
        shapes["beside"] = torch.float32, (1, parts.extra_channels, *latent)
        shapes["noise"] = torch.float32, (steps, *latents.shape[1:])
        if not 0 <= way.skip_steps < steps or not 0 <= way.proximal_quantile < 1:
            raise ValueError("its skip or proximal is out of range")
        for name, tensor in (tensors | conditioning_tensors(way)).items():
            if name not in shapes or tensor.shape != shapes[name][1] or tensor.dtype not in DTYPE_NAMES:
                raise ValueError(f"{name} is not of this run")
        if not all(torch.isfinite(tensor).all() for tensor in (latents, *conditioning_tensors(way).values())):
            raise ValueError("its latents, embeddings or noise are not finite")
        if " ".join(conditioning_tensors(way)) != said["along"]:
            raise ValueError(f"it should have {said['along'] or 'neither embeddings nor noise'} beside its latents")
    except KeyError as error:
        raise ValueError(f"{file}: not a whole run (it has no {error.args[0]})") from None
    except (ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{file}: not a whole run ({error})") from None
    record = QKCache(tensors, queries_per_site(parts.unet, latent)) if tensors else None
    return Trajectory(parts, prompt, latents, guidance, negative, seed, way, qk_cache=record)


def read_conditioning(tensors: dict[str, Tensor], said: Mapping[str, str]) -> Conditioning:
    """The way of a run in a file, whose tensors it takes out of these."""
    channels, led = tensors.pop("beside", None), said["picture_guidance"]
    beside = None if channels is None else ImageConditioning(channels, float(led) if led else None)
    if led and not math.isfinite(float(led)):
        raise ValueError("its picture_guidance is not a number")
    return Conditioning(
        tensors.pop("unconditional", None),
        tensors.pop("noise", None),
        int(said["skip"]),
        float(said["proximal"]),
        beside,
    )
