"""What an edit of several targets runs at each step: what it reads of the source, and which targets are still equal.

A grid of edits is a tree (a trie over the steps). Two targets of one prompt share their rows of the UNet up to the
first step at which their edits differ. `BatchPlan` is computed before the run; the edit executes it, and its predicted
cost is exact.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import eq
from typing import Any

from minip2p.attention.contract import Attend, Site, SitePredicate, fused
from minip2p.checkpoints.components import Components
from minip2p.p2p.places import latent_size_of
from minip2p.p2p.targets import EditTarget
from minip2p.sampling.batches import MAX_BATCH, even_chunks
from minip2p.sampling.guidance import unet_rows
from minip2p.sampling.qk_cache import queries_per_site
from minip2p.sampling.settings import RunStart
from minip2p.sampling.trajectory import Trajectory, reads_attention_alone


@dataclass(frozen=True)
class BatchPlan:
    """What is run, step by step.

    wanted_sites: which sites of the source are read at each step; None for none. source_steps: how many steps of the
    source are gone through. rows: for each step the groups of targets (indices into their list) that are one row.
    batch: how many rows run at once. same_start: whether all targets start from the same noise, which one unconditional
    row serves. reads_guidance: of the UNet.
    """

    wanted_sites: list[SitePredicate | None]
    source_steps: int
    rows: list[list[list[int]]]
    batch: int
    same_start: bool = True
    reads_guidance: bool = False

    def predicted_rows(self, origin: Trajectory | RunStart) -> int:
        """How many rows the UNet will run."""
        conditioning, total = origin.conditioning, 0

        def rows(count: int, guidance_scale: float, same_latents: bool = False) -> int:
            return unet_rows(
                count,
                guidance_scale,
                same_latents=same_latents,
                proximal_quantile=conditioning.proximal_quantile,
                image=conditioning.image,
                is_read=self.reads_guidance,
            )

        def executed_scale(step: int, guidance_scale: float) -> float:
            return conditioning.executed_scale(step, origin.steps, guidance_scale)

        for i, groups in enumerate(self.rows):
            is_recorded = isinstance(origin, Trajectory) and origin.is_recorded(i, self.wanted_sites[i])
            if i < self.source_steps and not is_recorded:
                source_scale = executed_scale(i, conditioning.source_scale(origin.guidance_scale))
                total += 1 if reads_attention_alone(origin, i) else rows(1, source_scale)
            is_first = self.is_first(i, conditioning.skip_steps)
            scale = executed_scale(i, origin.guidance_scale)
            total += sum(rows(len(chunk), scale, is_first) for chunk in even_chunks(groups, self.batch))
        return total

    def is_first(self, step: int, skip_steps: int) -> bool:
        """Whether all targets have the same latents at a step, as they have at the first that is edited."""
        return self.same_start and step == skip_steps


def plan_batches(
    components: Components,
    origin: Trajectory | RunStart,
    targets: Sequence[EditTarget],
    *,
    attend: Attend | None = None,
    batch: int = MAX_BATCH,
) -> BatchPlan:
    """Plans an edit. The source is gone through as far as its attention, latents and predictions are read.

    At guidance scale 0 the words are not read, and so the source's attention is not. The steps that the origin's
    conditioning skips have no rows.

    attend: the targets' attention; None is the origin's. Equal targets are one row, and up to `batch` rows run at once;
    but a custom attention may store what it sees, so it sees all targets at once, one row each.
    """
    queries = queries_per_site(components.unet, latent_size_of(origin))
    first, reads_words = origin.conditioning.skip_steps, origin.guidance_scale != 0
    wanted = [wanted_sites(targets, i, queries) if reads_words and i >= first else None for i in range(origin.steps)]
    corrects = origin.conditioning.corrects
    source_steps = max((i + 1 for i, sites in enumerate(wanted) if sites is not None or corrects(i)), default=0)
    source_steps = max(source_steps, *(target.latent_steps(origin.steps) for target in targets))
    if (attend or origin.attend) is fused:
        rows = list(share_prefixes(targets, origin.steps, first))
    else:
        rows = [[] if i < first else [[n] for n in range(len(targets))] for i in range(origin.steps)]
        batch = len(targets)
    same_start = len({target.start_key for target in targets}) <= 1
    return BatchPlan(wanted, source_steps, rows, batch, same_start, components.unet.reads_guidance)


def share_prefixes(targets: Sequence[EditTarget], steps: int, skip_steps: int = 0) -> Iterator[list[list[int]]]:
    """For each step the rows to run: groups of targets (indices into their list) that are equal so far.

    Two targets part at the first step at which their edits differ, or after the first step after which they are blended
    differently. The first `skip_steps` steps have no rows, and what targets would do there does not part them.
    """
    history: list[Any] = [target.prompt for target in targets]
    for step in range(steps):
        if step < skip_steps:
            yield []
            continue
        edits = [target.edit_key(step) for target in targets]
        history = intern(list(zip(history, edits, strict=True)))
        groups: dict[int, list[int]] = {}
        for n, past in enumerate(history):
            groups.setdefault(past, []).append(n)
        yield list(groups.values())
        history = list(zip(history, [target.blend_key(step) for target in targets], strict=True))


def split_targets(plan: BatchPlan, parts: int) -> list[list[int]]:
    """The targets of an edit in at most so many parts, each to be an edit of its own, in order.

    A part has neighbours of the tree of targets. The longest part is as short as this allows; with such parts, the sum
    of all lengths is the smallest. A length is counted in steps: of the targets, and of the source, as many as the
    whole edit reads. The plan has targets and steps.
    """
    levels = [groups for groups in plan.rows if groups]
    paths: dict[int, list[int]] = {n: [] for group in levels[0] for n in group}  # the number of its group at each step
    for groups in levels:
        for number, group in enumerate(groups):
            for n in group:
                paths[n].append(number)
    order = sorted(paths, key=paths.__getitem__)
    parts = min(parts, len(order))
    shared = [0, *(sum(map(eq, paths[a], paths[b])) for a, b in pairwise(order))]  # steps with the target before
    added = [len(levels) - count for count in shared]  # what a target adds to a part with the target before
    single = plan.source_steps + len(levels)  # the length of a part of one target
    low, high = single, single + sum(added[1:])
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if count_parts(added, single, middle) <= parts else (middle + 1, high)
    repeated = [0, *(plan.source_steps + count for count in shared[1:])]
    ends = cheapest_cuts(repeated, added, single, longest=low, parts=parts)
    return [sorted(order[first:end]) for first, end in pairwise([0, *ends])]


def count_parts(added: Sequence[int], single: int, longest: int) -> int:
    """How many parts there are if each has as many targets as fit into it. The arguments: `cheapest_cuts`."""
    count, length = 1, single
    for more in added[1:]:
        length += more
        if length > longest:
            count, length = count + 1, single
    return count


def cheapest_cuts(repeated: Sequence[int], added: Sequence[int], single: int, *, longest: int, parts: int) -> list[int]:
    """Where a row of targets is cut into at most so many parts: the end of each.

    repeated: by target, the steps that a cut before it runs once more. added: by target, what it adds to the length of
    a part with the target before; the first target of a part has the length `single`. longest: no part is longer.
    """
    cuts: list[dict[int, tuple[int, list[int]]]] = [{0: (0, [])}]  # by count of parts, end -> (steps repeated, ends)
    for _ in range(parts):
        reached: dict[int, tuple[int, list[int]]] = {}
        for first, (steps, ends) in cuts[-1].items():
            length = single
            for end in range(first + 1, len(repeated) + 1):
                length += added[end - 1] if end > first + 1 else 0
                if length > longest:
                    break
                if end not in reached or steps + repeated[first] < reached[end][0]:
                    reached[end] = steps + repeated[first], [*ends, end]
        cuts.append(reached)
    return min(by_end[len(repeated)] for by_end in cuts if len(repeated) in by_end)[1]


def intern(values: Sequence[Any]) -> list[int]:
    """The same number for equal values: a long history becomes one number."""
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]


def wanted_sites(targets: Sequence[EditTarget], step: int, queries: Mapping[Site, int]) -> SitePredicate | None:
    """Which sites of the source are read at a step; None where none is. queries: how many each site has."""
    edits = list({edit.cache_key: edit for edit in (target.plan.at(step) for target in targets)}.values())
    heatmaps = [target.blend_state.source for target in targets if target.blend_state is not None]
    sites = {
        site
        for site, count in queries.items()
        if any(edit.at_site(site, count).reads for edit in edits) or any(heat.wants(site) for heat in heatmaps)
    }
    return (lambda site, count: site in sites) if sites else None
