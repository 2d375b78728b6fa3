"""Moving objects: geometry, the operator in map space and in value space, and what happens to the latents."""

import math

import numpy as np
import pytest
import torch
from edit_table import EYE, assert_close, random_qkv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from minip2p.attention.contract import Site, attention_map, explicit, fused
from minip2p.config import SchedulerConfig
from minip2p.p2p.algebra import IDENTITY, INJECT, AttentionEdit, MaskedEdit, swap_edit
from minip2p.p2p.controller import controlled_attention
from minip2p.p2p.edit_plan import Movement, Region, StepEdit
from minip2p.p2p.warp import (
    LatentWarp,
    Move,
    ObjectEdit,
    PlacedObject,
    StrideWarp,
    WarpedEdit,
    attention_warps,
    grid_warp,
    move_pixels,
    nearest_background,
    noise_cells,
    touched_cells,
)
from minip2p.sched import DDIMScheduler

CROSS, SELF = Site("up", 0, True, 1), Site("up", 0, False, 1)


def box(size, top, left, height, width):
    """A mask of `size` that is white in a rectangle."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


def placed(mask, by=(0, 0), scale=1.0, kind="move"):
    return PlacedObject(ObjectEdit("cat", kind, Move(by, scale)), mask)


def cells(text):
    """A picture of a grid as numbers: '.' is -1."""
    return [-1 if c == "." else int(c) for line in text.split() for c in line]


def owners(objects, size, **options):
    return grid_warp(objects, size, **options).owner.tolist()


def holes(objects, size, **options):
    return grid_warp(objects, size, **options).hole.int().tolist()


# --- geometry


def test_a_shift_by_whole_cells_copies_rows():
    """A 2 × 2 object goes one cell to the right and one down; by hand."""
    warp = grid_warp([placed(box((4, 4), 0, 0, 2, 2), (1, 1))], (4, 4))
    assert warp.owner.tolist() == cells(".... .00. .00. ....")
    assert warp.hole.int().tolist() == cells("1100 1000 0000 0000")
    assert warp.T.is_selection
    x = torch.arange(16.0)[:, None]
    assert warp.T.rows(x)[~warp.hole, 0].tolist() == [2, 3, 0, 1, 7, 8, 4, 5, 11, 12, 13, 14, 15]


def test_x_is_to_the_right_and_y_down():
    mask = box((8, 8), 2, 2, 2, 2)
    assert owners([placed(mask, (2, 0))], (4, 4)) == cells(".... ..0. .... ....")
    assert owners([placed(mask, (0, 4))], (4, 4)) == cells(".... .... .... .0..")
    assert owners([placed(mask, (-2, -2))], (4, 4)) == cells("0... .... .... ....")


def test_a_shift_by_half_a_cell_interpolates_inside_of_the_object():
    """Cells 1 and 2 go half a cell to the right. Cell 2 is half of each; cells 1 and 3 have one half, all of which is
    the object's, so nothing of the background comes along."""
    warp = grid_warp([placed(box((1, 12), 0, 2, 1, 4), (1, 0))], (1, 6))
    assert warp.owner.tolist() == cells(".000..") and not warp.hole.any()
    expected = torch.eye(6)
    expected[1], expected[2], expected[3] = torch.eye(6)[1], torch.eye(6)[1:3].mean(0), torch.eye(6)[2]
    torch.testing.assert_close(warp.T.dense(), expected)


@pytest.mark.parametrize("shift, exact", [(8, True), (16, True), (24, False), (13, False)])
def test_24_pixels_are_a_cell_and_a_half_at_stride_2(shift, exact):
    """Cells of stride 2 have 16 pixels with a VAE of 8."""
    mask = box((128, 128), 32, 32, 32, 32)
    assert grid_warp([placed(mask, (shift, 0))], (16, 16)).T.is_selection == (shift % 8 == 0)
    assert grid_warp([placed(mask, (shift, 0))], (8, 8)).T.is_selection == (exact and shift % 16 == 0)


def test_an_object_twice_as_large_shows_each_cell_four_times():
    """2 × 2 cells become 4 × 4 about their centre; a corner cell of the new place lies inside of one old cell only."""
    warp = grid_warp([placed(box((6, 6), 2, 2, 2, 2), scale=2.0)], (6, 6))
    assert warp.owner.tolist() == cells("...... .0000. .0000. .0000. .0000. ......") and not warp.hole.any()
    corner = warp.T.dense()[7]
    assert corner[14] == 1  # the others of its four taps are background
    W, remaining = warp.T.normalized_transpose()
    assert len(remaining) == 36 - 16 + 4
    torch.testing.assert_close(W.dense().sum(1), torch.ones(24))


