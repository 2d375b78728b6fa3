"""TODO: describe."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from minip2p.attention.contract import Site, SitePredicate
from minip2p.checkpoints.components import Components, unet_rows
from minip2p.p2p.targets import EditTarget
from minip2p.sampling.qk_cache import queries_per_site
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import Trajectory


@dataclass(frozen=True)
class BatchPlan:
    """What is run, step by step. wanted: the sites of the source that are read. read: the steps that the source is gone
    along. rows: the targets (their places in the list) that are one row."""

    wanted_sites: list[SitePredicate | None]
    source_steps: int
    rows: list[list[list[int]]]

    def predicted_rows(self, origin: Trajectory | RunSettings, batch: int = 8) -> int:
        """The rows that the UNet will run."""
        w, p, beside, total = origin.guidance_scale, origin.conditioning.proximal_quantile, origin.conditioning.image, 0
        for i, rows in enumerate(self.rows):
            if i < self.source_steps and not (
                isinstance(origin, Trajectory) and origin.is_recorded(i, self.wanted_sites[i])
            ):
                total += unet_rows(1, w, proximal_quantile=p, image=beside)
            total += sum(
                unet_rows(len(some), w, i == origin.conditioning.skip_steps, p, beside)
                for some in even_chunks(rows, batch)
            )
        return total


def plan_batches(parts: Components, origin: Trajectory | RunSettings, targets: Sequence[EditTarget]) -> BatchPlan:
    """The plan of an edit: the source goes along as far as it is read, to the end where a target is blended with it. At
    guidance 0 no words are read, and so no attention. Steps that the origin skips have no rows."""
    latents = origin.latents if isinstance(origin, Trajectory) else origin.noise
    queries = queries_per_site(parts.unet, (latents.shape[-2], latents.shape[-1]))
    skip, asks = origin.conditioning.skip_steps, origin.guidance_scale != 0
    wanted = [wanted_sites(targets, i, queries) if asks and i >= skip else None for i in range(origin.steps)]
    read = max((i + 1 for i, sites in enumerate(wanted) if sites is not None), default=0)
    if any(target.blend_state is not None for target in targets):
        read = origin.steps
    return BatchPlan(wanted, read, list(share_prefixes(targets, origin.steps, skip)))


def share_prefixes(targets: Sequence[EditTarget], steps: int, skip: int = 0) -> Iterator[list[list[int]]]:
    """For each step the rows to run: the targets (their places in the list) that have agreed so far are one. The first
    `skip` steps have none: what is said of them does not part anybody.

    A grid of edits so becomes a tree (a trie over the steps): two targets of one prompt part at the first step at which
    their rules differ, or after the first after which they are blended in other ways.
    """
    history: list[Any] = [target.prompt for target in targets]
    for step in range(steps):
        if step < skip:
            yield []
            continue
        history = intern(
            [(past, target.plan.at(step).cache_key) for past, target in zip(history, targets, strict=True)]
        )
        rows: dict[int, list[int]] = {}
        for n, past in enumerate(history):
            rows.setdefault(past, []).append(n)
        yield list(rows.values())
        blended = [None if target.blend_state is None else target.blend_state.cache_key(step) for target in targets]
        history = list(zip(history, blended, strict=True))


def intern(values: Sequence[Any]) -> list[int]:
    """The same number for the same value: a long history in one word."""
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]


def even_chunks(rows: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """The rows in as few parts of at most `most` as there can be, the larger first; they depend on the number alone."""
    count = -(-len(rows) // most)
    ends = [len(rows) - len(rows) * n // count for n in range(count, -1, -1)] if rows else []
    return [rows[a:b] for a, b in pairwise(ends)]


def wanted_sites(targets: Sequence[EditTarget], step: int, queries: Mapping[Site, int]) -> SitePredicate | None:
    """Which sites of the source are read at a step; None where none are."""
    rules = list({rule.cache_key: rule for rule in (target.plan.at(step) for target in targets)}.values())
    heats = [target.blend_state.source for target in targets if target.blend_state is not None]

    def is_read(site: Site, n: int) -> bool:
        return any(rule.at_site(site, n).reads for rule in rules) or any(heat.wants(site) for heat in heats)

    read = {site for site, n in queries.items() if is_read(site, n)}
    return (lambda site, queries: site in read) if read else None
