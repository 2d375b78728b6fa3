"""The attention maps of a run as bytes: shares that sum to 1, and those of `Trajectory.maps`."""

import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from web import unpack

from minip2p.attention.contract import explicit
from minip2p.attention.heatmaps import default_strides
from minip2p.attention.store import AttentionStore
from minip2p.web.maps import collect_maps, pack_maps, plan_blocks

WORDS = ["cat", "watercolor", "beach"]
ERROR = 1 / 255  # of a share p that is stored as round(255 √p): at most √p / 255 + 1 / 510²


@pytest.fixture(scope="module")
def run(pipe):
    return pipe.generate("a watercolor of a cat, on the beach", seed=1, steps=2)


@pytest.fixture(scope="module")
def packed(run):
    return pack_maps(*collect_maps(run, 16_000_000))


def test_shares_sum_to_one(packed):
    header, blocks = unpack(packed)
    assert len(blocks) == len(header["cross"]) + len(header["self"]) == 14
    for (_, _, cross), block in blocks.items():
        sums = block.sum(-1)
        bound = np.sqrt(block).sum(-1) / 255 + block.shape[-1] / 510**2
        assert (np.abs(sums - 1) <= bound).all()
        assert np.abs(sums - 1).mean() < (0.005 if cross else 0.02)


def test_the_shares_are_those_of_the_runs_maps(run, packed):
    header, blocks = unpack(packed)
    (stride,) = default_strides(run.components.unet.sites, run.latent_size)
    sites = [site for site in header["cross"] if site["stride"] == stride]
    columns = [n for word in WORDS for n, token in enumerate(header["tokens"]) if token["text"] == word]
    mean = sum(blocks[site["place"], site["index"], True].mean((0, 1)) for site in sites) / len(sites)
    maps = torch.from_numpy(mean.T[columns]).reshape(3, sites[0]["rows"], sites[0]["columns"])
    enlarged = F.interpolate(maps[:, None], run.picture_size, mode="bilinear")[:, 0]
    torch.testing.assert_close(enlarged.float(), run.maps(WORDS), atol=ERROR, rtol=0)
    one_head = sum(blocks[site["place"], site["index"], True][1, 2] for site in sites) / len(sites)
    maps = torch.from_numpy(one_head.T[columns]).reshape(3, sites[0]["rows"], sites[0]["columns"])
    enlarged = F.interpolate(maps[:, None], run.picture_size, mode="bilinear")[:, 0]
    torch.testing.assert_close(enlarged.float(), run.maps(WORDS, heads=[2], steps=[1]), atol=ERROR, rtol=0)


def test_every_block_is_what_an_attention_store_sees(pipe, run):
    store = AttentionStore(each_step=True)
    pipe.generate(run.prompt, seed=1, steps=2, guidance_scale=1.0, attend=explicit(store))
    plain = pipe.generate(run.prompt, seed=1, steps=2, guidance_scale=1.0)
    header, blocks = unpack(pack_maps(*collect_maps(plain, 16_000_000)))
    prompt = pipe.text.prompt(run.prompt)
    positions = [[0], *([*range(*word.span)] for word in prompt.words[:2])]
    for site, maps in store.maps.items():
        block = blocks[site.place, site.index, site.cross]
        if site.cross:
            expected = torch.stack([maps[:, 0, :, :, columns].sum(-1) for columns in positions], -1)
            got = block[..., : len(positions)]
        else:
            expected, got = maps[:, 0].mean((0, 1)), block
        np.testing.assert_allclose(got, expected.numpy(), atol=ERROR)
    assert header["tokens"][2] == {"text": "watercolor", "kind": "word", "word": 1}


@pytest.mark.parametrize("budget", [16_000_000, 25_000, 9_000, 5_000])
def test_the_maps_fit_into_the_budget_as_means(run, packed, budget):
    small = pack_maps(*collect_maps(run, budget))
    header, blocks = unpack(small)
    assert sum(block.size for block in blocks.values()) <= budget
    assert len(small) == 4 + struct.unpack("<I", small[:4])[0] + sum(block.size for block in blocks.values())
    _, full = unpack(packed)
    for site in header["cross"]:
        block, whole_block = (x[site["place"], site["index"], True] for x in (blocks, full))
        assert site["mean_heads"] == (block.shape[1] == 1) and site["mean_steps"] == (block.shape[0] == 1)
        axes = tuple(axis for axis, mean in ((0, site["mean_steps"]), (1, site["mean_heads"])) if mean)
        expected = whole_block.mean(axes, keepdims=True) if axes else whole_block
        np.testing.assert_allclose(block, expected, atol=2 * ERROR)
    means = [site["mean_heads"] for site in header["cross"]]
    assert any(means) == (budget < 30_000)


def test_self_attention_of_many_queries_is_left_out(model):
    run = model.generate("a cat", seed=1, steps=1, size=(320, 320))
    sizes = {block.site: block.size for block in plan_blocks(run, 5, 10**9)}
    assert {size for site, size in sizes.items() if not site.cross} == {(20, 20), (10, 10)}
    assert {size for site, size in sizes.items() if site.cross} == {(40, 40), (20, 20), (10, 10)}
