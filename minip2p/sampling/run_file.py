"""The file of a run: one safetensors file, the only format that runs are saved in.

Its tensors are the latents, what the run is conditioned on, and the (q, k) of its cache if it has one. Its metadata are
the prompt and the settings, and a fingerprint of the model. Whoever reads safetensors can read it.

Axes: t steps, c h w latents, n tokens, d width of a text embedding.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from minip2p.attention.contract import Attend, fused
from minip2p.checkpoints.components import Components
from minip2p.io.files import atomic_write
from minip2p.io.tensors import DTYPE_NAMES, SafetensorsBuffer, read_metadata, read_tensors
from minip2p.sampling.conditioning import Conditioning, ImageConditioning
from minip2p.sampling.qk_cache import CachePolicy, QKCache, cache_layout, queries_per_site
from minip2p.sampling.settings import RunSettings, prepare_run
from minip2p.text.encoder import TextEmbedding

FORMAT = "minip2p run 5"


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What a run file contains: a run without its model. latents: t+1 c h w, noise first, float32."""

    prompt: str
    latents: Tensor = field(repr=False)
    guidance_scale: float
    negative_prompt: str
    seed: int | None
    conditioning: Conditioning = field(repr=False)
    qk_cache: QKCache | None = field(default=None, repr=False)
    clip_skip: int = 1
    inversion: str = ""


def conditioning_tensors(conditioning: Conditioning) -> dict[str, Tensor]:
    """The tensors of a run's conditioning by their names in the file."""
    embeddings, image = conditioning.uncond_embeddings, conditioning.image
    tensors = {
        "uncond_tokens": None if embeddings is None else embeddings.tokens,
        "uncond_pooled": None if embeddings is None else embeddings.pooled,
        "variance_noise": conditioning.variance_noise,
        "image_channels": None if image is None else image.channels,
    }
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


class RunFields(Protocol):
    """What the metadata of a run file are made of: a `RunRecord`, a `RunStart` and a `Trajectory` have it."""

    @property
    def prompt(self) -> str: ...
    @property
    def guidance_scale(self) -> float: ...
    @property
    def negative_prompt(self) -> str: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def clip_skip(self) -> int: ...
    @property
    def inversion(self) -> str: ...
    @property
    def conditioning(self) -> Conditioning: ...


def run_metadata(components: Components, run: RunFields, attend: Attend) -> dict[str, str]:
    """The metadata of a run file. Raises ValueError for a custom attention function, which no file can hold."""
    if attend is not fused:
        raise ValueError(f"the run {run.prompt!r} has an attention function of its own, which no file can hold")
    conditioning = run.conditioning
    image_guidance = None if conditioning.image is None else conditioning.image.image_guidance_scale
    return {
        "format": FORMAT,
        "model": components.fingerprint,
        "model_name": components.origin.labels.get("Model", ""),
        "prompt": run.prompt,
        "negative_prompt": run.negative_prompt,
        "guidance_scale": repr(float(run.guidance_scale)),
        "clip_skip": str(run.clip_skip),
        "inversion": run.inversion,
        "seed": "" if run.seed is None else str(run.seed),
        "skip_steps": str(conditioning.skip_steps),
        "proximal_quantile": repr(float(conditioning.proximal_quantile)),
        "image_guidance_scale": number_text(image_guidance),
        "eta": number_text(conditioning.eta),
        "source_guidance_scale": number_text(conditioning.source_guidance_scale),
        "guidance_interval": " ".join(map(number_text, conditioning.guidance_interval or ())),
        "uncond_every": str(conditioning.uncond_every),
        "conditioning": " ".join(conditioning_tensors(conditioning)),
    }


def number_text(number: float | None) -> str:
    """A number as text, empty for None."""
    return "" if number is None else repr(float(number))


def write_run(components: Components, run: RunRecord, file: Path, attend: Attend = fused) -> None:
    """Writes a run file, whole or not at all.

    Raises ValueError for a run with a custom attention function, and for a file that holds weights of the model.
    """
    components.origin.refuse_overwrite(file)
    tensors = {"latents": run.latents} | conditioning_tensors(run.conditioning)
    metadata = run_metadata(components, run, attend)
    tensors |= {} if run.qk_cache is None else dict(run.qk_cache.tensors)
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with atomic_write(file) as partial:
        buffer = SafetensorsBuffer(layout, metadata, partial)
        for name, tensor in tensors.items():
            buffer.tensors[name].copy_(tensor)


