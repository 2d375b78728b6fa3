"""From heat maps to masks by hand, thresholds, and masks resized to latents and queries."""

import pytest
import torch

from minip2p.attention.contract import Site
from minip2p.attention.masks import (
    EDGE_EPSILON,
    check_threshold,
    follow_edges,
    heatmap_to_mask,
    mask_per_stride,
    mask_to_latent,
    otsu_threshold,
    same_dtype,
    threshold_mask,
)

HEAT = torch.tensor([[8.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]])


def bits(*rows):
    """A bool mask from rows of text: "#" is True."""
    return torch.tensor([[c == "#" for c in row] for row in rows])


# Heat maps


def test_a_mask_is_pooled_3_by_3_divided_by_the_maximum_and_compared_to_the_threshold():
    expected = bits("##..", "####", "..##", "..##")
    assert torch.equal(heatmap_to_mask(HEAT, (4, 4), 0.3), expected)  # 3 / 8 > 0.3
    assert torch.equal(heatmap_to_mask(1000 * HEAT, (4, 4), 0.3), expected)
    assert torch.equal(heatmap_to_mask(HEAT, (4, 4), 0.375), bits("##..", "##..", "....", "...."))  # not 3 / 8 > 3 / 8
    assert torch.equal(heatmap_to_mask(HEAT, (4, 4), 0.3, pool=False), bits("#...", "....", "...#", "...."))


def test_the_mask_of_a_3_by_3_map():
    heat = torch.tensor([[0.0, 1, 2], [3, 4, 5], [6, 7, 10]])
    assert torch.equal(heatmap_to_mask(heat, (3, 3), 0.5, pool=False), bits("...", "...", "###"))
    assert torch.equal(heatmap_to_mask(heat, (3, 3), 0.5), bits("...", "###", "###"))  # 4 5 5, 7 10 10, 7 10 10


