"""Runs. A run is a value: its latents from noise to picture, and all that is needed to go through it again.

Axes: t steps, b batch, c h w latents, n tokens, d width of their embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minip2p.attention.contract import QK, Attend, Site, SitePredicate, at_step, fused
from minip2p.attention.heatmaps import (
    HeatmapAccumulator,
    accumulate_heatmap,
    check_hops,
    finest_self_stride,
    select_strides,
)
from minip2p.attention.masks import check_threshold, heatmap_to_mask
from minip2p.attention.store import record_qk
from minip2p.checkpoints.components import Components
from minip2p.io.files import atomic_write
from minip2p.io.images import to_pil
from minip2p.io.tensors import SafetensorsBuffer
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.progress import Progress
from minip2p.sampling.qk_cache import QKCache
from minip2p.sampling.settings import RunSettings
from minip2p.sched import Step
from minip2p.text.prompt import token_indicator

FORMAT = "minip2p run 3"  # of the file of a run


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A run: generated, edited or (an inverted photograph's) reconstructed.

    latents: T+1 c h w, noise first, float32. way: how it goes through its steps, where not as usual. attend: the
    attention that it ran with. mask: of an edit, the last mask that it was blended by, h w. record: the (q, k) that
    edits of it need not make anew. begun: of an edit, its source as far as it was needed.
    """

    components: Components = field(repr=False)
    prompt: str
    latents: Tensor = field(repr=False)
    guidance_scale: float
    negative_prompt: str = ""
    seed: int | None = None
    conditioning: Conditioning = field(default_factory=Conditioning, repr=False)
    attend: Attend = field(default=fused, repr=False)
    blend_mask: Tensor | None = field(default=None, repr=False)
    qk_cache: QKCache | None = field(default=None, repr=False)
    source_run: "SourceRun | None" = field(default=None, repr=False)

    @property
    def steps(self) -> int:
        return len(self.latents) - 1

    def is_recorded(self, step: int, wanted: SitePredicate | None) -> bool:
        """Whether a step can be read without running it."""
        return wanted is None or (self.qk_cache is not None and self.qk_cache.covers(step, wanted))

    @property
    def source(self) -> "Trajectory | None":
        """Of an edit, the run it started from. What the edit did not need of it is sampled when first asked for."""
        return None if self.source_run is None else self.source_run.finish

    @property
    def picture(self) -> Tensor:
        """The picture, decoded from the last latents: 3 H W in [-1, 1]."""
        return self.components.decode(self.latents[-1:].to(self.components.device))[0].cpu()

    @property
    def image(self) -> Image.Image:
        """The picture, as Pillow has it."""
        return to_pil(self.picture)

    def maps(self, words: Any, *, strides: Sequence[int] | None = None) -> Tensor:
        """Heat maps of words, words H W in picture pixels: the share of attention that each pixel gives to the word,
        mean over the heads, over all steps and over the cross-attention sites of the given strides (`default_strides`).

        words: one word, as `Prompt.find` takes it, or a list. The run is gone through again, its conditional rows only,
        without any edit: they are the maps of the run's own prompt and latents. Raises ValueError for a word that is
        not in the prompt.
        """
        size = tuple(self.components.vae.stride * side for side in self.latents.shape[-2:])
        heat = self.heatmaps(as_list(words), strides)
        return F.interpolate(heat.mean[:, None], size, mode="bilinear")[:, 0].cpu()

    def mask(
        self, words: Any, *, threshold: Any = "otsu", self_attention_hops: int = 0, strides: Sequence[int] | None = None
    ) -> Tensor:
        """A mask of words, H W in picture pixels, sharper than a blend's: their heat, smoothly enlarged and cut (see
        `minip2p.attention.masks.threshold_mask`): bool, or float for a soft threshold. spread: see `HeatSum`; the model that ships was taught
        where its words are and is better without. Masks of bool join as tensors do: `|`, `&`, `& ~`; `Blend(mask=…)`
        takes one. Raises ValueError.
        """
        check_threshold("a mask's threshold", threshold)
        check_hops(self_attention_hops)
        size = tuple(self.components.vae.stride * side for side in self.latents.shape[-2:])
        heat = self.heatmaps(as_list(words), strides, self_attention_hops)
        return heatmap_to_mask(heat.total.sum(0), (size[0], size[1]), threshold, pool=False, smooth=True).cpu()

    def heatmaps(self, words: list[Any], strides: Sequence[int] | None = None, hops: int = 0) -> HeatmapAccumulator:
        """What `maps` shows, at the size of the maps: a sum over sites and steps that a mask can be made of."""
        parts, latent = self.components, (self.latents.shape[-2], self.latents.shape[-1])
        if not words:
            raise ValueError("these would be maps of no words: name at least one")
        chosen = select_strides(strides, parts.unet.sites, latent)
        found = token_indicator(parts.text.prompt(self.prompt), words)
        heat = HeatmapAccumulator(found, latent, chosen, hops, finest_self_stride(parts.unet.sites))
        context = parts.text(self.prompt)
        for i, step in enumerate(parts.scheduler.steps(self.steps)):
            attend = accumulate_heatmap(heat, at_step(self.attend, i))
            parts.guided_noise(
                self.latents[i : i + 1].to(parts.device),
                step.t,
                context,
                context,
                1.0,
                attend,
                image=self.conditioning.without_image_guidance,
            )
        return heat

    def save(self, file: str | Path) -> None:
        """Writes the run, and its record if it has one, into one safetensors file; not an edit's source or mask. Raises
        ValueError for a run whose attention is a function of one's own, which no file can hold."""
        self.components.origin.refuse_overwrite(Path(file))
        tensors, said = (
            {"latents": self.latents} | conditioning_tensors(self.conditioning),
            run_metadata(self.components, self),
        )
        tensors |= {} if self.qk_cache is None else dict(self.qk_cache.tensors)
        shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        with atomic_write(Path(file)) as partial:
            block = SafetensorsBuffer(shapes, said, partial)
            for name, tensor in tensors.items():
                block.tensors[name].copy_(tensor)


