"""Edits while a user tries settings: what they run, and that they are the same edits to the bit."""

import random
from dataclasses import replace

import pytest
import torch
from runs import CallLog, same_latents
from word_heat import SOURCE, TARGET

from minip2p import AttentionStore, LocalBlend, SiteFilter, explicit
from minip2p.checkpoints.components import RowCounter
from minip2p.p2p.live import REMEMBERED_EDITS
from minip2p.sampling.conditioning import Conditioning
from minip2p.sched import DDIMScheduler

STEPS, SIZE = 10, (32, 32)  # 4 × 4 latents
HAT = "a hat and a house on grass"
RIGHT = torch.zeros(8, 8)
RIGHT[:, 3:] = 1
PHOTO = torch.zeros(3, 64, 64)


@pytest.fixture(scope="module")
def run(model):
    return model.generate(SOURCE, seed=1, steps=STEPS, size=SIZE)


@pytest.fixture(scope="module")
def short(model):
    """A run with its record, from which edits are the same to the bit, and which does not run again."""
    return model.record(SOURCE, seed=1, steps=6, size=SIZE, cross_replace=1.0, self_replace=1.0)


@pytest.fixture
def log():
    return CallLog()


@pytest.fixture
def live(model, run, log):
    live = model.counting(log).live(run)
    log.calls.clear()
    return live


def equals(live_edit, edit):
    """Whether two edits are equal to the bit, with their masks."""
    masks = live_edit.blend_mask, edit.blend_mask
    is_same_mask = masks == (None, None) if None in masks else torch.equal(*masks)
    return same_latents(live_edit, edit) and is_same_mask and live_edit.prompt == edit.prompt


def test_a_live_source_is_a_record_of_the_run(model, run):
    live = model.live(run)
    assert same_latents(live.source, run) and live.source.is_recorded(STEPS - 1, lambda site, queries: True)
    fresh = model.live(SOURCE, seed=1, steps=STEPS, size=SIZE)
    assert same_latents(fresh.source, run)
    for source in ((run,), (PHOTO, SOURCE)):
        with pytest.raises(ValueError, match="its budget is 0.0: give a larger budget or fewer steps"):
            model.live(*source, budget=100)


def test_an_edit_runs_the_steps_from_the_first_that_differs(model, run, live, log):
    """Cross-attention of 10 steps is taken from the source for int(τ · 11) of them: 8 at 0.8, 6 at 0.6."""
    assert equals(live.edit(TARGET, cross_replace=0.8), model.edit(run, TARGET, cross_replace=0.8))
    assert log.calls == [2] * STEPS  # of the target; the source does not run
    log.calls.clear()
    assert equals(live.edit(TARGET, cross_replace=0.6), model.edit(run, TARGET, cross_replace=0.6))
    assert log.calls == [2] * (STEPS - 6)
    log.calls.clear()
    assert equals(live.edit(TARGET, cross_replace=0.8), model.edit(run, TARGET, cross_replace=0.8))
    assert not log.calls  # it is remembered
    live.edit(TARGET, cross_replace=0.9)
    assert log.calls == [2] * (STEPS - 8)
    log.calls.clear()


def test_other_prompts_and_another_execution_share_nothing(model, short, log):
    live = model.counting(log).live(short)
    live.edit(TARGET)
    for target, options in ((HAT, {}), (TARGET, {"explicit": True})):
        log.calls.clear()
        assert equals(live.edit(target, **options), model.edit(short, target, **options))
        assert log.calls == [2] * 6


LATE = LocalBlend("cat", "dog", start=0.5, strides=(1, 2))
BLENDED = [
    dict(),
    dict(local_blend=("cat", "dog")),
    dict(local_blend=LocalBlend("cat", "dog", threshold=0.6)),
    dict(local_blend=LocalBlend("cat", "dog", threshold=0.6, start=0.5)),
    dict(local_blend=LocalBlend("cat", "dog", self_attention_hops=1, start=0.5)),
    dict(local_blend="grass"),
    dict(local_blend=LocalBlend(mask=RIGHT)),
    dict(local_blend=("cat", "dog"), cross_replace=0.4),
    dict(local_blend=("cat", "dog"), cross_replace=0.4, self_replace=0.2),
    dict(self_replace=0.2),
    dict(cross_replace={"dog": 0.4}),
    dict(reweight={"dog": 2.0}, cross_replace=(0.5, 1.0)),
    dict(sites=SiteFilter(strides=(1,)), cross_replace=(0.5, 1.0)),
    dict(region=RIGHT),
]


