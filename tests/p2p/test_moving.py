"""Edits that move, resize, duplicate and remove objects, from runs to pictures."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from runs import deviations, same_latents

from minip2p import LocalBlend, Move, SiteFilter
from minip2p.attention.contract import explicit, fused
from minip2p.attention.heatmaps import map_size
from minip2p.attention.masks import follow_edges
from minip2p.baselines.gradients import restart
from minip2p.checkpoints.components import RowCounter
from minip2p.inversion.methods import METHODS
from minip2p.metrics.image import psnr
from minip2p.p2p.batching import plan_batches
from minip2p.p2p.editing import edit_reference, run_edits
from minip2p.p2p.options import EditOptions
from minip2p.p2p.places import WordPlace, check_words, find_place, place_masks, place_objects, read_policy, separate
from minip2p.p2p.targets import make_targets, share_until
from minip2p.p2p.warp import ObjectEdit, PlacedObject
from minip2p.sampling.sampler import sample
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import SourceRun

CAT, TIGER = "a cat on the beach", "a tiger on the beach"
STEPS, SIZE = 3, (64, 96)  # at the default τ of .8, all of three steps are edited
SETTINGS = dict(seed=1, steps=STEPS, size=SIZE)


def box(top, left, height, width):
    mask = torch.zeros(SIZE)
    mask[top : top + height, left : left + width] = 1
    return mask


LEFT, RIGHT = box(16, 8, 32, 24), box(24, 64, 24, 24)
MOVE = {"cat": Move((40, 0), mask=LEFT)}
KINDS = {
    "move": {"move": MOVE},
    "half a cell": {"move": {"cat": Move((-12, 13), mask=RIGHT)}},
    "beyond the edge": {"move": {"cat": Move((24, -8), mask=RIGHT)}},
    "larger": {"resize": {"cat": Move(scale=1.7, mask=LEFT)}},
    "smaller": {"resize": {"cat": Move(scale=0.6, mask=LEFT)}},
    "duplicate": {"duplicate": {"cat": Move((40, 0), mask=LEFT)}},
    "remove": {"remove": {"cat": Move(mask=LEFT)}},
    "two": {"move": MOVE | {"beach": Move((-32, 0), mask=RIGHT)}},
}


@pytest.fixture(scope="module")
def run(model):
    """A run whose attention tells where the cat is."""
    return model.generate(CAT, **SETTINGS)


@pytest.fixture(scope="module")
def recorded(model, run):
    return model.record(run, self_replace=1.0)


@pytest.fixture(scope="module")
def edit_of(model, recorded):
    """kind -> that edit of the record, to its own prompt, with the source's self-attention at all steps."""
    return lru_cache(lambda kind: model.edit(recorded, CAT, self_replace=1.0, **KINDS[kind]))


def rows_of(model, edit):
    counter = RowCounter()
    result = edit(model.counting(counter))
    return counter.rows, result


def area(edit):
    return edit.blend_mask.expand_as(edit.latents[-1])


# --- what must hold


@pytest.mark.parametrize("kind", KINDS)
def test_explicit_equals_fused(model, recorded, edit_of, kind):
    """A whole edit, all steps edited; and what is outside of the old and new places is the source's to the bit."""
    options, edit = dict(self_replace=1.0, **KINDS[kind]), edit_of(kind)
    assert deviations(model.edit(recorded, CAT, explicit=True, **options), edit) <= 1e-3
    assert deviations(model.edit(recorded, CAT, attend=explicit(), **options), edit) <= 1e-3
    outside = ~area(edit)
    assert outside.any() and torch.equal(edit.latents[-1][outside], recorded.latents[-1][outside])
    assert not torch.equal(edit.latents[-1], recorded.latents[-1])


