"""`AttentionStore`, `record_qk` and `check_attend`."""

import math

import pytest
import torch

from minip2p.attention.contract import Site, attention_map, chain, explicit, fused
from minip2p.attention.store import AttentionStore, check_attend, record_qk

CROSS, SELF = Site("down", 0, True, 1), Site("up", 2, False, 4)


def constant_map(value):
    """A map b h i j that can be told from others by its value."""
    return torch.full((1, 2, 3, 4), float(value))


def test_a_store_changes_nothing_and_keeps_the_mean_over_the_steps():
    store = AttentionStore()
    for step, value in enumerate((1, 2, 6)):
        probs = constant_map(value)
        assert store.at(step)(probs, CROSS) is probs
        store.at(step)(constant_map(10 * value), SELF)
    assert set(store.maps) == {CROSS, SELF}
    assert torch.equal(store.maps[CROSS], constant_map(3)) and torch.equal(store.maps[SELF], constant_map(30))


def test_each_step_keeps_every_step_in_order_of_its_number():
    store = AttentionStore(each_step=True)
    for step in (5, 0, 2):  # not the order of the calls
        store.at(step)(constant_map(step), CROSS)
    assert store.maps[CROSS].shape == (3, 1, 2, 3, 4)
    assert store.maps[CROSS][:, 0, 0, 0, 0].tolist() == [0, 2, 5]


@pytest.mark.parametrize("each_step", [False, True])
def test_a_replayed_step_is_not_kept_twice(each_step):
    store = AttentionStore(each_step=each_step)
    for factor in (1, 100):
        for step in (0, 1):
            store.at(step)(constant_map(factor * (step + 1)), CROSS)
    expected = torch.stack([constant_map(1), constant_map(2)]) if each_step else constant_map(1.5)
    assert torch.equal(store.maps[CROSS], expected)


def test_only_the_selected_sites_and_steps_are_kept():
    store = AttentionStore(sites=lambda site: site.cross, steps=range(1, 3), each_step=True)
    for step in range(4):
        for site in (CROSS, SELF):
            store.at(step)(constant_map(step), site)
    assert list(store.maps) == [CROSS] and store.maps[CROSS][:, 0, 0, 0, 0].tolist() == [1, 2]
    mean = AttentionStore(steps=(1, 3))
    for step in range(4):
        mean.at(step)(constant_map(step), CROSS)
    assert torch.equal(mean.maps[CROSS], constant_map(2))


def test_outside_of_a_run_every_call_counts_as_a_step():
    all_calls, third_call = AttentionStore(), AttentionStore(steps=(2,))
    for value in (1, 2, 6):
        chain(all_calls, third_call)(constant_map(value), CROSS)
    assert torch.equal(all_calls.maps[CROSS], constant_map(3))
    assert torch.equal(third_call.maps[CROSS], constant_map(6))


def test_before_holds_at_every_step_and_a_new_store_is_empty():
    assert AttentionStore(before=True).at(3).before and not AttentionStore().at(3).before
    assert AttentionStore().maps == AttentionStore(each_step=True).maps == {}


@pytest.mark.parametrize("each_step", [False, True])
def test_kept_maps_are_detached_float32_copies(each_step):
    store, probs = AttentionStore(each_step=each_step), constant_map(1).requires_grad_() * 1
    store.at(0)(probs, CROSS)
    probs.data.add_(5)
    kept_map = store.maps[CROSS]
    assert not kept_map.requires_grad and kept_map.dtype == torch.float32 and kept_map.max() == 1
    store = AttentionStore(each_step=each_step)
    store.at(0)(constant_map(1).half(), CROSS)
    assert store.maps[CROSS].dtype == torch.float32


def test_a_run_fills_a_store_with_its_conditional_rows(model):
    """Two steps at two sites, with guidance: the store sees the conditional row only, and does not change the run."""
    wanted = [site for site in model.unet.sites if site.cross][:2]
    store = AttentionStore(sites=wanted.__contains__, each_step=True)
    options = dict(seed=1, steps=2, size=(64, 96), guidance_scale=3.0)
    run = model.generate("a red cat", attend=explicit(store), **options)
    heads = model.unet.config.per_level(model.unet.config.attention_head_dim)
    for site in wanted:
        pixels = math.prod(-(-side // site.stride) for side in run.latents.shape[-2:])
        assert store.maps[site].shape == (2, 1, heads[site.stride.bit_length() - 1], pixels, 77)
        torch.testing.assert_close(store.maps[site].sum(-1), torch.ones(store.maps[site].shape[:-1]))
    assert set(store.maps) == set(wanted)
    assert torch.equal(run.latents, model.generate("a red cat", attend=explicit(), **options).latents)
    # The maps of step 0 equal those of the conditional row computed without the other one.
    single, step = AttentionStore(sites=wanted.__contains__), model.scheduler.steps(2)[0]
    with torch.no_grad():
        noise = run.latents[:1].to(model.device)
        model.unet(noise, step.t, model.text("a red cat").tokens, explicit(single.at(0)))
    for site in wanted:
        torch.testing.assert_close(store.maps[site][0], single.maps[site], rtol=0, atol=1e-5)


def test_record_qk_keeps_queries_and_keys_of_the_selected_sites_and_changes_nothing():
    q, k, v = (torch.randn(1, 2, n, 4, generator=torch.Generator().manual_seed(n)) for n in (5, 7, 7))
    recorded = {}
    attend = record_qk(recorded, lambda site, queries: site.cross and queries == 5, explicit())
    for site in (CROSS, SELF):
        assert torch.equal(attend(q, k, v, site), explicit()(q, k, v, site))
    attend(q[..., :4, :], k, v, Site("mid", 0, True, 8))
    assert list(recorded) == [CROSS] and recorded[CROSS][0] is q and recorded[CROSS][1] is k
    store = AttentionStore()
    explicit(store)(q, k, v, CROSS)
    assert torch.equal(attention_map(*recorded[CROSS]), store.maps[CROSS])


def test_check_attend_refuses_what_is_not_an_attend():
    check_attend(fused)
    check_attend(explicit(AttentionStore()))
    for attend in (None, 3, AttentionStore()):
        with pytest.raises(ValueError, match=r"attend is a function of \(q, k, v, site\); wrap .* in explicit\(\)"):
            check_attend(attend)