def test_an_object_half_as_large_leaves_a_hole_around_it():
    warp = grid_warp([placed(box((6, 6), 1, 1, 4, 4), scale=0.5)], (6, 6))
    assert warp.owner.tolist() == cells("...... ...... ..00.. ..00.. ...... ......")
    assert warp.hole.int().tolist() == cells("000000 011110 010010 010010 011110 000000")
    torch.testing.assert_close(warp.T.dense()[14, [7, 8, 13, 14]], torch.full((4,), 0.25))


def test_an_object_that_is_moved_and_resized_grows_about_its_new_centre():
    objects = [placed(box((1, 8), 0, 1, 1, 2), (2, 0), scale=2.0)]
    assert owners(objects, (1, 8)) == cells("..0000..") and holes(objects, (1, 8)) == [0, 1, 0, 0, 0, 0, 0, 0]
    objects = [placed(box((8, 1), 1, 0, 2, 1), (0, 2), scale=2.0)]
    assert owners(objects, (8, 1)) == cells("..0000..") and holes(objects, (8, 1)) == [0, 1, 0, 0, 0, 0, 0, 0]


def test_a_part_beyond_the_edge_is_lost():
    warp = grid_warp([placed(box((1, 4), 0, 1, 1, 2), (2, 0))], (1, 4))
    assert warp.owner.tolist() == cells("...0") and warp.hole.int().tolist() == cells("0110")
    W, remaining = warp.T.normalized_transpose()
    assert remaining.tolist() == [0, 1] and W.dense().tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_a_later_object_is_in_front_and_an_object_that_stays_hides_what_passes_behind():
    left, right = box((1, 5), 0, 0, 1, 2), box((1, 5), 0, 3, 1, 2)
    moving, other = placed(left, (2, 0)), placed(right, (-1, 0))
    assert owners([moving, other], (1, 5)) == cells("..11.")
    assert owners([other, moving], (1, 5)) == cells("..11.")
    assert grid_warp([moving, other], (1, 5)).T.dense()[3, 4] == 1
    assert grid_warp([other, moving], (1, 5)).T.dense()[3, 1] == 1
    assert owners([placed(left, (2, 0)), placed(right)], (1, 5)) == cells("..011")
    assert holes([placed(left, (2, 0)), placed(right)], (1, 5)) == cells("11000")


def test_where_masks_overlap_the_cell_is_the_later_objects():
    first, second = placed(box((1, 6), 0, 0, 1, 3), (3, 0)), placed(box((1, 6), 0, 2, 1, 1))
    assert owners([first, second], (1, 6)) == cells("..100.")
    assert holes([first, second], (1, 6)) == cells("110000")


def test_a_duplicate_leaves_no_hole_and_a_removed_object_has_no_new_place():
    mask = box((1, 4), 0, 0, 1, 2)
    assert holes([placed(mask, (2, 0), kind="duplicate")], (1, 4)) == [0] * 4
    gone = grid_warp([placed(mask, kind="remove")], (1, 4))
    assert gone.hole.int().tolist() == cells("1100") and (gone.owner == -1).all()


def test_a_grown_mask_has_all_cells_that_it_touches_but_none_of_another_object():
    size = (5, 7)
    mask = box((20, 28), 9, 10, 3, 4)  # of cells of 4 x 4 pixels it covers half of one, and touches its neighbour
    old, new = box(size, 2, 2, 1, 2), box(size, 2, 4, 1, 2)
    assert torch.equal(touched_cells(mask, size), old)
    warp = grid_warp([placed(mask, (8, 0))], size, grow=True)
    assert torch.equal(warp.owner.reshape(size) == 0, new) and torch.equal(warp.hole.reshape(size), old)
    assert torch.equal(warp.left.reshape(size), old)
    still = placed(box((20, 28), 8, 12, 4, 4))
    behind = grid_warp([placed(mask.roll(-4, 1), (4, 0)), still], size, grow=True).owner.reshape(size)[2]
    assert behind.tolist() == [-1, -1, 0, 1, -1, -1, -1]