def read_run(components: Components, file: Path) -> RunRecord:
    """Reads a run file, memory-mapped, and checks that it is a whole run of this model.

    Raises FileNotFoundError or ValueError with one line that names the file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: {'a folder, not a file' if file.exists() else 'no such file'}")
    tensors, metadata = read_tensors(file), read_metadata(file)
    version = metadata.get("format", "")
    if version != FORMAT and version.startswith(FORMAT.rstrip("0123456789")):
        raise ValueError(
            f"{file}: a run file of another version of minip2p ({version!r}, not {FORMAT!r}): run it again"
        )
    if version != FORMAT:
        raise ValueError(f"{file}: not a run file, which Trajectory.save and `minip2p generate --record` write")
    if metadata.get("model") != components.fingerprint:
        raise ValueError(
            f"{file}: the run of another model, or of this one with another dtype or scheduler: open it with that model"
        )
    try:
        latents = tensors.pop("latents")
        latent = (latents.shape[-2], latents.shape[-1])
        run = RunRecord(
            prompt=metadata["prompt"],
            latents=latents,
            guidance_scale=float(metadata["guidance_scale"]),
            negative_prompt=metadata["negative_prompt"],
            seed=int(metadata["seed"]) if metadata["seed"] else None,
            clip_skip=int(metadata["clip_skip"]),
            inversion=metadata.get("inversion", ""),
            conditioning=read_conditioning(tensors, metadata),
            qk_cache=QKCache(tensors, queries_per_site(components.unet, latent)) if tensors else None,
        )
        check_run(components, run, metadata)
    except KeyError as error:
        raise ValueError(f"{file}: not a whole run (it has no {error.args[0]})") from None
    except (ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{file}: not a whole run ({error})") from None
    return run


def read_conditioning(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Conditioning:
    """The conditioning of a run file, whose tensors are taken out of `tensors`."""
    channels, image_guidance = tensors.pop("image_channels", None), metadata["image_guidance_scale"]
    tokens, pooled = tensors.pop("uncond_tokens", None), tensors.pop("uncond_pooled", None)
    eta, source_guidance = metadata.get("eta", ""), metadata.get("source_guidance_scale", "")
    interval = [float(share) for share in metadata.get("guidance_interval", "").split()]
    if image_guidance and not math.isfinite(float(image_guidance)):
        raise ValueError("its image_guidance_scale is not a number")
    if source_guidance and not math.isfinite(float(source_guidance)):
        raise ValueError("its source_guidance_scale is not a number")
    if eta and not 0 <= float(eta) <= 1:
        raise ValueError("its eta is out of range")
    if len(interval) not in (0, 2):
        raise ValueError("its guidance_interval is not two shares")
    if tokens is None and pooled is not None:
        raise ValueError("it has pooled embeddings without tokens")
    return Conditioning(
        uncond_embeddings=None if tokens is None else TextEmbedding(tokens, pooled),
        variance_noise=tensors.pop("variance_noise", None),
        skip_steps=int(metadata["skip_steps"]),
        proximal_quantile=float(metadata["proximal_quantile"]),
        image=None
        if channels is None
        else ImageConditioning(channels, float(image_guidance) if image_guidance else None),
        eta=float(eta) if eta else None,
        source_guidance_scale=float(source_guidance) if source_guidance else None,
        guidance_interval=(interval[0], interval[1]) if interval else None,
        uncond_every=int(metadata.get("uncond_every", "1")),
    )


def check_run(components: Components, run: RunRecord, metadata: Mapping[str, str]) -> None:
    """Raises ValueError where the contents of a run file do not fit each other or the model."""
    latents, conditioning = run.latents, run.conditioning
    if latents.dtype != torch.float32 or latents.ndim != 4 or not latents.numel():
        raise ValueError("its latents are not t c h w, float32")
    steps, latent = len(latents) - 1, (latents.shape[-2], latents.shape[-1])
    settings = RunSettings(
        latents=latents[:1],
        steps=steps,
        guidance_scale=run.guidance_scale,
        seed=run.seed or 0,
        negative_prompt=run.negative_prompt,
        clip_skip=run.clip_skip,
        guidance_interval=conditioning.guidance_interval,
        uncond_every=conditioning.uncond_every,
    )
    prepare_run(components, run.prompt, settings, default_guidance=run.guidance_scale, image=conditioning.image)
    if not 0 <= conditioning.skip_steps < steps or not 0 <= conditioning.proximal_quantile < 1:
        raise ValueError("its skip_steps or proximal_quantile is out of range")
    everything = CachePolicy((0, steps), (0, steps), math.prod(latent), corrected_steps=(0, steps))
    words = len(components.text.prompt(run.prompt).ids)
    layout = cache_layout(components.unet, latent, words, steps, policy=everything, dtype=torch.float32)
    embedding = components.text(run.prompt)
    layout["uncond_tokens"] = torch.float32, (steps, *embedding.tokens.shape[1:])
    if embedding.pooled is not None:
        layout["uncond_pooled"] = torch.float32, (steps, *embedding.pooled.shape[1:])
    layout["image_channels"] = torch.float32, (1, components.extra_channels, *latent)
    layout["variance_noise"] = torch.float32, (steps, *latents.shape[1:])
    extra = conditioning_tensors(conditioning)
    cached = {} if run.qk_cache is None else run.qk_cache.tensors
    for name, tensor in {**cached, **extra}.items():
        if name not in layout or tensor.shape != layout[name][1] or tensor.dtype not in DTYPE_NAMES:
            raise ValueError(f"{name} is not of this run")
    embeddings = conditioning.uncond_embeddings
    if embeddings is not None and (embeddings.pooled is None) != (embedding.pooled is None):
        raise ValueError("uncond_pooled is not of this run")
    if not all(torch.isfinite(tensor).all() for tensor in (latents, *extra.values())):
        raise ValueError("its latents, embeddings or noise are not finite")
    if " ".join(extra) != metadata["conditioning"]:
        raise ValueError(f"besides its latents it should have {metadata['conditioning'] or 'nothing'}")
