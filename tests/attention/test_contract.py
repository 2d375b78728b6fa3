"""The contract: attention against its equation, and what `explicit`, `chain`, `at_step` and `SiteFilter` promise."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minip2p
import minip2p.attention
from minip2p.attention.contract import Site, SiteFilter, at_step, attention_map, chain, explicit, fused, select_heads
from minip2p.attention.store import AttentionStore

CROSS, SELF = Site("down", 0, True, 1), Site("up", 2, False, 4)


def qkv(seed=0, b=2, h=3, i=5, j=7, d=4):
    """Random q b h i d, k and v b h j d."""
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(b, h, n, d, generator=g) for n in (i, j, j))


class StepRecorder:
    """A map function with `at`: it writes its name and the step that it is called for to a list."""

    def __init__(self, calls, name, step=None):
        self.calls, self.name, self.step = calls, name, step

    def at(self, step):
        return StepRecorder(self.calls, self.name, step)

    def __call__(self, probs, site):
        self.calls.append((self.name, self.step))
        return probs


def test_the_package_exports_the_contract():
    for name in minip2p.attention.__all__:
        assert getattr(minip2p, name) is getattr(minip2p.attention, name)


# The equation


def test_attention_is_softmax_qk_over_sqrt_d_times_v():
    """d = 4. q₁·k₁ / √d = ln 3 and q₁·k₂ / √d = 0: ¾ and ¼. q₂ = 0: ½ and ½. Values 4 and 8: 5 and 6."""
    q = torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 0]])[None, None]
    k = torch.tensor([[math.log(3), 5, 0, 0], [0, 0, 7, 0]])[None, None]
    v = torch.tensor([[4.0, 0, 0, 0], [8, 0, 0, 4]])[None, None]
    torch.testing.assert_close(attention_map(q, k), torch.tensor([[0.75, 0.25], [0.5, 0.5]])[None, None])
    expected = torch.tensor([[5.0, 0, 0, 1], [6, 0, 0, 2]])[None, None]
    torch.testing.assert_close(explicit()(q, k, v, CROSS), expected)
    torch.testing.assert_close(fused(q, k, v, CROSS), expected)


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_explicit_equals_fused(seed, i, j, d):
    q, k, v = qkv(seed, i=i, j=j, d=d)
    torch.testing.assert_close(explicit()(q, k, v, CROSS), fused(q, k, v), rtol=0, atol=1e-5)


@settings(deadline=None)
@given(st.integers(0, 99))
def test_every_row_of_a_map_sums_to_one(seed):
    q, k, _ = qkv(seed)
    torch.testing.assert_close(attention_map(q, k).sum(-1), torch.ones(2, 3, 5))


def test_half_precision_does_not_overflow_where_the_fused_kernel_does_not():
    q = torch.full((1, 1, 2, 4), 200.0).half()
    assert (q @ q.mT).isinf().all()
    torch.testing.assert_close(explicit()(q, q, q, CROSS), fused(q, q, q))


# Explicit maps


def test_explicit_passes_the_map_and_the_site_and_applies_the_returned_map():
    q, k, v = qkv()
    calls = []

    def roll(probs, site):
        calls.append((probs, site))
        return probs.roll(1, -1)

    out = explicit(roll)(q, k, v, SELF)
    torch.testing.assert_close(out, explicit()(q, k, v.roll(-1, -2), SELF))
    assert calls[0][1] is SELF and torch.equal(calls[0][0], attention_map(q, k))
    uniform = explicit(lambda probs, site: torch.full_like(probs, 1 / 7))(q, k, v, CROSS)
    torch.testing.assert_close(uniform, v.mean(-2, keepdim=True).expand(q.shape))


def test_attention_changes_no_input_and_keeps_the_gradient():
    for attend in (fused, explicit(), explicit(chain(AttentionStore(), lambda probs, site: probs * 2))):
        inputs = [x.requires_grad_() for x in qkv()]
        before = [x.detach().clone() for x in inputs]
        grads = torch.autograd.grad(attend(*inputs, CROSS).square().sum(), inputs)
        assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))
        assert all(g.isfinite().all() and g.abs().max() > 0 for g in grads)


def test_a_site_is_a_frozen_value():
    assert Site("down", 0, True, 1) == CROSS and len({CROSS, replace(CROSS), SELF}) == 2
    assert sorted([SELF, CROSS]) == [CROSS, SELF]
    with pytest.raises(FrozenInstanceError):
        CROSS.stride = 2


# Chains and steps


def test_chain_applies_its_functions_in_order():
    q, k, v = qkv()
    probs = torch.full((1, 2, 3, 4), 3.0)
    add, double = lambda probs, site: probs + 1, lambda probs, site: probs * 2
    assert chain(add, double)(probs, CROSS)[0, 0, 0, 0] == 8
    assert chain(double, add)(probs, CROSS)[0, 0, 0, 0] == 7
    assert torch.equal(chain()(probs, CROSS), probs)
    torch.testing.assert_close(explicit(chain(double, double))(q, k, v, CROSS), 4 * fused(q, k, v))


def test_a_store_in_front_of_an_edit_keeps_the_map_before_it_and_one_behind_it_the_map_after_it():
    q, k, v = qkv()
    before, after = AttentionStore(), AttentionStore()
    attend = explicit(chain(before, lambda probs, site: probs.roll(1, -1), after))
    attend(q, k, v, CROSS)
    torch.testing.assert_close(before.maps[CROSS], attention_map(q, k))
    torch.testing.assert_close(after.maps[CROSS], attention_map(q, k).roll(1, -1))


def test_at_step_calls_at_through_explicit_and_chain_and_returns_other_functions_unchanged():
    def without_at(probs, site):
        return probs

    calls = []
    assert at_step(without_at, 3) is without_at and at_step(fused, 3) is fused
    q, k, v = qkv()
    attend = explicit(chain(StepRecorder(calls, "a"), without_at, chain(StepRecorder(calls, "b"))))
    for step in (0, 7):
        at_step(attend, step)(q, k, v, CROSS)
    assert calls == [("a", 0), ("b", 0), ("a", 7), ("b", 7)]


# Filters

SITES = (Site("down", 0, True, 1), Site("down", 1, True, 2), Site("mid", 0, False, 4))


@pytest.mark.parametrize(
    "sites, included",
    [
        (SiteFilter(), {0, 1, 2}),
        (SiteFilter(places=("down",)), {0, 1}),
        (SiteFilter(strides=(2, 4)), {1, 2}),
        (SiteFilter(indices=(0,)), {0, 2}),
        (SiteFilter(places=("mid", "down"), strides=(1, 2), indices=(1,)), {1}),
    ],
)
def test_a_filter_includes_the_sites_that_match_all_of_its_lists(sites, included):
    assert {n for n, site in enumerate(SITES) if sites.includes(site)} == included


@pytest.mark.parametrize(
    "sites, message",
    [
        ("down", "sites must be a SiteFilter, not 'down'"),
        (SiteFilter(places=("left",)), "places must be some of ['down', 'mid'], as a tuple, not ('left',)"),
        (SiteFilter(strides=()), "strides must be some of [1, 2, 4], as a tuple, not ()"),
        (SiteFilter(indices=[0]), "indices must be some of [0, 1], as a tuple, not [0]"),
        (SiteFilter(heads=(8,)), "heads must be some of [0, 1, 2, 3, 4, 5, 6, 7], as a tuple, not (8,)"),
    ],
)
def test_a_filter_that_lists_what_the_model_does_not_have_is_refused(sites, message):
    with pytest.raises(ValueError) as error:
        SiteFilter.validate(sites, dict.fromkeys(SITES, 8))
    assert str(error.value) == message
    SiteFilter(places=("down",), strides=(1, 4), indices=(0, 1), heads=(0, 7)).validate(dict.fromkeys(SITES, 8))


def test_select_heads_takes_the_edited_heads_and_leaves_the_others():
    edited, unedited = torch.ones(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)
    assert select_heads(None, edited, unedited) is edited
    assert select_heads((0, 2), edited, unedited)[0, :, 0, 0].tolist() == [1, 0, 1]