def test_the_edge_of_a_grown_object_covers_no_object_behind():
    """One pixel of it is in cell 2 of cells of 4 pixels, and in cell 3 after the move."""
    behind, mask = placed(box((4, 28), 0, 12, 4, 4)), box((4, 28), 0, 4, 4, 5)
    assert owners([behind, placed(mask, (4, 0))], (1, 7), grow=True) == cells("..10...")
    assert owners([placed(mask, (4, 0))], (1, 7), grow=True) == cells("..00...")


def test_the_centre_is_the_mean_of_the_masks_pixels():
    assert placed(box((8, 8), 2, 4, 2, 3)).centre == (3.0, 5.5)


# --- matrices with few entries a row


shapes = st.tuples(st.integers(2, 7), st.integers(2, 7))


@st.composite
def scenes(draw):
    """One or two objects on a small grid, whose cells have 4 pixels; each with any shift and scale."""
    rows, columns = draw(shapes)
    objects = []
    for _ in range(draw(st.integers(1, 2))):
        top, left = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
        mask = box((4 * rows, 4 * columns), 4 * top, 4 * left, 4 * draw(st.integers(1, 3)), 4 * draw(st.integers(1, 3)))
        shift = draw(st.integers(-9, 9)), draw(st.integers(-9, 9))
        kind = draw(st.sampled_from(["move", "duplicate", "remove"]))
        objects.append(placed(mask, shift, draw(st.sampled_from([0.5, 0.7, 1.0, 1.0, 1.6])), kind))
    return objects, (rows, columns)


