"""Grounding: which tokens are told where to look, and the loss that tells them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minip2p.attention.contract import Site, explicit
from minip2p.text.prompt import Prompt
from minip2p.tiny.export import load_tokenizer
from minip2p.tiny.grounding import (
    ATTENTION_SHARE,
    SLOTS,
    MapKeeper,
    grounding_loss,
    regions,
    slot_tokens,
    target_attention,
)
from minip2p.tiny.scenes import Scene, Thing

CROSS = Site("up", 0, True, 1)
CAT, CAR = Thing("cat", None, 40, 100, 60, False), Thing("car", "red", 90, 100, 60, False)
SCENE = Scene((CAT, CAR), "sea", "photo", "snow", 0.7, 60.0, "", 0)


@pytest.fixture(scope="module")
def read():
    words = load_tokenizer()
    return lambda text: Prompt.tokenize(text, words)


def test_kept_maps_are_the_maps_with_their_graph():
    kept = MapKeeper()
    q, k = torch.randn(1, 2, 4, 3, requires_grad=True), torch.randn(1, 2, 5, 3)
    explicit(kept)(q, k, k, CROSS)
    explicit(kept)(q, q, q, replace(CROSS, cross=False))
    assert list(kept.maps) == [CROSS]
    torch.testing.assert_close(kept.maps[CROSS], (q @ k.mT / 3**0.5).softmax(-1))
    assert kept.maps[CROSS].requires_grad


def masks(size=32):
    cat, car = np.zeros((size, size), bool), np.zeros((size, size), bool)
    cat[8:24, :12], car[16:24, 16:] = True, True
    return {"cat": cat, "car": car, "sea": ~(cat | car)}


def rendered(scene, size=32):
    return regions(scene, SimpleNamespace(picture=np.zeros((size, size, 3), np.uint8), masks=masks(size)))


def test_regions_are_the_covered_shares_of_the_cells():
    found = rendered(SCENE)
    assert found.shape == (SLOTS, 4, 4) and found.dtype == np.uint8
    assert found[0].tolist() == [[0] * 4, [255, 128, 0, 0], [255, 128, 0, 0], [0] * 4]  # 12 columns: a cell and a half
    assert found[1].tolist() == [[0] * 4, [0] * 4, [0, 0, 255, 255], [0] * 4]
    assert found[2].tolist() == [[255] * 4, [0, 128, 255, 255], [0, 128, 0, 0], [255] * 4]
    assert (found[3] == 255).all()  # falling snow is everywhere


def test_flowers_grow_below_the_horizon_and_an_empty_slot_is_empty():
    found = rendered(replace(SCENE, attribute="flowers", horizon=16.0))
    assert not found[3, :2].any() and (found[3, 2:] == found[2, 2:]).all()
    alone = rendered(replace(SCENE, things=(CAR,), attribute=None))
    assert alone[0, 2].tolist() == [0, 0, 255, 255] and not alone[1].any() and not alone[3].any()


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("a cat and a red car", ["cat", "red car", None, None]),
        ("a cat and a car at sea", ["cat", "car", "sea", None]),
        ("a cat and a red car in falling snow", ["cat", "red car", None, "snow"]),
        ("", [None] * 4),
    ],
)
def test_said_finds_the_tokens_of_what_the_caption_names(read, caption, expected):
    prompt = read(caption)
    assert slot_tokens(SCENE, prompt) == [() if words is None else prompt.token_indices(words) for words in expected]


def test_snow_on_the_ground_and_falling_snow_are_told_apart(read):
    """No scene has both (see draw_scene), so every "snow" is the one or the other."""
    assert slot_tokens(SCENE, read("a cat in falling snow"))[2:] == [(), (5,)]
    assert slot_tokens(replace(SCENE, background="snow", attribute=None), read("a cat in the snow"))[2:] == [(5,), ()]


def test_aims_share_a_slot_among_its_tokens():
    cover = torch.zeros(2, SLOTS, 2, 2)
    cover[0, 1, 0, 0], cover[1, 0] = 1.0, 0.5
    aim, told = target_attention([[(), (2, 3), (), ()], [(1,), (), (), ()]], cover, 5)
    assert aim.shape == (2, 5, 2, 2)
    assert told.tolist() == [[False, False, True, True, False], [False, True, False, False, False]]
    assert aim[0, 2].tolist() == aim[0, 3].tolist() == [[ATTENTION_SHARE / 2, 0], [0, 0]]
    assert (aim[1, 1] == ATTENTION_SHARE / 2).all() and aim.sum() == pytest.approx(
        ATTENTION_SHARE + 4 * ATTENTION_SHARE / 2
    )


def maps_of(aim):
    """Maps b h i j that give each token its aim in each cell, and what is left to the first token."""
    given = aim.flatten(2).mT.clone()
    given[..., 0] = 1 - given[..., 1:].sum(-1)
    return given[:, None].expand(-1, 2, -1, -1)


def test_grounding_loss_is_zero_at_the_aim_and_only_there():
    cover = torch.zeros(1, SLOTS, 4, 4)
    cover[0, 0, :2], cover[0, 2, 2:] = 1.0, 1.0
    aim, told = target_attention([[(1,), (), (2, 3), ()]], cover, 5)
    at_aim = {CROSS: maps_of(aim), Site("down", 1, True, 2): maps_of(torch.nn.functional.avg_pool2d(aim, 2))}
    assert grounding_loss(at_aim, aim, told) == pytest.approx(0, abs=1e-6)
    flipped = {site: probs.flip(2) for site, probs in at_aim.items()}
    assert grounding_loss(flipped, aim, told) > 1


def test_grounding_loss_is_the_kl_divergence_by_hand():
    """One told token, aim 1/2 in the one cell: KL(1/2 ‖ p) = −½ ln(2p) − ½ ln(2(1 − p)); the heads' mean counts."""
    aim, told = torch.tensor([[[[0.0]], [[0.5]]]]), torch.tensor([[False, True]])
    probs = torch.tensor([0.1, 0.3]).reshape(1, 2, 1, 1)
    maps = {CROSS: torch.cat([1 - probs, probs], -1)}  # b h i j; the mean over the heads is 0.2
    expected = -0.5 * np.log(0.4) - 0.5 * np.log(1.6)
    assert float(grounding_loss(maps, aim, told)) == pytest.approx(expected, rel=1e-5)


def test_words_that_are_not_told_are_free_and_nothing_told_is_no_loss():
    probs = torch.rand(1, 2, 4, 3).softmax(-1).requires_grad_()
    aim, told = target_attention([[(1,), (), (), ()]], torch.ones(1, SLOTS, 2, 2), 3)
    grounding_loss({CROSS: probs}, aim, told).backward()
    assert probs.grad[..., 1].all() and not probs.grad[..., [0, 2]].any()
    assert grounding_loss({CROSS: probs}, *target_attention([[()] * SLOTS], torch.ones(1, SLOTS, 2, 2), 3)) == 0