def test_a_zero_move_is_the_source_to_the_bit(model, run, recorded):
    """With other schedules, to the last step and to the first; and no place may change."""
    still = {"cat": Move(mask=LEFT)}
    for source, options in (
        (run, {"move": still}),
        (recorded, {"move": still | {"beach": Move(mask=RIGHT)}, "cross_replace": 0.3, "self_replace": 0.0}),
        (recorded, {"resize": {"cat": Move(mask=LEFT, until=0.0)}}),
        (recorded, {"move": still, "local_blend": LocalBlend(mask=LEFT, start=0.0), "self_replace": 0.0}),
        (recorded, {"move": {}}),
    ):
        assert same_latents(model.edit(source, CAT, **options), run)
    assert not model.edit(recorded, CAT, move=still).blend_mask.any()
    until_half = model.edit(recorded, CAT, move={"cat": Move(mask=LEFT, until=0.5)})
    assert until_half.blend_mask.sum() == until_half.blend_mask[2:6, 1:4].sum() == 12


def test_an_object_that_stays_where_it_is_may_become_another(model, recorded):
    """And nothing else may change."""
    edit = model.edit(recorded, TIGER, cross_replace=0.3, self_replace=0.0, move={"cat": Move(mask=LEFT)})
    places = torch.zeros(8, 12, dtype=torch.bool)
    places[2:6, 1:4] = True
    assert torch.equal(edit.blend_mask, places)
    assert torch.equal(edit.latents[1:][..., ~places], recorded.latents[1:][..., ~places])
    assert (edit.latents[-1][:, places] != recorded.latents[-1][:, places]).float().mean() > 0.9


def test_an_object_that_stays_beside_one_that_moves_is_the_sources_to_the_bit(model, recorded):
    edit = model.edit(recorded, CAT, move={"cat": Move((16, 8), mask=LEFT), "beach": Move(mask=RIGHT)})
    assert torch.equal(edit.latents[1:, :, 3:6, 8:11], recorded.latents[1:, :, 3:6, 8:11])
    assert edit.blend_mask.any() and not edit.blend_mask[3:6, 8:11].any()


def test_a_pixel_of_two_words_belongs_to_the_one_whose_attention_is_there():
    """The first word attends a little to every pixel, and so with most of its attention elsewhere."""
    everywhere = WordPlace(torch.tensor([[True, True, True, False]]), torch.tensor([[0.3, 0.2, 0.3, 0.2]]))
    here = WordPlace(torch.tensor([[False, True, True, True]]), torch.tensor([[0.0, 0.7, 0.1, 0.2]]))
    for places, first in (([everywhere, here], 0), ([here, everywhere], 1)):
        masks = separate(places)
        assert masks[first].tolist() == [[True, False, True, False]]
        assert masks[1 - first].tolist() == [[False, True, False, True]]


def test_a_mask_of_more_pixels_covers_a_pixel_by_half(model, run):
    mask = torch.zeros(2 * SIZE[0], 2 * SIZE[1])
    mask[15:, 15:] = 1
    (placed,) = place_objects(model.components, run, EditOptions(remove={"cat": Move(mask=mask)}))
    expected = torch.zeros(SIZE, dtype=torch.bool)
    expected[7:, 7:], expected[7, 7] = True, False  # the corner is covered by a quarter
    assert torch.equal(placed.mask, expected)


def test_where_no_cross_attention_is_read_all_steps_tell_the_place(run):
    for cross, steps in ((0.0, (0, STEPS)), ({"default_": 0.0, "cat": 0.6}, (0, 2)), (1.0, (0, STEPS))):
        assert read_policy(run, EditOptions(cross_replace=cross)).cross_steps == steps


def test_a_zero_move_of_a_word_is_the_source_to_the_bit(model, run):
    assert same_latents(model.edit(run, CAT, move={"cat": (0, 0)}), run)


