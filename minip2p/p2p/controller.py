"""The attention of the two sides of an edit: the source's is recorded, the targets' takes from it.

Axes: b batch, h heads, i queries, j words (or pixels), d width of a head.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from minip2p.attention.contract import (
    QK,
    Attend,
    Chain,
    Explicit,
    HeadSelection,
    MapFn,
    Site,
    attention_map,
    chain,
    fused,
    select_heads,
)
from minip2p.attention.heatmaps import ApplyAttention
from minip2p.p2p.algebra import AttentionEdit, MaskedEdit
from minip2p.p2p.edit_plan import StepEdit

OnAttention = Callable[
    [int, Site, Tensor, ApplyAttention], None
]  # is shown how the n-th target attends at a site, with all q


def controlled_attention(
    source: Mapping[Site, QK],
    rules: Sequence[StepEdit],
    attend: Attend = fused,
    *,
    explicit: bool = False,
    on_attention: OnAttention | None = None,
) -> Attend:
    """An `Attend` for targets, one a row, that take from the source what their rules say.

    source: its (q, k) at every site where a rule reads it. attend: the targets' attention besides the edit; of
    `explicit(f)`, f sees the maps after the edit (a `Store` with before=True, before it). in_maps: form Â and apply it,
    as the paper does; else value space. watch: sees how each target attends, for its heat maps.
    """

    if explicit and attend is not fused and not isinstance(attend, Explicit):
        raise ValueError("an explicit edit needs an attention that shows its map: attend=explicit(...)")

    heads = [rule.sites.heads for rule in rules]

    def inject(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        edits = [rule.at_site(site, q.shape[-2]) for rule in rules]
        if isinstance(attend, Explicit) or (explicit and any(edit.changes for edit in edits)):
            applied = in_map_space(edits, heads, source.get(site), attend, q, k, site)
        else:
            rows = [(q[n : n + 1], k[n : n + 1]) for n in range(len(edits))]
            each = zip(edits, heads, rows, strict=True)
            applied = [in_value_space(*one, source.get(site), attend, site) for one in each]
        if on_attention is not None:
            for row, values in enumerate(applied):
                on_attention(row, site, q, values)
        return torch.cat([values(v[n : n + 1]) for n, values in enumerate(applied)])

    return inject


def in_value_space(
    edit: AttentionEdit | MaskedEdit, heads: HeadSelection, target: QK, source: QK | None, attend: Attend, site: Site
) -> ApplyAttention:
    def values(v: Tensor) -> Tensor:
        edited = edit.attend(source, target, v, site, attend)
        return edited if heads is None else select_heads(heads, edited, attend(*target, v, site))

    return values


def in_map_space(
    edits: Sequence[AttentionEdit | MaskedEdit],
    heads: Sequence[HeadSelection],
    source: QK | None,
    attend: Attend,
    q: Tensor,
    k: Tensor,
    site: Site,
) -> list[ApplyAttention]:
    def edit_maps(probs: Tensor, site: Site) -> Tensor:
        kept = probs[:1] if source is None else attention_map(*source)  # unread where every R is 0
        rows = zip(edits, heads, probs.split(1), strict=True)
        return torch.cat([select_heads(some, edit.in_map_space(kept, own), own) for edit, some, own in rows])

    maps = with_user_maps(edit_maps, attend)(attention_map(q, k), site)
    return [partial(torch.matmul, maps[n : n + 1]) for n in range(len(edits))]


def with_user_maps(edit: MapFn, attend: Attend) -> MapFn:
    """The edit with the user's own map functions around it: stores that ask for it before, all others after."""
    own = flatten_chain(attend.map_fn) if isinstance(attend, Explicit) else []
    early = [f for f in own if getattr(f, "before", False)]
    return chain(*early, edit, *(f for f in own if not getattr(f, "before", False)))


def flatten_chain(edit: MapFn) -> list[MapFn]:
    """The map functions of a chain, and of the chains in it, in order."""
    return [f for part in edit.map_fns for f in flatten_chain(part)] if isinstance(edit, Chain) else [edit]