@settings(max_examples=60, deadline=None)
@given(scenes(), st.booleans())
def test_rows_of_T_and_W_sum_to_1_and_the_new_places_the_holes_and_the_rest_are_all_cells(scene, grow):
    objects, size = scene
    warp = grid_warp(objects, size, grow=grow)
    T = warp.T.dense()
    torch.testing.assert_close(T.sum(1), (~warp.hole).float())
    assert (T >= 0).all() and not (warp.hole & (warp.owner >= 0)).any()
    rest = ~warp.hole & (warp.owner < 0)
    assert torch.equal(T[rest], torch.eye(len(T))[rest])
    W, remaining = warp.T.normalized_transpose()
    column_sums = T.sum(0)
    assert remaining.tolist() == column_sums.nonzero().flatten().tolist()
    torch.testing.assert_close(W.dense(), T.mT[remaining] / column_sums[remaining, None])
    x = torch.randn(2, len(T), 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(warp.T.rows(x)[:, ~warp.hole], (T @ x)[:, ~warp.hole])


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_noise_is_used_once_but_for_holes_which_have_none_of_the_object(scene):
    objects, size = scene
    grid = grid_warp(objects, size, grow=True)
    cells = noise_cells(grid, size)
    elsewhere = cells[~grid.hole].tolist()
    assert len(set(elsewhere)) == len(elsewhere)
    in_holes = cells[grid.hole]
    assert not grid.left[in_holes].any() or not ((grid.owner < 0) & ~grid.hole).any()
    rest = (grid.owner < 0) & ~grid.hole
    covered = set((~grid.left & ~rest).nonzero().flatten().tolist()) - set(elsewhere)
    unused = covered - set(in_holes.tolist())
    assert not unused or len(set(in_holes.tolist())) == len(in_holes)  # copies only when all covered noise is used


def test_the_covered_noise_goes_into_the_hole_and_that_of_a_removed_object_is_its_neighbours():
    def cells(place, by=(0, 0), size=(1, 6), **kind):
        return noise_cells(grid_warp([placed(place, by, **kind)], size), size).tolist()

    assert cells(box((1, 6), 0, 1, 1, 2), (2, 0)) == [0, 3, 4, 1, 2, 5]
    assert cells(box((1, 6), 0, 1, 1, 3), kind="remove") == [0, 0, 0, 4, 4, 5]
    assert cells(box((2, 3), 0, 0, 1, 3), size=(2, 3), kind="remove") == [3, 4, 5, 3, 4, 5]
    in_a_row = cells(box((2, 5), 0, 1, 1, 3), size=(2, 5), kind="remove")
    assert in_a_row == [0, 0, 0, 4, 4, 5, 6, 7, 8, 9]  # and not the nearer ones below
    assert cells(box((1, 6), 0, 0, 1, 2), (3, 0), kind="duplicate") == [0, 1, 2, 3, 4, 5]  # its noise is used already
    assert cells(box((1, 2), 0, 0, 1, 2), size=(1, 2), kind="remove") == [0, 1]  # there is no other


def test_what_an_object_leaves_over_goes_to_new_places_first_and_what_is_covered_to_the_hole():
    """Cells 1 and 2 grow to cells 0 to 3; the object in 5 and 6 goes."""
    size = (1, 8)
    objects = [placed(box(size, 0, 1, 1, 2), scale=2.0), placed(box(size, 0, 5, 1, 2), kind="remove")]
    assert noise_cells(grid_warp(objects, size), size).tolist() == [1, 5, 2, 6, 4, 0, 3, 7]


@pytest.mark.parametrize("by", [(8, 0), (-16, 8), (24, 16)])
def test_there_and_back_again_is_the_source_where_nothing_was_lost(by):
    """The noise everywhere, to the bit; T of the object and of all that it covered neither time."""
    mask = box((64, 96), 24, 32, 16, 24)
    there = grid_warp([placed(mask, by)], (8, 12))
    back = grid_warp([placed(mask.roll((by[1], by[0]), (0, 1)), (-by[0], -by[1]))], (8, 12))
    noise = torch.randn(1, 4, 96, generator=torch.Generator().manual_seed(1))
    moved = noise[..., noise_cells(there, (8, 12))]
    assert torch.equal(moved[..., noise_cells(back, (8, 12))], noise) and not torch.equal(moved, noise)
    x = torch.arange(96.0)[:, None]
    back_again = back.T.rows(there.T.rows(x))
    lost = (there.owner >= 0) & (grid_warp([placed(mask)], (8, 12)).owner < 0)
    assert torch.equal(back_again[~lost], x[~lost]) and int(lost.sum()) <= 6


def test_a_hole_everywhere_attends_as_the_target_does():
    """As at a coarse site whose only cell an object covers that is removed."""
    q_s, k_s, q, k, v = random_qkv(8, keys=1, queries=1)
    edit = warped([placed(box((8, 8), 0, 0, 8, 8), kind="remove")], (1, 1), INJECT, SELF)
    for actual in (
        edit.attend((q_s, k_s), (q, k), v, SELF),
        edit.in_map_space(attention_map(q_s, k_s), attention_map(q, k)) @ v,
    ):
        assert_close(actual, fused(q, k, v))


# --- the operator


def warped(objects, size, edit, site, in_hole=IDENTITY, dropped=()):
    warp = StrideWarp(grid_warp(objects, size))
    return WarpedEdit(edit, in_hole, warp, site.cross, dropped if site.cross else warp.left_out)


def test_the_operator_by_hand():
    """Four pixels in a row; the object in pixel 0 goes to pixel 2. Rows are queries, columns words or pixels. Among
    words, the hole has the row of pixel 1, which is the nearest of the rest, without the object's word."""
    objects, size = [placed(box((1, 4), 0, 0, 1, 1), (2, 0))], (1, 4)
    A_s = tensor([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2]])[None, None]
    A_e = tensor([[0.5, 0.1, 0.4], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4], [0.3, 0.3, 0.4]])[None, None]
    cross = warped(objects, size, INJECT, CROSS, dropped=(1,)).in_map_space(A_s, A_e)[0, 0]
    expected = tensor([[0.2, 0.0, 0.8], [0.2, 0.3, 0.5], [0.5, 0.25, 0.25], [0.6, 0.2, 0.2]])
    torch.testing.assert_close(cross, expected)
    S_s = tensor([[0.4, 0.2, 0.2, 0.2], [0.1, 0.4, 0.3, 0.2], [0.3, 0.2, 0.4, 0.1], [0.4, 0.1, 0.3, 0.2]])[None, None]
    S_e = torch.full((1, 1, 4, 4), 0.25)
    own_pixels = warped(objects, size, INJECT, SELF).in_map_space(S_s, S_e)[0, 0]
    # Pixel 2 of the source is covered: its column is left out. What was in column 0 is now in column 2. The hole
    # attends to the rest, pixels 1 and 3.
    expected = tensor(
        [
            [0, 0.5, 0, 0.5],
            [0, 0.4 / 0.7, 0.1 / 0.7, 0.2 / 0.7],
            [0, 0.2 / 0.8, 0.4 / 0.8, 0.2 / 0.8],
            [0, 0.1 / 0.7, 0.4 / 0.7, 0.2 / 0.7],
        ]
    )
    torch.testing.assert_close(own_pixels, expected)


