"""Moving objects: the query side of the algebra of edits.

A word edit multiplies the source's map by matrices from the right, over words. A move multiplies it from the left, over
queries. These are divided by masks: n, the new places of the objects; h, the holes that they leave; r, the rest.

    Â = T A_s R + A_e S    on n and r, T = n G + r      cross-attention; (R, S) is the word edit
    Â = T A_s W            on n and r                   self-attention, to the share α of its schedule
    Â = F A_e K            on h, at all steps           cross-attention
    Â = A_e K              on h, at all steps           self-attention

G takes to each query of a new place the row of the query that it came from. K leaves out the objects' words, or the
pixels of n and h, and renormalizes: so a hole is filled with what the rest of the picture has (the idea of key-masked
self-attention: Jia et al. 2024, DesignEdit, arXiv 2403.14487). F takes to each query of a hole the row of the nearest
query of r, on the same line if it has one: other words, the end token and the padding tell of the object as well, and
the background attends to them as it does where no object is. W brings the target's keys back to their positions in
the source: it is Tᵀ with the sum of each row 1. A position whose content is lost (it is covered, or beyond the edge) is
left out as by K. So a key that appears m times has a weight of 1/m each time, as − log m on its logit would give.

In value space T acts on outputs and W on values, and keys are left out before the softmax, so no map is formed. Only
outputs and values are interpolated (bilinearly, where a shift is not a whole number of cells), never queries or keys.

Axes: i queries, p positions in the source, j words or keys, k taps of an interpolation, H W picture pixels, y x cells
of a grid, which are latent pixels or queries.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.attention.contract import QK, Attend, Site, fused
from minip2p.attention.heatmaps import map_size
from minip2p.attention.masks import mask_to_latent
from minip2p.io.images import read_mask
from minip2p.io.tensors import to_device
from minip2p.p2p.algebra import AttentionEdit, MaskedEdit, cache_key
from minip2p.sched.ddim import Step
from minip2p.text.prompt import WordSelector
from minip2p.validation import is_finite

SMALLEST_SCALE, LARGEST_SCALE = 0.1, 10.0
PARTS = 2**20  # shifts are rounded to so many parts of a cell, so that a whole number of cells is one


@dataclass(frozen=True, eq=False)
class Move:
    """What happens to an object.

    by: (x, y) in picture pixels, x to the right and y down. scale: of its size, about the centre of its mask. mask: its
    place, H W, instead of the word's: a tensor, an array or a Pillow image, 1 or white where the object is. until: the
    share of the run during which the object's latents are those of the source, moved; None is 1 where the prompt and
    its weights are the source's, else 0, as the object would not change. Raises ValueError.
    """

    by: tuple[float, float] = (0, 0)
    scale: float = 1.0
    mask: Any = None
    until: float | None = None

    def __post_init__(self) -> None:
        by = self.by
        is_pair = isinstance(by, tuple | list) and len(by) == 2
        if not is_pair or not all(is_finite(shift) and not isinstance(shift, bool) for shift in by):
            raise ValueError(f"an object is moved by (x, y) pixels, as (32, 0), not by {by!r}")
        if not is_finite(self.scale) or not SMALLEST_SCALE <= self.scale <= LARGEST_SCALE:
            limits = f"{SMALLEST_SCALE:g} to {LARGEST_SCALE:g}"
            raise ValueError(f"the scale of an object must be a number from {limits}, not {self.scale!r}")
        if self.until is not None and (not is_finite(self.until) or not 0 <= self.until <= 1):
            raise ValueError(f"until is a share of the run from 0 to 1, not {self.until!r}")
        if self.mask is not None:
            object.__setattr__(self, "mask", read_mask(self.mask))


@dataclass(frozen=True, eq=False)
class ObjectEdit:
    """An object of the source, by its word, and what happens to it: it is moved, appears a second time, or goes."""

    word: WordSelector
    kind: Literal["move", "duplicate", "remove"]
    move: Move

    @property
    def leaves(self) -> bool:
        """Whether the object leaves its place."""
        return self.kind != "duplicate"

    @property
    def appears(self) -> bool:
        """Whether the object has a new place."""
        return self.kind != "remove"


@dataclass(frozen=True, eq=False)
class PlacedObject:
    """An object with its place. mask: H W bool, where it is in the source. centre: (y, x) of the mask, in pixels."""

    edit: ObjectEdit
    mask: Tensor

    @property
    def centre(self) -> tuple[float, float]:
        """The mean (y, x) of the mask's pixels."""
        y, x = (self.mask.nonzero().double().mean(0) + 0.5).tolist()
        return y, x

    def source_of(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Where the target's points (y, x), in pixels, are in the source."""
        (centre_y, centre_x), (dx, dy), scale = self.centre, self.edit.move.by, self.edit.move.scale
        return centre_y + (y - dy - centre_y) / scale, centre_x + (x - dx - centre_x) / scale


# --- matrices with few entries a row


@dataclass(frozen=True, eq=False)
class Resampling:
    """A matrix, rows × columns, of which each row has few entries: row i is Σ_k weights[i, k] e(indices[i, k]).

    indices: rows k, int64. weights: rows k, float32.
    """

    indices: Tensor
    weights: Tensor
    columns: int

    @classmethod
    def of_taps(cls, indices: Tensor, weights: Tensor, columns: int) -> "Resampling":
        """The matrix with as few taps as its fullest row has."""
        weights, order = weights.sort(dim=1, descending=True, stable=True)
        count = max([1, *(weights > 0).sum(1).tolist()])
        return cls(indices.gather(1, order)[:, :count], weights[:, :count].float(), columns)

    @property
    def is_selection(self) -> bool:
        """Whether each row is a unit vector or 0."""
        return self.indices.shape[1] == 1

    @property
    def is_identity(self) -> Tensor:
        """Which rows are those of the identity matrix, bool."""
        return (self.indices[:, 0] == torch.arange(len(self.indices))) & (self.weights[:, 0] == 1)

    @cached_property
    def cache_key(self) -> Hashable:
        """Equal for equal matrices."""
        return cache_key(self.indices), cache_key(self.weights)

    def rows(self, x: Tensor) -> Tensor:
        """The product with x, … columns d -> … rows d; of a zero row, anything. A unit vector copies, to the bit."""
        indices, weights = to_device(self.indices, x.device), to_device(self.weights, x.device, x.dtype)
        out = x[..., indices[:, 0], :]
        if self.is_selection:
            return out
        out = out * weights[:, :1]
        for k in range(1, indices.shape[1]):
            out = out + x[..., indices[:, k], :] * weights[:, k : k + 1]
        return out

    def dense(self) -> Tensor:
        """The matrix itself."""
        matrix = torch.zeros(len(self.indices), self.columns)
        return matrix.scatter_add(1, self.indices, self.weights)

    def normalized_transpose(self) -> tuple["Resampling", Tensor]:
        """The transpose without its zero rows, the sum of each row 1; and which rows these are, in order."""
        i, k = (self.weights > 0).nonzero(as_tuple=True)
        p, weights = self.indices[i, k], self.weights[i, k]
        order = p.argsort(stable=True)
        i, p, weights = i[order], p[order], weights[order]
        counts = torch.bincount(p, minlength=self.columns)
        tap = torch.arange(len(p)) - (counts.cumsum(0) - counts)[p]
        shape = self.columns, max(int(counts.max()), 1)
        indices = torch.zeros(shape, dtype=torch.int64).index_put((p, tap), i)
        entries = torch.zeros(shape).index_put((p, tap), weights)
        remaining = counts.nonzero().flatten()
        entries = entries[remaining]
        total = entries.double().sum(1, keepdim=True)
        return Resampling.of_taps(indices[remaining], entries.double() / total, len(self.indices)), remaining


# --- geometry


@dataclass(frozen=True, eq=False)
class GridWarp:
    """The geometry on a grid of cells: queries of a stride, or latent pixels.

    T: n G + r, targets × sources; its rows in the holes are 0. owner: which object each cell of a new place belongs to,
    an index; −1 on h and r. left: the cells that objects leave, bool. hole: h, those of them without a new place,
    bool. nearest: the nearest source cell of each cell of n, −1 where that lies outside of the object or the grid; a
    cell of r is its own, and a hole has −1. fill: of each cell of h, the nearest cell of r where no object was, see
    `nearest_background`.
    """

    T: Resampling
    owner: Tensor
    left: Tensor
    hole: Tensor
    nearest: Tensor
    fill: Tensor


def grid_warp(objects: Sequence[PlacedObject], size: tuple[int, int], *, grow: bool = False) -> GridWarp:
    """The geometry of objects on a grid of `size`, rows × columns. A later object is in front of an earlier one.

    A cell belongs to an object if the mask covers half of it or more, and to a later object if both do. A cell of the
    new place has half of its bilinear weights or more inside of the object; the others are left out, and the weights
    divided by their sum. grow: cells that the mask touches belong to the object as well, in front of nothing but the
    background.
    """
    masks = exclusive([mask_to_latent(placed.mask, size) for placed in objects])
    grown = exclusive([touched_cells(placed.mask, size) for placed in objects], masks) if grow else masks
    count = size[0] * size[1]
    indices, weights = torch.arange(count)[:, None].repeat(1, 4), torch.zeros(count, 4, dtype=torch.float64)
    weights[:, 0] = 1
    owner, nearest = torch.full((count,), -1), torch.arange(count)
    left = torch.zeros(count, dtype=torch.bool)
    for placed, mask in zip(objects, grown, strict=True):
        if placed.edit.leaves:
            left |= mask.flatten()
    new_places = []
    for n, (placed, mask, outer) in enumerate(zip(objects, masks, grown, strict=True)):
        if placed.edit.appears:
            inner_place, outer_place = (bilinear_taps(placed, each, size) for each in (mask, outer))
            inside = inner_place[1].sum(1) >= 0.5
            new_places.append((n, inside, outer_place))
    for is_core in (False, True):
        for n, inside, (taps, shares, closest) in new_places:
            total = shares.sum(1)
            cells = (total >= 0.5) & (inside | (not is_core))
            indices[cells], weights[cells] = taps[cells], shares[cells] / total[cells, None]
            owner[cells], nearest[cells] = n, closest[cells]
    hole = left & (owner < 0)
    weights[hole], nearest[hole] = 0, -1
    rest = ((owner < 0) & ~hole).reshape(size)
    for mask in grown:  # the old place of an object that is duplicated is no background
        rest &= ~mask
    fill = nearest_background(hole.reshape(size), rest)
    return GridWarp(Resampling.of_taps(indices, weights, count), owner, left, hole, nearest, fill)


def nearest_background(hole: Tensor, rest: Tensor) -> Tensor:
    """Of each cell of the hole an index: the nearest cell of the rest on its line, or where this line has none, on the
    nearest line that has one; the cell itself where there is no rest. Both are y x, bool.

    Of two that are equally near, the left or upper one.
    """
    height, width = hole.shape
    lines = rest.any(1).nonzero().flatten()
    if not len(lines):
        return hole.flatten().nonzero().flatten()
    columns = torch.arange(width).expand_as(hole)
    left = torch.where(rest, columns, -2 * width).cummax(1).values
    right = torch.where(rest, columns, 3 * width).flip(1).cummin(1).values.flip(1)
    nearest = torch.where(columns - left <= right - columns, left, right)
    line = lines[(torch.arange(height)[:, None] - lines).abs().argmin(1)]
    return (line[:, None] * width + nearest[line])[hole]


def exclusive(masks: Sequence[Tensor], cores: Sequence[Tensor] | None = None) -> list[Tensor]:
    """The masks without the places of later objects. cores: of all objects; then also without those of earlier ones."""
    out = []
    for n, mask in enumerate(masks):
        others = [*masks[n + 1 :]] if cores is None else [core for m, core in enumerate(cores) if m != n]
        out.append(mask & ~torch.stack(others).any(0) if others else mask)
    return out


def touched_cells(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The cells of a grid of which a mask H W covers any part, y x bool."""
    return F.adaptive_max_pool2d(mask[None].float(), size)[0] > 0


def bilinear_taps(placed: PlacedObject, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """For each cell of a grid, the four source cells around its point in the source, with their bilinear weights.

    mask: the object's cells, y x; a cell outside of them has the weight 0. The third result is the nearest cell of the
    four, and −1 where it is outside.
    """
    rows, columns = size
    height, width = placed.mask.shape[0] / rows, placed.mask.shape[1] / columns
    y, x = torch.meshgrid(
        (torch.arange(rows, dtype=torch.float64) + 0.5) * height,
        (torch.arange(columns, dtype=torch.float64) + 0.5) * width,
        indexing="ij",
    )
    y, x = placed.source_of(y.flatten(), x.flatten())
    y, x = ((PARTS * (at / side - 0.5)).round() / PARTS for at, side in ((y, height), (x, width)))
    top, left = y.floor(), x.floor()
    taps, weights = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            weights.append((1 - (y - top - dy).abs()) * (1 - (x - left - dx).abs()))
            taps.append(cell_index(top + dy, left + dx, mask))
    indices, shares = torch.stack(taps, 1), torch.stack(weights, 1)
    shares = torch.where(indices < 0, 0.0, shares)
    return indices.clamp(min=0), shares, cell_index((y + 0.5).floor(), (x + 0.5).floor(), mask)


def cell_index(y: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """The index of the cell at (y, x), or −1 where it lies outside of the grid or of the mask."""
    rows, columns = mask.shape
    is_inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    index = (y.clamp(0, rows - 1) * columns + x.clamp(0, columns - 1)).long()
    return torch.where(is_inside & mask.flatten()[index], index, -1)


def noise_cells(warp: GridWarp, size: tuple[int, int]) -> Tensor:
    """Which cell each cell takes its noise from, on a grid of `size`.

    A cell of the rest keeps its noise. A cell of a new place takes that of the nearest cell of its source, once each:
    so shifts of the noise are rounded to whole cells. Where this leaves cells of a new place without noise, they have
    what is left of the objects' and then of what these cover. The holes have what is covered, in the order of rows. So
    far this is a permutation, which keeps white noise white. A hole that is larger than what is covered, as that of an
    object which is removed, would keep the object's noise, and with it what grows from it. Its other cells have that of
    the nearest cell of the rest, in the same row if there is one: the noise of an inverted picture tells what it shows.
    """
    nearest = warp.nearest.tolist()
    result = [p if owner < 0 else -1 for p, owner in zip(nearest, warp.owner.tolist(), strict=True)]
    taken = {p for p in result if p >= 0}
    for i, p in enumerate(nearest):
        if result[i] < 0 and p >= 0 and p not in taken:
            result[i] = p
            taken.add(p)
    free = [p for p in range(len(result)) if p not in taken]
    free.sort(key=lambda p: not warp.left[p])  # the objects' own noise first, for what is left of new places
    cells = torch.arange(len(result))
    rest = cells[(warp.owner < 0) & ~warp.hole]
    for i in cells[warp.owner >= 0].tolist():
        if result[i] < 0:
            result[i] = free.pop(0)
    free = [p for p in free if not warp.left[p]]
    for i in cells[warp.hole].tolist():
        if free:
            result[i] = free.pop(0)
        elif len(rest):
            rows, columns = (rest // size[1] - i // size[1]).abs(), (rest % size[1] - i % size[1]).abs()
            result[i] = int(rest[(rows * size[1] + columns).argmin()])
        else:
            result[i] = i
    return torch.tensor(result)


def move_pixels(objects: Sequence[PlacedObject], picture: Tensor) -> Tensor:
    """A picture 3 H W with its objects in their new places. A hole has the nearest pixels of the background.

    Only the pixels of the objects count: a VAE reads them again, and what is in the holes changes cells beside them.
    """
    size = (picture.shape[1], picture.shape[2])
    grid = grid_warp(objects, size)
    pixels = picture.flatten(1)
    moved = grid.T.rows(pixels.mT).mT
    hole, fill = to_device(grid.hole.nonzero().flatten(), picture.device), to_device(grid.fill, picture.device)
    return moved.index_copy(1, hole, pixels[:, fill]).reshape(picture.shape)


# --- attention


class StrideWarp:
    """The geometry at the attention sites of one stride. T, W: see the top of this file.

    remaining: the source positions that W has, p. hole: the queries of h. fill: F, the queries whose rows they have
    (see `GridWarp`). left_out: the pixels that K leaves out, those
    of n and h; none where these are all.
    """

    def __init__(self, grid: GridWarp):
        self.T, self.hole, self.fill = grid.T, grid.hole.nonzero().flatten(), grid.fill
        objects = grid.hole | (grid.owner >= 0)
        self.left_out = () if objects.all() else tuple(objects.nonzero().flatten().tolist())
        self.W, self.remaining = grid.T.normalized_transpose()
        if not len(self.remaining):  # a hole everywhere: nothing reads what T A_s W is
            self.W, self.remaining = grid.T, torch.arange(grid.T.columns)
        self.cache_key: Hashable = self.T.cache_key, cache_key(self.hole), cache_key(self.fill), self.left_out

    def moved(self, attend: Attend) -> Attend:
        """The source's attention, moved: T A_s v for words, T A_s W v for pixels."""

        def attend_moved(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
            if not site.cross:
                k, v = k[..., to_device(self.remaining, k.device), :], self.W.rows(v)
            return self.T.rows(attend(q, k, v, site))

        return attend_moved

    def moved_map(self, probs: Tensor, cross: bool) -> Tensor:
        """The source's map, moved: T A_s or T A_s W; b h p j -> b h i j."""
        if not cross:
            remaining = probs[..., to_device(self.remaining, probs.device)]
            W = to_device(self.W.dense(), probs.device, probs.dtype)
            probs = remaining / remaining.sum(-1, keepdim=True) @ W
        return self.T.rows(probs)


@dataclass(frozen=True, eq=False)
class WarpedEdit:
    """An edit whose source is moved: Â = T A_s R + A_e S on n and r, F A_e K or A_e K on h (see the top of this file).

    edit: (R, S), or with a region. in_hole: (0, S') of the hole, by which words are re-weighted there. warp: of the
    site's stride. cross: of the site. dropped: the positions of the words or pixels that K leaves out.
    """

    edit: AttentionEdit | MaskedEdit
    in_hole: AttentionEdit
    warp: StrideWarp
    cross: bool
    dropped: tuple[int, ...] = ()

    @property
    def changes(self) -> bool:
        return True

    @property
    def reads(self) -> bool:
        return self.edit.reads

    def in_map_space(self, source: Tensor, target: Tensor) -> Tensor:
        """Â from A_s and A_e, b h i j each."""
        moved = self.warp.moved_map(source, self.cross) if self.edit.reads else source
        maps = self.edit.in_map_space(moved, target)
        hole, rows = (to_device(queries, target.device) for queries in (self.warp.hole, self.rows_in_hole))
        remaining = target[..., rows, :] * to_device(self.left_in(target.shape[-1]), target.device, target.dtype)
        in_hole = self.in_hole.in_map_space(remaining, remaining / remaining.sum(-1, keepdim=True))
        return maps.index_copy(-2, hole, in_hole)

    def attend(self, source: QK | None, target: QK, v: Tensor, site: Site, attend: Attend = fused) -> Tensor:
        """Â v in value space, as `AttentionEdit.attend`."""
        out = self.edit.attend(source, target, v, site, attend, source_attend=self.warp.moved(attend))
        if not len(self.warp.hole):
            return out
        q, k = target
        left_in = self.left_in(k.shape[-2]).nonzero().flatten()
        hole, rows, remaining = (to_device(each, q.device) for each in (self.warp.hole, self.rows_in_hole, left_in))
        values = self.in_hole.in_value_space(v)[1]
        in_hole = attend(q[..., rows, :], k[..., remaining, :], values[..., remaining, :], site)
        return out.index_copy(-2, hole, in_hole)

    @property
    def rows_in_hole(self) -> Tensor:
        """The queries of the target whose rows those of the hole have."""
        return self.warp.fill if self.cross else self.warp.hole

    def left_in(self, count: int) -> Tensor:
        """The words or pixels that K leaves in, of so many: j, bool."""
        return torch.ones(count, dtype=torch.bool).index_fill(0, torch.tensor(self.dropped, dtype=torch.int64), False)


def attention_warps(
    objects: Sequence[PlacedObject], latent_size: tuple[int, int], sites: Sequence[Site]
) -> dict[int, StrideWarp]:
    """The geometry by stride. latent_size: rows and columns. sites: the model's."""
    strides = sorted({site.stride for site in sites})
    return {stride: StrideWarp(grid_warp(objects, map_size(latent_size, stride))) for stride in strides}


# --- latents


@dataclass(frozen=True, eq=False)
class LatentWarp:
    """How objects are moved in the latents, where all cells that a mask touches belong to its object.

    noise_cells: where each cell's noise comes from, see `noise_cells`. area: n ∪ h, y x. until: by cell, y x, the first
    step after which the object that owns it no longer has the source's latents; 0 outside of n. keeps_rest: whether the
    latents outside of the area stay the source's. x0, moved_x0: the latents of the source's picture, and of this
    picture after its objects were moved (`move_pixels`), 1 c h w each.
    """

    noise_cells: Tensor
    area: Tensor
    until: Tensor
    keeps_rest: bool
    x0: Tensor
    moved_x0: Tensor

    @classmethod
    def of_objects(
        cls, objects: Sequence[PlacedObject], until: Sequence[int], x0: Tensor, moved_x0: Tensor, *, keeps_rest: bool
    ) -> "LatentWarp":
        """until: of each object. Cells that all objects leave as they are have the latents of x0 to the bit."""
        size = (x0.shape[-2], x0.shape[-1])
        grid = grid_warp(objects, size, grow=True)
        cells = noise_cells(grid, size)
        is_still = grid.T.is_identity & (cells == torch.arange(len(cells)))
        moved_x0 = torch.where(is_still.reshape(size).to(x0.device), x0, moved_x0)
        steps = torch.tensor([*until, 0])[grid.owner].reshape(size)  # an owner of -1 is the last element
        area = ((grid.owner >= 0) | grid.hole).reshape(size)
        return cls(cells, area, steps, keeps_rest, x0, moved_x0)

    @cached_property
    def cache_key(self) -> Hashable:
        """Equal for two that have the same effect."""
        is_read = (self.until > 0).to(self.moved_x0.device)
        tensors = self.noise_cells, self.area, self.until, torch.where(is_read, self.moved_x0, 0.0)
        return *map(cache_key, tensors), self.keeps_rest

    def move_noise(self, noise: Tensor) -> Tensor:
        """Noise, … h w, moved with the objects."""
        return noise.flatten(-2)[..., to_device(self.noise_cells, noise.device)].reshape(noise.shape)

    def share(self, i: int, x: Tensor, after: Tensor, step: Step) -> Tensor:
        """The target's latents x after step i, where an object is in its new place replaced by the source's, moved.

        The source's latents are a signal and noise, x' = √ᾱ' x_0 + noise, where x_0 is its picture. The signal becomes
        that of the picture with its objects moved, and the noise moves by `noise_cells`. So an object that is enlarged,
        or moved by parts of a cell, is as sharp as it was, and its noise stays white. after: the source's latents after
        the step, b c h w. Cells that stay as they are have them to the bit.
        """
        signal = step.alpha_cumprod_prev**0.5
        moved = signal * self.moved_x0 + self.move_noise(after - signal * self.x0)
        moved = torch.where(to_device(self.is_still, x.device), after, moved)
        return torch.where(to_device(i < self.until, x.device), moved, x)

    @cached_property
    def is_still(self) -> Tensor:
        """The cells whose signal and noise stay where they are, y x bool."""
        same_noise = self.noise_cells == torch.arange(len(self.noise_cells))
        return same_noise.reshape(self.area.shape) & (self.x0 == self.moved_x0).all(1)[0].cpu()

    def may_change(self, steps: int) -> Tensor:
        """The cells of the area whose latents after so many steps may not be the source's, y x bool."""
        return self.area & ~(self.is_still & (self.until >= steps))

    def keep_rest(self, x: Tensor, rest: Tensor) -> Tensor:
        """x in the area, and elsewhere `rest`; b c h w each."""
        return torch.where(to_device(self.area, x.device), x, rest)
