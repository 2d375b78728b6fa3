"""A run is a value: its latents from noise to picture, and all that is needed to go through it again.

`Trajectory` is a finished run. `SourceRun` is a run that an edit reads step by step.

Axes: t steps, b batch, c h w latents, H W pixels, n tokens, d width of a text embedding.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minip2p.attention.contract import QK, Attend, Site, SiteFilter, SitePredicate, at_step, fused, unconditional_of
from minip2p.attention.heatmaps import (
    HeatmapAccumulator,
    check_hops,
    finest_self_stride,
    record_heatmaps,
    select_sites,
)
from minip2p.attention.masks import check_threshold, heatmap_to_mask
from minip2p.attention.store import record_qk
from minip2p.checkpoints.components import Components
from minip2p.io.animation import check_animation_path, write_animation
from minip2p.io.files import atomic_write
from minip2p.io.images import to_pil
from minip2p.io.tensors import to_device
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.guidance import FiniteCheck, RunGuidance, conditional_scale, guided_noise
from minip2p.sampling.progress import Progress
from minip2p.sampling.qk_cache import QKCache
from minip2p.sampling.run_file import RunRecord, read_run, write_run
from minip2p.sampling.settings import RunStart
from minip2p.text.encoder import TextEmbedding
from minip2p.text.prompt import WordSelector, token_indicator
from minip2p.validation import is_finite, is_integer

UNGUIDED_INVERSIONS = "direct", "edit-friendly"  # no guided prediction makes the latents of their runs


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A run: generated, edited, or reconstructed from an inverted photograph.

    latents: t+1 c h w, noise first, float32. seed: of the noise; None where there was no seed. conditioning: how the
    run differs from plain DDIM. attend: the attention of its conditional rows. clip_skip: see `TextEncoder`. inversion:
    the method by which the run, or the source of the edit, was inverted from a photograph; "" where it was not.
    blend_mask: the last mask by which an edit was blended with its source, h w. qk_cache: the (q, k) that edits of this
    run need not compute again. source_run: the source of an edit, run as far as the edit needed it.
    """

    components: Components = field(repr=False)
    prompt: str
    latents: Tensor = field(repr=False)
    guidance_scale: float
    negative_prompt: str = ""
    seed: int | None = None
    conditioning: Conditioning = field(default_factory=Conditioning, repr=False)
    attend: Attend = field(default=fused, repr=False)
    clip_skip: int = 1
    inversion: str = ""
    blend_mask: Tensor | None = field(default=None, repr=False)
    qk_cache: QKCache | None = field(default=None, repr=False)
    source_run: "SourceRun | None" = field(default=None, repr=False)

    @classmethod
    def from_start(
        cls, components: Components, start: RunStart, latents: Tensor, qk_cache: QKCache | None = None
    ) -> "Trajectory":
        """The finished run that began with `start`. latents: t+1 c h w."""
        return cls(
            components,
            start.prompt,
            latents,
            start.guidance_scale,
            start.negative_prompt,
            start.seed,
            start.conditioning,
            start.attend,
            clip_skip=start.clip_skip,
            inversion=start.inversion,
            qk_cache=qk_cache,
        )

    @classmethod
    def open(cls, components: Components, file: Path) -> "Trajectory":
        """The run in a file, memory-mapped. Raises FileNotFoundError or ValueError with one line."""
        run = read_run(components, file)
        return cls(
            components,
            run.prompt,
            run.latents,
            run.guidance_scale,
            run.negative_prompt,
            run.seed,
            run.conditioning,
            clip_skip=run.clip_skip,
            inversion=run.inversion,
            qk_cache=run.qk_cache,
        )

    @property
    def steps(self) -> int:
        return len(self.latents) - 1

    @property
    def latent_size(self) -> tuple[int, int]:
        """Rows and columns of the latents."""
        return self.latents.shape[-2], self.latents.shape[-1]

    @property
    def picture_size(self) -> tuple[int, int]:
        """Rows and columns of the picture in pixels."""
        stride, (rows, columns) = self.components.vae.stride, self.latent_size
        return stride * rows, stride * columns

    @property
    def picture(self) -> Tensor:
        """The picture, decoded from the last latents by the VAE: 3 H W in [-1, 1]."""
        return self.components.decode(self.latents[-1:].to(self.components.device))[0].cpu()

    @property
    def image(self) -> Image.Image:
        """The picture as a Pillow image."""
        return to_pil(self.picture)

    def maps(
        self,
        words: WordSelector | list[WordSelector],
        *,
        heads: Sequence[int] | None = None,
        steps: Container[int] | None = None,
        sites: SiteFilter | None = None,
    ) -> Tensor:
        """Heat maps of words, words H W in picture pixels: the share of attention that each pixel gives to the word.

        A map is the mean over heads, steps and cross-attention sites.

        words: one word, as `Prompt.token_indices` takes it, or a list. heads: the heads to read, such as (0, 3); all by
        default, or those of `sites`. steps: the steps to read, counted from 0, such as range(10); all by default.
        sites: the sites to read; those of `default_strides` by default.
        The UNet runs once more through the latents of the run, conditional rows only and without any edit, so the maps
        are those of the run's own prompt. Raises ValueError for a word that is not in the prompt, and where nothing
        would be read.
        """
        heat = self.heatmaps(as_list(words), heads=heads, steps=steps, sites=sites)
        return F.interpolate(heat.mean[:, None], self.picture_size, mode="bilinear")[:, 0].cpu()

    def save_maps(
        self,
        file: str | Path,
        words: WordSelector | list[WordSelector],
        *,
        heads: Sequence[int] | None = None,
        steps: Container[int] | None = None,
        sites: SiteFilter | None = None,
    ) -> None:
        """Writes the heat maps of words into an .npz file of numpy, which needs no pickle. The arguments: see `maps`.

        Its arrays: `maps`, words H W in float32; `words`, as they were named; `prompt`; `steps`, the numbers of the
        steps that were read; `sites`, the names of the sites, such as "up.0.cross"; `heads`, empty where all were read.
        Raises ValueError as `maps` does, and for a file of another name.
        """
        path = Path(file)
        if path.suffix.lower() != ".npz":
            raise ValueError(f"{path}: heat maps are written to an .npz file")
        heat = self.maps(words, heads=heads, steps=steps, sites=sites)
        unet = self.components.unet
        read = select_sites(sites, heads, unet.heads, self.latent_size)
        with atomic_write(path) as partial, open(partial, "wb") as stream:
            np.savez_compressed(
                stream,
                maps=heat.numpy(),
                words=np.array([str(word) for word in as_list(words)]),
                prompt=np.array(self.prompt),
                steps=np.array([i for i in range(self.steps) if steps is None or i in steps]),
                sites=np.array([f"{s.place}.{s.index}.cross" for s in unet.sites if s.cross and read.includes(s)]),
                heads=np.array(read.heads or (), dtype=int),
            )

    def mask(
        self,
        words: WordSelector | list[WordSelector],
        *,
        threshold: Any = "otsu",
        self_attention_hops: int = 0,
        heads: Sequence[int] | None = None,
        steps: Container[int] | None = None,
        sites: SiteFilter | None = None,
    ) -> Tensor:
        """The mask of words, H W in picture pixels: their heat map, enlarged smoothly and thresholded.

        It is sharper than the mask of a local blend. Boolean masks combine as tensors do, by `|`, `&` and `& ~`, and
        `LocalBlend(mask=…)` takes one.

        threshold: see `minip2p.attention.masks.threshold_mask`; a soft one gives floating-point values, all others
        bool. self_attention_hops: see `HeatmapAccumulator`; the shipped model was trained to locate its words and is
        better without. heads, steps, sites: as for `maps`. Raises ValueError.
        """
        check_threshold("a mask's threshold", threshold)
        check_hops(self_attention_hops)
        heat = self.heatmaps(as_list(words), heads=heads, steps=steps, sites=sites, hops=self_attention_hops)
        return heatmap_to_mask(heat.total.sum(0), self.picture_size, threshold, pool=False, smooth=True).cpu()

    def heatmaps(
        self,
        words: list[WordSelector],
        *,
        heads: Sequence[int] | None = None,
        steps: Container[int] | None = None,
        sites: SiteFilter | None = None,
        hops: int = 0,
    ) -> HeatmapAccumulator:
        """Accumulates the words' heat maps over the steps, in the resolution of the attention; see `maps`."""
        components = self.components
        if not words:
            raise ValueError("there is no word to show: name at least one")
        check_steps(steps, self.steps)
        heat = HeatmapAccumulator(
            token_indicator(components.text.prompt(self.prompt), words),
            self.latent_size,
            select_sites(sites, heads, components.unet.heads, self.latent_size),
            hops,
            finest_self_stride(components.unet.sites),
        )
        self.replay(lambda attend: record_heatmaps(heat, attend), steps=steps)
        return heat

    def replay(
        self, observe: Callable[[Attend], Attend], *, steps: Container[int] | None = None, progress: Progress = iter
    ) -> None:
        """Goes through the run once more, conditional rows only, to observe the attention of its own prompt.

        observe: gets the attention of a step and returns the one that the UNet uses. steps: which to run; None is all.
        """
        components = self.components
        cond = components.text(self.prompt, self.clip_skip)
        for i, step in enumerate(progress(components.scheduler.steps(self.steps))):
            if steps is not None and i not in steps:
                continue
            x = to_device(self.latents[i : i + 1], components.device)
            run_conditional_row(components, self, x, step.t, cond, observe(at_step(self.attend, i)))

    def gif(self, file: str | Path, *, fps: float = 10.0, every: int = 1, pause: float = 1.5) -> None:
        """Writes the denoising as an animated GIF or WebP, by the file's suffix; it ends with the picture itself.

        A frame is the picture that a step predicts, x_0. Two neighbouring latents determine it
        (`DDIMScheduler.x0_between`), so the UNet does not run. In an edit with a local blend, the blend lies between
        them; its frames have specks where the mask has just changed.

        fps: frames a second. every: shows every n-th step. pause: seconds on the picture at the end.
        Raises ValueError for another suffix or another number.
        """
        check_animation_path(Path(file))
        if not is_finite(fps) or not 0.1 <= fps <= 50:
            raise ValueError(f"fps must be a number of frames a second from 0.1 to 50, not {fps!r}")
        if not is_integer(every) or every < 1:
            raise ValueError(f"every must be a whole number from 1 on, not {every!r}")
        if not is_finite(pause) or not 0 <= pause <= 60:
            raise ValueError(f"pause must be a number of seconds from 0 to 60, not {pause!r}")
        frames = [
            to_pil(self.components.decode(self.predicted_x0(i))[0].cpu()) for i in range(0, self.steps - 1, every)
        ]
        write_animation(Path(file), [*frames, self.image], [1 / fps] * len(frames) + [pause])

    def predicted_x0(self, step: int) -> Tensor:
        """The latents x_0 that a step predicted, 1 c h w, from the latents before and after it."""
        x, x_prev = self.latents[step : step + 2].to(self.components.device).split(1)
        schedule, conditioning = self.components.scheduler, self.conditioning
        steps = conditioning.steps(schedule, self.steps)
        return schedule.x0_between(x, x_prev, steps[step], conditioning.noise_at(step))

    def save(self, file: str | Path) -> None:
        """Writes the run and its cache, if it has one, into one safetensors file; not the source or mask of an edit.

        Raises ValueError for a run with a custom attention function, which no file can hold.
        """
        run = RunRecord(
            self.prompt,
            self.latents,
            self.guidance_scale,
            self.negative_prompt,
            self.seed,
            self.conditioning,
            self.qk_cache,
            self.clip_skip,
            self.inversion,
        )
        write_run(self.components, run, Path(file), self.attend)

    def is_recorded(self, step: int, wanted: SitePredicate | None) -> bool:
        """Whether the cache has what edits read at a step: all wanted sites, and the correction where there is one."""
        cache = self.qk_cache
        if self.conditioning.corrects(step) and (cache is None or cache.correction(step) is None):
            return False
        return wanted is None or (cache is not None and cache.covers(step, wanted))