def test_a_hole_has_the_nearest_cell_of_the_rest_on_its_line_or_on_another():
    """The left or upper one of two that are equally near. Rows of 5: an object is marked o, a hole h, the rest r."""
    lines = ("rhhhr", "ohhoo", "hhooh", "rohhh")
    cells = torch.tensor([[ord(cell) for cell in line] for line in lines])
    nearest = nearest_background(cells == ord("h"), cells == ord("r"))
    assert nearest.tolist() == [0, 0, 4, 0, 0, 15, 15, 15, 15, 15, 15]
    assert nearest_background(cells == ord("h"), cells < 0).tolist() == [1, 2, 3, 6, 7, 10, 11, 14, 17, 18, 19]


def test_holes_take_the_rows_of_others_among_words_and_their_own_among_pixels():
    """In both executions, where the target's rows differ; K leaves out words or pixels by the site."""
    warps = attention_warps([placed(box((1, 4), 0, 0, 1, 1), (2, 0))], (1, 4), [CROSS])
    step = StepEdit(IDENTITY, 0, 99, movement=Movement(warps, (3,), IDENTITY))
    for site, keys, query, left_out in ((CROSS, 77, 1, (3,)), (SELF, 4, 0, (0, 2))):
        _, _, q, k, v = random_qkv(9, keys=keys, queries=4)
        edit, left_in = step.at_site(site, 4), [j for j in range(keys) if j not in left_out]
        expected = fused(q[:, :, [query]], k[:, :, left_in], v[:, :, left_in])
        A = attention_map(q, k)
        assert edit.dropped == left_out
        assert_close(edit.attend(None, (q, k), v, site)[:, :, :1], expected)
        assert_close(edit.in_map_space(A, A)[:, :, :1] @ v, expected)


def test_weights_of_words_hold_in_the_hole():
    """The nearest row without the object's word, renormalized and then weighted: (0.1, 0.4) / 0.5 times (2, 0.5)."""
    objects, weights = [placed(box((1, 3), 0, 0, 1, 1), kind="remove")], tensor([2.0, 1.0, 0.5])
    edit = warped(objects, (1, 3), IDENTITY, CROSS, in_hole=IDENTITY.reweighted(weights), dropped=(1,))
    A = tensor([[0.8, 0.1, 0.1], [0.1, 0.5, 0.4], [0.2, 0.3, 0.5]])[None, None]
    torch.testing.assert_close(edit.in_map_space(A, A)[0, 0, 0], tensor([0.4, 0.0, 0.4]))


def test_new_places_and_the_old_place_of_a_duplicate_fill_no_hole():
    """The object in cell 4 goes to cell 5, so that cell 6 is the nearest of the rest; and the duplicated one stays."""
    moved = placed(box((2, 4), 1, 0, 1, 1), (1, 0))
    warp = grid_warp([moved], (2, 4))
    assert warp.hole.nonzero().flatten().tolist() == [4] and warp.fill.tolist() == [6]
    warp = grid_warp([moved, placed(box((2, 4), 1, 2, 1, 1), (0, -1), kind="duplicate")], (2, 4))
    assert warp.hole.nonzero().flatten().tolist() == [4] and warp.fill.tolist() == [7]


def test_W_is_minus_log_m_on_the_logit_of_a_key_that_appears_m_times():
    """Of a duplicate and of one twice as large, moved by whole cells: the source's key at every place of its content.

    The key of a covered position is left out, as a logit of minus infinity does.
    """
    objects, size = [placed(box((1, 6), 0, 0, 1, 2), (3, 0), kind="duplicate")], (1, 6)
    q_s, k_s, _, _, v = random_qkv(3, keys=6)
    warp = StrideWarp(grid_warp(objects, size))
    g = tensor([0, 1, 2, 0, 1, 5])  # whose content each position shows
    m = tensor([2, 2, 1, 2, 2, 1])
    logits = q_s[:, :, g] @ k_s[:, :, g].mT / math.sqrt(4) - m.log()
    expected = logits.softmax(-1) @ v
    assert_close(warp.moved(fused)(q_s, k_s, v, SELF), expected)
    assert_close(warp.moved_map(attention_map(q_s, k_s), cross=False) @ v, expected)