@pytest.mark.parametrize("by", [(40, 0), (-8, 16), (27, 5)])
def test_the_object_is_that_of_the_sources_picture_moved_and_encoded(model, run, by):
    """In whole latent pixels or not."""
    options = EditOptions(move={"cat": Move(by, mask=LEFT)})
    edit = model.edit(run, CAT, move=options.move)
    warp = make_targets(model.components, run, [CAT], options)[0].warp
    moved = run.picture.clone()
    new_place = LEFT.bool().roll((by[1], by[0]), (0, 1))
    if by[0] < 0:
        new_place[:, SIZE[1] + by[0] :] = False
    moved[:, new_place] = run.picture.roll((by[1], by[0]), (1, 2))[:, new_place]
    encoded = model.components.encode(moved[None]).cpu()
    in_new_place = (warp.until > 0).expand_as(encoded)
    hole = (warp.area & (warp.until == 0)).expand_as(encoded)
    away = in_new_place & ~F.max_pool2d(hole.float(), 5, 1, 2).bool()  # what is in the hole is read by its neighbours
    assert away.any()
    torch.testing.assert_close(edit.latents[-1:][away], encoded[away], atol=0.05, rtol=0)
    inside = ~F.max_pool2d((~new_place)[None].float(), 9, 1, 4)[0].bool()
    vae = model.components.decode(encoded.to(model.device))[0].cpu()
    still, shown, best = (psnr(picture, moved, inside) for picture in (run.picture, edit.picture, vae))
    assert best - shown < 5 and shown - still > 5  # measured: at most 4.2 dB, which the surroundings cost, and 6.0


def test_the_noise_of_an_edit_is_that_of_its_source_in_another_order(model, run):
    edit = model.edit(run, CAT, move=MOVE)
    assert torch.equal(edit.latents[0].flatten(1).sort().values, run.latents[0].flatten(1).sort().values)
    assert not torch.equal(edit.latents[0], run.latents[0])
    back = model.edit(edit, CAT, move={"cat": Move((-40, 0), mask=LEFT.roll(40, 1))})
    assert torch.equal(back.latents[0], run.latents[0])


@pytest.mark.parametrize("kind", ["half a cell", "larger", "two"])
def test_record_and_replay_give_the_same_bits(model, run, recorded, edit_of, kind, tmp_path):
    options, edit = dict(self_replace=1.0, **KINDS[kind]), edit_of(kind)
    assert same_latents(model.edit(run, CAT, **options), edit)
    assert same_latents(model.edit(CAT, CAT, **SETTINGS, **options), edit)
    recorded.save(tmp_path / "run.safetensors")
    assert same_latents(model.edit(model.open(tmp_path / "run.safetensors"), CAT, **options), edit)


def test_a_word_has_the_same_place_in_a_run_its_record_and_its_prompt(model, run):
    edits = [
        model.edit(source, CAT, move={"cat": (24, 8)}, **settings)
        for source, settings in ((run, {}), (model.record(run), {}), (CAT, SETTINGS))
    ]
    assert same_latents(edits[0], edits[1]) and same_latents(edits[0], edits[2])
    live = model.live(run)
    assert same_latents(live.edit(CAT, move={"cat": (24, 8)}), edits[0])
    assert edits[0].source_run.finish() is run and edits[2].source_run.finish().qk_cache is None
    assert same_latents(edits[2].source_run.finish(), run)
    (placed,) = place_objects(model.components, run, EditOptions(cross_replace=1.0, move={"cat": (8, 0)}))
    expected = follow_edges(run.mask("cat"), run.picture)
    assert (placed.mask != expected).float().mean() <= 0.001 and not torch.equal(placed.mask, run.mask("cat"))
    share, heat = find_place(model.components, run, "cat", (0, STEPS)).share, run.heatmaps(["cat"]).total
    assert share.mean() * heat.numel() == pytest.approx(1, abs=0.05)  # whatever attends to it in all


def test_live_edits_are_those_edits_to_the_bit(model, run, recorded, edit_of):
    """Also after edits with which they share their prompt, their steps or their geometry."""
    live = model.live(recorded)
    blended = {"move": {"cat": Move((40, 0), mask=LEFT, until=0.0)}, "local_blend": LocalBlend("beach")}
    assert same_latents(live.edit(CAT), run)
    for kind, options in KINDS.items():
        assert same_latents(live.edit(CAT, self_replace=1.0, **options), edit_of(kind))
    for options in (blended, {"local_blend": LocalBlend("beach")}):
        assert same_latents(live.edit(CAT, **options), model.edit(recorded, CAT, **options))
    assert same_latents(live.edit(CAT), run)
    assert same_latents(live.edit(CAT, self_replace=1.0, **KINDS["move"]), edit_of("move"))


