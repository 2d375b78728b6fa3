"""The attention of the targets of an edit: each has its own edit, in both spaces, at every site of a UNet."""

import pytest
import torch
from edit_table import (
    COMPOSED,
    CROSS,
    EYE,
    FEW,
    SELF,
    TABLE,
    assert_close,
    random_qkv,
    table_terms,
)
from hypothesis import given
from hypothesis import strategies as st
from parity import SD15_UNET, on_meta, share_weights
from prompts import tokenize
from torch import ones

from minip2p.attention.contract import SiteFilter, attention_map, chain, explicit, fused
from minip2p.attention.store import AttentionStore, record_qk
from minip2p.config import UNetConfig
from minip2p.p2p.algebra import IDENTITY, INJECT, refine_edit, swap_edit
from minip2p.p2p.alignment import refine_alignment, swap_mapper
from minip2p.p2p.controller import controlled_attention
from minip2p.p2p.edit_plan import Region, StepEdit
from minip2p.p2p.schedules import cross_replace_alpha, equalizer
from minip2p.unet import UNet

both_spaces = pytest.mark.parametrize("in_maps", [True, False])
both_kinds_of_site = pytest.mark.parametrize("site", [CROSS, SELF])


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(set(TABLE) - {"self injection"})), st.booleans()), min_size=1, max_size=4
    ),
    table_terms(),
    st.integers(0, 99),
)
@FEW
def test_each_target_of_a_batch_has_its_own_edit_in_both_spaces(kinds, terms, seed):
    edits = [StepEdit(COMPOSED[kind](*terms), inject_self, 6) for kind, inject_self in kinds]
    for site, keys in ((CROSS, 77), (SELF, 6)):
        q_s, k_s, q, k, v = random_qkv(seed, len(edits), keys)
        eye = torch.eye(keys)
        for in_maps in (True, False):
            out = controlled_attention({site: (q_s, k_s)}, edits, explicit=in_maps)(q, k, v, site)
            for n, (kind, inject_self) in enumerate(kinds):
                A_s, A_e = attention_map(q_s, k_s)[0], attention_map(q, k)[n]
                R, S = TABLE[kind](*terms) if site.cross else (inject_self * eye, (not inject_self) * eye)
                expected = (A_s @ R + A_e @ S) @ v[n]
                assert_close(out[n], expected, expected.std())


@both_spaces
@both_kinds_of_site
def test_an_edit_changes_only_the_selected_heads(in_maps, site):
    draw = torch.Generator().manual_seed(0)
    q, k, v, q_s, k_s = (torch.randn(1, 4, 6, 8, generator=draw) for _ in range(5))
    edits = [StepEdit(swap_edit(torch.eye(6)), True, 99, SiteFilter(heads=heads)) for heads in (None, (0, 2))]
    all_heads, two_heads = (
        controlled_attention({site: (q_s, k_s)}, [edit], explicit=in_maps)(q, k, v, site) for edit in edits
    )
    unedited = fused(q, k, v)
    torch.testing.assert_close(two_heads[:, [0, 2]], all_heads[:, [0, 2]])
    torch.testing.assert_close(two_heads[:, [1, 3]], unedited[:, [1, 3]])
    torch.testing.assert_close(all_heads, fused(q_s, k_s, v))
    assert (two_heads - unedited)[:, [0, 2]].abs().max() > 0.1


@both_spaces
@both_kinds_of_site
def test_inside_of_a_region_is_the_edit_and_outside_the_source(site, in_maps):
    """Â = m ⊙ edit + (1 − m) ⊙ A_s R' (at self-attention sites R' = I), applied to v by hand."""
    draw = torch.Generator().manual_seed(0)
    q, k, v, q_s, k_s = (torch.randn(1, 4, 6, 8, generator=draw) for _ in range(5))
    m, R = torch.tensor([0, 0, 1, 1, 0.25, 1.0]), torch.eye(6).roll(1, 1)
    edit = StepEdit(swap_edit(R).scheduled(ones(6) * 0.5), 0.25, 99, region=Region({1: m}, swap_edit(R)))
    out = controlled_attention({site: (q_s, k_s)}, [edit], explicit=in_maps)(q, k, v, site)
    A_s, A_e = attention_map(q_s, k_s), attention_map(q, k)
    inside = A_s @ R * 0.5 + A_e * 0.5 if site.cross else A_s * 0.25 + A_e * 0.75
    outside = A_s @ R if site.cross else A_s
    torch.testing.assert_close(out, (m[:, None] * inside + (1 - m[:, None]) * outside) @ v)
    assert edit.at_site(site, 6).reads and edit.at_site(site, 6).changes


# Custom attention


def test_stores_keep_the_maps_before_and_after_the_edit():
    q_s, k_s, q, k, v = random_qkv(0, rows=2)
    edits = [StepEdit(swap_edit(EYE.roll(1, 1)), False, 0), StepEdit(IDENTITY, False, 0)]
    before, after = AttentionStore(before=True), AttentionStore()
    attend = explicit(chain(after, before))
    out = controlled_attention({CROSS: (q_s, k_s)}, edits, attend)(q, k, v, CROSS)
    target_maps = attention_map(q, k)
    assert_close(before.maps[CROSS], target_maps)
    assert_close(after.maps[CROSS], torch.cat([attention_map(q_s, k_s).roll(1, -1), target_maps[1:]]))
    assert_close(out, after.maps[CROSS] @ v)