@pytest.fixture(scope="module")
def fresh_edits(model, short):
    return [model.edit(short, TARGET, **options) for options in BLENDED]


@pytest.mark.parametrize("order", ["forwards", "backwards"])
def test_every_order_of_edits_gives_the_edits_to_the_bit(model, short, fresh_edits, log, order):
    live = model.counting(log).live(short)
    log.calls.clear()
    numbers = list(range(len(BLENDED)))
    numbers = numbers if order == "forwards" else numbers[::-1]
    for n in numbers:
        assert equals(live.edit(TARGET, **BLENDED[n]), fresh_edits[n]), (order, BLENDED[n])
    assert log.rows < 2 * 6 * len(numbers)  # some steps were shared
    assert len(live.past) <= REMEMBERED_EDITS


@pytest.mark.parametrize(
    "first, second, steps",
    [
        (dict(local_blend=("cat", "dog")), dict(local_blend=LocalBlend("cat", "dog", threshold=0.6)), 5),
        (dict(), dict(local_blend=("cat", "dog")), 6),  # the heat maps of the words are not known
        (dict(local_blend=("cat", "dog")), dict(), 5),
        (dict(), dict(local_blend=LocalBlend(mask=RIGHT, start=0.5)), 3),
        (dict(local_blend=("cat", "dog")), dict(local_blend=LocalBlend(mask=RIGHT)), 5),
        (dict(local_blend=("cat", "dog")), dict(local_blend="grass"), 6),
        (dict(local_blend=LATE), dict(local_blend=replace(LATE, strides=(1,))), 6),  # other heat maps of the same words
    ],
)
def test_a_blend_is_run_from_where_it_differs(model, short, log, first, second, steps):
    """A blend begins after step int(0.2 · 6) = 1, counted from 0, which has to run for it."""
    live = model.counting(log).live(short)
    live.edit(TARGET, **first)
    log.calls.clear()
    edit = live.edit(TARGET, **second)
    assert log.rows == 2 * steps and equals(edit, model.edit(short, TARGET, **second))


def test_the_last_edits_are_remembered_and_earlier_ones_forgotten(model, short, log):
    live = model.counting(log).live(short)
    for n in range(REMEMBERED_EDITS + 1):
        live.edit(TARGET, reweight={"dog": 1.0 + n})
    log.calls.clear()
    for n in range(1, REMEMBERED_EDITS + 1):
        live.edit(TARGET, reweight={"dog": 1.0 + n})
    live.edit(TARGET, reweight={"dog": 2.0})  # the first of them, which is now the last one used
    assert not log.calls and len(live.past) == REMEMBERED_EDITS
    live.edit(TARGET)
    assert log.rows == 2 * 6
    live.edit(TARGET, reweight={"dog": 2.0})
    assert log.rows == 2 * 6 and len(live.past) == REMEMBERED_EDITS


def test_live_edits_of_edit_friendly_runs_and_with_previews(model, log):
    """The skipped steps are the source's; only the steps that run are shown."""
    photo = model.invert(PHOTO, "a blue umbrella", method="edit-friendly", steps=6)
    skipped, live, shown = photo.conditioning.skip_steps, model.counting(log).live(photo), []
    log.calls.clear()
    for cross in (1.0, 0.5):
        options = dict(cross_replace=cross, local_blend="umbrella")
        edit = live.edit("a red umbrella", **options, on_step=lambda preview: shown.append(preview.step))
        assert equals(edit, model.edit(photo, "a red umbrella", **options))
    first_end = shown.index(5) + 1
    assert skipped > 0 and shown[:first_end] == list(range(skipped, 6)) and len(shown) == len(log.calls)
    assert skipped < shown[first_end] and shown[first_end:] == list(range(shown[first_end], 6))


def test_an_edit_that_was_cancelled_changes_nothing(model, short):
    class Cancelled(Exception):
        pass

    def cancel(preview):
        if preview.step == 4:
            raise Cancelled

    live = model.live(short)
    live.edit(TARGET, local_blend=("cat", "dog"))
    with pytest.raises(Cancelled):
        live.edit(TARGET, local_blend=("cat", "dog"), cross_replace=0.5, on_step=cancel)
    for cross in (0.5, 0.8, 0.4):
        options = dict(local_blend=("cat", "dog"), cross_replace=cross)
        assert equals(live.edit(TARGET, **options), model.edit(short, TARGET, **options))