def test_for_a_shift_of_whole_cells_it_is_the_recorded_queries_and_keys_at_g():
    """Where nothing is lost: two objects that change places."""
    objects = [placed(box((1, 4), 0, 0, 1, 1), (3, 0)), placed(box((1, 4), 0, 3, 1, 1), (-3, 0))]
    g, warp = tensor([3, 1, 2, 0]), StrideWarp(grid_warp(objects, (1, 4)))
    q_s, k_s, _, _, v = random_qkv(4, keys=4, queries=4)
    assert_close(warp.moved(fused)(q_s, k_s, v, SELF), fused(q_s[:, :, g], k_s[:, :, g], v))
    q_s, k_s, _, _, v = random_qkv(4, queries=4)
    assert_close(warp.moved(fused)(q_s, k_s, v, CROSS), fused(q_s[:, :, g], k_s, v))


EDITS = {
    "as it is": INJECT,
    "swap": swap_edit(EYE.roll(1, 1)),
    "half": AttentionEdit(0.5, 0.5),
    "re-weighted": INJECT.reweighted(torch.linspace(-1, 2, 77)),
    "none": IDENTITY,
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("with_region", [False, True])
@settings(max_examples=15, deadline=None)
@given(scenes(), st.integers(0, 99))
def test_explicit_equals_fused(edit, with_region, scene, seed):
    """Both executions through the contract, cross and self, with any objects, words dropped in the holes."""
    objects, size = scene
    queries = size[0] * size[1]
    warps = attention_warps(objects, size, [CROSS])
    region = Region({1: torch.linspace(0, 1, queries)}, swap_edit(EYE)) if with_region else None
    movement = Movement(warps, (2, 5), IDENTITY.reweighted(torch.linspace(0, 2, 77)))
    alpha = {"as it is": 1.0, "half": 0.5}.get(edit, 0.0)
    step = StepEdit(EDITS[edit], alpha, 99, region=region, movement=movement)
    for site, keys in ((CROSS, 77), (SELF, queries)):
        q_s, k_s, q, k, v = random_qkv(seed, keys=keys, queries=queries)
        outputs = [
            controlled_attention({site: (q_s, k_s)}, [step], attend, explicit=is_explicit)(q, k, v, site)
            for attend, is_explicit in ((fused, False), (fused, True), (explicit(), False))
        ]
        assert_close(outputs[1], outputs[0], outputs[0].std())
        assert_close(outputs[2], outputs[0], outputs[0].std())


@pytest.mark.parametrize("site", [CROSS, SELF])
def test_inputs_stay_unchanged_and_gradients_flow(site):
    edit = warped([placed(box((1, 6), 0, 0, 1, 2), (1.5, 0))], (1, 6), INJECT, site, dropped=(3,))
    tensors = [x.requires_grad_() for x in random_qkv(5, keys=77 if site.cross else 6)]
    before = [x.clone() for x in tensors]
    q_s, k_s, q, k, v = tensors
    edit.attend((q_s, k_s), (q, k), v, site).sum().backward()
    assert all(map(torch.equal, tensors, before)) and all(x.grad is not None and x.grad.any() for x in tensors)


def test_outside_of_a_region_the_attention_is_the_moved_sources():
    objects, size = [placed(box((1, 4), 0, 0, 1, 1), (2, 0))], (1, 4)
    inside = tensor([1.0, 1, 0, 0])[:, None]
    q_s, k_s, q, k, v = random_qkv(6, queries=4)
    edit = warped(objects, size, MaskedEdit(IDENTITY, INJECT, inside), CROSS)
    out, source, target = edit.attend((q_s, k_s), (q, k), v, CROSS), fused(q_s, k_s, v), fused(q, k, v)
    assert_close(out, torch.stack([target[:, :, 1], target[:, :, 1], source[:, :, 0], source[:, :, 3]], 2))


def test_after_the_schedule_only_the_holes_are_edited():
    """And without a hole, nothing is; before its end, what has no hole is moved as well."""
    leaving, staying = (
        attention_warps([placed(box((1, 4), 0, 0, 1, 1), (2, 0), kind=kind)], (1, 4), [CROSS])
        for kind in ("move", "duplicate")
    )
    for warps, dropped, site, expected in (
        (leaving, (3,), CROSS, WarpedEdit),
        (leaving, (), CROSS, WarpedEdit),
        (staying, (3,), CROSS, AttentionEdit),
        (leaving, (), SELF, WarpedEdit),
        (staying, (3,), SELF, AttentionEdit),
    ):
        edit = StepEdit(IDENTITY, 0, 99, movement=Movement(warps, dropped, IDENTITY)).at_site(site, 4)
        assert isinstance(edit, expected) and not edit.reads
    injected = StepEdit(INJECT, 1, 99, movement=Movement(staying, (3,), IDENTITY))
    assert all(isinstance(injected.at_site(site, 4), WarpedEdit) for site in (CROSS, SELF))
    injected = StepEdit(INJECT, 1, 99, movement=Movement(staying, (3,), IDENTITY))
    assert all(isinstance(injected.at_site(site, 4), WarpedEdit) for site in (CROSS, SELF))
    _, _, q, k, v = random_qkv(7, queries=4)
    edit = StepEdit(IDENTITY, 0, 99, movement=Movement(leaving, (3,), IDENTITY)).at_site(CROSS, 4)
    out, remaining = edit.attend(None, (q, k), v, CROSS), [j for j in range(77) if j != 3]
    assert_close(out[:, :, 1:], fused(q, k, v)[:, :, 1:])
    assert_close(out[:, :, :1], fused(q[:, :, 1:2], k[:, :, remaining], v[:, :, remaining]))


def test_step_edits_of_other_movements_have_other_keys():
    def key(dropped, weight, x):
        warps = attention_warps([placed(box((1, 4), 0, 0, 1, 1), (x, 0))], (1, 4), [CROSS])
        movement = Movement(warps, dropped, IDENTITY.reweighted(weight * torch.ones(77)))
        return StepEdit(IDENTITY, 0, 99, movement=movement).cache_key

    terms = [((), 1, 2), ((3,), 1, 2), ((), 2, 2), ((), 1, 1)]
    assert len({StepEdit(IDENTITY, 0, 99).cache_key, *(key(*each) for each in terms)}) == 5
    assert key(*terms[1]) == key(*terms[1])


def test_the_key_of_a_geometry_knows_objects_that_stay():
    """The holes do not attend to them, although T is the same."""
    moved, still = placed(box((1, 6), 0, 0, 1, 1), (1, 0)), box((1, 6), 0, 3, 1, 1)
    warps = [StrideWarp(grid_warp([moved, placed(mask)], (1, 6))) for mask in (still, still.roll(1, 1), still)]
    assert warps[0].left_out != warps[1].left_out and torch.equal(warps[0].T.dense(), warps[1].T.dense())
    assert warps[0].cache_key == warps[2].cache_key != warps[1].cache_key


# --- latents


SCHEDULER = DDIMScheduler(SchedulerConfig())


def random_latents(seed, size):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 4, *size, generator=g) for _ in range(4)]


