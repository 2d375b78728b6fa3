"""Local blending: inside of a mask the picture may change, outside of it the latents are the source's.

Axes: b batch, c h w latents; y x: rows and columns of a map.
"""

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from minip2p.attention.contract import Site, SiteFilter
from minip2p.attention.heatmaps import HeatmapAccumulator, check_hops, finest_self_stride, select_strides
from minip2p.attention.masks import check_threshold, heatmap_to_mask, mask_to_latent, same_dtype
from minip2p.errors import Notice
from minip2p.io.images import read_mask
from minip2p.io.tensors import to_device
from minip2p.text.prompt import Prompt, WordSelector, token_indicator
from minip2p.validation import is_finite, is_integer

Words = WordSelector | Sequence[WordSelector]  # one word, or several; `LocalBlend` keeps a tuple


@dataclass(frozen=True)
class LocalBlend:
    """Local blending: outside of a mask, the target's latents are the source's (Hertz et al. 2022, local editing).

    The mask is the union of the places of some words, or one of your own.

    source, target: words of the source prompt and of the target prompt whose places may change: one word, or a tuple of
    them, each as `Prompt.token_indices` takes it. without_source, without_target: words whose places may not change.
    mask: your own mask instead of words, H W: a tensor, an array or a Pillow image, 1 or white where the picture may
    change; it is resized to the latents and thresholded at one half.
    threshold, without_threshold: of the heat maps, see `minip2p.attention.masks.threshold_mask`; a soft threshold
    blends softly. pool: enlarge the mask by a 3 × 3 max-pool of the heat map, as the published code does; without it,
    the mask is limited to the places of the words and more of the source is preserved. self_attention_hops: how often
    the heat is propagated by the finest self-attention to similar pixels (see `HeatmapAccumulator`). start: the share
    of the run from which on it blends; with (from, full) it sets in gradually between the two. strides: of the
    cross-attention sites that are read, by default those of `default_strides`.
    Raises ValueError for values that are wrong whatever the prompts are.
    """

    source: Words = ()
    target: Words = ()
    without_source: Words = ()
    without_target: Words = ()
    mask: Any = None
    threshold: Any = 0.3
    without_threshold: Any = 0.3
    pool: bool = True
    self_attention_hops: int = 0
    start: Any = 0.2
    strides: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("source", "target", "without_source", "without_target"):
            words = getattr(self, name)  # a single word needs no tuple
            refuse_ambiguous(f"a local blend's {name}", words)
            object.__setattr__(self, name, tuple(words) if isinstance(words, list | tuple) else (words,))
        if (self.mask is None) == (not (self.source or self.target)):
            raise ValueError("a local blend needs words or a mask, and not both")
        for name in ("threshold", "without_threshold"):
            check_threshold(f"a local blend's {name}", getattr(self, name))
        check_hops(self.self_attention_hops)
        ends = self.start if isinstance(self.start, tuple) and len(self.start) == 2 else (self.start, self.start)
        if not all(is_finite(end) for end in ends) or not 0 <= ends[0] <= ends[1] <= 1:
            raise ValueError(f"a local blend's start must lie between 0 and 1, not {self.start}; or it is (from, full)")
        if self.strides is not None and not isinstance(self.strides, list | tuple):
            raise ValueError(f"a local blend's strides are a list or tuple, as (2, 4), not {self.strides!r}")
        if self.mask is not None:
            object.__setattr__(self, "mask", read_mask(self.mask))

    @classmethod
    def from_argument(cls, blend: "LocalBlend | str | Sequence[Any] | None") -> "LocalBlend | None":
        """From what `Pipeline.edit` takes: a LocalBlend, a word of both prompts, or a (source word, target word).

        Raises ValueError for anything else.
        """
        if blend is None or isinstance(blend, LocalBlend):
            return blend
        if isinstance(blend, str):
            return cls((blend,), (blend,))
        if not isinstance(blend, Sequence) or len(blend) != 2:
            raise ValueError(f"local_blend is a word, a (source word, target word) or a LocalBlend, not {blend!r}")
        refuse_ambiguous("local_blend", blend)
        source, target = tuple(blend)
        return cls((source,), (target,))


def refuse_ambiguous(name: str, words: Any) -> None:
    """Raises ValueError for a tuple such as ("cat", 2): as one word it is the second "cat", as two words another."""
    if isinstance(words, tuple) and len(words) == 2 and isinstance(words[0], str) and is_integer(words[1]):
        text, n = words
        raise ValueError(
            f"{name} is {words!r}, which may be occurrence {n} of {text!r}, or {text!r} and the word of index {n}: "
            f"write {f'{text}#{n}'!r} or [{text!r}, {n}]"
        )