def test_live_edits_of_words_are_those_edits_to_the_bit_in_any_order_of_sliders(model, run, recorded):
    """Cross τ decides which steps tell the place of a word; self τ does not."""
    live = model.live(recorded)
    for cross, self_ in ((0.8, 0.4), (0.8, 0.9), (0.3, 0.9), (1.0, 0.9), (0.8, 0.4)):
        options = {"cross_replace": cross, "self_replace": self_, "move": {"cat": (24, 8)}, "resize": {"cat": 0.8}}
        assert same_latents(live.edit(CAT, **options), model.edit(recorded, CAT, **options))
    assert live.find_place.cache_info().misses == 2  # of three steps, 0.8 reads as many as 1.0


# --- what it costs


def test_a_live_edit_goes_on_from_another_one_whose_masks_have_the_same_cells(model, run):
    counter = RowCounter()
    live = model.counting(counter).live(run)
    fewer_pixels = LEFT.clone()
    fewer_pixels[47, 20:32] = 0

    def move(mask, until):
        return {"cat": Move((40, 0), mask=mask, until=until)}

    for until, shared in ((0, 2), (1, 0)):  # steps; where its pixels are read, they count
        live.edit(CAT, move=move(LEFT, until), cross_replace=0.5)
        before = counter.rows
        edit = live.edit(CAT, move=move(fewer_pixels, until), cross_replace=1.0)
        assert counter.rows - before == 2 * (STEPS - shared)
        assert same_latents(edit, model.edit(run, CAT, move=move(fewer_pixels, until), cross_replace=1.0))


@pytest.mark.parametrize("source", ["run", "record", "prompt"])
@pytest.mark.parametrize("cross, self_", [(0.8, 0.4), (0.3, 0.0)])
def test_moving_a_word_runs_no_more_rows_than_the_same_edit_without_it(model, run, recorded, source, cross, self_):
    """From a prompt, than the same edit with a local blend, which goes through the source to its end as well."""
    settings, blend = {}, {}
    if source == "prompt":
        settings, blend = SETTINGS, {"local_blend": LocalBlend(mask=torch.ones(2, 2))}
    start = {"run": run, "record": recorded, "prompt": CAT}[source]
    options = dict(cross_replace=cross, self_replace=self_, **settings)
    plain, _ = rows_of(model, lambda counted: counted.edit(start, [CAT, TIGER], **options, **blend))
    moved, _ = rows_of(model, lambda counted: counted.edit(start, [CAT, TIGER], move={"cat": (24, 8)}, **options))
    assert moved <= plain


def test_the_planner_predicts_the_rows(model, run, recorded, edit_of):
    """Of targets that move different objects: they start from different noise, and share no row."""
    for origin in (run, recorded):
        for kinds in (["move"], ["move", "move"], ["move", "larger", "remove"]):
            targets = [
                make_targets(model.components, origin, [CAT], EditOptions(self_replace=1.0, **KINDS[kind]))[0]
                for kind in kinds
            ]
            counter = RowCounter()
            counted = model.counting(counter).components
            plan = plan_batches(counted, origin, targets)
            edits = run_edits(counted, origin, targets)
            assert counter.rows == plan.predicted_rows(origin)
            assert len(plan.rows[0]) == len(set(kinds)) and plan.same_start == (len(set(kinds)) == 1)
            for kind, edit in zip(kinds, edits, strict=True):
                assert deviations(edit, edit_of(kind)) <= 1e-3


# --- with other edits


