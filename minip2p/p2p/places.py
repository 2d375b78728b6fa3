"""Objects of the source and their places, which the attention to their words tells.

Axes: i queries, p positions, j words; H W picture pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.attention.contract import Attend, Site, SitePredicate, at_step
from minip2p.attention.heatmaps import HeatmapAccumulator, accumulate_heat, finest_self_stride, select_sites
from minip2p.attention.masks import follow_edges, heatmap_to_mask, mask_to_latent
from minip2p.checkpoints.components import Components
from minip2p.p2p.options import EditOptions
from minip2p.p2p.schedules import step_range
from minip2p.p2p.warp import ObjectEdit, PlacedObject, grid_warp
from minip2p.sampling.qk_cache import CachePolicy
from minip2p.sampling.settings import RunStart
from minip2p.sampling.trajectory import Trajectory
from minip2p.text.prompt import Prompt, WordSelector, token_indicator

LARGEST_PLACE = 0.6  # of the picture: what attends to more of it is no object

# English words that stand for no object: articles, prepositions and the like. Other words are told by their attention.
FUNCTION_WORDS = frozenset(
    "a about above across after against all along alongside although amid among an and another any are around as at "
    "away back be because been before behind being below beneath beside between beyond both but by down during each "
    "every few for from had has have he her his if in inside into is it its left like many more most my near nearby "
    "next no not of off on one onto or other our out outside over own per right several she some than that the their "
    "them then there these they this those three through to together toward towards two under underneath up very was "
    "we were what when where which while who whose with within without you your".split()
)


@dataclass(frozen=True, eq=False)
class WordPlace:
    """Where a word of the source is. mask: H W bool. share: of the attention to the word, by pixel, H W. On the CPU."""

    mask: Tensor
    share: Tensor


FindPlace = Callable[[Any, tuple[int, int]], WordPlace]  # (word, steps), see `find_place`


def place_objects(
    components: Components,
    origin: Trajectory | RunStart,
    options: EditOptions,
    find: FindPlace | None = None,
) -> tuple[PlacedObject, ...]:
    """The objects of an edit with their places, H W.

    The place of a word is that of `find_place`, over the steps of `read_policy`. It is read from the run's cache, or
    else the UNet runs once more through these steps, conditional rows only. A pixel at which the places of several
    words overlap belongs to one of them (`separate`).
    find: instead of `find_place`, as one that remembers the places.
    Raises ValueError for a word that is not in the prompt or has no place, for a word that is named twice, for a mask
    without pixels or without pixels outside of it, and for a new place that is outside of the picture.
    """
    if not options.objects:
        return ()
    if origin.conditioning.image is not None:
        raise ValueError("this run follows a picture, which shows the objects where they are: they cannot be moved")
    masks = place_masks(components, origin, options, find or partial(find_place, components, origin))
    objects = tuple(PlacedObject(item, mask.cpu()) for item, mask in zip(options.objects, masks, strict=True))
    for placed in objects:
        check_place(placed, latent_size_of(origin))
    return objects


def place_masks(
    components: Components, origin: Trajectory | RunStart, options: EditOptions, find: FindPlace
) -> list[Tensor]:
    """Where the objects of an edit are, H W bool each. Raises ValueError for a word that has no place."""
    check_words(components.text.prompt(origin.prompt), options.objects)
    size = tuple(components.vae.stride * side for side in latent_size_of(origin))
    steps = read_policy(origin, options).cross_steps
    words = [item.word for item in options.objects if item.move.mask is None]
    masks = separate([find(word, steps) for word in words])
    if taken := [word for word, mask in zip(words, masks, strict=True) if not mask.any()]:
        raise ValueError(f"{taken[0]!r} has no place of its own: other words that are named have all of it")
    of_words = iter(masks)
    return [
        next(of_words)
        if item.move.mask is None
        else F.interpolate(item.move.mask[None, None], size, mode="area")[0, 0] >= 0.5
        for item in options.objects
    ]


def check_words(prompt: Prompt, objects: Sequence[ObjectEdit]) -> None:
    """Raises ValueError for objects whose words are not in the prompt, are the same, or stand for no object."""
    owners: dict[int, WordSelector] = {}
    for item in objects:
        positions = prompt.token_indices(item.word)
        if twice := [owners[j] for j in positions if j in owners]:
            raise ValueError(
                f"{twice[0]!r} and {item.word!r} name the same word of {prompt.text!r}: name each object once"
            )
        owners |= dict.fromkeys(positions, item.word)
        words = {word.text for word in prompt.words if not set(positions).isdisjoint(range(*word.span))}
        if item.move.mask is None and words <= FUNCTION_WORDS:
            raise ValueError(f"{item.word!r} stands for no object that has a place in the picture: name an object")


def separate(places: Sequence[WordPlace]) -> list[Tensor]:
    """The masks of words, H W bool, of which no two overlap.

    A pixel of several masks goes to the word that has the largest share of its attention there. So a word with much
    attention everywhere does not take the place of another.
    """
    if not places:
        return []
    shares = torch.stack([torch.where(place.mask, place.share, -torch.inf) for place in places])
    owner = shares.argmax(0)
    return [place.mask & (owner == n) for n, place in enumerate(places)]


def check_place(placed: PlacedObject, latent_size: tuple[int, int]) -> None:
    """Raises ValueError where an object's mask has no pixels, and where its new place has none."""
    word, (height, width) = placed.edit.word, placed.mask.shape
    if not placed.mask.any():
        raise ValueError(
            f"the mask of {word!r} has no pixels: there is nothing to move; give a mask that is white there"
        )
    if mask_to_latent(placed.mask, latent_size).all():
        raise ValueError(
            f"the mask of {word!r} covers the whole picture, of which nothing would remain: give a mask that is white "
            "where the object is and black elsewhere"
        )
    if not mask_to_latent(placed.mask, latent_size).any():
        raise ValueError(f"the mask of {word!r} covers less than half of every latent pixel: it is too small to move")
    if placed.edit.appears and not grid_warp([placed], latent_size).owner.max() >= 0:
        x, y = placed.edit.move.by
        raise ValueError(
            f"the new place of {word!r}, by ({x:g}, {y:g}) pixels at scale {placed.edit.move.scale:g}, is outside of "
            f"the picture of {width} x {height} pixels"
        )


