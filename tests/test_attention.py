"""Attention as an argument: the equation by hand, and what explicit, chain, at_step and Store promise."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minip2p.attention.contract import Site, at_step, attention_map, chain, explicit, fused
from minip2p.attention.store import AttentionStore

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

SITE, OTHER = Site("down", 0, True, 1), Site("up", 2, False, 4)


def qkv(seed=0, b=2, h=3, i=5, j=7, d=4):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(b, h, n, d, generator=g) for n in (i, j, j))


def probs(value):
    """A recognisable map, b h i j."""
    return torch.full((1, 2, 3, 4), float(value))


class At:
    """A map function that notes at which step it is called."""

    def __init__(self, notes, name, step=None):
        self.notes, self.name, self.step = notes, name, step

    def at(self, step):
        return At(self.notes, self.name, step)

    def __call__(self, probs, site):
        self.notes.append((self.name, self.step))
        return probs


# The equation


def test_attention_is_softmax_qk_over_sqrt_d_times_v():
    """d = 4. q₁·k₁ / √d = ln 3 and q₁·k₂ / √d = 0: ¾ and ¼. q₂ = 0: ½ and ½. Values 4 and 8: 5 and 6."""
    q = torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 0]])[None, None]
    k = torch.tensor([[math.log(3), 5, 0, 0], [0, 0, 7, 0]])[None, None]
    v = torch.tensor([[4.0, 0, 0, 0], [8, 0, 0, 4]])[None, None]
    torch.testing.assert_close(attention_map(q, k), torch.tensor([[0.75, 0.25], [0.5, 0.5]])[None, None])
    expected = torch.tensor([[5.0, 0, 0, 1], [6, 0, 0, 2]])[None, None]
    torch.testing.assert_close(explicit()(q, k, v, SITE), expected)
    torch.testing.assert_close(fused(q, k, v, SITE), expected)


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_explicit_equals_fused(seed, i, j, d):
    q, k, v = qkv(seed, i=i, j=j, d=d)
    torch.testing.assert_close(explicit()(q, k, v, SITE), fused(q, k, v), rtol=0, atol=1e-5)


@given(st.integers(0, 99))
def test_every_row_of_a_map_sums_to_one(seed):
    q, k, _ = qkv(seed)
    torch.testing.assert_close(attention_map(q, k).sum(-1), torch.ones(2, 3, 5))


def test_half_precision_does_not_overflow_where_the_fused_kernel_does_not():
    q = torch.full((1, 1, 2, 4), 200.0).half()
    assert (q @ q.mT).isinf().all()
    torch.testing.assert_close(explicit()(q, q, q, SITE), fused(q, q, q))


# Explicit maps


def test_explicit_shows_the_map_with_its_site_and_applies_what_comes_back():
    q, k, v = qkv()
    seen = []

    def roll(probs, site):
        seen.append((probs, site))
        return probs.roll(1, -1)

    out = explicit(roll)(q, k, v, OTHER)
    torch.testing.assert_close(out, explicit()(q, k, v.roll(-1, -2), OTHER))
    assert seen[0][1] is OTHER and torch.equal(seen[0][0], attention_map(q, k))
    even = explicit(lambda probs, site: torch.full_like(probs, 1 / 7))(q, k, v, SITE)
    torch.testing.assert_close(even, v.mean(-2, keepdim=True).expand(q.shape))


def test_attention_changes_no_input_and_keeps_the_gradient():
    for attend in (fused, explicit(), explicit(chain(AttentionStore(), lambda probs, site: probs * 2))):
        inputs = [x.requires_grad_() for x in qkv()]
        before = [x.detach().clone() for x in inputs]
        grads = torch.autograd.grad(attend(*inputs, SITE).square().sum(), inputs)
        assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))
        assert all(g.isfinite().all() and g.abs().max() > 0 for g in grads)


def test_a_site_is_a_frozen_value():
    assert Site("down", 0, True, 1) == SITE and len({SITE, replace(SITE), OTHER}) == 2
    assert sorted([OTHER, SITE]) == [SITE, OTHER]
    with pytest.raises(FrozenInstanceError):
        SITE.stride = 2


# Chains and steps


def test_chain_applies_its_functions_in_order():
    q, k, v = qkv()
    add, double = lambda probs, site: probs + 1, lambda probs, site: probs * 2
    assert chain(add, double)(probs(3), SITE)[0, 0, 0, 0] == 8
    assert chain(double, add)(probs(3), SITE)[0, 0, 0, 0] == 7
    assert torch.equal(chain()(probs(3), SITE), probs(3))
    torch.testing.assert_close(explicit(chain(double, double))(q, k, v, SITE), 4 * fused(q, k, v))


def test_a_store_before_an_edit_keeps_the_map_as_it_was_and_after_it_as_it_became():
    (q, k, v), before, after = qkv(), AttentionStore(), AttentionStore()
    attend = explicit(chain(before, lambda probs, site: probs.roll(1, -1), after))
    attend(q, k, v, SITE)
    torch.testing.assert_close(before.maps[SITE], attention_map(q, k))
    torch.testing.assert_close(after.maps[SITE], attention_map(q, k).roll(1, -1))


def test_at_step_asks_for_the_function_of_the_step_and_takes_any_other_as_it_is():
    notes, plain = [], lambda probs, site: probs
    assert at_step(plain, 3) is plain and at_step(fused, 3) is fused
    q, k, v = qkv()
    for step in (0, 7):
        at_step(explicit(chain(At(notes, "a"), plain, chain(At(notes, "b")))), step)(q, k, v, SITE)
    assert notes == [("a", 0), ("b", 0), ("a", 7), ("b", 7)]


# Stores


def test_a_store_changes_nothing_and_keeps_the_mean_over_its_steps():
    store = AttentionStore()
    for step, value in enumerate((1, 2, 6)):
        given = probs(value)
        assert store.at(step)(given, SITE) is given
        store.at(step)(probs(10 * value), OTHER)
    assert set(store.maps) == {SITE, OTHER}
    assert torch.equal(store.maps[SITE], probs(3)) and torch.equal(store.maps[OTHER], probs(30))


def test_a_store_of_each_keeps_every_step_by_its_number():
    store = AttentionStore(each=True)
    for step in (5, 0, 2):  # sorted by number, not by the order of calls
        store.at(step)(probs(step), SITE)
    assert store.maps[SITE].shape == (3, 1, 2, 3, 4)
    assert store.maps[SITE][:, 0, 0, 0, 0].tolist() == [0, 2, 5]


@pytest.mark.parametrize("each", [False, True])
def test_a_store_does_not_keep_a_step_again_when_a_run_is_replayed(each):
    store = AttentionStore(each=each)
    for factor in (1, 100):
        for step in (0, 1):
            store.at(step)(probs(factor * (step + 1)), SITE)
    assert torch.equal(store.maps[SITE], torch.stack([probs(1), probs(2)]) if each else probs(1.5))


def test_a_store_keeps_the_sites_and_steps_that_it_was_asked_for():
    store = AttentionStore(sites=lambda site: site.cross, steps=range(1, 3), each=True)
    for step in range(4):
        for site in (SITE, OTHER):
            store.at(step)(probs(step), site)
    assert list(store.maps) == [SITE] and store.maps[SITE][:, 0, 0, 0, 0].tolist() == [1, 2]
    mean = AttentionStore(steps=(1, 3))
    for step in range(4):
        mean.at(step)(probs(step), SITE)
    assert torch.equal(mean.maps[SITE], probs(2))


def test_outside_of_a_run_every_call_is_a_step():
    every, third = AttentionStore(), AttentionStore(steps=(2,))
    for value in (1, 2, 6):
        chain(every, third)(probs(value), SITE)
    assert torch.equal(every.maps[SITE], probs(3)) and torch.equal(third.maps[SITE], probs(6))


def test_a_store_says_before_at_every_step_and_is_empty_at_first():
    assert AttentionStore(before=True).at(3).before and not AttentionStore().at(3).before
    assert AttentionStore().maps == AttentionStore(each=True).maps == {}


def test_kept_maps_are_detached_float32_copies():
    for each in (False, True):
        store, given = AttentionStore(each=each), probs(1).requires_grad_() * 1
        store.at(0)(given, SITE)
        given.data.add_(5)
        kept = store.maps[SITE]
        assert not kept.requires_grad and kept.dtype == torch.float32 and kept.max() == 1
        store = AttentionStore(each=each)
        store.at(0)(probs(1).half(), SITE)
        assert store.maps[SITE].dtype == torch.float32


def test_a_run_fills_a_store_at_its_conditional_rows(model):
    """Two steps at two sites, guided: the store sees the conditional row alone, and the run is not changed by it."""
    wanted = [site for site in model.unet.sites if site.cross][:2]
    store = AttentionStore(sites=wanted.__contains__, each=True)
    settings = dict(seed=1, steps=2, size=(64, 96), guidance_scale=3.0)
    run = model.generate("a red cat", attend=explicit(store), **settings)
    heads = model.unet.config.per_level(model.unet.config.attention_head_dim)
    for site in wanted:
        pixels = math.prod(-(-side // site.stride) for side in run.latents.shape[-2:])
        assert store.maps[site].shape == (2, 1, heads[site.stride.bit_length() - 1], pixels, 77)
        torch.testing.assert_close(store.maps[site].sum(-1), torch.ones(store.maps[site].shape[:-1]))
    assert set(store.maps) == set(wanted)
    plain = model.generate("a red cat", attend=explicit(), **settings)
    assert torch.equal(run.latents, plain.latents)
    # What was kept at step 0 is what the conditional rows alone would show.
    alone, step = AttentionStore(sites=wanted.__contains__), model.scheduler.steps(2)[0]
    with torch.no_grad():
        model.unet(run.latents[:1], step.t, model.text("a red cat"), explicit(alone.at(0)))
    for site in wanted:
        torch.testing.assert_close(store.maps[site][0], alone.maps[site], rtol=0, atol=1e-5)
