"""From two prompts to the pair (R, S) of every step and site."""

import pytest
import torch
from edit_table import CROSS, EYE, FEW, SELF, TABLE, matrices, prompt_pairs
from hypothesis import given
from hypothesis import strategies as st
from prompts import tokenize
from torch import diag, ones

from minip2p.attention.contract import ALL_SITES, Site, SiteFilter
from minip2p.p2p.algebra import IDENTITY, INJECT, AttentionEdit, MaskedEdit, dense, swap_edit
from minip2p.p2p.alignment import infer_kind, refine_alignment, swap_mapper
from minip2p.p2p.edit_plan import Region, StepEdit, injection, plan_edit
from minip2p.p2p.options import EditOptions
from minip2p.p2p.published import published_swap_mapper
from minip2p.p2p.schedules import cross_replace_alpha, equalizer

SHARES = st.floats(0, 1) | st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda ends: tuple(sorted(ends)))
SITES = [
    Site(place, index, cross, stride)
    for place, index, stride in (("down", 0, 1), ("down", 1, 2), ("mid", 0, 4))
    for cross in (True, False)
]


# From prompts to plans


@given(st.data(), prompt_pairs(), SHARES, st.sampled_from(["auto", "swap", "refine"]))
@FEW
def test_a_plan_is_a_row_of_the_table_at_every_step(data, pair, self_replace, kind):
    source, target = pair
    names = st.sampled_from([word.text for word in target.words])
    cross_replace = data.draw(SHARES | st.dictionaries(names | st.just("default_"), SHARES, max_size=3))
    reweight = data.draw(st.dictionaries(names, st.floats(-5, 5), max_size=2))
    steps, max_queries = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 20))
    options = EditOptions(
        cross_replace=cross_replace,
        self_replace=self_replace,
        self_max_queries=max_queries,
        kind=kind,
        reweight=reweight,
    )
    plan = plan_edit(source, target, steps, options)

    M, (P, kappa) = swap_mapper(source, target), refine_alignment(source, target)
    c, alpha = equalizer(reweight, target), cross_replace_alpha(cross_replace, target, steps)
    row = f"{infer_kind(source, target) if kind == 'auto' else kind} + reweight"
    start, end = self_replace if isinstance(self_replace, tuple) else (0, self_replace)
    for step in range(steps):
        edit = plan.at(step)
        expected_pair = TABLE[row](M, P, kappa, c, alpha[step])
        for actual, expected in zip(matrices(edit.at_site(CROSS, 99)), expected_pair, strict=True):
            torch.testing.assert_close(actual, expected)
        is_injected = int(steps * start) <= step < int(steps * end)
        assert edit.at_site(SELF, max_queries) is (INJECT if is_injected else IDENTITY)
        assert edit.at_site(SELF, max_queries + 1) is IDENTITY


def test_without_options_a_plan_has_the_default_ones():
    source, target = tokenize("a cat"), tokenize("a dog")
    plan = plan_edit(source, target, 10)
    assert plan.cross_alpha[:, 0].tolist() == [1] * 8 + [0] * 2 and plan.self_alpha.tolist() == [1] * 4 + [0] * 6
    assert plan.self_max_queries == 1024 and plan.sites is ALL_SITES and plan.region is None
    assert torch.equal(matrices(plan.word_edit)[0], swap_mapper(source, target))


def test_equal_prompts_are_only_reweighted():
    p = tokenize("a red cat")
    edit = plan_edit(p, p, 4, EditOptions(cross_replace=1.0, reweight={"red": 3}))
    assert torch.equal(matrices(edit.at(0).cross)[0], diag(equalizer({"red": 3}, p))) and edit.at(0).cross.S == 0


def test_a_weight_of_zero_removes_a_word():
    p = tokenize("a cat")
    edit = plan_edit(p, p, 1, EditOptions(cross_replace=1.0, reweight={"cat": 0.0})).at(0).cross
    R = dense(edit.R, ones(77))
    assert not R[:, 2].any() and torch.equal(R[:, :2], torch.eye(77)[:, :2]) and not dense(edit.S, R[0]).any()


@pytest.mark.parametrize(
    "kind, source, target", [("swap", "a cat on grass", "a lighthouse on grass"), ("refine", "a red cat", "a cat")]
)
def test_parity_uses_the_published_mappers_with_their_defects(kind, source, target):
    source, target = tokenize(source), tokenize(target)
    actual, published = (
        plan_edit(source, target, 1, EditOptions(cross_replace=1.0, kind=kind, parity=parity))
        for parity in (False, True)
    )
    if kind == "swap":
        mapper = published_swap_mapper(source, target)
    else:
        mapper, _ = refine_alignment(source, target, parity=True)
    assert torch.equal(matrices(published.word_edit)[0], mapper)
    assert not torch.equal(matrices(actual.word_edit)[0], mapper)