def test_the_fast_version_equals_algorithm_1(model):
    start = model.prepare(CAT, RunSettings(**SETTINGS))
    for kind in ("move", "larger"):
        _, expected = edit_reference(model.components, start, CAT, EditOptions(self_replace=0.5, **KINDS[kind]))
        edit = model.edit(CAT, CAT, explicit=True, self_replace=0.5, **SETTINGS, **KINDS[kind])
        assert torch.equal(edit.latents[-1:], expected.cpu())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reweight": {"beach": 2}},
        {"cross_replace": {"default_": (0.2, 0.6), "tiger": 0.3}},
        {"cross_replace": 0, "self_replace": 0},
        {"region": box(0, 0, 64, 72)},
        {"local_blend": ("cat", "tiger")},
        {"sites": SiteFilter(strides=(1,), heads=(0,))},
        {"kind": "refine"},
    ],
)
def test_moving_composes_with_other_edits(model, recorded, options):
    options = {"self_replace": 0.8, **options}
    moved = model.edit(recorded, TIGER, **options, move=MOVE)
    assert deviations(model.edit(recorded, TIGER, explicit=True, **options, move=MOVE), moved) <= 1e-3
    assert deviations(moved, model.edit(recorded, TIGER, **options)) > 0.1


def test_latents_are_shared_and_the_rest_is_kept_where_the_edit_changes_nothing_else(model, run):
    def target(prompt, **options):
        return make_targets(model.components, run, [prompt], EditOptions(move=MOVE, **options))[0]

    same, swapped, elsewhere = target(CAT), target(TIGER), target("a cat on the snow")
    assert same.warp.keeps_rest and same.warp.until.max() == STEPS and same.plan.movement.dropped == (2,)
    assert swapped.warp.keeps_rest and not swapped.warp.until.any() and swapped.plan.movement.dropped == (2,)
    assert not elsewhere.warp.keeps_rest and not elsewhere.warp.until.any() and elsewhere.blend_mask is None
    assert not target(CAT, reweight={"beach": 2}).warp.keeps_rest
    assert target(CAT, reweight={"cat": 2}).warp.keeps_rest
    assert not target(CAT, local_blend="beach").warp.keeps_rest
    two = make_targets(model.components, run, [CAT], EditOptions(**KINDS["two"]))[0]
    assert two.plan.shown_objects == two.plan.movement.dropped == (2, 5)


def test_a_hole_attends_to_words_as_the_nearest_background_does_and_not_to_objects(model, run):
    """At τ 0, where nothing is taken from the source."""
    plan = make_targets(model.components, run, [CAT], EditOptions(move=MOVE, cross_replace=0))[0].plan
    site = next(site for site in model.unet.sites if site.cross and site.stride == 2)
    height, width = map_size(run.latents.shape[-2:], site.stride)
    edit = plan.at(0).at_site(site, height * width)
    assert edit.dropped == (2,)
    A = torch.rand(1, 1, height * width, 77, generator=torch.Generator().manual_seed(0)).softmax(-1)
    actual, hole = edit.in_map_space(A, A), edit.warp.hole
    expected = A.clone()
    for cell, near in zip(hole.tolist(), edit.warp.fill.tolist(), strict=True):
        assert cell // width == near // width and near not in hole
        row = A[0, 0, near].clone()
        row[2] = 0
        expected[0, 0, cell] = row / row.sum()
    assert len(hole) and torch.allclose(actual, expected, atol=1e-6)


def test_until_counts_from_the_first_step_that_is_edited():
    def steps(until, is_same=True):
        return share_until(PlacedObject(ObjectEdit("cat", "move", Move((8, 0), until=until)), LEFT > 0), is_same, 10, 3)

    assert [steps(until) for until in (0, 0.5, 0.9, None)] == [3, 8, 10, 10]
    assert steps(None, is_same=False) == 3


def test_a_local_blend_may_change_its_words_and_the_objects_places(model, run):
    black = LocalBlend(mask=box(56, 0, 8, 96), start=0.0)
    edit = model.edit(run, TIGER, move=MOVE, local_blend=black)
    places = model.edit(run, CAT, move=MOVE).blend_mask
    expected = places.clone()
    expected[7] = True
    assert torch.equal(edit.blend_mask, expected)
    assert torch.equal(edit.latents[1:][..., ~expected], run.latents[1:][..., ~expected])
    assert (edit.latents[1:][..., places] != run.latents[1:][..., places]).all(1).float().mean() > 0.9


