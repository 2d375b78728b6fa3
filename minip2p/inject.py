"""The attention of the two sides of an edit: the source's is recorded, the targets' takes from it.

Axes: b batch, h heads, i queries, j words (or pixels), d width of a head.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from minip2p.attention import Attend, Chain, Explicit, MapFn, Site, attention_map, chain, fused
from minip2p.edit import QK, Inside, Wanted, WordEdit
from minip2p.rule import Rule


def recording(into: dict[Site, QK], wanted: Wanted, attend: Attend = fused) -> Attend:
    """An `Attend` that also keeps (q, k) of every wanted site: the map without loss, and far smaller than the map."""

    def record(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        if wanted(site, q.shape[-2]):
            into[site] = (q, k)
        return attend(q, k, v, site)

    return record


Values = Callable[[Tensor], Tensor]  # v 1 h j d -> Â v 1 h i d
Watch = Callable[[int, Site, Tensor, Values], None]  # is shown how the n-th target attends at a site, with all q


def injecting(
    source: Mapping[Site, QK],
    rules: Sequence[Rule],
    attend: Attend = fused,
    *,
    in_maps: bool = False,
    watch: Watch | None = None,
) -> Attend:
    """An `Attend` for targets, one a row, that take from the source what their rules say.

    source: its (q, k) at every site where a rule reads it. attend: the targets' attention besides the edit; of
    `explicit(f)`, f sees the maps after the edit (a `Store` with before=True, before it). in_maps: form Â and apply it,
    as the paper does; else value space. watch: sees how each target attends, for its heat maps.
    """

    if in_maps and attend is not fused and not isinstance(attend, Explicit):
        raise ValueError("an explicit edit needs an attention that shows its map: attend=explicit(...)")

    heads = [rule.where.heads for rule in rules]

    def inject(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        edits = [rule.of(site, q.shape[-2]) for rule in rules]
        if isinstance(attend, Explicit) or (in_maps and any(edit.changes for edit in edits)):
            applied = _in_maps(edits, heads, source.get(site), attend, q, k, site)
        else:
            rows = [(q[n : n + 1], k[n : n + 1]) for n in range(len(edits))]
            each = zip(edits, heads, rows, strict=True)
            applied = [_in_values(*one, source.get(site), attend, site) for one in each]
        if watch is not None:
            for row, values in enumerate(applied):
                watch(row, site, q, values)
        return torch.cat([values(v[n : n + 1]) for n, values in enumerate(applied)])

    return inject


Heads = tuple[int, ...] | None  # that an edit reaches, all where None


def in_heads(heads: Heads, edited: Tensor, own: Tensor) -> Tensor:
    """The edited in these heads, its own in the others: b h i · each."""
    if heads is None:
        return edited
    reached = torch.tensor([head in heads for head in range(own.shape[1])], device=own.device)
    return torch.where(reached[:, None, None], edited, own)


def _in_values(
    edit: WordEdit | Inside, heads: Heads, target: QK, source: QK | None, attend: Attend, site: Site
) -> Values:
    def values(v: Tensor) -> Tensor:
        edited = edit.attend(source, target, v, site, attend)
        return edited if heads is None else in_heads(heads, edited, attend(*target, v, site))

    return values


def _in_maps(
    edits: Sequence[WordEdit | Inside],
    heads: Sequence[Heads],
    source: QK | None,
    attend: Attend,
    q: Tensor,
    k: Tensor,
    site: Site,
) -> list[Values]:
    def edit_maps(probs: Tensor, site: Site) -> Tensor:
        kept = probs[:1] if source is None else attention_map(*source)  # unread where every R is 0
        rows = zip(edits, heads, probs.split(1), strict=True)
        return torch.cat([in_heads(some, edit.on_maps(kept, own), own) for edit, some, own in rows])

    maps = around(edit_maps, attend)(attention_map(q, k), site)
    return [partial(torch.matmul, maps[n : n + 1]) for n in range(len(edits))]


def around(edit: MapFn, attend: Attend) -> MapFn:
    """The edit with the user's own map functions around it: stores that ask for it before, all others after."""
    own = flat(attend.edit) if isinstance(attend, Explicit) else []
    early = [f for f in own if getattr(f, "before", False)]
    return chain(*early, edit, *(f for f in own if not getattr(f, "before", False)))


def flat(edit: MapFn) -> list[MapFn]:
    """The map functions of a chain, and of the chains in it, in order."""
    return [f for part in edit.edits for f in flat(part)] if isinstance(edit, Chain) else [edit]
