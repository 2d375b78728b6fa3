"""Source and targets, step by step: the edits of a run, and of a run that is sampled as it is read.

Axes: b batch, c h w latents; e targets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from minip2p.attention import Attend, Site, at_step, fused
from minip2p.blend import Blend, Blending, own_mask
from minip2p.edit import QK, Wanted
from minip2p.inject import Watch, injecting
from minip2p.mask import add_heat, over_sites
from minip2p.parts import Parts, rows_of
from minip2p.record import queries_of
from minip2p.rule import Edit, plan_edit
from minip2p.start import Start
from minip2p.trajectory import Progress, Source, Trajectory, finite


@dataclass(frozen=True)
class Target:
    """One target of an edit: its prompt, its edit, and its blending if there is one, which sums heat as the edit goes:
    it serves one edit."""

    prompt: str
    edit: Edit
    blending: Blending | None = None

    def blended(self, step: int, source: Sequence[Tensor], x: Tensor) -> Tensor:
        """The latents after a step, b c h w; source: the source's of all steps so far."""
        return x if self.blending is None else self.blending(step, source[step + 1], x)

    @property
    def mask(self) -> Tensor | None:
        return None if self.blending is None else self.blending.last


def aimed(
    parts: Parts, origin: Trajectory | Start, prompts: Sequence[Any], blend: Blend | None, within: Any, **how: Any
) -> list[Target]:
    """A target for each prompt, all of one blend and one mask H W to stay within. how: as `plan_edit` takes it. Raises
    ValueError for what is no edit of the origin."""
    *_, rows, columns = (origin.latents if isinstance(origin, Trajectory) else origin.noise).shape
    size, old, targets = (rows, columns), parts.text.prompt(origin.prompt), []
    inside = None if within is None else over_sites(own_mask(within), size, parts.unet.sites)
    for prompt in prompts:
        new = parts.text.prompt(prompt)
        plan = plan_edit(old, new, origin.steps, within=inside, **how)
        begun = None if blend is None else Blending.begin(blend, old, new, origin.steps, size, parts.unet.sites)
        targets.append(Target(prompt, plan, begun))
    return targets


