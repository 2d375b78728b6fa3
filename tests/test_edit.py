"""The algebra of edits, Â = A_s R + A_e S: each row of the design's table, in map space and in value space."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import SD15_UNET, on_meta, share_weights
from torch import diag, ones
from transformers import CLIPTokenizer

from minip2p.attention.contract import Site, SiteFilter, attention_map, chain, explicit, fused
from minip2p.attention.store import AttentionStore, record_qk
from minip2p.config import UNetConfig
from minip2p.p2p.algebra import IDENTITY, INJECT, dense, refine_edit, swap_edit
from minip2p.p2p.alignment import infer_kind, refine_alignment, swap_mapper
from minip2p.p2p.controller import controlled_attention
from minip2p.p2p.edit_plan import Region, StepEdit, plan_edit
from minip2p.p2p.schedules import cross_replace_alpha, equalizer
from minip2p.text.prompt import Prompt
from minip2p.unet import UNet

TOKENIZER = CLIPTokenizer.from_pretrained(Path(__file__).parents[1] / "weights" / "tiny" / "tokenizer")
CROSS, SELF = Site("up", 0, True, 1), Site("up", 0, False, 1)
FEW = settings(max_examples=25, deadline=None)
WORDS = "a photo of the cat dog red giraffe xylophone lighthouse grass, beach night".split()
EYE = torch.eye(77)

TABLE = {  # the design's: (R, S), from M, (P, κ), c and α
    "none": lambda M, P, kept, c, alpha: (0 * EYE, EYE),
    "swap": lambda M, P, kept, c, alpha: (M @ diag(alpha), diag(1 - alpha)),
    "refine": lambda M, P, kept, c, alpha: (P @ diag(kept * alpha), diag(1 - kept * alpha)),
    "re-weight": lambda M, P, kept, c, alpha: (diag(c * alpha), diag(1 - alpha)),
    "swap + re-weight": lambda M, P, kept, c, alpha: (M @ diag(c * alpha), diag(1 - alpha)),
    "refine + re-weight": lambda M, P, kept, c, alpha: (
        P @ diag(kept * c * alpha),
        diag((1 - kept) * c * alpha + 1 - alpha),
    ),
    "self injection": lambda M, P, kept, c, alpha: (EYE, 0 * EYE),
}
COMPOSED = {  # the same by composition: inner pair, re-weighted, scheduled last
    "none": lambda M, P, kept, c, alpha: IDENTITY,
    "swap": lambda M, P, kept, c, alpha: swap_edit(M).scheduled(alpha),
    "refine": lambda M, P, kept, c, alpha: refine_edit(P, kept).scheduled(alpha),
    "re-weight": lambda M, P, kept, c, alpha: INJECT.reweighted(c).scheduled(alpha),
    "swap + re-weight": lambda M, P, kept, c, alpha: swap_edit(M).reweighted(c).scheduled(alpha),
    "refine + re-weight": lambda M, P, kept, c, alpha: refine_edit(P, kept).reweighted(c).scheduled(alpha),
    "self injection": lambda M, P, kept, c, alpha: INJECT,
}
every_row = pytest.mark.parametrize("row", TABLE)


def prompt(words):
    return Prompt.tokenize(words if isinstance(words, str) else " ".join(words), TOKENIZER)


def matrices(edit):
    """(R, S), dense."""
    return dense(edit.R, ones(77)), dense(edit.S, ones(77))


@st.composite
def pairs(draw):
    """Two prompts of as many words: they can be swapped, and refined."""
    words = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6))
    changed = [draw(st.sampled_from([word, *WORDS])) for word in words]
    return prompt(words), prompt(changed)


@st.composite
def terms(draw):
    """M, P, κ, c and α of a random pair of prompts. α is 0 or 1, as schedules have it, or anything between."""
    source, target = draw(pairs())
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    alpha = torch.rand(77, generator=g)
    return (
        swap_mapper(source, target),
        *refine_alignment(source, target),
        3 * torch.randn(77, generator=g),
        alpha.round() if draw(st.booleans()) else alpha,
    )


def qkv(seed, rows=1, keys=77, queries=6):
    """q_s, k_s of the source and q, k, v of targets: sharp random attention, 2 heads of width 4."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(1, queries), (1, keys), (rows, queries), (rows, keys), (rows, keys)]
    return [2 * torch.randn(b, 2, n, 4, generator=g) for b, n in shapes]