def latent_warp(objects, size, until=4, keeps_rest=True):
    """With random latents of the source's picture and of the picture whose objects were moved."""
    x0, moved_x0 = random_latents(0, size)[:2]
    return LatentWarp.of_objects(objects, [until] * len(objects), x0, moved_x0, keeps_rest=keeps_rest)


def test_latent_pixels_that_a_mask_touches_belong_to_its_object():
    warp = latent_warp([placed(box((64, 64), 22, 14, 12, 12), (24, 0))], (8, 8))
    hole = warp.area & (warp.until == 0)
    assert torch.equal(hole, box((8, 8), 2, 1, 3, 3)) and torch.equal(warp.area, box((8, 8), 2, 1, 3, 6))
    assert torch.equal(warp.until > 0, box((8, 8), 2, 4, 3, 3))


@pytest.mark.parametrize("by, scale", [((16, 0), 1.0), ((-8, 8), 1.0), ((3, 0), 1.6)])
def test_a_new_place_has_the_signal_of_the_moved_picture_and_noise_of_the_source(by, scale):
    """x' = √ᾱ' x_0 + noise, by hand."""
    size, step = (8, 12), SCHEDULER.steps(10)[4]
    warp = latent_warp([placed(box((64, 96), 24, 40, 16, 24), by, scale)], size)
    x, after = random_latents(2, size)[:2]
    shared = warp.share(3, x, after, step)
    new_place, signal = (warp.until > 0).expand_as(x), step.alpha_cumprod_prev**0.5
    noise = (after - signal * warp.x0).flatten(2)[..., warp.noise_cells].reshape(x.shape)
    torch.testing.assert_close(shared[new_place], (signal * warp.moved_x0 + noise)[new_place])
    assert torch.equal(shared[~new_place], x[~new_place])
    assert torch.equal(warp.share(4, x, after, step), x)