def edit(
    parts: Parts,
    origin: Trajectory | Start,
    targets: Sequence[Target],
    *,
    attend: Attend | None = None,
    in_maps: bool = False,
    batch: int = 8,
    progress: Progress = iter,
) -> list[Trajectory]:
    """Edits a source into all targets, step by step (Hertz et al. 2022, algorithm 1). Each starts from the source's
    noise; at each step the source goes first, where a target still reads it, and the targets follow.

    Targets that have agreed in all that was done to them are one row (`shared`); up to `batch` rows run at once. But an
    `attend` of one's own, which may keep what it sees, sees all targets at once, a row each.
    attend: the targets' attention besides the edit, the source's own where None. in_maps: the explicit execution.
    """
    source, attend, plan = Source(parts, origin), attend or origin.attend, planned(parts, origin, targets)
    if attend is not fused:
        plan, batch = replace(plan, rows=[[[n] for n in range(len(targets))]] * origin.steps), len(targets)
    texts = {target.prompt: parts.text(target.prompt) for target in targets}
    latents = [[source.latents[0]] for _ in targets]
    for i, step in enumerate(progress(list(parts.sched.steps(origin.steps)))):
        if i < origin.way.skip:
            for states in latents:
                states.append(source.latents[i + 1])
            continue
        found = source.read(i, step, plan.wanted[i]) if i < plan.read else {}
        _add_source_heat(found, targets, origin.attend, i)
        for some in batches(plan.rows[i], batch):
            rules = [targets[row[0]].edit.at(i) for row in some]
            watch = _target_heat([[targets[n] for n in row] for row in some])
            injected = injecting(found, rules, at_step(attend, i), in_maps=in_maps, watch=watch)
            before = torch.cat([latents[row[0]][i] for row in some])
            conditional = torch.cat([texts[targets[row[0]].prompt] for row in some])
            eps = parts.predict(before, step.t, source.unconditional(i), conditional, origin.guidance, injected,
                                i == origin.way.skip, origin.way.proximal, origin.way.beside)  # fmt: skip
            after = finite(parts, parts.sched.step(before, eps, step, noise=origin.way.z(i)), i).split(1)
            for row, x in zip(some, after, strict=True):
                for n in row:
                    latents[n].append(targets[n].blended(i, source.latents, x))
    return [
        Trajectory(parts, target.prompt, torch.cat(states).cpu(), origin.guidance, origin.negative, origin.seed,
                   origin.way, attend, mask=target.mask, begun=source)
        for target, states in zip(targets, latents, strict=True)
    ]  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is run, step by step. wanted: the sites of the source that are read. read: the steps that the source is gone
    along. rows: the targets (their places in the list) that are one row."""

    wanted: list[Wanted | None]
    read: int
    rows: list[list[list[int]]]

    def cost(self, origin: Trajectory | Start, batch: int = 8) -> int:
        """The rows that the UNet will run."""
        w, p, beside, total = origin.guidance, origin.way.proximal, origin.way.beside, 0
        for i, rows in enumerate(self.rows):
            if i < self.read and not (isinstance(origin, Trajectory) and origin.knows(i, self.wanted[i])):
                total += rows_of(1, w, proximal=p, beside=beside)
            total += sum(rows_of(len(some), w, i == origin.way.skip, p, beside) for some in batches(rows, batch))
        return total


def planned(parts: Parts, origin: Trajectory | Start, targets: Sequence[Target]) -> Plan:
    """The plan of an edit: the source goes along as far as it is read, to the end where a target is blended with it. At
    guidance 0 no words are read, and so no attention. Steps that the origin skips have no rows."""
    latents = origin.latents if isinstance(origin, Trajectory) else origin.noise
    queries = queries_of(parts.unet, (latents.shape[-2], latents.shape[-1]))
    skip, asks = origin.way.skip, origin.guidance != 0
    wanted = [_wanted(targets, i, queries) if asks and i >= skip else None for i in range(origin.steps)]
    read = max((i + 1 for i, sites in enumerate(wanted) if sites is not None), default=0)
    if any(target.blending is not None for target in targets):
        read = origin.steps
    return Plan(wanted, read, list(shared(targets, origin.steps, skip)))


def shared(targets: Sequence[Target], steps: int, skip: int = 0) -> Iterator[list[list[int]]]:
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
        history = numbered([(past, target.edit.at(step).key) for past, target in zip(history, targets, strict=True)])
        rows: dict[int, list[int]] = {}
        for n, past in enumerate(history):
            rows.setdefault(past, []).append(n)
        yield list(rows.values())
        blended = [None if target.blending is None else target.blending.key(step) for target in targets]
        history = list(zip(history, blended, strict=True))


def numbered(values: Sequence[Any]) -> list[int]:
    """The same number for the same value: a long history in one word."""
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]


def batches(rows: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """The rows in as few parts of at most `most` as there can be, the larger first; they depend on the number alone."""
    count = -(-len(rows) // most)
    ends = [len(rows) - len(rows) * n // count for n in range(count, -1, -1)] if rows else []
    return [rows[a:b] for a, b in pairwise(ends)]


def _wanted(targets: Sequence[Target], step: int, queries: Mapping[Site, int]) -> Wanted | None:
    """Which sites of the source are read at a step; None where none are."""
    rules = list({rule.key: rule for rule in (target.edit.at(step) for target in targets)}.values())
    heats = [target.blending.source for target in targets if target.blending is not None]

    def is_read(site: Site, n: int) -> bool:
        return any(rule.of(site, n).reads for rule in rules) or any(heat.wants(site) for heat in heats)

    read = {site for site, n in queries.items() if is_read(site, n)}
    return (lambda site, queries: site in read) if read else None


def _add_source_heat(found: Mapping[Site, QK], targets: Sequence[Target], attend: Attend, step: int) -> None:
    """Sums the source's heat, by the attention that the source runs with."""
    heats = [target.blending.source for target in targets if target.blending is not None]
    if found and heats:
        attend = at_step(attend, step)
        for site, (q, k) in found.items():
            add_heat(heats, site, lambda v, q=q, k=k, site=site: attend(q, k, v, site), q)  # type: ignore[misc]


def _target_heat(rows: Sequence[Sequence[Target]]) -> Watch:
    """Sums the targets' heat after the edit, as the masks of the paper do. rows: the targets that a row stands for."""
    heats = [[target.blending.target for target in row if target.blending is not None] for row in rows]
    return lambda row, site, q, values: add_heat(heats[row], site, values, q)
