"""Feature guidance as in DragonDiffusion (Mou et al. 2023, arXiv 2307.02421): an object is moved by the gradient of how
well features correspond.

F are the features of two levels of the decoder, F_s those of the source at the same step, both of a conditional row.
n: the object's new place, o: what it leaves of its old one, r: the rest; g takes n to where it came from.

    E_edit    = Σ ½ w_edit / (1 + 4 mean_n cos(F, F_s(g)))
    E_content = Σ ½ w_content / (1 + 4 mean_r cos(F, F_s)) + ½ w_contrast mean_o (cos(F, F_s) + 1) / 2
                + w_inpaint / (1 + 4 (cos(mean_o F, mean_r F_s) + 1) / 2)                    (Σ: over the two levels)

    x_0 is predicted from ε + s (m ∇E_edit + (1 − m) ∇E_content), m = 1 on n; the noise of the step stays ε

It follows the authors' code (`Sampler.guidance_move`) without what that adds for DiffEditor: random steps, steps that
are taken again, and an image prompt. As in that code,

- the first latents have the object's noise in its new place too;
- the first 30 of 50 steps are guided;
- from step 5 of 50 on, self-attention in the decoder attends to the keys and values of the source's conditional row, in
  all rows (the memory bank). They are read at the source's latents of the same step; the code keeps those of its
  inversion, which belong to the latents after the step.

The features are no attention, so they are not read through `attend` but from `UNet.decoder_levels`: the last level but
two and the last but one, which are up_blocks 1 and 2 of Stable Diffusion 1, as in the code. They are compared on a grid
twice as fine as the latents.

Axes: cells of the fine grid; c channels; h w latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.attention.contract import Attend, at_step, fused
from minip2p.baselines.gradients import add_noise_shift, checked_source, gradients, restart
from minip2p.baselines.masactrl_plug_and_play import BothBranches, MasaCtrl
from minip2p.p2p.places import check_place
from minip2p.p2p.warp import GridWarp, Move, ObjectEdit, PlacedObject, grid_warp
from minip2p.pipeline import Pipeline
from minip2p.sampling.guidance import unet_features
from minip2p.sampling.sampler import sample
from minip2p.sampling.trajectory import Trajectory
from minip2p.sched import Step
from minip2p.text.prompt import WordSelector

GUIDED_SHARE = 0.6  # of the steps: 30 of 50
BANK_START = 0.1  # the share of the run from which on the source's keys and values are used: step 5 of 50
PUBLISHED_STEPS = 50
FINER = 2  # cells of the grid of features per latent pixel, along each side


@dataclass(frozen=True)
class FeatureWeights:
    """The weights of the energies: those of the authors' demo, but for `contrast`, which is .2 there.

    With .2, some objects of the small model's pictures are in both places afterwards.
    """

    edit: float = 4.0
    content: float = 6.0
    contrast: float = 3.0
    inpaint: float = 0.8


class MemoryBank(MasaCtrl):
    """Self-attention of all rows to the keys and values of the source's conditional row."""

    def at(self, step: int) -> Attend:
        """The attention of one step."""
        conditional = super().at(step)
        return conditional if conditional is fused else BothBranches(conditional, conditional)


def similarity_energy(weight: float, similarity: Tensor) -> Tensor:
    """w / (1 + 4 S), S the mean similarity; 0 where nothing is compared."""
    return weight / (1 + 4 * similarity.mean()) if similarity.numel() else similarity.sum()


def effect_on_step(step: Step) -> float:
    """How much a DDIM step leaves of what a change of ε does to x_0.

    A step is x' = √ᾱ' (x_0 + r' ε), x_0 = x / √ᾱ − r ε, where r = √((1 − ᾱ) / ᾱ) is noise over signal. A change of ε in
    x_0 alone counts r times, and one in both r − r' times: the result is 1 − r' / r.
    """
    signal, signal_prev = step.alpha_cumprod, step.alpha_cumprod_prev
    return 1 - ((1 - signal_prev) / signal_prev * signal / (1 - signal)) ** 0.5


