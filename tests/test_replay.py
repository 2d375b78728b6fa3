"""Edits as a tree over the steps: what is shared, what it costs, and that sharing changes no number."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minip2p import AttentionStore, LocalBlend, explicit
from minip2p.attention.contract import SiteFilter
from minip2p.p2p.batching import even_chunks, plan_batches, share_prefixes
from minip2p.p2p.edit_plan import plan_edit
from minip2p.p2p.editing import run_edits
from minip2p.p2p.local_blend import LocalBlendState
from minip2p.p2p.targets import EditTarget
from minip2p.sampling.trajectory import SourceRun

SOURCE, TARGET = "a cat and a house on grass", "a dog and a house on grass"
TAUS = (0.4, 0.55, 0.7, 0.85, 1.0)


def target(model, prompt, steps, blend=None, latent=(16, 16), **options):
    old, new = model.text.prompt(SOURCE), model.text.prompt(prompt)
    begun = None if blend is None else LocalBlendState.start(blend, old, new, steps, latent, model.unet.sites)
    return EditTarget(prompt, plan_edit(old, new, steps, **options), begun)


def apart(one, other):
    return float((one.latents - other.latents).abs().max() / other.latents[-1].std())


def test_a_grid_of_taus_is_a_tree(model):
    """5 × 5 cells of 50 steps, by hand: cross ends at 20, 28, 35, 43, 50 and self at 20, 27, 35, 42, 50."""
    cells = [target(model, TARGET, 50, cross=a, self_=b) for a, b in itertools.product(TAUS, TAUS)]
    plan = plan_batches(model, model.prepare(SOURCE), cells)
    ends = [20, 28, 35, 43, 50], [20, 27, 35, 42, 50]
    by_hand = [
        (sum(end <= i for end in ends[0][:-1]) + 1) * (sum(end <= i for end in ends[1][:-1]) + 1) for i in range(50)
    ]
    assert [len(rows) for rows in plan.rows] == by_hand and plan.read == 50
    assert plan.cost(model.prepare(SOURCE), batch=25) == 2 * 50 + 2 * sum(by_hand) == 948


def test_cells_of_a_tree_equal_edits_made_one_by_one(model):
    start = model.prepare(SOURCE, seed=1, steps=5)
    blends = [
        None,
        LocalBlend("cat", "dog", start=0.5),
        LocalBlend("cat", "dog", start=0.5, threshold=0.7),
        LocalBlend("house"),
    ]
    options = [
        dict(cross_replace=a, self_replace=b, local_blend=c) for a in (0.4, 1.0) for b in (0.2, 0.8) for c in blends
    ]
    options += [
        dict(cross_replace=0.4, reweight={"dog": 2}),
        dict(cross_replace=0, self_replace=0),
        dict(kind="refine"),
    ]
    cells = [target(model, TARGET, 5, **each) for each in options]
    together = run_edits(model, start, cells, batch=100)
    rows = plan_batches(model, start, cells).rows
    assert len(rows[0]) < len(cells) == len(rows[-1])
    for each, made in zip(options, together, strict=True):
        (alone,) = run_edits(model, start, [target(model, TARGET, 5, **each)])
        assert apart(made, alone) <= 1e-3
        assert (made.mask is None) == (alone.mask is None)
        assert made.mask is None or (made.mask != alone.mask).float().mean() <= 0.01
    different = {made.latents.numpy().tobytes() for made in together}
    assert len(different) > len(cells) // 2


shares = st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])
settings_of_a_cell = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from([TARGET, "a cat and a hat on grass"]),
        "cross": shares,
        "self_replace": shares,
        "self_pixels": st.sampled_from([64, 256]),
        "weight": st.sampled_from([1.0, 2.0]),
        "blend": st.sampled_from([None, 0.3, 0.6]),
    }
)


def cell(model, prompt, cross, self_, self_pixels, weight, blend, steps):
    blend = None if blend is None else LocalBlend("grass", threshold=blend, start=0.5)
    return target(
        model,
        prompt,
        steps,
        blend,
        (5, 4),
        cross=cross,
        self_=self_,
        self_pixels=self_pixels,
        reweight={"grass": weight},
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(settings_of_a_cell, min_size=1, max_size=6))
def test_two_targets_are_one_row_as_long_as_nothing_differs(model, cells):
    """The definition, pair by pair: the same prompt, equal rules at all steps so far, equal blending at all before."""
    steps, targets = 6, [cell(model, **each, steps=6) for each in cells]
    plan = list(share_prefixes(targets, steps))
    for step, rows in enumerate(plan):
        assert sorted(n for row in rows for n in row) == list(range(len(targets)))
        row_of = {n: i for i, row in enumerate(rows) for n in row}
        for a, b in itertools.combinations(range(len(targets)), 2):
            one, other = targets[a], targets[b]
            agreed = one.prompt == other.prompt
            agreed &= all(same_rule(one.edit.at(i), other.edit.at(i)) for i in range(step + 1))
            agreed &= step <= 3 or cells[a]["blend"] == cells[b]["blend"]  # it blends from int(.5 · 6) on
            assert (row_of[a] == row_of[b]) == agreed


def same_rule(one, other):
    def same(a, b):
        return torch.equal(torch.as_tensor(a), torch.as_tensor(b))

    inject = one.self_alpha == other.self_alpha and (
        not one.self_alpha or one.self_max_queries == other.self_max_queries
    )
    return inject and same(one.cross.R, other.cross.R) and same(one.cross.S, other.cross.S)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(settings_of_a_cell, min_size=1, max_size=5),
    st.sampled_from([0, 1, 4.0]),
    st.integers(1, 3),
    st.sampled_from(["stream", "run", "record"]),
)
def test_the_plan_predicts_the_rows(model, cells, guidance, batch, kind):
    origin = model.prepare(SOURCE, seed=1, steps=4, size=(40, 32), guidance_scale=guidance)
    if kind == "run":
        origin = SourceRun(model, origin).whole
    elif kind == "record":
        origin = model.record(SourceRun(model, origin).whole, self_replace=1.0)
    targets = [cell(model, **each, steps=4) for each in cells]
    before = model.rows
    run_edits(model, origin, targets, batch=batch)
    assert model.rows - before == plan_batches(model, origin, targets).cost(origin, batch)


def test_a_learnt_edit_shares_with_none_but_itself(model):
    """Where the matrices have a gradient, rows that are equal today are not the same."""
    one, other = (target(model, TARGET, 2) for _ in range(2))
    assert len(next(share_prefixes([one, other], 2))) == 1
    for learnt in (one, other):
        learnt.edit.words.R.requires_grad_(True)
    assert len(next(share_prefixes([one, other], 2))) == 2


def test_without_rows_there_are_no_batches():
    assert even_chunks([], 8) == []


@given(st.integers(1, 40), st.integers(1, 9))
def test_batches_are_few_and_alike(count, most):
    parts = even_chunks(list(range(count)), most)
    assert list(itertools.chain(*parts)) == list(range(count)) and len(parts) == -(-count // most)
    assert max(map(len, parts)) <= most and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_an_attention_of_ones_own_sees_every_target_at_once(model):
    """Though nine are more than a batch, and two of them are the same: so a store has a row for each."""
    prompts = [TARGET, TARGET, *(f"a {word} and a house on grass" for word in "pig cow car hat cake lamp lion".split())]
    store = AttentionStore(sites=lambda site: site.cross and site.stride == 4)
    model.edit(
        model.generate(SOURCE, seed=1, steps=2), prompts, cross_replace=0, self_replace=0, attend=explicit(store)
    )
    (maps,) = store.maps.values()
    assert len(maps) == 9
    apart = [float((maps[0] - other).abs().max()) for other in maps[1:]]
    assert apart[0] < 1e-4 < 1e-2 < min(apart[1:])


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
def test_blends_that_differ_are_not_shared(model, change):
    one = {"source": "cat", "target": "dog", "start": 0.5}  # from step 2 on
    plain, other = (target(model, TARGET, 4, LocalBlend(**(one | c))) for c in ({}, change))
    again = target(model, TARGET, 4, LocalBlend(**(one | change)))
    rows = list(share_prefixes([plain, other, again], 4))
    assert rows[2] == [[0, 1, 2]] and rows[3] == [[0], [1, 2]]


def test_blends_that_differ_in_what_is_kept_out_alone_are_not_shared(model):
    blends = [LocalBlend("cat", "dog", without_source="grass", without_threshold=t, start=0.5) for t in (0.3, 0.6)]
    rows = list(share_prefixes([target(model, TARGET, 4, blend) for blend in blends], 4))
    assert rows[2] == [[0, 1]] and rows[3] == [[0], [1]]


@pytest.mark.parametrize(
    "options",
    [
        dict(sites=SiteFilter(places=("mid",), strides=(1,))),
        dict(cross_replace=0, self_replace=1, self_max_queries=0),
        dict(cross_replace=0, self_replace=0),
    ],
)
def test_a_source_that_is_read_nowhere_does_not_run(model, options):
    before = model.rows
    model.edit(SOURCE, TARGET, steps=2, **options)
    assert model.rows - before == 2 * 2


@pytest.mark.parametrize("guidance", [0, 1])
def test_rows_that_cancel_are_not_run(model, guidance):
    before = model.rows
    model.edit(SOURCE, [TARGET, "a cat and a hat on grass"], steps=3, guidance_scale=guidance, cross_replace=1.0)
    assert model.rows - before == {0: 1 + 2 + 2, 1: 3 + 3 * 2}[guidance]
