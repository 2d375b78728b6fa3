"""Classifier-free guidance: which rows the UNet runs, and how their predictions are combined.

`guidance_branches` describes one step. `guided_noise` executes that description and `unet_rows` counts its rows, so the
predicted and the executed cost cannot differ. `RunGuidance` is the guidance of a run, step by step.

Axes: b batch, c h w latents, n tokens, d width of a text embedding.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from minip2p.attention.contract import Attend, Site, fused, unconditional_of
from minip2p.checkpoints.components import Components
from minip2p.checkpoints.diagnosis import non_finite_error
from minip2p.io.tensors import to_device
from minip2p.sampling.conditioning import Conditioning, ImageConditioning
from minip2p.text.encoder import TextEmbedding

READ_EVERY = 10  # steps, see `FiniteCheck`


class Branch(NamedTuple):
    """One group of rows of a step.

    kind: "unconditional" rows have neither words nor image, "image" rows have the image alone, "conditional" rows have
    all. rows: how many. weight: the factor of their prediction in the sum.
    """

    kind: Literal["unconditional", "image", "conditional"]
    rows: int
    weight: float


def guidance_branches(
    count: int,
    guidance_scale: float,
    *,
    same_latents: bool = False,
    proximal_quantile: float = 0.0,
    image: ImageConditioning | None = None,
    is_read: bool = False,
) -> list[Branch]:
    """The rows that a step runs for `count` latents. Rows that would not change the prediction are left out.

    Classifier-free guidance with scale w (Ho & Salimans 2022, eq. 6, where w is theirs plus 1) is
    (1 − w) ε(∅) + w ε(c). With an image (Brooks et al. 2022, eq. 3; c_I the image, c_T the words) it is

        (1 − w_I) ε(∅, ∅) + (w_I − w_T) ε(c_I, ∅) + w_T ε(c_I, c_T)

    same_latents: all latents are equal, as at the first step of several edits; then one unconditional row serves all.
    proximal_quantile: proximal guidance needs ε(∅) even where w = 1. is_read: the UNet reads w (`UNet.reads_guidance`),
    and its conditional rows are all there is.
    """
    if is_read:
        return [Branch("conditional", count, 1.0)]
    w = guidance_scale
    shared = 1 if same_latents else count
    if image is not None and image.image_guidance_scale is not None:
        w_image = image.image_guidance_scale
        branches = [
            Branch("unconditional", shared, 1 - w_image),
            Branch("image", shared, w_image - w),
            Branch("conditional", count, w),
        ]
        return [branch for branch in branches if branch.weight != 0]
    if w == 1 and not proximal_quantile:
        return [Branch("conditional", count, 1.0)]
    if w == 0:
        return [Branch("unconditional", shared, 1.0)]
    return [Branch("unconditional", shared, 1 - w), Branch("conditional", count, w)]


def unet_rows(
    count: int,
    guidance_scale: float,
    *,
    same_latents: bool = False,
    proximal_quantile: float = 0.0,
    image: ImageConditioning | None = None,
    is_read: bool = False,
) -> int:
    """How many rows `guided_noise` runs for `count` latents. The arguments: `guidance_branches`."""
    branches = guidance_branches(
        count,
        guidance_scale,
        same_latents=same_latents,
        proximal_quantile=proximal_quantile,
        image=image,
        is_read=is_read,
    )
    return sum(branch.rows for branch in branches)


def conditional_scale(components: Components, guidance_scale: float) -> float:
    """The guidance scale at which a run's conditional rows run alone: 1, or the run's own where the UNet reads it."""
    return guidance_scale if components.unet.reads_guidance else 1.0


def guided_noise(
    components: Components,
    x: Tensor,
    t: int,
    uncond: TextEmbedding,
    cond: TextEmbedding,
    *,
    guidance_scale: float,
    attend: Attend = fused,
    unconditional_attend: Attend = fused,
    same_latents: bool = False,
    proximal_quantile: float = 0.0,
    image: ImageConditioning | None = None,
) -> Tensor:
    """The UNet's prediction with guidance, b c h w, float32: the sum of `guidance_branches`.

    x: latents, b c h w. t: the time step. uncond: one row, or b. cond: b rows. attend: the attention of the conditional
    rows. unconditional_attend: of all other rows. proximal_quantile: see `soft_threshold`. The other arguments:
    `guidance_branches`.
    """
    eps, _ = guided_terms(
        components,
        x,
        t,
        uncond,
        cond,
        guidance_scale=guidance_scale,
        attend=attend,
        unconditional_attend=unconditional_attend,
        same_latents=same_latents,
        proximal_quantile=proximal_quantile,
        image=image,
    )
    return eps


def guided_terms(
    components: Components,
    x: Tensor,
    t: int,
    uncond: TextEmbedding,
    cond: TextEmbedding,
    *,
    guidance_scale: float,
    attend: Attend,
    unconditional_attend: Attend,
    same_latents: bool,
    proximal_quantile: float,
    image: ImageConditioning | None,
) -> tuple[Tensor, Tensor | None]:
    """The prediction of `guided_noise`, and the difference ε(c) − ε(∅) that guides it, b c h w.

    The difference is None where only one kind of rows runs, and with guidance by an image.
    """
    x, count = x.to(components.dtype), len(x)
    branches = guidance_branches(
        count,
        guidance_scale,
        same_latents=same_latents,
        proximal_quantile=proximal_quantile,
        image=image,
        is_read=components.unet.reads_guidance,
    )
    latents = torch.cat([x[: branch.rows] for branch in branches])
    embedding = TextEmbedding.cat(
        cond if branch.kind == "conditional" else uncond.repeat(branch.rows) for branch in branches
    )
    other_rows = sum(branch.rows for branch in branches if branch.kind != "conditional")
    if other_rows == len(latents):
        attend = unconditional_attend
    elif other_rows:
        attend = split_attend(other_rows, unconditional_attend, attend)
    is_guided_by_image = image is not None and image.image_guidance_scale is not None
    empty = sum(branch.rows for branch in branches if branch.kind == "unconditional") if is_guided_by_image else 0
    predictions = unet_noise(
        components, latents, t, embedding, attend, guidance_scale=guidance_scale, image=image, empty_rows=empty
    )
    split = predictions.split([branch.rows for branch in branches])
    if is_guided_by_image:
        terms = [branch.weight * eps for branch, eps in zip(branches, split, strict=True)]
        return sum(terms, torch.zeros_like(x, dtype=predictions.dtype)), None
    if len(branches) == 1:
        return predictions.expand(count, -1, -1, -1), None
    eps_uncond, eps_cond = split
    # The weights' sum in the form ε_u + w (ε_c − ε_u), whose difference proximal guidance thresholds.
    difference = soft_threshold(eps_cond - eps_uncond, proximal_quantile)
    return eps_uncond + guidance_scale * difference, difference


class RunGuidance:
    """The guided predictions of a run, or of the targets of an edit, step by step.

    It is `guided_noise` with what the conditioning declares: guidance within an interval alone, and the differences
    ε(c) − ε(∅) of earlier steps where unconditional rows do not run (`Conditioning.uncond_every`).

    guidance_scale: of the run. negative: the embedding of its negative prompt, one row.
    """

    def __init__(
        self,
        components: Components,
        conditioning: Conditioning,
        *,
        steps: int,
        guidance_scale: float,
        negative: TextEmbedding,
    ):
        self.components, self.conditioning, self.steps = components, conditioning, steps
        self.guidance_scale, self.negative = guidance_scale, negative
        self.differences: dict[int, Tensor] = {}  # the last of each picture or target, 1 c h w

    def __call__(
        self,
        step: int,
        t: int,
        x: Tensor,
        cond: TextEmbedding,
        groups: Sequence[Sequence[int]],
        *,
        attend: Attend,
        unconditional_attend: Attend | None = None,
        same_latents: bool = False,
    ) -> Tensor:
        """The prediction of a step, b c h w, float32.

        step: counted from 0. t: its time step. groups: for each row the numbers of the pictures or targets that it
        stands for; none where the prediction is not used, and so no difference is. unconditional_attend: that of
        `attend` where None. The other arguments: `guided_noise`.
        """
        conditioning = self.conditioning
        eps, difference = guided_terms(
            self.components,
            x,
            t,
            conditioning.uncond_at(step, self.negative),
            cond,
            guidance_scale=conditioning.executed_scale(step, self.steps, self.guidance_scale),
            attend=attend,
            unconditional_attend=unconditional_of(attend) if unconditional_attend is None else unconditional_attend,
            same_latents=same_latents,
            proximal_quantile=conditioning.proximal_quantile,
            image=conditioning.image,
        )
        if conditioning.uncond_every == 1 or not groups or step not in conditioning.guided_steps(self.steps):
            return eps
        if difference is None:
            taken_over = torch.cat([self.differences[group[0]] for group in groups])
            return eps + (self.guidance_scale - 1) * taken_over
        for group, row in zip(groups, difference.split(1), strict=True):
            self.differences |= dict.fromkeys(group, row)
        return eps


def unet_noise(
    components: Components,
    x: Tensor,
    t: int,
    embedding: TextEmbedding,
    attend: Attend = fused,
    *,
    guidance_scale: float | None = None,
    image: ImageConditioning | None = None,
    empty_rows: int = 0,
    gradient_checkpointing: bool = False,
) -> Tensor:
    """One call of the UNet, b c h w -> b c h w in float32. Its rows are counted by `components.counter`.

    guidance_scale: w, for a UNet that reads it. empty_rows: the first so many rows get zeros for the channels of the
    image.
    """
    x, added_cond = unet_inputs(components, x, embedding, image, empty_rows)
    return components.unet(
        x, t, embedding.tokens, attend, added_cond, gradient_checkpointing, guidance_scale=guidance_scale
    ).float()


def unet_features(
    components: Components,
    x: Tensor,
    t: int,
    embedding: TextEmbedding,
    attend: Attend = fused,
    *,
    guidance_scale: float,
    count: int,
) -> list[Tensor]:
    """The outputs of the first `count` levels of the decoder (`UNet.decoder_levels`), b c y x each, in float32.

    Its rows are counted as those of `unet_noise` are.
    """
    x, added_cond = unet_inputs(components, x.to(components.dtype), embedding)
    levels = components.unet.decoder_levels(
        x, t, embedding.tokens, attend, added_cond, guidance_scale=guidance_scale, count=count
    )
    return [level.float() for level in levels]


def unet_inputs(
    components: Components,
    x: Tensor,
    embedding: TextEmbedding,
    image: ImageConditioning | None = None,
    empty_rows: int = 0,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """What the UNet reads of latents b c h w, with the channels of the image, and `added_cond`. Counts the rows.

    Stable Diffusion XL is also told the size of the picture and that it was not cropped (Podell et al. 2023, section
    2.2): its rows and columns, the corner of the crop, rows and columns again.
    """
    if components.counter is not None:
        components.counter.rows += len(x)
    added_cond = None
    if embedding.pooled is not None:
        size = [side * components.vae.stride for side in x.shape[-2:]]
        sizes = to_device(torch.tensor([[*size, 0, 0, *size]]), x.device).expand(len(x), -1)
        added_cond = embedding.pooled, sizes
    if image is not None:
        x = torch.cat([x, to_device(image.rows(len(x), empty_rows), x.device, x.dtype)], dim=1)
    return x, added_cond


def soft_threshold(difference: Tensor, quantile: float) -> Tensor:
    """The proximal map of λ‖·‖₁ (Han et al. 2023, proximal guidance): moves each number towards 0 by λ, and to 0 what
    is smaller. λ is the quantile of the absolute values of each row of b c h w; quantile 0 changes nothing.

    The published code takes one quantile q over the batch, half of which is the source's row of zeros: its q is the
    quantile 2 q − 1 here (`tests/inversion/test_ddim.py` compares the two). A target's result would depend there on
    the rows beside it.
    """
    if quantile == 0:
        return difference
    magnitude = difference.abs().flatten(1)
    bound = magnitude.quantile(quantile, dim=1)[:, None, None, None]
    return difference - difference.clamp(-bound, bound)


def split_attend(first_rows: int, first: Attend, attend: Attend) -> Attend:
    """An `Attend` that is `first` on the first rows and `attend` on all others.

    It always makes two calls, so a run has the same bits whether or not its attention is observed.
    """
    n = first_rows

    def split(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        return torch.cat([first(q[:n], k[:n], v[:n], site), attend(q[n:], k[n:], v[n:], site)])

    return split


class FiniteCheck:
    """Raises ValueError where latents of a run are not finite: one clear line is better than a black picture.

    The line names the first step after which they are not. On a CPU it comes at that step. A GPU computes behind the
    CPU, which would wait for it to read a result; so there the results of `READ_EVERY` steps are read at once, and the
    line comes up to nine steps later, at the end of the run at the latest.
    """

    def __init__(self, components: Components):
        self.components = components
        self.unread: list[tuple[int, Tensor]] = []  # step, whether the latents after it are finite

    def __call__(self, x: Tensor, step: int) -> Tensor:
        """x itself, the latents after a step."""
        self.unread.append((step, torch.isfinite(x).all()))
        if x.device.type == "cpu" or abs(step - self.unread[0][0]) >= READ_EVERY - 1:
            self.finish()
        return x

    def finish(self) -> None:
        """Reads what is unread. Each run ends with it."""
        unread, self.unread = self.unread, []
        results = torch.stack([is_finite for _, is_finite in unread]).cpu().tolist() if unread else []
        if not all(results):
            components, step = self.components, unread[results.index(False)][0]
            what = f"the latents are not finite after step {step + 1}"
            raise non_finite_error(components.networks, components.origin, what)