def in_maps(edit, q_s, k_s, q, k, v):
    return edit.on_maps(attention_map(q_s, k_s), attention_map(q, k)) @ v


def in_values(edit, q_s, k_s, q, k, v):
    return edit.attend((q_s, k_s), (q, k), v, CROSS)


def agree(one, other, scale=1.0):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(scale))


# Each row of the table


@every_row
@given(terms())
@FEW
def test_the_scheduled_pair_is_the_tables(row, terms):
    for ours, literal in zip(matrices(COMPOSED[row](*terms)), TABLE[row](*terms), strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-6, atol=1e-6)


@every_row
@given(terms(), st.integers(0, 99))
@FEW
def test_map_space_and_value_space_agree_with_A_s_R_plus_A_e_S(row, terms, seed):
    edit, tensors = COMPOSED[row](*terms), qkv(seed)
    R, S = TABLE[row](*terms)
    literal = (attention_map(*tensors[:2]) @ R + attention_map(*tensors[2:4]) @ S) @ tensors[4]
    agree(in_maps(edit, *tensors), literal, literal.std())
    agree(in_values(edit, *tensors), literal, literal.std())


@every_row
@given(terms(), st.integers(0, 99))
@FEW
def test_inputs_are_unchanged(row, terms, seed):
    given = [*terms, *qkv(seed)]
    given += [attention_map(*given[5:7]), attention_map(*given[7:9])]
    before = [x.clone() for x in given]
    edit = COMPOSED[row](*given[:5])
    edit.on_maps(*given[10:])
    for maps in (True, False):
        controlled_attention({CROSS: (given[5], given[6])}, [StepEdit(edit, False, 0)], explicit=maps)(
            *given[7:10], CROSS
        )
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))


READS = {  # which of q_s k_s q_e k_e v c α the row's attention depends on
    "none": "q_e k_e v",
    "swap": "q_s k_s q_e k_e v α",
    "refine": "q_s k_s q_e k_e v α",
    "re-weight": "q_s k_s q_e k_e v c α",
    "swap + re-weight": "q_s k_s q_e k_e v c α",
    "refine + re-weight": "q_s k_s q_e k_e v c α",
    "self injection": "q_s k_s v",
}


@every_row
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("source, target", [("a cat on grass", "a lighthouse on grass"), ("a cat", "a cat")])
def test_gradients_are_finite_and_agree_through_q_k_v_c_and_alpha(row, alpha, source, target):
    source, target = prompt(source), prompt(target)
    fixed = swap_mapper(source, target), *refine_alignment(source, target)
    gradients = []
    for attend in (in_maps, in_values):
        c, alphas = ones(77).requires_grad_(), torch.full((77,), alpha).requires_grad_()
        tensors = [x.requires_grad_() for x in qkv(0)]
        attend(COMPOSED[row](*fixed, c, alphas), *tensors).square().sum().backward()
        found = [x.grad for x in (*tensors, c, alphas)]
        gradients.append(dict(zip("q_s k_s q_e k_e v c α".split(), found, strict=True)))
    for name, one in gradients[0].items():
        other = gradients[1][name]
        one, other = (torch.zeros(()) if g is None else g for g in (one, other))
        if name in READS[row].split() and (alpha == 0.4 or name in ("v", "α")):
            assert one.any() and other.any(), name
        assert torch.isfinite(one).all() and torch.isfinite(other).all()
        torch.testing.assert_close(*torch.broadcast_tensors(one, other), rtol=1e-3, atol=1e-4)


def test_the_gradient_of_c_is_there_where_c_is_still_one():
    c = ones(77).requires_grad_()
    in_values(INJECT.reweighted(c).scheduled(ones(77)), *qkv(0)).square().sum().backward()
    assert c.grad is not None and c.grad.any()


# What is conserved, and what is not