def as_list(words: Any) -> list[Any]:
    """One word, as `Prompt.find` takes it, or a list of them: as a list."""
    return words if isinstance(words, list) else [words]


def sample(parts: Components, start: RunSettings, progress: Progress = iter) -> Trajectory:
    """Samples one picture by DDIM (Song et al. 2020): a source that nobody reads."""
    source = SourceRun(parts, start)
    for i, step in enumerate(progress(parts.scheduler.steps(start.steps))):
        source.advance(i, step, None)
    return source.finish


def check_finite(parts: Components, x: Tensor, step: int) -> Tensor:
    """x, or ValueError where a run has gone wrong: better one clear line than a black picture."""
    if not torch.isfinite(x).all():
        raise parts.non_finite_error(f"the latents are not finite after step {step + 1}")
    return x


class SourceRun:
    """The source of an edit, step by step: a run that is gone through again, or one that is sampled as it is read.

    Either way in a batch of its own, so that it is the same to the bit whatever targets follow it and however many.
    """

    def __init__(self, parts: Components, origin: Trajectory | RunSettings):
        self.components, self.origin = parts, origin
        self.conditional, self.negative = parts.text(origin.prompt), parts.text.encode_negative(origin.negative_prompt)
        known = origin.latents if isinstance(origin, Trajectory) else origin.noise
        self.latents = [x.clone() for x in known.to(parts.device).split(1)]  # for the bits' sake, see `Record.at`

    def uncond_embedding(self, i: int) -> Tensor:
        own = self.origin.conditioning.uncond_embeddings
        return self.negative if own is None else own[i : i + 1].to(self.negative)

    def advance(self, i: int, step: Step, wanted: SitePredicate | None) -> Mapping[Site, QK]:
        """(q, k) of the wanted sites at step i, recorded or made anew. Where nothing is wanted and the next latents are
        known, none runs."""
        known = i + 1 < len(self.latents)
        if known and wanted is None:
            return {}
        if (
            isinstance(self.origin, Trajectory)
            and self.origin.qk_cache
            and wanted
            and self.origin.is_recorded(i, wanted)
        ):
            return self.origin.qk_cache.get(i, wanted, self.conditional)
        found: dict[Site, QK] = {}
        attend = at_step(self.origin.attend, i)
        if wanted is not None:
            attend = record_qk(found, wanted, attend)
        x, w, way = self.latents[i], self.origin.guidance_scale, self.origin.conditioning
        eps = self.components.guided_noise(
            x,
            step.t,
            self.uncond_embedding(i),
            self.conditional,
            w,
            attend,
            proximal_quantile=way.proximal_quantile,
            image=way.image,
        )
        if not known:
            self.latents.append(
                check_finite(self.components, self.components.scheduler.step(x, eps, step, noise=way.noise_at(i)), i)
            )
        return found

    @cached_property
    def finish(self) -> Trajectory:
        """The whole run. What no target read of it is sampled only now."""
        if isinstance(self.origin, Trajectory):
            return self.origin
        o, steps = self.origin, list(self.components.scheduler.steps(self.origin.steps))
        for i in range(len(self.latents) - 1, len(steps)):
            self.advance(i, steps[i], None)
        return Trajectory(
            self.components,
            o.prompt,
            torch.cat(self.latents).cpu(),
            o.guidance_scale,
            o.negative_prompt,
            o.seed,
            o.conditioning,
            o.attend,
        )


def conditioning_tensors(way: Conditioning) -> dict[str, Tensor]:
    """The tensors of a run's file that say how it goes through its steps."""
    beside = None if way.image is None else way.image.channels
    named = {"unconditional": way.uncond_embeddings, "noise": way.variance_noise, "beside": beside}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def run_metadata(parts: Components, run: Trajectory | RunSettings) -> dict[str, str]:
    """What a run's file says of it beside its tensors. Raises ValueError for an attention of one's own."""
    if run.attend is not fused:
        raise ValueError(f"the run {run.prompt!r} has an attention of its own, which no file can hold")
    seed = "" if run.seed is None else str(run.seed)
    return {
        "format": FORMAT,
        "model": parts.fingerprint,
        "prompt": run.prompt,
        "negative": run.negative_prompt,
        "guidance": repr(float(run.guidance_scale)),
        "seed": seed,
        "skip": str(run.conditioning.skip_steps),
        "proximal": repr(float(run.conditioning.proximal_quantile)),
        "along": " ".join(conditioning_tensors(run.conditioning)),
        "picture_guidance": picture_guidance(run.conditioning),
    }


def picture_guidance(way: Conditioning) -> str:
    """w_I, in a file's words."""
    return (
        ""
        if way.image is None or way.image.image_guidance_scale is None
        else repr(float(way.image.image_guidance_scale))
    )