def test_an_object_that_stays_has_the_sources_latents_to_the_bit():
    """It is in front of the one that is moved, whose cells change."""
    size, step = (8, 12), SCHEDULER.steps(10)[4]
    still, moved = placed(box((64, 96), 24, 40, 16, 24)), placed(box((64, 96), 24, 0, 16, 24), (8, 0))
    warp = latent_warp([moved, still], size)
    x, after = random_latents(2, size)[:2]
    shared, place = warp.share(0, x, after, step), box(size, 3, 5, 2, 3).expand_as(x)
    assert torch.equal(shared[place], after[place])
    changed = box(size, 3, 1, 2, 3).expand_as(x)
    assert not (shared[changed] == after[changed]).any() and not (shared[changed] == x[changed]).any()


def test_pixels_are_moved_and_a_hole_has_the_nearest_of_the_background():
    row = torch.arange(6.0).expand(3, 2, 6).clone()
    row[:, 1] += 10
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 1:3] = True
    shifted = move_pixels([placed(mask, (3, 0))], row)
    assert shifted[0].tolist() == [[0, 0, 3, 3, 1, 2], [10, 11, 12, 13, 14, 15]]
    twice = move_pixels([placed(mask, (3, 0), kind="duplicate")], row)
    assert twice[1, 0].tolist() == [0, 1, 2, 3, 1, 2]
    mask[0] = True  # nothing is left of the row
    gone = move_pixels([placed(mask, kind="remove")], row)
    assert torch.equal(gone, row[:, 1:].expand_as(row))
    half = placed(torch.zeros(2, 6, dtype=torch.bool).index_fill(1, tensor(2), True) & ~mask, (0.5, 0))
    both = move_pixels([placed(mask, kind="remove"), half], row)
    assert both[0, 0].tolist() == [10, 11, 11, 14, 14, 15]  # not from the other object either


def test_outside_of_the_old_and_new_places_the_latents_are_kept():
    warp = latent_warp([placed(box((64, 64), 24, 12, 16, 16), (24, 0))], (8, 8))
    x, rest = random_latents(4, (8, 8))[:2]
    out, area = warp.keep_rest(x, rest), box((8, 8), 3, 1, 2, 6).expand_as(x)
    assert torch.equal(warp.area.expand_as(x), area)
    assert torch.equal(out[area], x[area]) and torch.equal(out[~area], rest[~area])


def test_equal_keys_are_equal_warps():
    mask, size = box((64, 64), 24, 8, 16, 16), (8, 8)
    warps = [
        latent_warp([placed(mask, (8, 0))], size),
        latent_warp([placed(mask, (8, 8))], size),
        latent_warp([placed(mask, (8, 0), 1.5)], size),
        latent_warp([placed(mask, (8, 0), kind="duplicate")], size),
        latent_warp([placed(mask.roll(8, 0), (8, 0))], size),
        latent_warp([placed(mask, (8, 0))], size, until=3),
        latent_warp([placed(mask, (8, 0))], size, keeps_rest=False),
    ]
    assert len({warp.cache_key for warp in warps}) == len(warps)
    fewer_pixels = box((64, 64), 25, 9, 14, 14)  # of the same cells
    assert latent_warp([placed(fewer_pixels, [8.0, 0.0])], size).cache_key == warps[0].cache_key


# --- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({"by": 32}, "moved by"),
        ({"by": (1, 2, 3)}, "moved by"),
        ({"by": ("1", 2)}, "moved by"),
        ({"by": (float("nan"), 0)}, "moved by"),
        ({"scale": 0}, "from 0.1 to 10"),
        ({"scale": "2"}, "from 0.1 to 10"),
        ({"until": 1.5}, "until is a share"),
        ({"until": "a"}, "until is a share"),
        ({"mask": "cat.png"}, "a mask is an image"),
        ({"mask": np.full((4, 4), 255)}, "divide it by 255"),
    ],
)
def test_a_bad_move_is_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        Move(**options)
    assert "\n" not in str(error.value)