def as_list(words: Any) -> list[Any]:
    """One word, as `Prompt.token_indices` takes it, or a list of them: as a list."""
    return words if isinstance(words, list) else [words]


def check_steps(steps: Any, count: int) -> None:
    """Raises ValueError if `steps` is neither None nor a container of some of the numbers of `count` steps."""
    if steps is None:
        return
    if not isinstance(steps, Container) or isinstance(steps, str | bytes):
        raise ValueError(f"steps must contain the numbers of steps, such as range(10), and is {steps!r}")
    if not any(i in steps for i in range(count)):
        raise ValueError(f"steps has none of the {count} steps of this run, which are counted from 0")


def run_conditional_row(
    components: Components, run: "Trajectory | RunStart", x: Tensor, t: int, cond: TextEmbedding, attend: Attend
) -> None:
    """Runs the row of a step that reads the run's words, for what `attend` observes. x: its latents, 1 c h w."""
    guided_noise(
        components,
        x,
        t,
        cond,
        cond,
        guidance_scale=conditional_scale(components, run.guidance_scale),
        attend=attend,
        image=run.conditioning.without_image_guidance,
    )


def reads_attention_alone(origin: "Trajectory | RunStart", step: int) -> bool:
    """Whether an edit needs nothing of its source's step but the attention of its words, so that one row is enough.

    So it is with photographs of `UNGUIDED_INVERSIONS`, and with edits of them. The source of any other run repeats the
    calls that made it, so that an edit to its own prompt repeats it to the bit. Corrected predictions need the other
    rows, and so may a custom attention that depends on the step or treats the rows without words.
    """
    is_known = isinstance(origin, Trajectory) and origin.inversion in UNGUIDED_INVERSIONS
    is_custom = hasattr(origin.attend, "at") or hasattr(origin.attend, "unconditional")
    return is_known and not origin.conditioning.corrects(step) and not is_custom


