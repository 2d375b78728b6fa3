"""Other attention-based edits under the same contract, to compare with Prompt-to-Prompt: MasaCtrl and plug-and-play.

Each is an `Attend` for the target of an edit whose own injection is switched off:

    pipe.edit(run, target, cross_replace=0, self_replace=0, attend=MasaCtrl(run))

They run the source step by step, one row each, when they need it; nothing is recorded. They act on the conditional rows
alone, as everything here does, where their published codes treat the unconditional rows in the same way. By default
they act in the whole decoder, where the papers leave out its coarsest levels; `sites` selects others.

Axes: h heads, i queries, j keys, d width of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from minip2p.attention.contract import Attend, Site, SiteFilter, at_step, fused, select_heads
from minip2p.p2p.schedules import step_weights
from minip2p.sampling.guidance import guided_noise
from minip2p.sampling.trajectory import Trajectory

QKV = tuple[Tensor, Tensor, Tensor]  # q 1 h i d, k and v 1 h j d
MixQKV = Callable[[QKV, QKV], QKV]  # (source's, target's) -> what attends
DECODER = SiteFilter(places=("up",))


@dataclass(frozen=True, eq=False)
class SourceGuided:
    """Self-attention of the target that mixes its own (q, k, v) with those of the source.

    run: the source. mix: which of them attend. steps: (start, end), shares of the run that count from the first step
    that is edited (`schedules.step_weights`). sites: where it acts. Raises ValueError for steps and sites that do not
    exist.
    """

    run: Trajectory
    mix: MixQKV
    steps: tuple[float, float]
    sites: SiteFilter = DECODER

    def __post_init__(self) -> None:
        self.step_weights()
        SiteFilter.validate(self.sites, self.run.components.unet.heads)

    def at(self, step: int) -> Attend:
        """The attention of one step. Raises ValueError where the source has fewer steps, or another size."""
        if step >= self.run.steps:
            raise ValueError(f"the source run has {self.run.steps} steps, and the edit has more")
        if not self.step_weights()[step]:
            return fused
        source = self.read_source(step)

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

    def read_source(self, step: int) -> dict[Site, QKV]:
        """(q, k, v) of the source at a step: runs its conditional row."""
        tensors: dict[Site, QKV] = {}
        run, inner = self.run, at_step(self.run.attend, step)

        def record(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
            if not site.cross and self.sites.includes(site):
                tensors[site] = (q, k, v)
            return inner(q, k, v, site)

        components = run.components
        words = components.text(run.prompt, run.clip_skip)
        guided_noise(
            components,
            run.latents[step : step + 1].to(components.device),
            components.scheduler.steps(run.steps)[step].t,
            words,
            words,
            guidance_scale=1.0,
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

    start: the share of the run from which on it acts. The published code begins at step 4 of 50 and at the 11th of the
    16 layers of Stable Diffusion 1, which leaves out the coarsest level of the decoder that has attention (`sites`).
    It ignores the values v that it is called with. So it must not be combined with an injection (`self_replace`) or
    with a blend that propagates its heat by self-attention, which attend to other values.
    """

    def __init__(self, run: Trajectory, start: float = 0.08, sites: SiteFilter = DECODER):
        super().__init__(run, lambda source, target: (target[0], *source[1:]), (start, 1.0), sites)


class PlugAndPlay(SourceGuided):
    """The attention part of plug-and-play features (Tumanyan et al. 2022, section 4): softmax(q_s k_sᵀ / √d) v_e.

    The target uses the source's self-attention maps in the decoder, up to the share `end` of the run. That is
    Prompt-to-Prompt's own injection at other sites. The paper's other part injects the features of a residual block;
    that is no attention, and not implemented.
    """

    def __init__(self, run: Trajectory, end: float = 0.5, sites: SiteFilter = DECODER):
        super().__init__(run, lambda source, target: (*source[:2], target[2]), (0.0, end), sites)