def test_none_leaves_the_target_to_the_bit():
    q_s, k_s, q, k, v = qkv(0)
    own = attention_map(q, k)
    assert torch.equal(IDENTITY.on_maps(attention_map(q_s, k_s), own), own)
    assert torch.equal(in_values(IDENTITY, q_s, k_s, q, k, v), fused(q, k, v)) and not IDENTITY.changes
    for pair in (swap_edit(EYE.roll(1, 1)), refine_edit(EYE, ones(77)), INJECT.reweighted(3 * ones(77))):
        outside = pair.scheduled(torch.zeros(77))
        assert not outside.changes and outside.R == 0 and outside.S == 1


def test_keep_is_the_sources_map_to_the_bit():
    q_s, k_s, q, k, v = qkv(0)
    assert torch.equal(INJECT.on_maps(attention_map(q_s, k_s), attention_map(q, k)), attention_map(q_s, k_s))
    assert torch.equal(in_values(INJECT, q_s, k_s, q, k, v), fused(q_s, k_s, v))
    for pair in (swap_edit(EYE), refine_edit(EYE, ones(77)), INJECT.reweighted(ones(77))):
        inside = pair.scheduled(ones(77))
        assert inside.R == 1 and inside.S == 0


@given(pairs(), st.floats(0, 1), st.integers(0, 99))
@FEW
def test_a_swap_conserves_attention_but_for_padding_pushed_past_the_end(pair, alpha, seed):
    """Σ_j Â = α Σ_i A_s (row sum of M)_i + 1 − α: 1, where the target has no more tokens than the source. For one α
    over all words: with an α for each word, a map that takes some columns from A_s M and others from A_e sums to
    anything in (0, 2)."""
    source, target = pair
    A_s, A_e = (attention_map(*qkv(seed)[n : n + 2]) for n in (0, 2))
    made = swap_edit(swap_mapper(source, target)).scheduled(torch.full((77,), alpha)).on_maps(A_s, A_e)
    lost = A_s[..., 77 - max(target.end - source.end, 0) :].sum(-1)
    agree(made.sum(-1), 1 - alpha * lost)


@given(terms(), st.integers(0, 99))
@FEW
def test_each_column_lies_between_the_sources_and_the_targets_own(terms, seed):
    M, P, kept, _, alpha = terms
    A_s, A_e = (attention_map(*qkv(seed)[n : n + 2]) for n in (0, 2))
    for edit, taken in ((swap_edit(M), A_s @ M), (refine_edit(P, kept), A_s @ P * kept + A_e * (1 - kept))):
        made = edit.scheduled(alpha).on_maps(A_s, A_e)
        assert (made >= torch.minimum(taken, A_e) - 1e-6).all() and (made <= torch.maximum(taken, A_e) + 1e-6).all()
        agree(made, alpha * taken + (1 - alpha) * A_e)


def test_refine_and_reweight_do_not_conserve_attention():
    P, kept = refine_alignment(prompt("a cat"), prompt("a red cat"))
    A_s, A_e = torch.full((1, 1, 1, 77), 1 / 77), torch.zeros(1, 1, 1, 77)
    A_e[..., 2] = 1  # all of the target's attention is on the new word
    agree(refine_edit(P, kept).on_maps(A_s, A_e).sum(), torch.tensor(1 + 76 / 77))
    agree(INJECT.reweighted(2 * ones(77)).on_maps(A_s, A_e).sum(), torch.tensor(2.0))


# From prompts to edits

SHARES = st.floats(0, 1) | st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda ab: tuple(sorted(ab)))


