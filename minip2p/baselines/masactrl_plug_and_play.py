"""Other attention-based edits under the same contract, to compare with Prompt-to-Prompt: MasaCtrl and plug-and-play.

Each is an `Attend` for the target of an edit whose own injection is switched off:

    pipe.edit(run, target, cross_replace=0, self_replace=0, attend=MasaCtrl(run))

They run the source step by step when they need it; nothing is recorded. By default they act on the conditional rows
alone, as everything here does, and in the whole decoder. Their published codes treat the unconditional rows in the same
way (`unconditional=True`) and leave out the decoder's first layers (`sites`).

Axes: h heads, i queries, j keys, d width of a head.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minip2p.attention.contract import Attend, Site, SiteFilter, at_step, fused, select_heads, unconditional_of
from minip2p.p2p.schedules import step_weights
from minip2p.sampling.guidance import conditional_scale, guided_noise
from minip2p.sampling.trajectory import Trajectory
from minip2p.text.encoder import TextEmbedding

QKV = tuple[Tensor, Tensor, Tensor]  # q 1 h i d, k and v 1 h j d
MixQKV = Callable[[QKV, QKV], QKV]  # (source's, target's) -> what attends
DECODER = SiteFilter(places=("up",))


@dataclass(frozen=True)
class BothBranches:
    """An `Attend` of the conditional rows that has one of the unconditional rows besides (`unconditional_of`)."""

    conditional: Attend
    unconditional: Attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        return self.conditional(q, k, v, site)


@dataclass(frozen=True, eq=False)
class SourceGuided:
    """Self-attention of the target that mixes its own (q, k, v) with those of the source.

    run: the source. mix: which of them attend. steps: (start, end), shares of the run that count from the first step
    that is edited (`schedules.step_weights`). sites: where it acts. unconditional: whether the target's unconditional
    rows mix with the source's unconditional row as well. Raises ValueError for steps and sites that do not exist, and
    where guidance by an image has rows of a third kind.
    """

    run: Trajectory
    mix: MixQKV
    steps: tuple[float, float]
    sites: SiteFilter = DECODER
    unconditional: bool = False

    def __post_init__(self) -> None:
        image = self.run.conditioning.image
        if self.unconditional and image is not None and image.image_guidance_scale is not None:
            raise ValueError("unconditional: a run that is guided by an image has two kinds of such rows; leave it out")
        self.step_weights()
        SiteFilter.validate(self.sites, self.run.components.unet.heads)

    def at(self, step: int) -> Attend:
        """The attention of one step. Raises ValueError where the source has fewer steps, or another size."""
        if step >= self.run.steps:
            raise ValueError(f"the source run has {self.run.steps} steps, and the edit has more")
        if not self.step_weights()[step]:
            return fused
        conditional = self.mixed_attention(self.read_source(step))
        if not self.unconditional:
            return conditional
        words, no_words = (self.source_words(step, unconditional).tokens for unconditional in (False, True))
        if self.run.attend is fused and torch.equal(words, no_words):  # an empty prompt: both rows are equal
            return BothBranches(conditional, conditional)
        return BothBranches(conditional, self.mixed_attention(self.read_source(step, unconditional=True)))

    def mixed_attention(self, source: Mapping[Site, QKV]) -> Attend:
        """The attention of the target with (q, k, v) of the source at some sites."""

        def attend(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
            if site not in source:
                return fused(q, k, v)
            if source[site][0].shape[-2] != q.shape[-2]:
                raise ValueError("the source run has another size than the edit")
            source_q, source_k, source_v = (tensor.expand(len(q), -1, -1, -1) for tensor in source[site])
            mixed = self.mix((source_q, source_k, source_v), (q, k, v))
            return select_heads(self.sites.heads, fused(*mixed), fused(q, k, v))

        return attend

    def step_weights(self) -> Tensor:
        """1 at the steps at which it acts, else 0."""
        steps = self.run.steps
        return step_weights("steps", self.steps, steps, steps, self.run.conditioning.skip_steps)

    def source_words(self, step: int, unconditional: bool) -> TextEmbedding:
        """The text embedding of the source's conditional or unconditional row at a step."""
        run, text = self.run, self.run.components.text
        if not unconditional:
            return text(run.prompt, run.clip_skip)
        return run.conditioning.uncond_at(step, text.encode_negative(run.negative_prompt, run.clip_skip))

    def read_source(self, step: int, unconditional: bool = False) -> dict[Site, QKV]:
        """(q, k, v) of the source at a step: runs its conditional row, or its unconditional one."""
        tensors: dict[Site, QKV] = {}
        run, inner = self.run, at_step(self.run.attend, step)
        if unconditional:
            inner = unconditional_of(inner)

        def record(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
            if not site.cross and self.sites.includes(site):
                tensors[site] = (q, k, v)
            return inner(q, k, v, site)

        components, words = run.components, self.source_words(step, unconditional)
        guided_noise(
            components,
            run.latents[step : step + 1].to(components.device),
            components.scheduler.steps(run.steps)[step].t,
            words,
            words,
            guidance_scale=conditional_scale(components, run.guidance_scale),
            attend=record,
            image=run.conditioning.without_image_guidance,
        )
        return tensors

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        raise TypeError("this attention must know the step: use it as the attend of an edit")


class MasaCtrl(SourceGuided):
    """Mutual self-attention (Cao et al. 2023): the target's queries attend to the source's keys and values,

        softmax(q_e k_sᵀ / √d) v_s

    Shapes may change, and their appearance stays the source's.

    start: the share of the run from which on it acts. sites, unconditional: see `SourceGuided`. The published code
    begins at step 4 of 50 and at the 11th of the 16 layers of Stable Diffusion 1, which leaves out the coarsest level
    of the decoder that has attention; and it treats both kinds of rows alike.
    It ignores the values v that it is called with. So it must not be combined with an injection (`self_replace`) at the
    same steps, or with a blend that propagates its heat by self-attention, which attend to other values.
    """

    def __init__(self, run: Trajectory, start: float = 0.08, sites: SiteFilter = DECODER, unconditional: bool = False):
        super().__init__(run, lambda source, target: (target[0], *source[1:]), (start, 1.0), sites, unconditional)


class PlugAndPlay(SourceGuided):
    """The attention part of plug-and-play features (Tumanyan et al. 2022, section 4): softmax(q_s k_sᵀ / √d) v_e.

    The target uses the source's self-attention maps in the decoder, up to the share `end` of the run. That is
    Prompt-to-Prompt's own injection at other sites. The paper's other part injects the features of a residual block;
    that is no attention, and not implemented.

    sites, unconditional: see `SourceGuided`. The published code leaves out the decoder's first layer, and gives both
    kinds of rows the maps of a source without words, which is `run` with an empty prompt.
    """

    def __init__(self, run: Trajectory, end: float = 0.5, sites: SiteFilter = DECODER, unconditional: bool = False):
        super().__init__(run, lambda source, target: (*source[:2], target[2]), (0.0, end), sites, unconditional)
