"""The attention of an edit's targets: an `Attend` that takes from the source what a plan says.

The published code calls this the attention controller. Here it is a function of (q, k, v, site) like any other.

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
from minip2p.p2p.warp import WarpedEdit

# Called with (n, site, q, apply): how the n-th target attends at a site; q are the queries of all targets.
OnAttention = Callable[[int, Site, Tensor, ApplyAttention], None]


def controlled_attention(
    source: Mapping[Site, QK],
    edits: Sequence[StepEdit],
    attend: Attend = fused,
    *,
    explicit: bool = False,
    on_attention: OnAttention | None = None,
) -> Attend:
    """An `Attend` for targets, one a row, each with its own edit of this step.

    source: the source's (q, k) at every site that an edit reads. attend: the targets' attention apart from the edit; in
    `explicit(f)`, f sees the maps after the edit, or before it where f is an `AttentionStore` with before=True.
    explicit: form Â and apply it, as the paper does, instead of working in value space. on_attention: is shown how each
    target attends, for its heat maps.
    Raises ValueError for an explicit edit with an attention that forms no map.
    """
    if explicit and attend is not fused and not isinstance(attend, Explicit):
        raise ValueError("an explicit edit needs an attention that shows its map: attend=explicit(...)")
    heads = [edit.sites.heads for edit in edits]

    def control(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        pairs = [edit.at_site(site, q.shape[-2]) for edit in edits]
        if isinstance(attend, Explicit) or (explicit and any(pair.changes for pair in pairs)):
            applied = in_map_space(pairs, heads, source.get(site), attend, target=(q, k), site=site)
        else:
            targets = [(q[n : n + 1], k[n : n + 1]) for n in range(len(pairs))]
            applied = [
                in_value_space(pair, selection, target, source.get(site), attend, site)
                for pair, selection, target in zip(pairs, heads, targets, strict=True)
            ]
        if on_attention is not None:
            for n, apply in enumerate(applied):
                on_attention(n, site, q, apply)
        return torch.cat([apply(v[n : n + 1]) for n, apply in enumerate(applied)])

    return control


def in_value_space(
    edit: AttentionEdit | MaskedEdit | WarpedEdit,
    heads: HeadSelection,
    target: QK,
    source: QK | None,
    attend: Attend,
    site: Site,
) -> ApplyAttention:
    """The function v -> Â v of one target, without forming a map."""

    def apply(v: Tensor) -> Tensor:
        edited = edit.attend(source, target, v, site, attend)
        return edited if heads is None else select_heads(heads, edited, attend(*target, v, site))

    return apply


def in_map_space(
    edits: Sequence[AttentionEdit | MaskedEdit | WarpedEdit],
    heads: Sequence[HeadSelection],
    source: QK | None,
    attend: Attend,
    *,
    target: QK,
    site: Site,
) -> list[ApplyAttention]:
    """The functions v -> Â v of all targets, by their maps Â. target: q and k of all of them."""

    def edit_maps(probs: Tensor, site: Site) -> Tensor:
        source_map = probs[:1] if source is None else attention_map(*source)  # not read where every R is 0
        rows = zip(edits, heads, probs.split(1), strict=True)
        return torch.cat(
            [select_heads(selection, edit.in_map_space(source_map, row), row) for edit, selection, row in rows]
        )

    maps = with_user_maps(edit_maps, attend)(attention_map(*target), site)
    return [partial(torch.matmul, maps[n : n + 1]) for n in range(len(edits))]


def with_user_maps(edit: MapFn, attend: Attend) -> MapFn:
    """The edit with the user's map functions around it: stores with `before` come before it, all others after."""
    functions = flatten_chain(attend.map_fn) if isinstance(attend, Explicit) else []
    before = [function for function in functions if getattr(function, "before", False)]
    after = [function for function in functions if not getattr(function, "before", False)]
    return chain(*before, edit, *after)


def flatten_chain(function: MapFn) -> list[MapFn]:
    """The map functions of a chain and of the chains in it, in order."""
    return [f for part in function.map_fns for f in flatten_chain(part)] if isinstance(function, Chain) else [function]