def test_a_mask_is_upsampled_to_the_nearest():
    heat = HEAT[:3]
    doubled = heatmap_to_mask(heat, (3, 4), 0.3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(heatmap_to_mask(heat, (6, 8), 0.3), doubled)
    assert torch.equal(heatmap_to_mask(HEAT, (4, 6), 0.3, pool=False), bits("##....", "......", ".....#", "......"))


def test_masks_at_both_ends_of_the_threshold_and_without_heat():
    assert heatmap_to_mask(HEAT + 1, (4, 4), 0.0).all() and not heatmap_to_mask(HEAT, (4, 4), 1.0).any()
    assert not heatmap_to_mask(0 * HEAT, (4, 4), 0.3).any()


@pytest.mark.parametrize("threshold", [0.3, "otsu", "50%", (0.2, 0.4)])
def test_without_heat_the_mask_is_empty_at_every_kind_of_threshold(threshold):
    assert not heatmap_to_mask(torch.zeros(3, 3), (3, 3), threshold).any()


def test_the_mask_of_negative_heat_is_empty():
    """A word with a negative weight has negative heat; dividing it by its maximum would make it positive."""
    assert not heatmap_to_mask(torch.tensor([[-4.0, -1.0], [-2.0, -3.0]]), (2, 2), 0.3).any()


# Thresholds


def test_otsu_maximizes_the_variance_between_the_classes():
    """By trying every threshold: n₀ n₁ (μ₀ − μ₁)²."""
    x = torch.tensor([[0.1, 0.15, 0.2, 0.22], [0.7, 0.8, 0.75, 0.3]])

    def variance(threshold):
        low, high = x[x <= threshold], x[x > threshold]
        return float(len(low) * len(high) * (low.mean() - high.mean()) ** 2) if len(high) else 0.0

    best = max(x.flatten().tolist(), key=variance)
    assert otsu_threshold(x) == best == pytest.approx(0.3)
    assert torch.equal(threshold_mask(x, "otsu"), x > 0.5)


def test_otsu_takes_tensors_with_a_graph_and_in_half_precision():
    x = torch.rand(4, 4, requires_grad=True)
    assert otsu_threshold(x) == otsu_threshold(x.detach()) and isinstance(otsu_threshold(x.half()), float)


def test_a_threshold_is_a_number_a_percentage_or_a_soft_pair():
    x = torch.arange(10.0).reshape(2, 5) / 9
    assert [int(threshold_mask(x, threshold).sum()) for threshold in (0.5, "80%", "0%")] == [5, 2, 9]
    soft = threshold_mask(x, (0.25, 0.75))
    torch.testing.assert_close(soft, ((x - 0.25) / 0.5).clamp(0, 1))


def test_thresholds_that_are_taken():
    for threshold in (0, 1, 0.3, "otsu", "0%", "99.9%", (0, 1), (0.2, 0.5)):
        check_threshold("it", threshold)


@pytest.mark.parametrize(
    "threshold",
    [-0.1, 1.1, float("nan"), None, "x", "most", "100%", "-5%", "5 %", "1.2.3%"]
    + [(0.5, 0.5), (0.5, 0.2), (0, 2), (0.1, float("nan")), (0.1, 0.2, 0.3), [0.1, 0.2]],
)
def test_thresholds_that_are_refused(threshold):
    with pytest.raises(ValueError) as error:
        check_threshold("a mask's threshold", threshold)
    assert str(error.value) == (
        f"a mask's threshold must lie between 0 and 1, not {threshold}; "
        'or it is "otsu", a percentage such as "85%", or a soft pair (low, high)'
    )


# Sizes


def test_a_latent_pixel_is_in_the_mask_if_half_of_it_is():
    mask = torch.zeros(8, 8)
    mask[0:2, 0:1] = 1  # half of the first cell
    mask[4:6, 4:5], mask[5, 5] = 1, -0.01  # less than half
    assert torch.equal(mask_to_latent(mask, (4, 4)), bits("#...", "....", "....", "...."))
    assert torch.equal(mask_to_latent(torch.eye(2).bool(), (4, 4)), bits("##..", "##..", "..##", "..##"))


def test_a_mask_per_stride_is_the_share_of_each_query_that_it_covers():
    mask = torch.zeros(8, 12)
    mask[:2, :3] = 1
    sites = [Site("down", 0, True, 1), Site("down", 1, True, 2), Site("down", 1, False, 2)]
    shares = mask_per_stride(mask, (4, 6), sites)
    assert shares.keys() == {1, 2}
    assert shares[1][:6].tolist() == [1, 0.5, 0, 0, 0, 0] and shares[1][6:].sum() == 0
    assert shares[2].tolist() == [0.375, 0, 0, 0, 0, 0]


def test_two_masks_in_one_dtype():
    hard, soft = torch.tensor([True, False]), torch.tensor([0.5, 0.2])
    assert [mask.dtype for mask in same_dtype(hard, hard)] == [torch.bool] * 2
    assert [mask.dtype for mask in same_dtype(hard, soft)] == [torch.float32] * 2


# The edges of a picture


def test_a_mask_follows_the_edges_of_a_picture():
    """Of a mask that is off by a pixel on three sides; at a corner, a pixel may be left out."""
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(40), indexing="ij")
    place = (rows >= 8) & (rows < 24) & (columns >= 10) & (columns < 30)
    rough = (rows >= 9) & (rows < 25) & (columns >= 11) & (columns < 30)
    picture = torch.where(place, torch.tensor([0.8, -0.2, 0.1])[:, None, None], torch.tensor(-0.3))
    assert (rough != place).sum() == 54 and (follow_edges(rough, picture) != place).sum() <= 1
    assert not follow_edges(torch.zeros_like(rough), picture).any()


def test_the_guided_filter_is_that_of_its_definition():
    """Window by window, as in the paper: equations 19 to 21 for colours."""
    generator = torch.Generator().manual_seed(0)
    picture, mask = 2 * torch.rand(3, 9, 12, generator=generator) - 1, torch.zeros(9, 12, dtype=torch.bool)
    mask[2:8, 3:9] = True  # the root of the area is 6, so windows are two pixels to each side
    guide, fits = (picture.double() + 1) / 2, {}
    for y in range(9):
        for x in range(12):
            window = slice(max(y - 2, 0), y + 3), slice(max(x - 2, 0), x + 3)
            colours, p = guide[:, *window].flatten(1), mask[window].flatten().double()
            sigma = colours.cov(correction=0) + EDGE_EPSILON * torch.eye(3)
            a = sigma.inverse() @ ((colours * p).mean(1) - colours.mean(1) * p.mean())
            fits[y, x] = *a, p.mean() - a @ colours.mean(1)
    q = torch.zeros(9, 12, dtype=torch.float64)
    for (y, x), colour in zip(fits, guide.flatten(1).T, strict=True):
        near = [fit for (row, column), fit in fits.items() if abs(row - y) <= 2 and abs(column - x) <= 2]
        *a, b = torch.tensor(near, dtype=torch.float64).mean(0)
        q[y, x] = torch.stack(a) @ colour + b
    expected = q > 0.5
    assert torch.equal(follow_edges(mask, picture), expected) and 0 < (expected != mask).sum() < 40
