"""Heat maps as value columns, against maps that are formed and summed by hand."""

import pytest
import torch
from parity import SD15_UNET, SDXL_UNET, on_meta

from minip2p.attention.contract import Site, SiteFilter, attention_map, fused
from minip2p.attention.heatmaps import (
    HeatmapAccumulator,
    accumulate_heat,
    check_hops,
    default_strides,
    finest_self_stride,
    map_size,
    record_heatmaps,
    select_strides,
    word_heatmaps,
)
from minip2p.config import UNetConfig
from minip2p.unet import UNet


def random_qk(queries, seed=0, keys=77):
    """q 1 3 i 8 and k 1 3 j 8."""
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(1, 3, queries, 8, generator=g), 2 * torch.randn(1, 3, keys, 8, generator=g)


def cross_site(index, stride):
    return Site("up", index, True, stride)


def self_site(index, stride):
    return Site("up", index, False, stride)


@pytest.mark.parametrize("words", [1, 8, 9, 20])  # also more words than the head is wide
def test_heat_is_A_1_word_summed_over_the_tokens_mean_over_the_heads(words):
    q, k = random_qk(12)
    indicators = (torch.rand(words, 77, generator=torch.Generator().manual_seed(1)) > 0.7).float()
    heat = word_heatmaps(lambda v: fused(q, k, v), indicators, heads=3, width=8)
    by_hand = torch.stack([attention_map(q, k)[0, :, :, row.bool()].sum(-1).mean(0) for row in indicators])
    torch.testing.assert_close(heat, by_hand, rtol=1e-5, atol=1e-6)


def test_an_accumulator_sums_sites_and_resizes_them_to_the_finest():
    accumulator = HeatmapAccumulator(torch.ones(1, 77).tril(9), (3, 5), SiteFilter(strides=(1, 2)))
    sums = {}
    for n, (stride, size) in enumerate([(1, (3, 5)), (2, (2, 3)), (1, (3, 5))]):
        q, k = random_qk(size[0] * size[1], seed=n)
        site = cross_site(n, stride)
        assert accumulator.wants(site)
        accumulate_heat([accumulator], site, lambda v, q=q, k=k: fused(q, k, v), q)
        heat = attention_map(q, k)[0, :, :, :10].sum(-1).mean(0).reshape(size)
        sums[stride] = sums.get(stride, 0) + heat
    rows, columns = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1, 1, 2])  # floor(y · 2 / 3), floor(x · 3 / 5)
    by_hand = sums[1] + sums[2][rows][:, columns]
    torch.testing.assert_close(accumulator.total[0], by_hand)
    torch.testing.assert_close(accumulator.mean[0], by_hand / 3)


def test_an_accumulator_wants_the_cross_attention_of_its_strides_and_with_hops_the_finest_self_attention():
    words = torch.ones(1, 77)
    accumulator = HeatmapAccumulator(words, (3, 5), SiteFilter(strides=(1, 2)))
    assert accumulator.wants(cross_site(9, 2)) and not accumulator.wants(cross_site(9, 4))
    assert not accumulator.wants(self_site(9, 1))
    with_hops = HeatmapAccumulator(words, (4, 6), SiteFilter(strides=(2,)), hops=2, finest_stride=1)
    assert with_hops.wants(self_site(0, 1)) and not with_hops.wants(self_site(0, 2))
    assert not HeatmapAccumulator(torch.zeros(1, 77), (3, 5), SiteFilter(strides=(1,))).wants(
        cross_site(3, 1)
    )  # of no tokens


def test_an_accumulator_that_nothing_was_added_to_is_zero():
    assert torch.equal(
        HeatmapAccumulator(torch.ones(2, 77), (3, 5), SiteFilter(strides=(1,))).total, torch.zeros(2, 3, 5)
    )


def test_equal_indicators_are_computed_once():
    words, other = torch.ones(1, 77).tril(3), torch.ones(1, 77).tril(5)
    accumulators = [
        HeatmapAccumulator(indicators, (2, 3), SiteFilter(strides=(1,))) for indicators in (words, words.clone(), other)
    ]
    q, k = random_qk(6)
    calls = []
    accumulate_heat(accumulators, cross_site(0, 1), lambda v: calls.append(v) or fused(q, k, v), q)
    assert len(calls) == 2
    assert torch.equal(accumulators[0].total, accumulators[1].total)
    assert (accumulators[2].total > accumulators[0].total).all()


