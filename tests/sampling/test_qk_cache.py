"""The cache of (q, k): what a policy keeps, how large that is, and that it is read as copies."""

import pytest
import torch

from minip2p import SiteFilter
from minip2p.attention.contract import Site
from minip2p.io.tensors import layout_bytes
from minip2p.sampling.qk_cache import CachePolicy, QKCache, cache_layout, queries_per_site, tensor_name

CROSS, SELF = Site("up", 1, True, 2), Site("up", 1, False, 2)


def test_the_size_of_a_cache_by_hand(model):
    """Widths 64 (16², 3 blocks), 160 (8², 3), 256 (4², 1). q at all steps, k of self-attention too, k of cross once."""
    everything = CachePolicy((0, 4), (0, 4), 1024)
    layout = cache_layout(model.unet, (16, 16), 77, 4, policy=everything, dtype=torch.float32)
    q = 3 * 64 * 256 + 3 * 160 * 64 + 256 * 16
    k = 77 * (3 * 64 + 3 * 160 + 256)
    assert layout_bytes(layout) == 4 * (4 * 3 * q + k)
    few = cache_layout(model.unet, (16, 16), 77, 4, policy=CachePolicy((1, 3), (0, 1), 64), dtype=torch.float16)
    assert layout_bytes(few) == 2 * (2 * q + k + 2 * (3 * 160 * 64 + 256 * 16))


def test_each_site_has_its_queries(model):
    """Latents of 5 × 9 have maps of 5 × 9, 3 × 5 and 2 × 3."""
    queries = queries_per_site(model.unet, (5, 9))
    assert queries.keys() == set(model.unet.sites)
    assert {site.stride: count for site, count in queries.items()} == {1: 45, 2: 15, 4: 6}


def test_names_in_a_file():
    assert tensor_name(CROSS, "q", 3) == "up.1.cross.q.3" and tensor_name(CROSS, "k", 3) == "up.1.cross.k"
    assert tensor_name(SELF, "q", 3) == "up.1.self.q.3" and tensor_name(SELF, "k", 3) == "up.1.self.k.3"


def test_a_policy_keeps_its_steps_sizes_and_sites():
    policy = CachePolicy((1, 3), (2, 4), 64, SiteFilter(places=("up",)))
    assert policy.at(0) is None and policy.at(4) is None
    predicates = {step: policy.at(step) for step in (1, 2, 3)}
    assert [predicates[step](CROSS, 999) for step in (1, 2, 3)] == [True, True, False]
    assert [predicates[step](SELF, 64) for step in (1, 2, 3)] == [False, True, True]
    assert not predicates[2](SELF, 65) and not predicates[2](Site("down", 1, True, 2), 1)


@pytest.mark.parametrize("limit", [-1, 1.5, "x", 2**63])
def test_a_policy_has_a_whole_number_of_queries(limit):
    with pytest.raises(ValueError, match="self_max_queries must be a whole number from 0 on"):
        CachePolicy((0, 1), (0, 1), limit)


def test_a_cache_returns_copies_of_what_was_put():
    tensors = {
        tensor_name(CROSS, "q", 0): torch.empty(1, 2, 6, 3, dtype=torch.float16),
        tensor_name(CROSS, "k", 0): torch.empty(1, 2, 5, 3, dtype=torch.float16),
    }
    cache = QKCache(tensors, {CROSS: 6, SELF: 6})
    q, k = torch.randn(1, 2, 6, 3), torch.randn(1, 2, 5, 3)
    cache.put(0, {CROSS: (q, k)})
    (pair,) = cache.get(0, lambda site, queries: site.cross, torch.empty(0)).values()
    assert torch.equal(pair[0], q.half().float()) and torch.equal(pair[1], k.half().float())
    pair[0].zero_()
    assert torch.equal(tensors[tensor_name(CROSS, "q", 0)], q.half())
    same_dtype = cache.get(0, lambda site, queries: site.cross, torch.empty(0, dtype=torch.float16))[CROSS]
    assert same_dtype[0].data_ptr() != tensors[tensor_name(CROSS, "q", 0)].data_ptr()


def test_a_cache_covers_a_step_if_it_has_all_wanted_sites():
    names = [tensor_name(CROSS, "q", 0), tensor_name(CROSS, "k", 0), tensor_name(SELF, "q", 0)]
    cache = QKCache(dict.fromkeys(names, torch.zeros(1)), {CROSS: 6, SELF: 6})
    assert cache.covers(0, lambda site, queries: site.cross) and not cache.covers(1, lambda site, queries: site.cross)
    assert not cache.covers(0, lambda site, queries: True)  # the keys of the self-attention are missing
    assert cache.covers(0, lambda site, queries: queries > 6)