def test_a_custom_attention_sees_all_steps_of_every_edit(model, short, log):
    live = model.counting(log).live(short)
    store = AttentionStore(sites=lambda site: site.cross and site.stride == 4, each_step=True)
    for _ in range(2):
        log.calls.clear()
        edit = live.edit(TARGET, attend=explicit(store))
        assert log.calls == [2] * 6 and equals(edit, model.edit(short, TARGET, attend=explicit()))
    assert all(len(maps) == 6 for maps in store.maps.values()) and not live.past


def test_all_steps_of_a_source_with_a_custom_attention_run(model, log):
    source = model.generate(SOURCE, seed=1, steps=2, size=SIZE, attend=explicit())
    live = model.counting(log).live(source)
    for _ in range(2):
        log.calls.clear()
        assert equals(live.edit(TARGET), model.edit(source, TARGET)) and log.rows == 4


def test_progress_counts_the_steps_that_run(model, short):
    counts = []
    live = model.with_progress(lambda steps: counts.append(len(steps)) or steps).live(short)
    live.edit(TARGET, cross_replace=0.8)
    live.edit(TARGET, cross_replace=0.6)
    assert counts == [6, 6, 6 - int(0.6 * 7)]  # of the source, and of two edits


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_live_edits_at_guidance_0_and_1(model, guidance_scale):
    run = model.generate(SOURCE, seed=1, steps=4, size=SIZE, guidance_scale=guidance_scale)
    live = model.live(run)
    for options in (dict(), dict(local_blend=LocalBlend(mask=RIGHT)), dict(cross_replace=0.3)):
        assert equals(live.edit(TARGET, **options), model.edit(run, TARGET, **options))


def test_a_photograph_is_live_and_its_source_never_runs_again(model):
    """Virtual inversion: one row a step for the record, and then two a step for each edit, or one without guidance."""
    counter = RowCounter()
    for w, rows in ((4.0, 2), (1.0, 1)):
        counter.rows = 0
        live = model.counting(counter).live(PHOTO, SOURCE, steps=4, guidance_scale=w)
        assert counter.rows == 4 and live.source.inversion == "virtual"
        for target, options in ((TARGET, {}), (HAT, {}), (TARGET, {"local_blend": ("cat", "dog")})):
            counter.rows = 0
            edit = live.edit(target, **options)
            assert counter.rows == rows * 4
            assert equals(edit, model.edit(live.source, target, **options))
        unrecorded = model.invert(PHOTO, SOURCE, method="virtual", steps=4, guidance_scale=w)
        torch.testing.assert_close(live.edit(HAT).latents, model.edit(unrecorded, HAT).latents, atol=1e-4, rtol=1e-4)
    counter.rows = 0
    live.edit(TARGET, local_blend=("cat", "dog"))
    assert counter.rows == 0  # it is remembered


def test_a_live_photograph_has_few_steps_unless_it_is_told(model):
    """Those of its scheduler, and the options of `invert`."""
    few = replace(model, components=replace(model.components, scheduler=FewSteps(model.scheduler.config)))
    assert few.live(PHOTO, SOURCE).source.steps == 2 < model.scheduler.few_steps == 15
    live = model.live(PHOTO, SOURCE, method="direct", steps=3)
    assert (live.source.steps, live.source.inversion) == (3, "direct")


class FewSteps(DDIMScheduler):
    few_steps = 2


def test_a_live_source_that_is_neither_a_run_nor_a_described_photograph(model, run):
    with pytest.raises(
        ValueError, match="^a run has its own prompt: give a photograph with a prompt, or the run alone"
    ):
        model.live(run, SOURCE)
    with pytest.raises(ValueError, match="^a photograph needs the prompt that says what it shows"):
        model.live(PHOTO)
    with pytest.raises(ValueError, match="virtual inversion has no quantile"):
        model.live(PHOTO, SOURCE, quantile=0.5)


def test_a_live_source_has_all_its_unconditional_rows(model):
    options = {"steps": 2, "size": (64, 64), "uncond_every": 2}
    for source, settings in ((SOURCE, options), (model.generate(SOURCE, **options), {})):
        with pytest.raises(ValueError, match="uncond_every: live edits go on from each other's steps"):
            model.live(source, **settings)
    source = model.live(SOURCE, steps=4, size=(64, 64), guidance_interval=(0, 0.5)).source
    assert source.conditioning.guidance_interval == (0, 0.5)