@given(st.data(), pairs(), SHARES, st.sampled_from(["auto", "swap", "refine"]))
@FEW
def test_a_plan_is_the_tables_row_at_every_step(data, pair, self_, kind):
    source, target = pair
    names = st.sampled_from([word.text for word in target.words])
    cross = data.draw(SHARES | st.dictionaries(names | st.just("default_"), SHARES, max_size=3))
    reweight = data.draw(st.dictionaries(names, st.floats(-5, 5), max_size=2))
    steps, pixels = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 20))
    plan = plan_edit(
        source,
        target,
        steps,
        cross_replace=cross,
        self_replace=self_,
        self_max_queries=pixels,
        kind=kind,
        reweight=reweight,
    )

    M, (P, kept) = swap_mapper(source, target), refine_alignment(source, target)
    c, alpha = equalizer(reweight, target), cross_replace_alpha(cross, target, steps)
    row = f"{infer_kind(source, target) if kind == 'auto' else kind} + re-weight"
    start, end = self_ if isinstance(self_, tuple) else (0, self_)
    for step in range(steps):
        rule = plan.at(step)
        R, S = TABLE[row](M, P, kept, c, alpha[step])
        for ours, literal in zip(matrices(rule.of(CROSS, 99)), (R, S), strict=True):
            torch.testing.assert_close(ours, literal)
        injected = int(steps * start) <= step < int(steps * end)
        assert rule.of(SELF, pixels) is (INJECT if injected else IDENTITY) and rule.of(SELF, pixels + 1) is IDENTITY


def test_equal_prompts_are_re_weighted_alone():
    p = prompt("a red cat")
    edit = plan_edit(p, p, 4, cross_replace=1.0, reweight={"red": 3})
    assert torch.equal(matrices(edit.at(0).cross)[0], diag(equalizer({"red": 3}, p))) and edit.at(0).cross.S == 0


def test_parity_takes_the_published_mappers_defects_included():
    swapped, refined = ("a cat on grass", "a lighthouse on grass"), ("a red cat", "a cat")
    for pair, kind in ((swapped, "swap"), (refined, "refine")):
        source, target = map(prompt, pair)
        ours, theirs = (
            plan_edit(source, target, 1, cross_replace=1.0, kind=kind, parity=parity) for parity in (False, True)
        )
        mapper = (
            swap_mapper(source, target, parity=True)
            if kind == "swap"
            else refine_alignment(source, target, parity=True)[0]
        )
        assert torch.equal(matrices(theirs.words)[0], mapper) and not torch.equal(matrices(ours.words)[0], mapper)


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(kind="swap"), "a swap needs as many words in the target as in the source, which have 4 and 2"),
        (dict(kind="replace"), "kind must be auto, swap or refine, not 'replace'"),
        (dict(cross_replace={"dog": 0.5}), "'dog' is not in the prompt 'a big red cat'"),
        (dict(cross_replace=1.5), "0 <= start <= end <= 1"),
        (dict(cross_replace={"red": float("nan")}), "0 <= start <= end <= 1"),
        (dict(self_replace=(0.5, 0.2)), "0 <= start <= end <= 1"),
        (dict(self_replace=float("inf")), "0 <= start <= end <= 1"),
        (dict(cross_replace=(0.1, 0.3, 0.2)), "0 <= start <= end <= 1"),
        (dict(cross_replace="all"), "not 'all'"),
        (dict(self_replace={"red": 0.5}), "0 <= start <= end <= 1 of a run, not {'red': 0.5}"),
        (dict(reweight={"dog": 2}), "'dog' is not in the prompt"),
        (dict(reweight={"red": float("inf")}), "the weight of 'red' is inf, which is not a finite number"),
        (dict(reweight={"red": float("nan")}), "the weight of 'red' is nan"),
    ],
)
def test_bad_edits_are_named_in_one_line(options, says):
    with pytest.raises(ValueError) as error:
        plan_edit(prompt("a cat"), prompt("a big red cat"), 10, **options)
    assert says in str(error.value) and "\n" not in str(error.value)


# `injecting`: a rule for each target of a batch


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(set(TABLE) - {"self injection"})), st.booleans()), min_size=1, max_size=4
    ),
    terms(),
    st.integers(0, 99),
)
@FEW
def test_each_target_of_a_batch_gets_its_own_edit_in_both_executions(chosen, terms, seed):
    rules = [StepEdit(COMPOSED[row](*terms), inject_self, 6) for row, inject_self in chosen]
    for site, keys in ((CROSS, 77), (SELF, 6)):
        q_s, k_s, q, k, v = qkv(seed, len(rules), keys)
        found, eye = {site: (q_s, k_s)}, torch.eye(keys)
        for maps in (True, False):
            made = controlled_attention(found, rules, explicit=maps)(q, k, v, site)
            for n, (row, inject_self) in enumerate(chosen):
                A_s, A_e = attention_map(q_s, k_s)[0], attention_map(q, k)[n]
                R, S = TABLE[row](*terms) if site.cross else (inject_self * eye, (not inject_self) * eye)
                literal = (A_s @ R + A_e @ S) @ v[n]
                agree(made[n], literal, literal.std())