def find_place(components: Components, origin: Trajectory | RunStart, word: Any, steps: tuple[int, int]) -> WordPlace:
    """The place of a word. steps: [start, stop), whose cross-attention is read.

    It is the mask of its heat map over these steps, as `Trajectory.mask` computes it over all steps, whose border
    follows the edges of the run's picture (`follow_edges`). Raises ValueError for a word without a place.
    """
    if origin.guidance_scale == 0:
        raise ValueError(f"at guidance scale 0 no word is read, so {word!r} has no place: make the run at a higher one")
    if not isinstance(origin, Trajectory):
        raise ValueError(f"the place of {word!r} is read from a finished run: give its mask, or a run as the source")
    heat = word_heat(components, origin, word, range(*steps))
    total = heat.total.sum(0)
    rough = heatmap_to_mask(total, origin.picture_size, "otsu", pool=False, smooth=True).cpu()
    if heat.mean.sum(0).max() < 1 / len(components.text.prompt(origin.prompt).ids):
        raise ValueError(f"{word!r} has no place: no pixel attends to it more than by chance; name an object")
    share = float(rough.float().mean())
    if not 0 < share <= LARGEST_PLACE:
        raise ValueError(
            f"{word!r} has no place of its own: its attention covers {share:.0%} of the picture; name an object"
        )
    mask = follow_edges(rough, origin.picture)
    heat_share = F.interpolate((total / total.sum())[None, None], origin.picture_size, mode="bicubic")[0, 0].cpu()
    return WordPlace(mask if mask.any() else rough, heat_share)


def word_heat(components: Components, run: Trajectory, word: Any, steps: range) -> HeatmapAccumulator:
    """The heat map of a word over some steps, from the cache of a run if it has them."""
    unet, wanted = components.unet, heat_sites(components, run)
    if not all(run.is_recorded(i, wanted) for i in steps):
        return run.heatmaps([word], steps=steps)
    assert run.qk_cache is not None
    indicator = token_indicator(components.text.prompt(run.prompt), [word])
    read = select_sites(None, None, unet.heads, latent_size_of(run))
    heat = HeatmapAccumulator(indicator, latent_size_of(run), read, 0, finest_self_stride(unet.sites))
    like = components.text(run.prompt, run.clip_skip).tokens
    for i in steps:
        for site, (q, k) in run.qk_cache.get(i, wanted, like).items():
            accumulate_heat([heat], site, partial(attend_values, at_step(run.attend, i), site, q, k), q)
    return heat


def attend_values(attend: Attend, site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """An attention of (q, k) as a function of v, the last argument."""
    return attend(q, k, v, site)


def heat_sites(components: Components, origin: Trajectory | RunStart) -> SitePredicate:
    """The sites whose attention tells where a word is."""
    read = select_sites(None, None, components.unet.heads, latent_size_of(origin))
    return lambda site, queries: site.cross and read.includes(site)


def read_policy(origin: Trajectory | RunStart, options: EditOptions) -> CachePolicy:
    """What an edit reads of its source at most. Where it reads no cross-attention, all steps, for the words' places."""
    skip, steps, cross = origin.conditioning.skip_steps, origin.steps, options.cross_replace
    shares = list({"default_": 1.0, **cross}.values()) if isinstance(cross, Mapping) else [cross]
    ranges = [step_range("cross_replace", share, steps + 1, skip) for share in shares]
    starts, stops = zip(*([pair for pair in ranges if pair[0] < pair[1]] or [(skip, steps)]), strict=True)
    cross_steps = min(starts), min(max(stops), steps)
    self_steps = step_range("self_replace", options.self_replace, steps, skip)
    if options.region is not None:
        cross_steps = self_steps = (skip, steps)
    return CachePolicy(cross_steps, self_steps, options.self_max_queries)


def latent_size_of(origin: Trajectory | RunStart) -> tuple[int, int]:
    """Rows and columns of the latents of a run."""
    latents = origin.latents if isinstance(origin, Trajectory) else origin.noise
    return latents.shape[-2], latents.shape[-1]