# --- photographs


@pytest.mark.parametrize("method", METHODS)
def test_photographs_of_every_inversion(model, run, method):
    options = {"null-text": {"num_inner_steps": 1}}.get(method, {})
    inverted = model.invert(run.picture, CAT, method=method, steps=STEPS, **options)
    rows, edit = rows_of(model, lambda counted: counted.edit(inverted, CAT, move=MOVE))
    assert rows <= rows_of(model, lambda counted: counted.edit(inverted, CAT))[0]
    assert same_latents(model.edit(model.record(inverted, self_replace=1.0), CAT, move=MOVE), edit)
    outside = ~area(edit)
    assert torch.equal(edit.latents[-1][outside], inverted.latents[-1][outside])
    assert same_latents(model.edit(inverted, CAT, move={"cat": Move(mask=LEFT)}), inverted)
    skip = inverted.conditioning.skip_steps
    for i in range(skip + 1):
        assert torch.equal(edit.latents[i].flatten(1).sort().values, inverted.latents[i].flatten(1).sort().values)
    z = inverted.conditioning.variance_noise
    if z is not None:  # the noise of each step is moved too, and the edit can be edited
        assert torch.equal(edit.conditioning.variance_noise[:, :, 2:6, 6:9], z[:, :, 2:6, 1:4])
        back_again = model.edit(edit, CAT, move={"cat": Move((-40, 0), mask=LEFT.roll(40, 1))})
        assert torch.equal(back_again.conditioning.variance_noise, z)


@pytest.mark.parametrize("method", ["edit-friendly", "virtual"])
def test_each_step_has_moved_noise_and_a_moved_correction(model, run, method):
    """Without an edit of attention: the same as sampling from the moved noise, step by step."""
    inverted = model.invert(run.picture, CAT, method=method, steps=STEPS, skip=0.0)
    options = EditOptions(cross_replace=0.0, self_replace=0.0, move=MOVE)
    (target,) = make_targets(model.components, inverted, [CAT], options)
    warp = replace(target.warp, until=torch.zeros_like(target.warp.until), keeps_rest=False)
    free = replace(target, warp=warp, plan=replace(target.plan, movement=None))
    (edit,) = run_edits(model.components, inverted, [free])
    source = SourceRun(model.components, inverted)
    for i in range(STEPS):
        source.advance(i)
    assert len(source.corrections) == (STEPS if method == "virtual" else 0)

    def corrected(i, x, eps):
        return eps + warp.move_noise(source.corrections[i]) if source.corrections else eps

    start = restart(inverted, warp.move_noise(inverted.latents[:1]), fused)
    start = replace(start, conditioning=target.conditioning(inverted.conditioning))
    assert deviations(edit, sample(model.components, start, correct=corrected)) <= 1e-3
    assert deviations(edit, inverted) > 0.1


def test_live_edits_of_a_photograph_start_from_their_own_noise(model, run):
    """Also at the steps that they take over from the source."""
    inverted = model.invert(run.picture, CAT, method="edit-friendly", steps=STEPS, skip=0.5)
    live = model.live(inverted)
    for kind in ("move", "larger"):
        assert same_latents(live.edit(CAT, **KINDS[kind]), model.edit(inverted, CAT, **KINDS[kind]))


# --- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({"move": {"dog": (8, 0)}}, "'dog' is not in the prompt"),
        ({"move": {"cat": Move((200, 0), mask=LEFT)}}, "'cat', by \\(200, 0\\) pixels at scale 1, is outside of the"),
        (
            {"move": {"cat": Move((8, 0), mask=0 * LEFT)}},
            "the mask of 'cat' has no pixels: there is nothing to move; give",
        ),
        (
            {"remove": {"cat": Move(mask=LEFT + 1 - LEFT)}},
            "the mask of 'cat' covers the whole picture, of which nothing",
        ),
        (
            {"move": {"cat": (8, 0), "cat ": (9, 0)}},
            "'cat' and 'cat ' name the same word of 'a cat on the beach': name",
        ),
        ({"move": {"the beach": (8, 0)}, "remove": [4]}, "'the beach' and 4 name the same word"),
        ({"resize": {"Cat": 2}, "duplicate": {("cat", 1): (8, 0)}}, r"'Cat' and \('cat', 1\) name the same word"),
        ({"remove": {"cat": Move(mask=box(0, 0, 2, 2))}}, "less than half of every latent pixel"),
    ],
)
def test_a_mistake_is_one_line(model, run, options, message):
    with pytest.raises(ValueError, match=message) as error:
        model.edit(run, CAT, **options)
    assert "\n" not in str(error.value)