def test_stores_in_chains_of_chains_keep_their_side_of_the_edit():
    q_s, k_s, q, k, v = random_qkv(0)
    before, after = AttentionStore(before=True), AttentionStore()
    attend = explicit(chain(chain(before), chain(after)))
    controlled_attention({CROSS: (q_s, k_s)}, [StepEdit(INJECT, False, 0)], attend)(q, k, v, CROSS)
    torch.testing.assert_close(before.maps[CROSS], attention_map(q, k))
    torch.testing.assert_close(after.maps[CROSS], attention_map(q_s, k_s))


def test_an_explicit_edit_needs_an_attention_with_a_map():
    with pytest.raises(ValueError, match="an explicit edit needs an attention that shows its map"):
        controlled_attention({}, [StepEdit(IDENTITY, False, 0)], lambda q, k, v, site: fused(q, k, v), explicit=True)


@both_spaces
def test_an_observer_is_shown_how_each_target_attends(in_maps):
    q_s, k_s, q, k, v = random_qkv(0, rows=2)
    edits = [StepEdit(INJECT, False, 0), StepEdit(IDENTITY, False, 0)]
    observed = {}

    def observe(row, site, queries, apply):
        observed[row] = site, queries, apply(v[row : row + 1])

    source = {CROSS: (q_s, k_s)}
    out = controlled_attention(source, edits, explicit=in_maps, on_attention=observe)(q, k, v, CROSS)
    assert sorted(observed) == [0, 1]
    for row, (site, queries, applied) in observed.items():
        assert site == CROSS and queries is q and torch.equal(applied[0], out[row])


# At every site of a UNet


@pytest.fixture(scope="module")
def narrow():
    """SD 1.5's structure with its 32 sites, 32 channels wide."""
    config = UNetConfig.from_dict(
        SD15_UNET | dict(block_out_channels=[32] * 4, cross_attention_dim=16, attention_head_dim=4)
    )
    unet = on_meta(UNet, config)
    share_weights(unet)
    return unet


@pytest.mark.parametrize("name, sites", [("tiny", 14), ("narrow", 32)])
def test_map_space_and_value_space_agree_at_every_site_of_a_unet(request, model, name, sites):
    unet = model.unet if name == "tiny" else request.getfixturevalue("narrow")
    g = torch.Generator().manual_seed(0)
    source, target = tokenize("a cat on grass"), tokenize("a lighthouse on grass")
    random_context = torch.randn(2, 77, 16, generator=g)
    context = model.text([source.text, target.text]).tokens if name == "tiny" else random_context
    terms = [
        swap_mapper(source, target),
        *refine_alignment(source, target),
        equalizer({"grass": 4}, target),
        cross_replace_alpha({"default_": 1.0, "a": 0.0}, target, 1)[0],
    ]
    edits = [StepEdit(COMPOSED[kind](*terms), inject, 16 * 16) for kind in COMPOSED for inject in (False, True)]
    x = torch.randn(1 + len(edits), unet.config.in_channels, 16, 16, generator=g).to(context.device)

    source_qk, errors, effects = {}, {}, {}
    unet(x[:1], 500, context[:1], record_qk(source_qk, lambda site, queries: True))
    in_map_space, in_value_space = (
        controlled_attention(source_qk, edits, explicit=in_maps) for in_maps in (True, False)
    )

    def both(q, k, v, site):
        maps, values = in_map_space(q, k, v, site), in_value_space(q, k, v, site)
        errors[site] = float((maps - values).abs().max() / values.abs().max())  # float32 rounds by the largest value
        effects[site] = (values - fused(q, k, v)).abs().amax((1, 2, 3)) / values.std()
        return values

    words = context[1:].expand(len(edits), -1, -1)
    values = unet(x[1:], 500, words, both)
    maps = unet(x[1:], 500, words, in_map_space)
    assert set(errors) == set(source_qk) == set(unet.sites) and len(errors) == sites
    assert max(errors.values()) <= 1e-5 and float((values - maps).abs().max() / values.std()) <= 2e-5
    for site, effect in effects.items():  # an edit has an effect at every site where it takes something
        edited = torch.tensor([edit.at_site(site, 1).changes for edit in edits])
        assert (effect[edited] > 1e-3).all() and (effect[~edited] < 1e-6).all(), (site, effect)


def source_and_target(unet):
    """Latents and embeddings, source and target, 2 rows each, and the source's (q, k) of all sites."""
    g, source_qk = torch.Generator().manual_seed(0), {}
    x, context = torch.randn(2, 4, 16, 16, generator=g), torch.randn(2, 77, 16, generator=g)
    unet(x[:1], 500, context[:1], record_qk(source_qk, lambda site, queries: True))
    return x, context, source_qk


@both_spaces
def test_gradients_reach_the_targets_latents_through_a_unet(narrow, in_maps):
    x, context, source_qk = source_and_target(narrow)
    target = x[1:].clone().requires_grad_()
    kappa = ones(77).index_fill(0, torch.tensor([3]), 0)
    edit = StepEdit(refine_edit(EYE, kappa).scheduled(ones(77)), True, 64)
    attend = controlled_attention(source_qk, [edit], explicit=in_maps)
    narrow(target, 500, context[1:], attend).square().sum().backward()
    assert torch.isfinite(target.grad).all() and target.grad.any()


def test_self_attention_is_injected_up_to_self_max_queries(narrow):
    x, context, source_qk = source_and_target(narrow)
    source_qk = {site: pair for site, pair in source_qk.items() if pair[0].shape[-2] <= 64}
    inject = controlled_attention(source_qk, [StepEdit(IDENTITY, True, 64)])
    changed = []

    def watch(q, k, v, site):
        out = inject(q, k, v, site)
        if not torch.equal(out, fused(q, k, v)):
            changed.append(site)
        return out

    narrow(x[1:], 500, context[1:], watch)
    assert sorted(changed) == sorted(s for s in narrow.sites if not s.cross and s.stride >= 2) and len(changed) == 11