def test_stores_see_the_maps_before_and_after_the_edit():
    q_s, k_s, q, k, v = qkv(0, rows=2)
    rules = [StepEdit(swap_edit(EYE.roll(1, 1)), False, 0), StepEdit(IDENTITY, False, 0)]
    before, after = AttentionStore(before=True), AttentionStore()
    made = controlled_attention({CROSS: (q_s, k_s)}, rules, explicit(chain(after, before)))(q, k, v, CROSS)
    own = attention_map(q, k)
    agree(before.maps[CROSS], own)
    agree(after.maps[CROSS], torch.cat([attention_map(q_s, k_s).roll(1, -1), own[1:]]))
    agree(made, after.maps[CROSS] @ v)


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
def test_explicit_and_fused_agree_at_every_site_of_a_unet(request, model, name, sites):
    unet = model.unet if name == "tiny" else request.getfixturevalue("narrow")
    g = torch.Generator().manual_seed(0)
    source, target = prompt("a cat on grass"), prompt("a lighthouse on grass")
    context = model.text([source.text, target.text]) if name == "tiny" else torch.randn(2, 77, 16, generator=g)
    terms = [
        swap_mapper(source, target),
        *refine_alignment(source, target),
        equalizer({"grass": 4}, target),
        cross_replace_alpha({"default_": 1.0, "a": 0.0}, target, 1)[0],
    ]
    rules = [StepEdit(COMPOSED[row](*terms), inject_self, 16 * 16) for row in COMPOSED for inject_self in (False, True)]
    x = torch.randn(1 + len(rules), unet.config.in_channels, 16, 16, generator=g)

    found, errors, effects = {}, {}, {}
    unet(x[:1], 500, context[:1], record_qk(found, lambda site, queries: True))
    by_maps, by_values = (controlled_attention(found, rules, explicit=maps) for maps in (True, False))

    def both(q, k, v, site):
        one, other = by_maps(q, k, v, site), by_values(q, k, v, site)
        errors[site] = float((one - other).abs().max() / other.abs().max())  # float32 rounds by the largest value
        effects[site] = (other - fused(q, k, v)).abs().amax((1, 2, 3)) / other.std()
        return other

    words = context[1:].expand(len(rules), -1, -1)
    made = unet(x[1:], 500, words, both)
    alone = unet(x[1:], 500, words, by_maps)
    assert set(errors) == set(found) == set(unet.sites) and len(errors) == sites
    assert max(errors.values()) <= 1e-5 and float((made - alone).abs().max() / made.std()) <= 2e-5
    for site, effect in effects.items():  # every site is edited, and no target that has nothing to take there
        edited = torch.tensor([rule.of(site, 1).changes for rule in rules])
        assert (effect[edited] > 1e-3).all() and (effect[~edited] < 1e-6).all(), (site, effect)


def test_gradients_reach_the_targets_latents_through_a_unet(narrow):
    g = torch.Generator().manual_seed(0)
    x, context, found = torch.randn(2, 4, 16, 16, generator=g), torch.randn(2, 77, 16, generator=g), {}
    narrow(x[:1], 500, context[:1], record_qk(found, lambda site, queries: True))
    for maps in (True, False):
        target = x[1:].clone().requires_grad_()
        rule = StepEdit(refine_edit(EYE, ones(77).index_fill(0, torch.tensor([3]), 0)).scheduled(ones(77)), True, 64)
        narrow(target, 500, context[1:], controlled_attention(found, [rule], explicit=maps)).square().sum().backward()
        assert torch.isfinite(target.grad).all() and target.grad.any()