def test_parity_also_applies_to_the_words_of_weights_and_schedules():
    """The published code does not find "cat" in "cat,", and ignores it. Our code finds the word."""
    source, target = tokenize("a cat, running"), tokenize("a cat, running")
    plain = plan_edit(source, target, 4).at(0).cross
    for options in ({"reweight": {"cat": 3.0}}, {"cross_replace": {"default_": 0.8, "cat": 0.0}}):
        published, actual = (
            plan_edit(source, target, 4, EditOptions(parity=parity, **options)).at(0).cross for parity in (True, False)
        )
        assert torch.equal(matrices(published)[0], matrices(plain)[0])
        assert not torch.equal(matrices(actual)[0], matrices(plain)[0])
    assert equalizer({1: 3.0}, source, parity=True).tolist()[2:4] == [3.0, 3.0]  # "cat,": two tokens
    with pytest.raises(ValueError, match="a word or its index"):
        equalizer({("cat", 1): 3.0}, source, parity=True)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "swap"}, "a swap needs as many words in the target as in the source, which have 4 and 2"),
        ({"cross_replace": {"dog": 0.5}}, "'dog' is not in the prompt 'a big red cat'"),
        ({"reweight": {"dog": 2}}, "'dog' is not in the prompt 'a big red cat'"),
    ],
)
def test_options_that_do_not_fit_the_prompts_are_named_in_one_line(options, message):
    with pytest.raises(ValueError) as error:
        plan_edit(tokenize("a cat"), tokenize("a big red cat"), 10, EditOptions(**options))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_region_brings_the_sources_words_to_the_targets_places_without_weights_or_schedule():
    source, target = tokenize("a cat on grass"), tokenize("a lighthouse on grass")
    masks = {1: ones(6) / 2, 2: ones(2)}
    options = EditOptions(cross_replace=0.0, self_replace=0.0, reweight={"grass": 2.0})
    edit = plan_edit(source, target, 1, options, region_masks=masks).at(0)
    for site, outside in ((CROSS, swap_mapper(source, target)), (SELF, EYE)):
        pair = edit.at_site(site, 6)
        assert isinstance(pair, MaskedEdit) and torch.equal(pair.mask, masks[1][:, None])
        assert not pair.edit.changes and pair.outside.S == 0
        assert torch.equal(dense(pair.outside.R, ones(77)), outside)


# The edit of a step at a site


@pytest.mark.parametrize(
    "sites, reached",
    [
        (SiteFilter(), {0, 1, 2}),
        (SiteFilter(places=("down",)), {0, 1}),
        (SiteFilter(strides=(2, 4)), {1, 2}),
        (SiteFilter(indices=(0,)), {0, 2}),
        (SiteFilter(places=("mid", "down"), strides=(1, 2), indices=(1,)), {1}),
    ],
)
def test_an_edit_reaches_the_selected_sites(sites, reached):
    edit = StepEdit(INJECT, True, 99, sites)
    assert [edit.at_site(site, 9) is INJECT for site in SITES] == [n // 2 in reached for n in range(len(SITES))]


def test_an_edit_within_a_region_is_limited_to_its_sites_and_queries():
    region = Region({1: ones(6)}, INJECT)
    assert StepEdit(INJECT, 1, 5, region=region).at_site(SELF, 6) is IDENTITY
    assert StepEdit(INJECT, 1, 6, region=region).at_site(SELF, 6).reads
    assert StepEdit(INJECT, 1, 99, SiteFilter(places=("down",)), region).at_site(CROSS, 6) is IDENTITY


def test_self_attention_is_injected_to_a_share():
    assert injection(0.0) is IDENTITY and injection(1.0) is INJECT
    assert (injection(0.25).R, injection(0.25).S) == (0.25, 0.75)
    assert StepEdit(IDENTITY, 0.25, 99).at_site(SELF, 9).reads


def test_step_edits_with_the_same_effect_have_the_same_key():
    def key(cross, self_alpha, max_queries, *sites, **region):
        return StepEdit(cross, self_alpha, max_queries, *sites, **region).cache_key

    def half():
        return Region({1: ones(6) / 2}, INJECT)

    assert key(IDENTITY, 0, 9, region=half()) == key(IDENTITY, 0, 9, region=half())
    regions = (None, half(), Region({1: ones(6)}, INJECT), Region({1: ones(6)}, swap_edit(EYE)))
    assert len({str(key(IDENTITY, 0, 9, region=region)) for region in regions}) == 4
    assert key(IDENTITY, 0.5, 9) != key(IDENTITY, 1, 9)
    coarse = SiteFilter(strides=(4,))
    assert key(IDENTITY, False, 64, coarse) == key(IDENTITY, False, 9)  # nothing is edited anywhere
    assert key(INJECT, False, 64) == key(INJECT, False, 9) != key(INJECT, False, 9, coarse)
    assert key(IDENTITY, True, 64) != key(IDENTITY, True, 9)
    swap = AttentionEdit(torch.eye(3), 0.0)
    assert key(swap, False, 9) == key(swap_edit(torch.eye(3)), False, 9)
    assert key(swap, False, 9) != key(swap_edit(torch.ones(3, 3)), False, 9)
