"""Self-guidance (Epstein et al. 2023, arXiv 2306.00986): an object is moved by the gradient of where its word looks.

    ε' = ε + v σ_t ∇g(x),   σ_t = √(1 − ᾱ_t)

    g =   w_centroid   |centroid(o) − target|              the word's attention is to be centred elsewhere
        + w_size       |size(o) − target|                  and to be as large as in the source, times scale²
        + w_others     |shape(o') − shape_s(o')|           the layout of the other objects o'
        + w_appearance |appearance(o') − appearance_s(o')| of o and of the others

    shape = normalize(sigmoid(10 (normalize(A) − ½)))      A: the word's heat map; normalize: to [0, 1] by its extremes
    centroid = Σ p shape(p) / Σ shape(p)                   p: positions in the unit square
    size = mean of shape
    appearance = Σ shape(p) Ψ(p) / Σ shape(p)              Ψ: the last features of the decoder; no gradient by shape

"s" marks the source at the same step. Each |·| is a mean over sites, words, coordinates, cells or channels, as in the
authors' notebook. A, Ψ and the gradient are those of a conditional row. A is read through `attend` as everywhere; Ψ is
no attention, and comes from `UNet.decoder_levels`. Deviations: the notebook leaves out σ_t, and takes the centroid of A
itself, which is near to the middle of the picture where a word looks a little at every pixel.

Of N steps the first 3N/16 are guided, of the others every second one, and not the last N/32, as in the paper. The paper
takes 1024 steps in the pixels of Imagen, and the notebook 300 with SDXL. The default v is for the small model from 20
steps on: with few steps each is long, and the gradient of |·| does not shrink near the target, so the step overshoots.

Axes: words: the object, then the others; y x cells of a map; c channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.attention.contract import Site, SiteFilter, at_step
from minip2p.attention.heatmaps import HeatmapAccumulator, select_sites
from minip2p.baselines.gradients import add_noise_shift, checked_source, gradients, restart
from minip2p.p2p.warp import Move
from minip2p.pipeline import Pipeline
from minip2p.sampling.guidance import unet_features
from minip2p.sampling.sampler import sample
from minip2p.sampling.trajectory import Trajectory
from minip2p.text.prompt import WordSelector, token_indicator

SHARPNESS = 10.0  # of the soft threshold of a shape
SMALL = 1e-4  # keeps the quotients finite, as in the notebook


@dataclass(frozen=True)
class EnergyWeights:
    """The weights of the terms of g.

    The defaults are in the ranges that copies of the notebook note: 1 to 3, .5 to 2, .5 to 2 and .03 to .3.
    """

    centroid: float = 2.0
    size: float = 2.0
    others: float = 1.0
    appearance: float = 0.1


@dataclass(frozen=True, eq=False)
class Reading:
    """What a row shows of the words at a step. maps: site -> words y x. features: Ψ, c y x."""

    maps: Mapping[Site, Tensor]
    features: Tensor


def normalize(heat: Tensor) -> Tensor:
    """… y x, each map scaled to [0, 1]."""
    low, high = heat.amin((-2, -1), keepdim=True), heat.amax((-2, -1), keepdim=True)
    return (heat - low) / (high - low + SMALL)


def shape(heat: Tensor) -> Tensor:
    """… y x: the cells where a word looks, by a soft threshold at the middle of its range."""
    return normalize(torch.sigmoid(SHARPNESS * (normalize(heat) - 0.5)))


def centroid(heat: Tensor) -> Tensor:
    """… y x -> … 2: the mean (x, y) of the cells' centres, weighted by the shape; the map is the unit square."""
    weights, (rows, columns) = shape(heat), heat.shape[-2:]
    total = weights.sum((-2, -1)) + SMALL
    x = (weights.sum(-2) * (torch.arange(columns).to(heat) + 0.5) / columns).sum(-1) / total
    y = (weights.sum(-1) * (torch.arange(rows).to(heat) + 0.5) / rows).sum(-1) / total
    return torch.stack([x, y], -1)


def size(heat: Tensor) -> Tensor:
    """… y x -> …: the share of the map that the shape covers."""
    return shape(heat).mean((-2, -1))


def appearance(heat: Tensor, features: Tensor) -> Tensor:
    """words y x, c y x -> words c: the mean of the features over each shape, in which there is no gradient."""
    weights = F.interpolate(shape(heat.detach())[None], features.shape[-2:], mode="bilinear")[0]
    return torch.einsum("nyx,cyx->nc", weights, features) / (weights.sum((-2, -1))[:, None] + SMALL)


def mean_difference(a: Tensor, b: Tensor) -> Tensor:
    """The mean of |a − b|; 0 of nothing."""
    return (a - b).abs().mean() if a.numel() else a.sum()