def test_self_injection_stops_at_self_pixels(narrow):
    g = torch.Generator().manual_seed(0)
    x, context, found, changed = torch.randn(2, 4, 16, 16, generator=g), torch.randn(2, 77, 16, generator=g), {}, []
    narrow(x[:1], 500, context[:1], record_qk(found, lambda site, queries: queries <= 64))
    inject = controlled_attention(found, [StepEdit(IDENTITY, True, 64)])

    def watch(q, k, v, site):
        out = inject(q, k, v, site)
        if not torch.equal(out, fused(q, k, v)):
            changed.append(site)
        return out

    narrow(x[1:], 500, context[1:], watch)
    assert sorted(changed) == sorted(s for s in narrow.sites if not s.cross and s.stride >= 2) and len(changed) == 11


def test_parity_reaches_the_words_of_weights_and_schedules():
    """The published code does not find "cat" in "cat,", and ignores it; an index it takes; ours finds the word."""
    one, other = prompt("a cat, running"), prompt("a cat, running")
    plain = plan_edit(one, other, 4)
    for options in ({"reweight": {"cat": 3.0}}, {"cross": {"default_": 0.8, "cat": 0.0}}):
        theirs, ours = (plan_edit(one, other, 4, parity=parity, **options) for parity in (True, False))
        same = [
            torch.equal(dense(made.at(0).cross.R, made.alpha[0]), dense(plain.at(0).cross.R, plain.alpha[0]))
            for made in (theirs, ours)
        ]
        assert same == [True, False]
    assert equalizer({1: 3.0}, one, parity=True).tolist()[2:4] == [3.0, 3.0]  # "cat,": two tokens
    with pytest.raises(ValueError, match="a word or its index"):
        equalizer({("cat", 1): 3.0}, one, parity=True)


def test_a_weight_of_zero_takes_a_word_out():
    p = prompt("a cat")
    edit = plan_edit(p, p, 1, cross_replace=1.0, reweight={"cat": 0.0}).at(0).cross
    R = dense(edit.R, torch.ones(77))
    assert not R[:, 2].any() and torch.equal(R[:, :2], torch.eye(77)[:, :2]) and not dense(edit.S, R[0]).any()


def test_stores_in_chains_of_chains_see_their_side_of_the_edit():
    q_s, k_s, q, k, v = qkv(0)
    before, after = AttentionStore(before=True), AttentionStore()
    attend = explicit(chain(chain(before), chain(after)))
    controlled_attention({CROSS: (q_s, k_s)}, [StepEdit(INJECT, False, 0)], attend)(q, k, v, CROSS)
    torch.testing.assert_close(before.maps[CROSS], attention_map(q, k))
    torch.testing.assert_close(after.maps[CROSS], attention_map(q_s, k_s))


# Where an edit reaches

SITES = [
    Site(place, index, cross, stride)
    for place, index, stride in (("down", 0, 1), ("down", 1, 2), ("mid", 0, 4))
    for cross in (True, False)
]


