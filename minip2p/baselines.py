"""Other edits by attention under the same contract, to compare Prompt-to-Prompt with: each an `Attend` for the target.

    model.edit(run, target, cross=0, self_=0, attend=MasaCtrl(run))

They read the source step by step, one row each, as they need it; nothing is recorded. As everywhere here they act on
the conditional rows alone, where their published codes treat the unconditional rows in the same way; and by default on
the whole decoder, where the papers leave its coarsest levels out (`where` says which).

Axes: h heads, i queries, j keys, d width of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from minip2p.attention.contract import Attend, Site, SiteFilter, at_step, fused, select_heads
from minip2p.p2p.schedules import step_weights
from minip2p.sampling.trajectory import Trajectory

QKV = tuple[Tensor, Tensor, Tensor]  # q 1 h i d, k and v 1 h j d


MixQKV = Callable[[QKV, QKV], QKV]  # the source's and the target's -> what attends


DECODER = SiteFilter(places=("up",))


@dataclass(frozen=True, eq=False)
class SourceGuided:
    """At the self-attentions that `where` has, and at the steps that `steps` says (`rule.course`), the target attends
    by a mixture of the source's (q, k, v) and its own."""

    run: Trajectory
    mix: MixQKV
    steps: tuple[float, float]
    sites: SiteFilter = DECODER

    def __post_init__(self) -> None:
        """Raises ValueError for steps that are none and places that the model has not."""
        step_weights("steps", self.steps, self.run.steps, self.run.steps)
        SiteFilter.validate(self.sites, self.run.components.unet.heads)

    def at(self, step: int) -> Attend:
        if step >= self.run.steps:
            raise ValueError(f"the run that guides has {self.run.steps} steps, and the edit has more")
        if not step_weights("steps", self.steps, self.run.steps, self.run.steps)[step]:
            return fused
        source = self.read_source(step)

        def attend(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
            if site not in source:
                return fused(q, k, v)
            if source[site][0].shape[-2] != q.shape[-2]:
                raise ValueError("the run that guides is of another size than the edit")
            kept: QKV = tuple(t.expand(len(q), -1, -1, -1) for t in source[site])  # type: ignore[assignment]
            own = (q, k, v)
            return select_heads(self.sites.heads, fused(*self.mix(kept, own)), fused(*own))

        return attend

    def read_source(self, step: int) -> dict[Site, QKV]:
        """(q, k, v) of the source at a step."""
        found: dict[Site, QKV] = {}
        run, inner = self.run, at_step(self.run.attend, step)

        def keep(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
            if not site.cross and self.sites.includes(site):
                found[site] = (q, k, v)
            return inner(q, k, v, site)

        parts, words = run.components, run.components.text(run.prompt)
        t = parts.scheduler.steps(run.steps)[step].t
        parts.guided_noise(
            run.latents[step : step + 1].to(parts.device),
            t,
            words,
            words,
            1.0,
            keep,
            image=run.conditioning.without_image_guidance,
        )
        return found

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        raise TypeError("this attention must know the step: use it as the attend of an edit")


class MasaCtrl(SourceGuided):
    """Mutual self-attention (Cao et al. 2023, eq. 5): the target asks, the source answers,

        softmax(q_e k_sᵀ / √d) v_s

    at the decoder's self-attentions from the share `start` of the run on (in the paper step 4 of 50, and of the decoder
    all but the coarsest level: `where`). So shapes may change, and what they look like stays the source's. It answers
    by the source's v whatever v it is given: with an injection of its own (`self_`) or a blend that spreads its heat,
    which attend to other values, it is not to be used.
    """

    def __init__(self, run: Trajectory, start: float = 0.08, sites: SiteFilter = DECODER):
        super().__init__(run, lambda source, target: (target[0], *source[1:]), (start, 1.0), sites)


class PlugAndPlay(SourceGuided):
    """Of plug-and-play features (Tumanyan et al. 2022, section 4) the attention's part: the source's self-attention
    maps in the decoder up to the share `end` of the run, softmax(q_s k_sᵀ / √d) v_e. That is P2P's own injection with
    another `Where`; its other part, the features of a ResNet block, is no attention and is not here."""

    def __init__(self, run: Trajectory, end: float = 0.5, sites: SiteFilter = DECODER):
        super().__init__(run, lambda source, target: (*source[:2], target[2]), (0.0, end), sites)
