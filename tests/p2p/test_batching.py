"""Edits as a tree over the steps: which targets share rows, what an edit costs, and that sharing changes no result."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from word_heat import SOURCE, TARGET

from minip2p import AttentionStore, LocalBlend, explicit
from minip2p.attention.contract import SiteFilter
from minip2p.checkpoints.components import RowCounter
from minip2p.p2p.batching import BatchPlan, intern, plan_batches, share_prefixes, split_targets
from minip2p.p2p.editing import run_edits
from minip2p.p2p.options import EditOptions
from minip2p.p2p.targets import make_targets
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import SourceRun

HAT = "a cat and a hat on grass"
TAUS = (0.4, 0.55, 0.7, 0.85, 1.0)
SMALL = (64, 64)  # rows and columns of a small picture: 8 × 8 latents


def target_of(model, start, prompt=TARGET, **options):
    (target,) = make_targets(model.components, start, [prompt], EditOptions(**options))
    return target


def start_of(model, **settings):
    return model.prepare(SOURCE, RunSettings(**settings))


def counted_rows(model, edit):
    """How many rows of the UNet `edit(pipeline)` runs."""
    counter = RowCounter()
    edit(model.counting(counter))
    return counter.rows


# Which targets share rows


def test_a_grid_of_taus_is_a_tree(model):
    """5 × 5 cells of 50 steps, by hand: cross ends at 20, 28, 35, 43, 50 and self at 20, 27, 35, 42, 50."""
    start = start_of(model)
    cells = [
        target_of(model, start, cross_replace=cross, self_replace=self_)
        for cross, self_ in itertools.product(TAUS, TAUS)
    ]
    plan = plan_batches(model.components, start, cells, batch=25)
    ends = [20, 28, 35, 43, 50], [20, 27, 35, 42, 50]
    by_hand = [
        (sum(end <= i for end in ends[0][:-1]) + 1) * (sum(end <= i for end in ends[1][:-1]) + 1) for i in range(50)
    ]
    assert [len(rows) for rows in plan.rows] == by_hand and plan.source_steps == 50
    assert plan.predicted_rows(start) == 2 * 50 + 2 * sum(by_hand) == 948


def test_cells_of_a_tree_equal_edits_made_one_by_one(model):
    """The tree is sampled together with its source; the single edits read a record of it."""
    start = start_of(model, seed=1, steps=4, size=SMALL)
    record = model.record(SOURCE, seed=1, steps=4, size=SMALL, self_replace=1.0)
    blends = [
        None,
        LocalBlend("cat", "dog", start=0.5),
        LocalBlend("cat", "dog", start=0.5, threshold=0.7),
        LocalBlend("house"),
    ]
    options = [
        dict(cross_replace=a, self_replace=b, local_blend=c) for a in (0.4, 1.0) for b in (0.25, 0.8) for c in blends
    ]
    options += [
        dict(cross_replace=0.4, reweight={"dog": 2}),
        dict(cross_replace=0, self_replace=0),
        dict(kind="refine"),
    ]
    cells = [target_of(model, start, **each) for each in options]
    rows = plan_batches(model.components, start, cells).rows
    assert len(rows[0]) < len(cells) == len(rows[-1])
    together = run_edits(model.components, start, cells, batch=100)
    for each, shared in zip(options, together, strict=True):
        (alone,) = run_edits(model.components, record, [target_of(model, record, **each)])
        assert float((shared.latents - alone.latents).abs().max() / alone.latents[-1].std()) <= 1e-3
        assert (shared.blend_mask is None) == (alone.blend_mask is None)
        assert shared.blend_mask is None or (shared.blend_mask != alone.blend_mask).float().mean() <= 0.01
    assert len({run.latents.numpy().tobytes() for run in together}) > len(cells) // 2


shares = st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])
cells_strategy = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from([TARGET, HAT]),
        "cross_replace": shares,
        "self_replace": shares,
        "self_max_queries": st.sampled_from([4, 64]),
        "weight": st.sampled_from([1.0, 2.0]),
        "threshold": st.sampled_from([None, 0.3, 0.6]),
    }
)


def cell_of(model, start, *, weight, threshold, **options):
    blend = None if threshold is None else LocalBlend("grass", threshold=threshold, start=0.5)
    return target_of(model, start, local_blend=blend, reweight={"grass": weight}, **options)


@settings(max_examples=40, deadline=None)
@given(st.lists(cells_strategy, min_size=1, max_size=6))
def test_two_targets_are_one_row_as_long_as_nothing_differs(model, cells):
    """The definition, pair by pair: equal prompts, equal edits so far, equal blends at all steps before."""
    start = start_of(model, steps=6, size=(40, 32))
    targets = [cell_of(model, start, **cell) for cell in cells]
    for step, rows in enumerate(share_prefixes(targets, 6)):
        assert sorted(n for row in rows for n in row) == list(range(len(targets)))
        row_of = {n: i for i, row in enumerate(rows) for n in row}
        for a, b in itertools.combinations(range(len(targets)), 2):
            is_equal = targets[a].prompt == targets[b].prompt
            is_equal &= all(same_edit(targets[a].plan.at(i), targets[b].plan.at(i)) for i in range(step + 1))
            is_equal &= step <= 3 or cells[a]["threshold"] == cells[b]["threshold"]  # blends from int(.5 · 6) on
            assert (row_of[a] == row_of[b]) == is_equal


def same_edit(a, b):
    def same(x, y):
        return torch.equal(torch.as_tensor(x), torch.as_tensor(y))

    is_injection_equal = a.self_alpha == b.self_alpha and (not a.self_alpha or a.self_max_queries == b.self_max_queries)
    return is_injection_equal and same(a.cross.R, b.cross.R) and same(a.cross.S, b.cross.S)


def test_an_edit_with_gradients_shares_only_with_itself(model):
    """Rows that are equal today are not the same where the matrices have a gradient."""
    start = start_of(model, steps=2)
    targets = [target_of(model, start) for _ in range(2)]
    assert len(next(share_prefixes(targets, 2))) == 1
    for target in targets:
        target.plan.word_edit.R.requires_grad_(True)
    assert len(next(share_prefixes(targets, 2))) == 2


def test_skipped_steps_have_no_rows_and_separate_no_targets(model):
    start = start_of(model, steps=4)
    targets = [target_of(model, start, cross_replace=cross) for cross in ((0.0, 1.0), (0.4, 1.0))]
    assert [len(rows) for rows in share_prefixes(targets, 4)] == [2] * 4
    assert list(share_prefixes(targets, 4, skip_steps=2)) == [[], [], [[0, 1]], [[0, 1]]]


def test_without_sharing_equal_targets_have_a_row_each(model):
    start = start_of(model, steps=3)
    targets = [target_of(model, start) for _ in range(2)]
    assert plan_batches(model.components, start, targets).rows == [[[0, 1]]] * 3
    plan = plan_batches(model.components, start, targets, attend=explicit())
    assert plan.rows == [[[0], [1]]] * 3
    assert plan.predicted_rows(start) == 2 * plan.source_steps + (1 + 2) + 2 * 4


@pytest.mark.parametrize(
    "change",
    [
        dict(source="house"),
        dict(target="house"),
        dict(without_source="grass"),
        dict(without_target="grass"),
        dict(pool=False),
        dict(threshold=0.5),
        dict(without_source="grass", without_threshold=0.6),
        dict(strides=(2,)),
        dict(start=0.75),
        dict(self_attention_hops=1),
        dict(threshold="otsu"),
        dict(threshold=(0.2, 0.4)),
        dict(start=(0.5, 1.0)),
        dict(source=(), target=(), mask=torch.ones(4, 4)),
        dict(source=(), target=(), mask=torch.zeros(4, 4)),
    ],
)
def test_targets_with_different_blends_share_until_the_first_blend(model, change):
    start = start_of(model, steps=4)
    base = {"source": "cat", "target": "dog", "start": 0.5}  # from step 2 on
    blends = [LocalBlend(**(base | each)) for each in ({}, change, change)]
    rows = list(share_prefixes([target_of(model, start, local_blend=blend) for blend in blends], 4))
    assert rows[2] == [[0, 1, 2]] and rows[3] == [[0], [1, 2]]


def test_blends_that_differ_only_in_their_without_threshold_are_not_shared(model):
    start = start_of(model, steps=4)
    blends = [LocalBlend("cat", "dog", without_source="grass", without_threshold=t, start=0.5) for t in (0.3, 0.6)]
    rows = list(share_prefixes([target_of(model, start, local_blend=blend) for blend in blends], 4))
    assert rows[2] == [[0, 1]] and rows[3] == [[0], [1]]


def test_interned_values_are_equal_numbers_for_equal_values():
    assert intern(["a", "b", "a", ("c", 1), ("c", 1)]) == [0, 1, 0, 2, 2]


# A tree in parts


def trees():
    """Plans of up to nine targets and six steps, as a random tree: at each step, a group stays or parts in two. The
    targets have their numbers in any order."""

    def grow(draws):
        order, steps, source_steps = draws
        groups, plan = [list(range(len(order)))], []
        for cuts in steps:
            groups = [part for n, group in enumerate(groups) for part in cut(group, cuts[n % len(cuts)])]
            plan.append([[order[n] for n in group] for group in groups])
        return BatchPlan([None] * len(plan), source_steps, plan, 4)

    def cut(group, place):
        return [part for part in (group[:place], group[place:]) if part]

    cuts = st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=9), min_size=1, max_size=6)
    order = st.integers(1, 9).flatmap(lambda count: st.permutations(range(count)))
    return st.tuples(order, cuts, st.integers(0, 5)).map(grow)


def length(plan, part):
    """The steps of the source and of the targets of a part."""
    rows = [[group for group in groups if set(group) & set(part)] for groups in plan.rows]
    return plan.source_steps + sum(map(len, rows))


@settings(max_examples=300, deadline=None)
@given(trees(), st.integers(1, 9))
def test_a_tree_is_split_where_the_longest_part_is_shortest_and_the_sum_is_least(plan, count):
    """Compared with all ways to cut it between neighbours."""
    targets = [n for group in plan.rows[-1] for n in group]
    parts = split_targets(plan, count)
    assert sorted(n for part in parts for n in part) == sorted(targets) and all(part == sorted(part) for part in parts)
    best = (math.inf, 0)
    for size in range(min(count, len(targets))):
        for cuts in itertools.combinations(range(1, len(targets)), size):
            lengths = [length(plan, targets[a:b]) for a, b in itertools.pairwise([0, *cuts, len(targets)])]
            best = min(best, (max(lengths), sum(lengths)))
    lengths = [length(plan, part) for part in parts]
    assert len(parts) <= count and (max(lengths), sum(lengths)) == best


# What an edit costs


@settings(max_examples=10, deadline=None)
@given(
    st.lists(cells_strategy, min_size=1, max_size=5),
    st.sampled_from([0, 1, 4.0]),
    st.integers(1, 3),
    st.sampled_from(["stream", "run", "record", "photograph", "corrected"]),
    st.sampled_from([{}, {"guidance_interval": (0.25, 0.75)}, {"uncond_every": 2}]),
)
def test_the_plan_predicts_the_rows(model, cells, guidance_scale, batch, kind, approximation):
    approximation = approximation if guidance_scale == 4.0 else {}
    origin = start_of(model, seed=1, steps=4, size=(40, 32), guidance_scale=guidance_scale, **approximation)
    if kind != "stream":
        origin = SourceRun(model.components, origin).finish()
    if kind in ("photograph", "corrected"):
        origin = replace(origin, inversion="direct")
    if kind == "corrected":
        noise = torch.zeros_like(origin.latents[1:])
        virtual = replace(origin.conditioning, source_guidance_scale=1.0, variance_noise=noise, eta=0.5)
        origin = replace(origin, conditioning=virtual)
    if kind == "record":
        origin = model.record(origin, self_replace=1.0)
    twins = [cell_of(model, origin, **cell) for cell in cells]
    predicted = plan_batches(model.components, origin, twins, batch=batch)
    targets = [cell_of(model, origin, **cell) for cell in cells]
    rows = counted_rows(model, lambda counted: run_edits(counted.components, origin, targets, batch=batch))
    assert rows == predicted.predicted_rows(origin)


@pytest.mark.parametrize(
    "options",
    [
        dict(sites=SiteFilter(places=("mid",), strides=(1,))),
        dict(cross_replace=0, self_replace=1, self_max_queries=0),
        dict(cross_replace=0, self_replace=0),
    ],
)
def test_a_source_that_is_not_read_does_not_run(model, options):
    rows = counted_rows(model, lambda counted: counted.edit(SOURCE, TARGET, steps=2, size=SMALL, **options))
    assert rows == 2 * 2


@pytest.mark.parametrize("guidance_scale, rows", [(0, 1 + 2 + 2), (1, 3 + 3 * 2)])
def test_rows_whose_weight_is_zero_do_not_run(model, guidance_scale, rows):
    options = dict(steps=3, size=SMALL, guidance_scale=guidance_scale, cross_replace=1.0)
    assert counted_rows(model, lambda counted: counted.edit(SOURCE, [TARGET, HAT], **options)) == rows


def test_a_custom_attention_sees_all_targets_at_once(model):
    """A store has a row for each target, even for nine, which are more than a batch, and for two equal ones."""
    prompts = [TARGET, TARGET, *(f"a {word} and a house on grass" for word in "pig cow car hat cake lamp lion".split())]
    store = AttentionStore(sites=lambda site: site.cross and site.stride == 4)
    run = model.generate(SOURCE, seed=1, steps=2, size=SMALL)
    model.edit(run, prompts, cross_replace=0, self_replace=0, attend=explicit(store))
    (maps,) = store.maps.values()
    assert len(maps) == 9
    difference = [float((maps[0] - other).abs().max()) for other in maps[1:]]
    assert difference[0] < 1e-4 < 1e-2 < min(difference[1:])
