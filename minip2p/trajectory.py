"""Runs. A run is a value: its latents from noise to picture, and all that is needed to go through it again.

Axes: t steps, b batch, c h w latents, n tokens, d width of their embedding.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minip2p.attention import Attend, Site, at_step, fused
from minip2p.edit import QK, Edit, Rule, Values, Watch, injecting, is_zero, recording
from minip2p.mask import Blending, HeatSum, chosen_strides, columns
from minip2p.parts import Parts
from minip2p.sched import Step


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A run: generated, edited or (an inverted photograph's) reconstructed.

    latents: T+1 c h w, noise first, float32. unconditional: the embedding of each step, T n d, where it is not the
    negative prompt's. attend: the attention that it ran with. source, mask: of an edit, the run it started from and the
    last mask that it was blended by, h w.
    """

    parts: Parts = field(repr=False)
    prompt: str
    latents: Tensor = field(repr=False)
    guidance: float
    negative: str = ""
    seed: int | None = None
    unconditional: Tensor | None = field(default=None, repr=False)
    attend: Attend = field(default=fused, repr=False)
    source: "Trajectory | None" = field(default=None, repr=False)
    mask: Tensor | None = field(default=None, repr=False)

    @property
    def steps(self) -> int:
        return len(self.latents) - 1

    @property
    def image(self) -> Image.Image:
        """The picture, decoded from the last latents."""
        picture = self.parts.decode(self.latents[-1:].to(self.parts.device))[0]
        return Image.fromarray(((picture + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())

    def maps(self, words: Any, *, strides: Sequence[int] | None = None) -> Tensor:
        """Heat maps of words, words H W in picture pixels: the share of attention that each pixel gives to the word,
        mean over the heads, over all steps and over the cross-attention sites of the given strides (`default_strides`).

        words: one word, as `Prompt.find` takes it, or a list. The run is gone through again, its conditional rows only,
        without any edit: they are the maps of the run's own prompt and latents. Raises ValueError for a word that is
        not in the prompt.
        """
        parts, latent = self.parts, (self.latents.shape[-2], self.latents.shape[-1])
        asked = words if isinstance(words, list) else [words]
        if not asked:
            raise ValueError("these would be maps of no words: name at least one")
        chosen = chosen_strides(strides, parts.unet.sites, latent)
        heat = HeatSum(columns(parts.text.prompt(self.prompt), asked), latent, chosen)
        context = parts.text(self.prompt)
        for i, step in enumerate(parts.sched.steps(self.steps)):
            attend = watching(heat, at_step(self.attend, i))
            parts.predict(self.latents[i : i + 1].to(parts.device), step.t, context, context, 1.0, attend)
        size = tuple(parts.vae.stride * side for side in latent)
        return F.interpolate(heat.mean[:, None], size, mode="bilinear")[:, 0].cpu()


def watching(heat: HeatSum, attend: Attend) -> Attend:
    """An `Attend` that adds what it sees to a heat map."""

    def watch(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        if heat.wants(site):
            heat.add(site, lambda v: attend(q, k, v, site), q)
        return attend(q, k, v, site)

    return watch


@dataclass(frozen=True)
class Target:
    """One target of an edit: its prompt, its edit, and its blending if there is one."""

    prompt: str
    edit: Edit
    blending: Blending | None = None

    def blended(self, step: int, source: Tensor, x: Tensor) -> Tensor:
        return x if self.blending is None else self.blending(step, source, x)

    @property
    def mask(self) -> Tensor | None:
        return None if self.blending is None else self.blending.last


@dataclass(frozen=True, eq=False)
class Start:
    """Where a run begins: its prompt and settings, and the noise, 1 c h w."""

    prompt: str
    noise: Tensor
    steps: int
    guidance: float
    negative: str = ""
    seed: int | None = None
    attend: Attend = fused


Progress = Callable[[Iterable[Step]], Iterable[Step]]


def sample(parts: Parts, start: Start, progress: Progress = iter) -> Trajectory:
    """Samples one picture by DDIM (Song et al. 2020): a source that nobody reads."""
    source = Source(parts, start)
    for i, step in enumerate(progress(parts.sched.steps(start.steps))):
        source.read(i, step, None)
    return source.finished()


def finite(parts: Parts, x: Tensor, step: int) -> Tensor:
    """x, or ValueError where a run has gone wrong: better one clear line than a black picture."""
    if not torch.isfinite(x).all():
        raise parts.not_finite(f"the latents are not finite after step {step + 1}")
    return x


class Source:
    """The source of an edit, step by step: a run that is gone through again, or one that is sampled as it is read.

    Either way in a batch of its own, so that it is the same to the bit whatever targets follow it and however many.
    """

    def __init__(self, parts: Parts, origin: Trajectory | Start):
        self.parts, self.origin = parts, origin
        self.conditional, self.negative = parts.text(origin.prompt), parts.text(origin.negative)
        known = origin.latents if isinstance(origin, Trajectory) else origin.noise
        self.latents = list(known.to(parts.device).split(1))

    def unconditional(self, i: int) -> Tensor:
        own = self.origin.unconditional if isinstance(self.origin, Trajectory) else None
        return self.negative if own is None else own[i : i + 1].to(self.negative)

    def read(self, i: int, step: Step, wanted: Callable[[Site, int], bool] | None) -> dict[Site, QK]:
        """(q, k) of the wanted sites at step i. Where nothing is wanted and the next latents are known, none runs."""
        known = i + 1 < len(self.latents)
        if known and wanted is None:
            return {}
        found: dict[Site, QK] = {}
        attend = at_step(self.origin.attend, i)
        if wanted is not None:
            attend = recording(found, wanted, attend)
        x, w = self.latents[i], self.origin.guidance
        eps = self.parts.predict(x, step.t, self.unconditional(i), self.conditional, w, attend)
        if not known:
            self.latents.append(finite(self.parts, self.parts.sched.step(x, eps, step), i))
        return found

    def finished(self) -> Trajectory:
        if isinstance(self.origin, Trajectory):
            return self.origin
        o, latents = self.origin, torch.cat(self.latents).cpu()
        return Trajectory(self.parts, o.prompt, latents, o.guidance, o.negative, o.seed, attend=o.attend)


def edit(
    parts: Parts,
    origin: Trajectory | Start,
    targets: Sequence[Target],
    *,
    attend: Attend | None = None,
    in_maps: bool = False,
    progress: Progress = iter,
) -> list[Trajectory]:
    """Edits a source into all targets, step by step (Hertz et al. 2022, algorithm 1). Each starts from the source's
    noise; at each step the source goes first, and the targets follow in one batch.

    attend: the targets' attention besides the edit, the source's own where None. in_maps: the explicit execution.
    """
    source, attend = Source(parts, origin), attend or origin.attend
    conditional = torch.cat([parts.text(target.prompt) for target in targets])
    x = source.latents[0].expand(len(targets), -1, -1, -1)
    latents = [x]
    for i, step in enumerate(progress(parts.sched.steps(origin.steps))):
        rules = [target.edit.at(i) for target in targets]
        found = source.read(i, step, _wanted(rules, targets))
        _add_source_heat(found, targets, partial(at_step, origin.attend, i))
        injected = injecting(found, rules, at_step(attend, i), in_maps=in_maps, watch=_target_heat(targets))
        unconditional = source.unconditional(i).expand(len(targets), -1, -1)
        eps = parts.predict(x, step.t, unconditional, conditional, origin.guidance, injected)
        x = finite(parts, parts.sched.step(x, eps, step), i)
        rows = zip(targets, x.split(1), strict=True)
        x = torch.cat([target.blended(i, source.latents[i + 1], row) for target, row in rows])
        latents.append(x)
    kept, run = torch.stack(latents, dim=1).cpu(), source.finished()
    return [
        replace(run, prompt=target.prompt, latents=own, attend=attend, source=run, mask=target.mask)
        for target, own in zip(targets, kept, strict=True)
    ]


def _wanted(rules: Sequence[Rule], targets: Sequence[Target]) -> Callable[[Site, int], bool] | None:
    """Which sites of the source are read at a step; None where none are."""
    blendings = [target.blending for target in targets if target.blending is not None]
    masks = any(blending.source.columns.any() for blending in blendings)
    if not masks and not any(rule.reads_source for rule in rules):
        return None

    def wanted(site: Site, queries: int) -> bool:
        return any(not is_zero(rule.of(site, queries).R) for rule in rules) or any(
            blending.source.wants(site) for blending in blendings
        )

    return wanted


def _add_source_heat(found: dict[Site, QK], targets: Sequence[Target], attend: Callable[[], Attend]) -> None:
    """Sums the source's heat, by the attention that the source runs with."""
    for target in targets:
        for site, (q, k) in found.items():
            if target.blending is not None and target.blending.source.wants(site):
                target.blending.source.add(site, lambda v, q=q, k=k, site=site: attend()(q, k, v, site), q)  # type: ignore[misc]


def _target_heat(targets: Sequence[Target]) -> Watch:
    """Sums the targets' heat after the edit, as the masks of the paper do."""

    def watch(row: int, site: Site, q: Tensor, values: Values) -> None:
        blending = targets[row].blending
        if blending is not None and blending.target.wants(site):
            blending.target.add(site, values, q)

    return watch