@pytest.mark.parametrize(
    "where, reached",
    [
        (SiteFilter(), {0, 1, 2}),
        (SiteFilter(places=("down",)), {0, 1}),
        (SiteFilter(strides=(2, 4)), {1, 2}),
        (SiteFilter(indices=(0,)), {0, 2}),
        (SiteFilter(places=("mid", "down"), strides=(1, 2), indices=(1,)), {1}),
    ],
)
def test_an_edit_reaches_the_sites_that_it_is_told(where, reached):
    rule = StepEdit(INJECT, True, 99, where)
    assert [rule.of(site, 9) is INJECT for site in SITES] == [n // 2 in reached for n in range(len(SITES))]


@pytest.mark.parametrize("in_maps", [True, False])
@pytest.mark.parametrize("site", [CROSS, SELF])
def test_an_edit_reaches_the_heads_that_it_is_told(in_maps, site):
    """In these heads the edited attention, in the others the target's own."""
    draw = torch.Generator().manual_seed(0)
    q, k, v, q_s, k_s = (torch.randn(1, 4, 6, 8, generator=draw) for _ in range(5))
    rules = [StepEdit(swap_edit(torch.eye(6)), True, 99, SiteFilter(heads=heads)) for heads in (None, (0, 2))]
    every, some = (controlled_attention({site: (q_s, k_s)}, [rule], explicit=in_maps)(q, k, v, site) for rule in rules)
    own = fused(q, k, v)
    torch.testing.assert_close(some[:, [0, 2]], every[:, [0, 2]])
    torch.testing.assert_close(some[:, [1, 3]], own[:, [1, 3]])
    torch.testing.assert_close(every, fused(q_s, k_s, v))
    assert (some - own)[:, [0, 2]].abs().max() > 0.1


@pytest.mark.parametrize("site", [CROSS, SELF])
@pytest.mark.parametrize("in_maps", [True, False])
def test_inside_a_mask_the_edit_outside_the_source(site, in_maps):
    """Â = m ⊙ edit + (1 − m) ⊙ A_s R' (at self-attention sites R' = I), applied to v by hand."""
    draw = torch.Generator().manual_seed(0)
    q, k, v, q_s, k_s = (torch.randn(1, 4, 6, 8, generator=draw) for _ in range(5))
    m, R = torch.tensor([0, 0, 1, 1, 0.25, 1.0]), torch.eye(6).roll(1, 1)
    rule = StepEdit(swap_edit(R).scheduled(ones(6) * 0.5), 0.25, 99, region=Region({1: m}, swap_edit(R)))
    made = controlled_attention({site: (q_s, k_s)}, [rule], explicit=in_maps)(q, k, v, site)
    A_s, A_e = attention_map(q_s, k_s), attention_map(q, k)
    edit = A_s @ R * 0.5 + A_e * 0.5 if site.cross else A_s * 0.25 + A_e * 0.75
    outside = A_s @ R if site.cross else A_s
    torch.testing.assert_close(made, (m[:, None] * edit + (1 - m[:, None]) * outside) @ v)
    assert rule.of(site, 6).reads and rule.of(site, 6).changes


def test_a_rule_within_a_mask_keeps_to_its_sites():
    m = Region({1: ones(6)}, INJECT)
    assert (
        StepEdit(INJECT, 1, 5, region=m).of(SELF, 6) is IDENTITY and StepEdit(INJECT, 1, 6, region=m).of(SELF, 6).reads
    )
    assert StepEdit(INJECT, 1, 99, SiteFilter(places=("down",)), m).of(CROSS, 6) is IDENTITY


def test_rules_that_do_the_same_have_the_same_key():
    half, other = Region({1: ones(6) / 2}, INJECT), Region({1: ones(6)}, INJECT)
    assert (
        StepEdit(IDENTITY, 0, 9, region=half).key
        == StepEdit(IDENTITY, 0, 9, region=Region({1: ones(6) / 2}, INJECT)).key
    )
    keys = [StepEdit(IDENTITY, 0, 9, region=w).key for w in (None, half, other, Region({1: ones(6)}, swap_edit(EYE)))]
    assert len({str(key) for key in keys}) == 4 and StepEdit(IDENTITY, 0.5, 9).key != StepEdit(IDENTITY, 1, 9).key
    far = SiteFilter(strides=(4,))
    assert StepEdit(IDENTITY, False, 64, far).key == StepEdit(IDENTITY, False, 9).key  # nothing is done anywhere
    assert StepEdit(INJECT, False, 64).key == StepEdit(INJECT, False, 9).key != StepEdit(INJECT, False, 9, far).key
    assert StepEdit(IDENTITY, True, 64).key != StepEdit(IDENTITY, True, 9).key
    assert StepEdit(swap_edit(torch.eye(3)), False, 9).key == StepEdit(swap_edit(torch.eye(3)), False, 9).key
    assert StepEdit(swap_edit(torch.eye(3)), False, 9).key != StepEdit(swap_edit(torch.ones(3, 3)), False, 9).key


@pytest.mark.parametrize(
    "where, says",
    [
        (SiteFilter(places=("left",)), "places must be some of ['down', 'mid'], as a tuple, not ('left',)"),
        (SiteFilter(strides=()), "strides must be"),
        (SiteFilter(indices=[0]), "indices must be"),
        (SiteFilter(heads=(8,)), "heads must be"),
    ],
)
def test_sites_and_heads_that_are_not_there_are_named(where, says):
    with pytest.raises(ValueError) as error:
        where.check({site: 4 if site.place == "down" else 8 for site in SITES})
    assert says in str(error.value)
