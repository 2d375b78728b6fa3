"""Local blending: where the picture may change, and the source's latents everywhere else.

Axes: b batch, c h w latents; y x: rows and columns of a map.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from minip2p.attention.contract import Site
from minip2p.attention.heatmaps import HeatmapAccumulator, check_hops, finest_self_stride, select_strides
from minip2p.attention.masks import check_threshold, heatmap_to_mask, mask_to_latent, same_dtype
from minip2p.io.images import read_mask
from minip2p.text.prompt import Prompt, token_indicator
from minip2p.validation import is_finite


@dataclass(frozen=True)
class LocalBlend:
    """Local blending: outside of the mask, the target's latents are the source's.

    source, target: the words whose places may change, in either prompt (one, or a tuple of them, each as `Prompt.find`
    takes it); the mask is the union of both.
    without_source, without_target: words whose places may not. mask: an own mask instead of the words', H W: a tensor,
    an array or a PIL image, 1 or white where the picture may change; resized to the latent and cut at one half.
    threshold, without_threshold: of the heat map's maximum, or another that `minip2p.attention.masks.threshold_mask` takes; a soft one blends
    softly. spread: how often the heat is spread by the finest self-attention to pixels that are alike (`HeatSum`).
    pool: let the mask reach one pixel of the maps further, by a 3 × 3 max-pool, as the published code does; without, it
    keeps to the words' places, and more of the source is kept. start: the share of the run from which on it blends; of
    two, (from, full), it sets in gradually between them. strides: of the maps that are read, `default_strides` where
    none are given.
    """

    source: tuple[Any, ...] = ()
    target: tuple[Any, ...] = ()
    without_source: tuple[Any, ...] = ()
    without_target: tuple[Any, ...] = ()
    mask: Any = None
    threshold: Any = 0.3
    without_threshold: Any = 0.3
    pool: bool = True
    self_attention_hops: int = 0
    start: Any = 0.2
    strides: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("source", "target", "without_source", "without_target"):
            words = getattr(self, name)  # one word may stand alone
            object.__setattr__(self, name, tuple(words) if isinstance(words, list | tuple) else (words,))
        if (self.mask is None) == (not (self.source or self.target)):
            raise ValueError("a blend needs a word or a mask, and not both")
        for name in ("threshold", "without_threshold"):
            check_threshold(f"a blend's {name}", getattr(self, name))
        check_hops(self.self_attention_hops)
        ends = self.start if isinstance(self.start, tuple) and len(self.start) == 2 else (self.start, self.start)
        if not all(is_finite(end) for end in ends) or not 0 <= ends[0] <= ends[1] <= 1:
            raise ValueError(f"a blend's start must lie between 0 and 1, not {self.start}; or it is (from, full)")
        if self.strides is not None and not isinstance(self.strides, list | tuple):
            raise ValueError(f"a blend's strides are several, as (2, 4), not {self.strides!r}")
        if self.mask is not None:
            object.__setattr__(self, "mask", read_mask(self.mask))

    @classmethod
    def from_argument(cls, blend: "LocalBlend | str | Sequence[Any] | None") -> "LocalBlend | None":
        """What `edit` takes: a Blend, a word that both prompts have, or a (source word, target word)."""
        if blend is None or isinstance(blend, LocalBlend):
            return blend
        if isinstance(blend, str):
            return cls((blend,), (blend,))
        if not isinstance(blend, Sequence) or len(blend) != 2:
            raise ValueError(f"a blend is a word, a (source word, target word) or a Blend, not {blend!r}")
        source, target = tuple(blend)
        return cls((source,), (target,))


@dataclass
class LocalBlendState:
    """A blend at work on one target: it sums heat as the run goes and mixes latents."""

    blend: LocalBlend
    source: HeatmapAccumulator
    target: HeatmapAccumulator
    first_step: int
    full_step: int
    last_mask: Tensor | None = field(
        default=None, init=False
    )  # the mask that it blended by, h w: bool, or soft in [0, 1]

    @classmethod
    def start(
        cls,
        blend: LocalBlend,
        source: Prompt,
        target: Prompt,
        steps: int,
        latent: tuple[int, int],
        sites: Sequence[Site],
    ) -> "LocalBlendState":
        """Raises ValueError for words that are not in their prompt."""
        strides = select_strides(blend.strides, sites, latent)

        def summed(prompt: Prompt, words: tuple[Any, ...], without: tuple[Any, ...]) -> HeatmapAccumulator:
            rows = [token_indicator(prompt, group).sum(0).clamp(max=1) for group in (words, without)]
            return HeatmapAccumulator(
                torch.stack(rows), latent, strides, blend.self_attention_hops, finest_self_stride(sites)
            )

        if blend.mask is not None and blend.mask.any() and not mask_to_latent(blend.mask, latent).any():
            raise ValueError(
                "a blend's own mask covers less than half of every pixel of the latents, which are larger "
                "than a picture's: nothing could change"
            )
        ends = blend.start if isinstance(blend.start, tuple) else (blend.start, blend.start)
        return cls(
            blend,
            summed(source, blend.source, blend.without_source),
            summed(target, blend.target, blend.without_target),
            *(int(end * steps) for end in ends),
        )

    def cache_key(self, step: int) -> Any:
        """Equal for blendings that do the same at a step, to targets that have been the same so far."""
        if step < self.first_step:
            return None
        b, words = self.blend, [heat.indicators.numpy().tobytes() for heat in (self.source, self.target)]
        own = None if b.mask is None else (tuple(b.mask.shape), b.mask.cpu().numpy().tobytes())
        ramp = self.full_step - self.first_step, min(step, self.full_step) - self.first_step
        return *words, own, b.threshold, b.without_threshold, b.pool, b.self_attention_hops, ramp, self.source.strides

    def mask(self) -> Tensor:
        """Where the target may differ, h w: (source's words ∪ target's words) minus what is kept out. bool, or where a
        threshold is soft a share in [0, 1]: of a union the greater, of what is left the product."""
        b, size = self.blend, self.source.latent_size
        out = torch.zeros(size, dtype=torch.bool)
        if b.mask is not None:
            out = mask_to_latent(b.mask, size)
        for heat, words in ((self.source, b.source), (self.target, b.target)):
            if words and b.mask is None:
                out = torch.maximum(*same_dtype(out, heatmap_to_mask(heat.total[0], size, b.threshold, b.pool).cpu()))
        for heat, words in ((self.source, b.without_source), (self.target, b.without_target)):
            if words:
                kept_out = heatmap_to_mask(heat.total[1], size, b.without_threshold, pool=False).cpu()
                one, other = same_dtype(out, kept_out)
                out = one & ~other if one.dtype == torch.bool else one * (1 - other)
        return out

    def __call__(self, step: int, source: Tensor, target: Tensor) -> Tensor:
        """x_s + m (x − x_s), b c h w: where m is 0 the source's latents to the bit, where it is 1 the target's. Until
        the full step it is m + (1 − m) (1 − r), r growing from 0 to 1, that holds."""
        if step < self.first_step:
            return target
        self.last_mask = self.mask()
        m = self.last_mask.to(target)
        if step < self.full_step:
            m = 1 - (1 - m) * (step - self.first_step + 1) / (self.full_step - self.first_step + 1)
        return torch.where(m == 1, target, torch.where(m == 0, source, source + m * (target - source)))