@dataclass(frozen=True, eq=False)
class FeatureGuidance:
    """The `Correction` of a run in which an object is moved.

    run: the source. placed: the object with its place and its move. strength: s of
    a run of 50 steps; with other numbers of steps the sum over the run is the same. The authors' demo has 40 for Stable
    Diffusion, whose latents have more pixels, and each of them a smaller share of the gradient. weights: see
    `FeatureWeights`.
    """

    run: Trajectory
    placed: PlacedObject
    strength: float = 16.0
    weights: FeatureWeights = field(default_factory=FeatureWeights)

    @cached_property
    def fine(self) -> GridWarp:
        """The geometry on the grid on which features are compared."""
        rows, columns = self.run.latent_size
        return grid_warp([self.placed], (FINER * rows, FINER * columns))

    @cached_property
    def coarse(self) -> GridWarp:
        """The geometry of the latents."""
        return grid_warp([self.placed], self.run.latent_size)

    def is_guided(self, i: int) -> bool:
        """Whether a step is guided."""
        return i < GUIDED_SHARE * self.run.steps

    @property
    def first_latents(self) -> Tensor:
        """The source's noise with the object's also in its new place, 1 c h w."""
        noise, warp = self.run.latents[:1].clone(), self.coarse
        moved = (warp.owner >= 0) & (warp.nearest >= 0)
        cells = torch.where(moved, warp.nearest, torch.arange(len(moved)))
        return noise.flatten(-2)[..., cells].reshape(noise.shape)

    def read(self, i: int, x: Tensor) -> list[Tensor]:
        """The features of latents 1 c h w at step i, cells c of each level. Runs one row."""
        run, components = self.run, self.run.components
        t, words = components.scheduler.steps(run.steps)[i].t, components.text(run.prompt, run.clip_skip)
        count = len(components.unet.up_blocks) - 1
        attend, w = at_step(run.attend, i), run.guidance_scale
        levels = unet_features(components, x, t, words, attend, guidance_scale=w, count=count)[-2:]
        size = FINER * run.latent_size[0], FINER * run.latent_size[1]
        return [F.interpolate(level, size)[0].flatten(1).mT for level in levels]

    def read_source(self, i: int) -> list[Tensor]:
        """The features of the source at step i. Runs one row."""
        with torch.no_grad():
            return self.read(i, self.run.latents[i : i + 1].clone().to(self.run.components.device))

    def energies(self, now: Sequence[Tensor], source: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """E_edit and E_content of features, cells c of each level."""
        warp, w = self.fine, self.weights
        new, left = (cells.to(now[0].device) for cells in (warp.owner >= 0, warp.hole))
        rest = ~new & ~left
        edit, content = [], []
        for features, before in zip(now, source, strict=True):
            moved = F.cosine_similarity(features[new], warp.T.rows(before)[new])
            edit.append(0.5 * similarity_energy(w.edit, moved))
            content.append(0.5 * similarity_energy(w.content, F.cosine_similarity(features[rest], before[rest])))
            if left.any():
                contrast = (F.cosine_similarity(features[left], before[left]) + 1) / 2
                content.append(0.5 * w.contrast * contrast.mean())
            if left.any() and rest.any():
                inpaint = F.cosine_similarity(features[left].mean(0), before[rest].mean(0), dim=0)
                content.append(similarity_energy(w.inpaint, (inpaint + 1) / 2))
        return torch.stack(edit).sum(), torch.stack(content).sum()

    def __call__(self, i: int, x: Tensor, prediction: Tensor) -> Tensor:
        if not self.is_guided(i):
            return prediction
        source, scheduler = self.read_source(i), self.run.components.scheduler
        edit, content = gradients(lambda x: self.energies(self.read(i, x), source), x)
        new = (self.coarse.owner >= 0).reshape(self.run.latent_size).to(x.device)
        step = scheduler.steps(self.run.steps)[i]
        factor = self.strength * PUBLISHED_STEPS / self.run.steps / effect_on_step(step)
        return add_noise_shift(scheduler, step, prediction, factor * torch.where(new, edit, content))


@torch.inference_mode(False)  # it needs gradients even where the caller has switched them off
def feature_guided_move(
    pipe: Pipeline,
    run: Trajectory,
    word: WordSelector,
    mask: Any,
    *,
    by: tuple[float, float] = (0, 0),
    scale: float = 1.0,
    strength: float = FeatureGuidance.strength,
    weights: FeatureWeights | None = None,
) -> Trajectory:
    """Moves an object by feature guidance: samples the run once more, guided, from its noise.

    word: what errors call the object. mask: its place in the source, H W. by: in pixels. scale: of its size, about the
    centre of its mask. strength, weights: see `FeatureGuidance`. Raises ValueError.
    """
    run = checked_source(pipe, run, strength)
    edit = ObjectEdit(word, "move", Move(by, scale, mask))
    place = F.interpolate(edit.move.mask[None, None], run.picture_size, mode="area")[0, 0] >= 0.5
    placed = PlacedObject(edit, place.cpu())
    check_place(placed, run.latent_size)
    guidance = FeatureGuidance(run, placed, strength, weights or FeatureWeights())
    start = restart(run, guidance.first_latents, MemoryBank(run, BANK_START))
    return sample(pipe.components, start, pipe.progress, correct=guidance)
