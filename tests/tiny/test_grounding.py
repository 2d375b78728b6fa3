"""Grounding: where each token should attend, and the loss that trains it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from prompts import tokenize

from minip2p.attention.contract import Site, explicit
from minip2p.tiny.grounding import (
    ATTENTION_SHARE,
    SLOTS,
    AttentionTargets,
    MapKeeper,
    attention_targets,
    fused_self_attention,
    grounding_loss,
    slot_regions,
    token_slots,
)
from minip2p.tiny.scenes import Scene, Thing

CROSS = Site("up", 0, True, 1)
CAT, CAR = Thing("cat", None, 40, 100, 60, False), Thing("car", "red", 90, 100, 60, False)
SCENE = Scene((CAT, CAR), "sea", "photo", "snow", 0.7, 60.0, "", 0)


def test_the_keeper_has_the_cross_attention_maps_with_their_graph():
    keeper = MapKeeper()
    q, k = torch.randn(1, 2, 4, 3, requires_grad=True), torch.randn(1, 2, 5, 3)
    explicit(keeper)(q, k, k, CROSS)
    explicit(keeper)(q, q, q, replace(CROSS, cross=False))
    assert list(keeper.maps) == [CROSS]
    torch.testing.assert_close(keeper.maps[CROSS], (q @ k.mT / 3**0.5).softmax(-1))
    assert keeper.maps[CROSS].requires_grad


def masks(size=32):
    cat, car = np.zeros((size, size), bool), np.zeros((size, size), bool)
    cat[8:24, :12], car[16:24, 16:] = True, True
    return {"cat": cat, "car": car, "sea": ~(cat | car)}


def regions_of(scene, size=32):
    return slot_regions(scene, SimpleNamespace(picture=np.zeros((size, size, 3), np.uint8), masks=masks(size)))


def test_regions_are_the_covered_shares_of_the_latent_pixels():
    regions = regions_of(SCENE)
    assert regions.shape == (SLOTS, 4, 4) and regions.dtype == np.uint8
    assert regions[0].tolist() == [
        [0] * 4,
        [255, 128, 0, 0],
        [255, 128, 0, 0],
        [0] * 4,
    ]  # 12 columns: a cell and a half
    assert regions[1].tolist() == [[0] * 4, [0] * 4, [0, 0, 255, 255], [0] * 4]
    assert regions[2].tolist() == [[255] * 4, [0, 128, 255, 255], [0, 128, 0, 0], [255] * 4]
    assert (regions[3] == 255).all()  # falling snow is everywhere


def test_flowers_are_below_the_horizon_and_an_empty_slot_has_no_region():
    regions = regions_of(replace(SCENE, attribute="flowers", horizon=16.0))
    assert not regions[3, :2].any() and (regions[3, 2:] == regions[2, 2:]).all()
    regions = regions_of(replace(SCENE, things=(CAR,), attribute=None))
    assert regions[0, 2].tolist() == [0, 0, 255, 255] and not regions[1].any() and not regions[3].any()


def test_only_cross_attention_needs_its_maps():
    keeper, q, k = MapKeeper(), torch.randn(1, 2, 4, 3), torch.randn(1, 2, 5, 3)
    attend = fused_self_attention(explicit(keeper))
    for site, keys in ((CROSS, k), (replace(CROSS, cross=False), q)):
        torch.testing.assert_close(attend(q, keys, keys, site), explicit()(q, keys, keys, site))
    assert list(keeper.maps) == [CROSS]


def slots_by_number(scene, caption):
    """The positions of the tokens of each slot."""
    slots = token_slots(scene, tokenize(caption))
    return [tuple(j for j, slot in enumerate(slots) if slot == number) for number in range(SLOTS)]


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("a cat and a red car", ["cat", "red car", None, None]),
        ("a cat and a car at sea", ["cat", "car", "sea", None]),
        ("a cat facing left and a red car facing right", ["cat", "red car", None, None]),
        ("a cat and a red car in falling snow", ["cat", "red car", None, "snow"]),
        ("", [None] * 4),
    ],
)
def test_slots_have_the_tokens_that_the_caption_names(caption, expected):
    prompt = tokenize(caption)
    assert len(token_slots(SCENE, prompt)) == len(prompt.ids)
    positions = [() if words is None else prompt.token_indices(words) for words in expected]
    assert slots_by_number(SCENE, caption) == positions


def test_snow_on_the_ground_and_falling_snow_are_different_slots():
    """No scene has both (see `propose_scene`), so that "snow" is never ambiguous."""
    assert slots_by_number(SCENE, "a cat in falling snow")[2:] == [(), (5,)]
    scene = replace(SCENE, background="snow", attribute=None)
    assert slots_by_number(scene, "a cat in the snow")[2:] == [(5,), ()]


def test_the_tokens_of_a_slot_share_its_target():
    regions = torch.zeros(2, SLOTS, 2, 2)
    regions[0, 1, 0, 0], regions[1, 0] = 1.0, 0.5
    targets = attention_targets(torch.tensor([[-1, -1, 1, 1, -1], [-1, 0, -1, -1, -1]]), regions)
    assert (targets.rows.tolist(), targets.columns.tolist()) == ([0, 0, 1], [2, 3, 1])
    assert targets.regions.shape == (3, 2, 2)
    assert targets.regions[0].tolist() == targets.regions[1].tolist() == [[ATTENTION_SHARE / 2, 0], [0, 0]]
    assert (targets.regions[2] == ATTENTION_SHARE / 2).all()


def maps_with(targets, stride):
    """Maps b h i j of one caption of five tokens that give each token its target, and the rest to the first token."""
    maps = torch.zeros(1, 5, (4 // stride) ** 2)
    maps[targets.rows, targets.columns] = F.avg_pool2d(targets.regions, stride).flatten(1)
    maps[:, 0] = 1 - maps.sum(1)
    return maps.mT[:, None].expand(-1, 2, -1, -1)


def test_the_loss_is_zero_at_the_target_and_only_there():
    regions = torch.zeros(1, SLOTS, 4, 4)
    regions[0, 0, :2], regions[0, 2, 2:] = 1.0, 1.0
    targets = attention_targets(torch.tensor([[-1, 0, 2, 2, -1]]), regions)
    maps = {CROSS: maps_with(targets, 1), Site("down", 1, True, 2): maps_with(targets, 2)}
    assert grounding_loss(maps, targets) == pytest.approx(0, abs=1e-6)
    flipped = {site: probs.flip(2) for site, probs in maps.items()}
    assert grounding_loss(flipped, targets) > 1


def test_the_loss_is_the_kl_divergence_by_hand():
    """A token with target 1/2 at one pixel: KL(1/2 ‖ p) = −½ ln(2p) − ½ ln(2(1 − p)), p the mean over the heads."""
    targets = AttentionTargets(torch.tensor([[[0.5]]]), rows=torch.tensor([0]), columns=torch.tensor([1]))
    probs = torch.tensor([0.1, 0.3]).reshape(1, 2, 1, 1)
    maps = {CROSS: torch.cat([1 - probs, probs], -1)}  # b h i j; the mean over the heads is 0.2
    expected = -0.5 * np.log(0.4) - 0.5 * np.log(1.6)
    assert float(grounding_loss(maps, targets)) == pytest.approx(expected, rel=1e-5)


def test_tokens_without_a_target_are_free_and_no_target_is_no_loss():
    probs = torch.rand(1, 2, 4, 3).softmax(-1).requires_grad_()
    regions = torch.ones(1, SLOTS, 2, 2)
    grounding_loss({CROSS: probs}, attention_targets(torch.tensor([[-1, 0, -1]]), regions)).backward()
    assert probs.grad[..., 1].all() and not probs.grad[..., [0, 2]].any()
    assert grounding_loss({CROSS: probs}, attention_targets(torch.full((1, 3), -1), regions)) == 0