class SourceRun:
    """The source of an edit, step by step: a finished run that is gone through again, or one that is sampled now.

    It always runs in a batch of its own. So it is the same to the bit whatever targets follow it, and however many.

    corrections: by step, what its targets add to their prediction, 1 c h w, where they correct it
    (`Conditioning.corrects`). It is the prediction that leads from the source's latents to its next ones, less the
    model's.
    """

    def __init__(self, components: Components, origin: Trajectory | RunStart):
        self.components, self.origin = components, origin
        self.cond = components.text(origin.prompt, origin.clip_skip)
        self.negative = components.text.encode_negative(origin.negative_prompt, origin.clip_skip)
        self.guide = RunGuidance(
            components,
            origin.conditioning,
            steps=origin.steps,
            guidance_scale=origin.conditioning.source_scale(origin.guidance_scale),
            negative=self.negative,
        )
        known = origin.latents if isinstance(origin, Trajectory) else origin.noise
        # Each step's latents have memory of their own: a kernel's bits depend on alignment, see `QKCache.get`.
        self.latents = [x.clone() for x in known.to(components.device).split(1)]
        self.steps = origin.conditioning.steps(components.scheduler, origin.steps)
        self.corrections: dict[int, Tensor] = {}
        self.check_finite = FiniteCheck(components)  # of this run and of its targets
        self.finished: Trajectory | None = None

    @property
    def prompt(self) -> str:
        return self.origin.prompt

    def advance(self, i: int, wanted: SitePredicate | None = None) -> Mapping[Site, QK]:
        """Goes through step i. Steps must be taken in order.

        Returns the (q, k) of the wanted sites, from the cache or by running the UNet. The UNet does not run where
        nothing is wanted, the next latents are known and nothing is corrected. Raises ValueError where the latents do
        not stay finite.
        """
        origin, conditioning = self.origin, self.origin.conditioning
        is_known = i + 1 < len(self.latents)
        if is_known and wanted is None and not conditioning.corrects(i):
            return {}
        if isinstance(origin, Trajectory) and origin.qk_cache and origin.is_recorded(i, wanted):
            correction = origin.qk_cache.correction(i)
            if correction is not None:
                like = self.latents[i]
                self.corrections[i] = to_device(correction, like.device, like.dtype, copy=True)
            return {} if wanted is None else origin.qk_cache.get(i, wanted, self.cond.tokens)
        pairs: dict[Site, QK] = {}
        attend = at_step(origin.attend, i)
        step = self.steps[i]
        if reads_attention_alone(origin, i) and wanted is not None:
            record = record_qk(pairs, wanted, attend)
            run_conditional_row(self.components, origin, self.latents[i], step.t, self.cond, record)
            return pairs
        eps = self.guide(
            i,
            step.t,
            self.latents[i],
            self.cond,
            [] if is_known else [[0]],
            attend=attend if wanted is None else record_qk(pairs, wanted, attend),
            unconditional_attend=unconditional_of(attend),
        )
        scheduler, noise = self.components.scheduler, conditioning.noise_at(i)
        if not is_known:
            x = scheduler.step(self.latents[i], eps, step, noise=noise)
            self.latents.append(self.check_finite(x, i))
        if conditioning.corrects(i):
            self.corrections[i] = scheduler.prediction_between(self.latents[i], self.latents[i + 1], step, noise) - eps
        return pairs

    def finish(self, progress: Progress = iter) -> Trajectory:
        """The whole run. The steps that no target has read are run now; a second call returns the same run."""
        if isinstance(self.origin, Trajectory):
            return self.origin
        if self.finished is not None:
            return self.finished
        for i in progress(range(len(self.latents) - 1, self.origin.steps)):
            self.advance(i)
        self.check_finite.finish()
        self.finished = Trajectory.from_start(self.components, self.origin, torch.cat(self.latents).cpu())
        return self.finished