@dataclass(frozen=True, eq=False)
class SelfGuidance:
    """The `Correction` of a run in which a word's object is moved.

    run: the source. word: of its prompt. move: by, in pixels, and scale. others: the other objects' words. strength: v.
    weights: see `EnergyWeights`. sites: whose cross-attention is read; those of masks by default (`select_sites`).
    """

    run: Trajectory
    word: WordSelector
    move: Move
    others: Sequence[WordSelector] = ()
    strength: float = 700.0
    weights: EnergyWeights = field(default_factory=EnergyWeights)
    sites: SiteFilter | None = None

    @cached_property
    def reader(self) -> HeatmapAccumulator:
        """How the heat maps of the words, the object's first, are read at a site."""
        prompt, size = self.run.components.text.prompt(self.run.prompt), self.run.latent_size
        sites = select_sites(self.sites, None, self.run.components.unet.heads, size)
        return HeatmapAccumulator(token_indicator(prompt, [self.word, *self.others]), size, sites)

    def is_guided(self, i: int) -> bool:
        """Whether a step is guided, by the schedule of the paper; parts of steps are rounded up."""
        steps = self.run.steps
        first, last = -(-3 * steps // 16), -(-steps // 32)
        return i < first or ((i - first) % 2 == 1 and i < steps - last)

    def read(self, i: int, x: Tensor) -> Reading:
        """What latents 1 c h w show at step i. Runs one row."""
        run, components = self.run, self.run.components
        attend, maps = at_step(run.attend, i), dict[Site, Tensor]()

        def record(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
            if self.reader.wants(site):
                maps[site] = self.reader.site_heatmap(site, lambda v: attend(q, k, v, site), q)
            return attend(q, k, v, site)

        t, words = components.scheduler.steps(run.steps)[i].t, components.text(run.prompt, run.clip_skip)
        count, w = len(components.unet.up_blocks), run.guidance_scale
        levels = unet_features(components, x, t, words, record, guidance_scale=w, count=count)
        return Reading(maps, levels[-1][0])

    def read_source(self, i: int) -> Reading:
        """What the source shows at step i. Runs one row."""
        with torch.no_grad():
            return self.read(i, self.run.latents[i : i + 1].clone().to(self.run.components.device))

    def terms(self, now: Reading, source: Reading) -> dict[str, Tensor]:
        """The terms of g without their weights, by the names of `EnergyWeights`."""
        rows, columns = self.run.picture_size
        shift = torch.tensor([self.move.by[0] / columns, self.move.by[1] / rows])
        values: dict[str, list[Tensor]] = {"centroid": [], "size": [], "others": []}
        for site, heat in now.maps.items():
            before = source.maps[site]
            values["centroid"].append(mean_difference(centroid(heat[0]), centroid(before[0]) + shift.to(heat)))
            values["size"].append(mean_difference(size(heat[0]), self.move.scale**2 * size(before[0])))
            values["others"].append(mean_difference(shape(heat[1:]), shape(before[1:])))
        last = list(now.maps)[-1]  # the nearest to the features
        of_target, of_source = (appearance(reading.maps[last], reading.features) for reading in (now, source))
        return {
            **{name: torch.stack(each).mean() for name, each in values.items()},
            "appearance": mean_difference(of_target, of_source),
        }

    def energy(self, now: Reading, source: Reading) -> Tensor:
        """g."""
        terms = self.terms(now, source)
        return torch.stack([getattr(self.weights, name) * value for name, value in terms.items()]).sum()

    def __call__(self, i: int, x: Tensor, prediction: Tensor) -> Tensor:
        if not self.is_guided(i):
            return prediction
        source, scheduler = self.read_source(i), self.run.components.scheduler
        (gradient,) = gradients(lambda x: [self.energy(self.read(i, x), source)], x)
        step = scheduler.steps(self.run.steps)[i]
        factor = self.strength * (1 - step.alpha_cumprod) ** 0.5
        return add_noise_shift(scheduler, step, prediction, factor * gradient)


@torch.inference_mode(False)  # it needs gradients even where the caller has switched them off
def self_guided_move(
    pipe: Pipeline,
    run: Trajectory,
    word: WordSelector,
    *,
    by: tuple[float, float] = (0, 0),
    scale: float = 1.0,
    others: Sequence[WordSelector] = (),
    strength: float = SelfGuidance.strength,
    weights: EnergyWeights | None = None,
    sites: SiteFilter | None = None,
) -> Trajectory:
    """Moves a word's object by self-guidance: samples the run once more, guided, from its noise.

    There is no mask: the attention to the word tells where the object is. by: in pixels. scale: of its size. The other
    arguments: see `SelfGuidance`. Raises ValueError.
    """
    run = checked_source(pipe, run, strength)
    move, (rows, columns) = Move(by, scale), run.picture_size
    if not abs(by[0]) < columns or not abs(by[1]) < rows:
        raise ValueError(f"a shift of ({by[0]:g}, {by[1]:g}) leads out of the picture of {columns} x {rows} pixels")
    guidance = SelfGuidance(run, word, move, others, strength, weights or EnergyWeights(), sites)
    return sample(pipe.components, restart(run, run.latents[:1].clone(), run.attend), pipe.progress, correct=guidance)