def test_record_heatmaps_adds_the_attention_and_returns_its_result():
    accumulator = HeatmapAccumulator(torch.ones(1, 77).tril(9), (2, 3), SiteFilter(strides=(1,)))
    q, k = random_qk(6)
    v = torch.randn(1, 3, 77, 8, generator=torch.Generator().manual_seed(5))
    assert torch.equal(record_heatmaps(accumulator, fused)(q, k, v, cross_site(0, 1)), fused(q, k, v))
    by_hand = attention_map(q, k)[0, :, :, :10].sum(-1).mean(0).reshape(2, 3)
    torch.testing.assert_close(accumulator.total[0], by_hand)


def test_hops_multiply_the_heat_by_the_last_steps_self_attention():
    """Aⁿ M: A is the mean over sites and heads; M is resized to A's size by the nearest pixel."""
    words = torch.ones(2, 77).tril(5)
    words[1] = 1
    accumulator = HeatmapAccumulator(words, (4, 6), SiteFilter(strides=(2,)), hops=2, finest_stride=1)
    q, k = random_qk(6)
    accumulate_heat([accumulator], cross_site(0, 2), lambda v: fused(q, k, v), q)
    fine = {n: random_qk(24, seed=n, keys=24) for n in (1, 2, 3)}
    for n in (1, 2, 3, 1):  # 3 is an earlier step of the site of the last 1
        fine_q, fine_k = fine[n]
        site = self_site(1 if n == 3 else n, 1)
        accumulate_heat([accumulator], site, lambda v, q=fine_q, k=fine_k: fused(q, k, v), fine_q)
    coarse = torch.stack([attention_map(q, k)[0, :, :, row.bool()].sum(-1).mean(0).reshape(2, 3) for row in words])
    M = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    A = torch.stack([attention_map(*fine[n])[0].mean(0) for n in (1, 2)]).mean(0)
    torch.testing.assert_close(accumulator.total, (A @ A @ M.T).T.reshape(2, 4, 6), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(accumulator.total[1], torch.ones(4, 6))  # a share of 1 stays 1


# Strides


def test_map_size_rounds_up():
    assert map_size((17, 20), 1) == (17, 20) and map_size((17, 20), 2) == (9, 10) and map_size((17, 20), 4) == (5, 5)


def test_masks_read_the_maps_nearest_to_16_by_16_which_are_the_published_codes():
    sd, xl = (on_meta(UNet, UNetConfig.from_dict(config)).sites for config in (SD15_UNET, SDXL_UNET))
    for latent, strides in {(64, 64): (4,), (96, 96): (4,), (32, 32): (2,), (8, 8): (1,)}.items():
        assert default_strides(sd, latent) == strides
    assert default_strides(xl, (128, 128)) == default_strides(xl, (64, 64)) == (4,)
    published = [("down", 4), ("down", 5), ("up", 0), ("up", 1), ("up", 2)]
    assert [(site.place, site.index) for site in sd if site.cross and site.stride == 4] == published


def test_the_tiny_models_masks_read_the_finest_maps_at_its_own_size(model):
    assert default_strides(model.unet.sites, (16, 16)) == (1,) and default_strides(model.unet.sites, (32, 32)) == (2,)


def test_select_strides_takes_the_users_or_the_default():
    sites = [cross_site(0, 1), cross_site(1, 2), self_site(0, 4)]
    assert select_strides((2,), sites, (16, 16)) == select_strides([2], sites, (16, 16)) == (2,)
    assert select_strides(None, sites, (16, 16)) == (1,)
    with pytest.raises(ValueError, match=r"no cross-attention has stride 4; this model's strides: \[1, 2\]"):
        select_strides((1, 4), sites, (16, 16))
    with pytest.raises(ValueError, match=r"strides must be a list or a tuple, such as \(2, 4\), not 2"):
        select_strides(2, sites, (16, 16))


def test_finest_self_stride():
    assert finest_self_stride([cross_site(0, 1), self_site(0, 4), self_site(1, 2)]) == 2
    assert finest_self_stride([cross_site(0, 2)]) == 1


@pytest.mark.parametrize("hops", [-1, 17, 1.5, "2", None])
def test_hops_that_are_no_whole_number_from_0_to_16_are_refused(hops):
    check_hops(0)
    check_hops(16)
    with pytest.raises(ValueError, match="self_attention_hops must be a whole number from 0 to 16, not"):
        check_hops(hops)