@dataclass
class LocalBlendState:
    """A local blend at work on one target: it accumulates heat maps during the run and blends the latents.

    source, target: heat maps of the words that may change (row 0) and of those that may not (row 1), in each prompt.
    first_step, full_step: the step at which blending starts, and the one from which on it is complete.
    last_mask: the mask of the last step, h w: bool, or soft in [0, 1]. history: step -> the heat maps after it.
    """

    blend: LocalBlend
    source: HeatmapAccumulator
    target: HeatmapAccumulator
    first_step: int
    full_step: int
    last_mask: Tensor | None = field(default=None, init=False)
    history: dict[int, tuple[HeatmapAccumulator, HeatmapAccumulator]] = field(default_factory=dict, init=False)

    @classmethod
    def start(
        cls,
        blend: LocalBlend,
        source: Prompt,
        target: Prompt,
        *,
        steps: int,
        skip_steps: int = 0,
        latent_size: tuple[int, int],
        sites: Sequence[Site],
    ) -> "LocalBlendState":
        """The state before the first step.

        skip_steps: the first steps of the run, which are not edited; the blend's start counts from there. sites: the
        model's. Raises ValueError for words that are not in a prompt.
        """
        read = SiteFilter(strides=select_strides(blend.strides, sites, latent_size))

        def accumulator(prompt: Prompt, words: Any, without: Any) -> HeatmapAccumulator:
            rows = [token_indicator(prompt, group).sum(0).clamp(max=1) for group in (words, without)]
            hops = blend.self_attention_hops
            return HeatmapAccumulator(torch.stack(rows), latent_size, read, hops, finest_self_stride(sites))

        if blend.mask is not None and not blend.mask.any():
            message = "the mask of a local blend is black, so it lets nothing change; white is what may change, and"
            warnings.warn(f"{message} transparent pixels of an image count as black", Notice, stacklevel=2)
        elif blend.mask is not None and blend.mask.max() < 0.5:
            raise ValueError(
                "the mask of a local blend is nowhere white, so it would let nothing change: its maximum is "
                f"{float(blend.mask.max()):.2g} (white is 1, and 255 in an image)"
            )
        elif blend.mask is not None and not mask_to_latent(blend.mask, latent_size).any():
            raise ValueError(
                "the mask of a local blend covers less than half of every latent pixel, which is larger than a pixel "
                "of the picture: it would let nothing change"
            )
        first, full = blend.start if isinstance(blend.start, tuple) else (blend.start, blend.start)
        return cls(
            blend,
            accumulator(source, blend.source, blend.without_source),
            accumulator(target, blend.target, blend.without_target),
            skip_steps + int(first * steps),
            skip_steps + int(full * steps),
        )

    @property
    def reads_heat(self) -> bool:
        """Whether the mask depends on words."""
        return bool(self.source.indicators.any() or self.target.indicators.any())

    def can_resume(self, other: "LocalBlendState | None") -> bool:
        """Whether this blend could go on from the heat maps of another edit of the same source, or needs none."""
        if not self.reads_heat:
            return True
        pairs = [] if other is None else [(self.source, other.source), (self.target, other.target)]
        return bool(pairs) and all(a.sites == b.sites and a.adds_the_same(b) for a, b in pairs)

    def resume(self, step: int, other: "LocalBlendState | None") -> None:
        """Goes on at a step from the heat maps that another blend had before it, where it needs any."""
        if not self.reads_heat or other is None or step - 1 not in other.history:
            return
        self.history = {i: maps for i, maps in other.history.items() if i < step}
        for heat, past in zip((self.source, self.target), self.history[step - 1], strict=True):
            heat.sums, heat.count = dict(past.sums), past.count

    def cache_key(self, step: int) -> Hashable:
        """Equal for two blends that have the same effect at a step, if their targets were equal so far."""
        if step < self.first_step:
            return None
        blend = self.blend
        words = [heat.indicators.numpy().tobytes() for heat in (self.source, self.target)]
        mask = None if blend.mask is None else (tuple(blend.mask.shape), blend.mask.cpu().numpy().tobytes())
        ramp = self.full_step - self.first_step, min(step, self.full_step) - self.first_step
        thresholds = blend.threshold, blend.without_threshold
        return *words, mask, *thresholds, blend.pool, blend.self_attention_hops, ramp, self.source.sites

    def mask(self) -> Tensor:
        """Where the target may differ from the source, h w: the places of all words minus those of the excluded words.

        bool; with a soft threshold the shares in [0, 1]: the greater of two in a union, the product in a difference. It
        stays on the device of the heat maps.
        """
        blend, size = self.blend, self.source.latent_size
        if blend.mask is not None:
            mask = mask_to_latent(blend.mask, size)
        else:
            heats = [heat for heat, words in ((self.source, blend.source), (self.target, blend.target)) if words]
            masks = [heatmap_to_mask(heat.total[0], size, blend.threshold, blend.pool) for heat in heats]
            mask = reduce(torch.maximum, masks)
        for heat, words in ((self.source, blend.without_source), (self.target, blend.without_target)):
            if words:
                places = heatmap_to_mask(heat.total[1], size, blend.without_threshold, pool=False)
                mask, places = same_dtype(to_device(mask, places.device), places)
                mask = mask & ~places if mask.dtype == torch.bool else mask * (1 - places)
        return mask

    def __call__(self, step: int, source: Tensor, target: Tensor) -> Tensor:
        """Blends the latents after a step, b c h w: x_s + m (x − x_s).

        Where m is 0 they are the source's to the bit, where it is 1 the target's. Before the full step, m is replaced
        by m + (1 − m) (1 − r), where r grows from 0 to 1.
        """
        self.history[step] = self.source.copy(), self.target.copy()
        if step < self.first_step:
            return target
        self.last_mask = self.mask()
        m = to_device(self.last_mask, target.device, target.dtype)
        if step < self.full_step:
            m = 1 - (1 - m) * (step - self.first_step + 1) / (self.full_step - self.first_step + 1)
        return torch.where(m == 1, target, torch.where(m == 0, source, source + m * (target - source)))