def test_mistakes_are_named_as_by_edit(model, live, log):
    with pytest.raises(ValueError, match="'cow' is not in the prompt"):
        live.edit(TARGET, local_blend="cow")
    with pytest.raises(TypeError, match="^there is no option 'crossreplace'; did you mean cross_replace"):
        live.edit(TARGET, crossreplace=0.3)
    with pytest.raises(ValueError, match="^steps, seed: the source of live edits has its own settings; give them to"):
        live.edit(TARGET, steps=3, seed=1)
    assert not log.calls


def test_options_of_edits_are_none_of_a_live_source(model, run, log):
    for source in ((run,), (PHOTO, SOURCE)):
        with pytest.raises(TypeError, match="^cross_replace is an option of an edit: give it to live.edit"):
            model.counting(log).live(*source, cross_replace=0.5)
    assert not log.calls


def test_a_source_whose_steps_are_ddpms(model, short):
    noise = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    source = replace(short, conditioning=Conditioning(variance_noise=noise))
    live = model.live(source)
    live.edit(TARGET)
    assert equals(live.edit(TARGET, cross_replace=0.5), model.edit(source, TARGET, cross_replace=0.5))


class Cancelled(Exception):
    pass


def draw_options(draw):
    """Options of an edit to `TARGET` or a longer one, many of which share their first steps."""
    share = [0.0, 0.3, 0.5, 0.8, 1.0, (0.2, 0.8), (0.1, 0.3, 0.6)]
    start = draw.choice([0.0, 0.2, 0.2, 0.5, 1.0, (0.1, 0.7)])
    words = dict(threshold=draw.choice([0.3, 0.6, (0.2, 0.5)]), start=start, self_attention_hops=draw.choice([0, 0, 1]))
    blends = [
        ("cat", "dog"),
        LocalBlend("cat", "dog", **words),
        LocalBlend(("cat", "house"), "dog", pool=False, **words),
        LocalBlend(target="dog", without_source="grass", **words),
        LocalBlend("cat", "dog", strides=(1, 2), **words),
        LocalBlend(mask=RIGHT, start=start),
    ]
    every = {
        "cross_replace": draw.choice([*share, {"default_": 0.7, "dog": 0.3}]),
        "self_replace": draw.choice(share),
        "local_blend": draw.choice(blends),
        "reweight": {"dog": draw.choice([-1.0, 1.0, 3.0])},
        "region": RIGHT,
        "sites": draw.choice([SiteFilter(strides=(1,)), SiteFilter(heads=(0, 1))]),
        "explicit": True,
    }
    odds = dict(cross_replace=0.8, self_replace=0.6, local_blend=0.6, reweight=0.3, region=0.2, sites=0.2, explicit=0.1)
    return {name: value for name, value in every.items() if draw.random() < odds[name]}


@pytest.mark.parametrize("kind", ["generated", "null-text", "edit-friendly", "virtual"])
def test_random_sequences_of_edits_are_those_edits_to_the_bit(model, kind):
    """Two targets of different lengths; edits that share steps with earlier ones, and cancelled ones between them."""
    draw, steps = random.Random(2), 3
    if kind == "generated":
        run = model.generate(SOURCE, seed=1, steps=steps, size=SIZE, negative_prompt="fog")
    else:
        run = model.invert(torch.zeros(3, *SIZE), SOURCE, method=kind, steps=steps)
    live, options, resumed = model.live(run), {}, 0
    for n in range(6):
        target = draw.choice([TARGET, TARGET, "a red dog and a house on grass"])
        options = draw_options(draw) if n % 3 == 0 else {**options, "cross_replace": draw.choice([0.3, 0.5, 0.8])}
        shown, cancel_at = [], draw.choice([None, None, None, 1])

        def on_step(preview, shown=shown, cancel_at=cancel_at):
            shown.append(preview.step)
            if preview.step == cancel_at:
                raise Cancelled

        try:
            edit = live.edit(target, **options, on_step=on_step)
        except Cancelled:
            continue
        assert equals(edit, model.edit(run, target, **options)), (n, target, options)
        resumed += len(shown) < steps - run.conditioning.skip_steps
    assert resumed