def test_a_word_without_a_place_is_refused(model, run):
    unseen = model.generate("a photo of a cat", seed=2, steps=1)
    with pytest.raises(ValueError, match="'photo' has no place: no pixel attends to it more than by chance; name an"):
        model.edit(unseen, unseen.prompt, move={"photo": (8, 0)})
    with pytest.raises(
        ValueError, match=r"'beach' has no place of its own: its attention covers \d+% of the picture; n"
    ):
        model.edit(run, CAT, move={"beach": (8, 0)})
    unread = model.generate(CAT, guidance_scale=0, **SETTINGS)
    with pytest.raises(ValueError, match="at guidance scale 0 no word is read, so 'cat' has no place: make the run at"):
        model.edit(unread, CAT, move={"cat": (8, 0)})
    with pytest.raises(ValueError, match="the place of 'cat' is read from a finished run"):
        make_targets(model.components, model.prepare(CAT), [CAT], EditOptions(remove="cat"))
    with pytest.raises(ValueError, match="objects are moved in a finished run"):
        make_targets(model.components, model.prepare(CAT, RunSettings(size=SIZE)), [CAT], EditOptions(move=MOVE))


@pytest.mark.parametrize("word", ["a", "on", "the", "THE ", 2, range(2, 4), "<end>"])
def test_a_word_that_stands_for_no_object_is_refused_before_anything_runs(model, word):
    """With a mask of its own it has a place."""
    counter = RowCounter()
    counted = model.counting(counter)
    with pytest.raises(ValueError, match="stands for no object that has a place in the picture: name an object$"):
        counted.edit(CAT, CAT, **SETTINGS, remove=[word])
    assert not counter.rows
    check_words(model.text.prompt(CAT), EditOptions(move={"on": Move((8, 0), mask=LEFT)}).objects)


def test_a_word_of_which_others_have_all_pixels_is_named(model, run):
    places = {"cat": WordPlace(LEFT > 0, LEFT), "beach": WordPlace(LEFT > 0, LEFT / 2)}
    for find_masks in (place_objects, place_masks):
        with pytest.raises(ValueError, match="'beach' has no place of its own: other words that are named have all of"):
            find_masks(model.components, run, EditOptions(remove=[*places]), lambda word, steps: places[word])


def test_a_place_of_which_no_pixel_follows_an_edge_stays_as_it_is(model, run, monkeypatch):
    """As a thin line in an even area."""
    monkeypatch.setattr("minip2p.p2p.places.follow_edges", lambda mask, picture: torch.zeros_like(mask))
    (placed,) = place_objects(model.components, run, EditOptions(cross_replace=1.0, remove="cat"))
    assert placed.mask.any() and (placed.mask != run.mask("cat")).float().mean() <= 0.001


def test_a_source_that_is_too_large_to_be_recorded_is_refused(model, run, monkeypatch):
    monkeypatch.setattr("minip2p.p2p.editing.MOVES_BUDGET", 1e5)
    with pytest.raises(ValueError, match=r"to find 'cat', the source would be recorded in \d+\.\d GB of memory"):
        model.edit(run, CAT, move={"cat": (8, 0)})
    assert model.edit(run, CAT, move={"cat": Move((8, 0), mask=LEFT)}).steps == STEPS
    with pytest.raises(ValueError, match="to move objects, the source would be recorded in .*: record it in a file"):
        model.edit(CAT, CAT, **SETTINGS, move={"cat": Move((8, 0), mask=LEFT)})
