"""The pipeline: edits of prompts and of runs, what they cost, two counters, and clear errors.

What generation, records and inversions compute is tested in tests/sampling and tests/inversion.
"""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import CallLog, deviations, same_latents

import minip2p
from minip2p import AttentionStore, LocalBlend, Pipeline, SiteFilter, chain, explicit
from minip2p.attention.contract import fused
from minip2p.checkpoints.components import RowCounter
from minip2p.inversion.edit_friendly import edit_friendly
from minip2p.inversion.null_text import null_text
from minip2p.p2p.algebra import dense
from minip2p.p2p.edit_plan import plan_edit
from minip2p.p2p.options import EditOptions
from minip2p.sampling.guidance import guided_noise
from minip2p.sampling.sampler import sample
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import SourceRun

STEPS, SEED = 4, 5
SETTINGS = dict(seed=SEED, steps=STEPS, size=(64, 72))
SHORT = dict(seed=3, steps=2, size=(64, 72))
SOURCE, TARGET, FOG = "a cat and a house on grass", "a dog and a house on grass", "fog"
SMALL = {"seed": 1, "steps": 2, "size": (64, 72)}
TARGETS = ["a dog and a house on grass", "a cat and a house on grass at night", "a sketch of a cat on grass"]
EIGHT = [f"a {word} and a house on grass" for word in "dog horse duck car hat lamp cake camel".split()]
ROLL = explicit(lambda probs, site: probs.roll(1, -1) if site.cross else probs)


@pytest.fixture(scope="module")
def run(model):
    return model.generate(SOURCE, **SETTINGS)


@pytest.fixture(scope="module")
def short(model):
    return model.generate(SOURCE, **SHORT)


@pytest.fixture
def log():
    return CallLog()


@pytest.fixture
def counted(model, log):
    """The model, whose calls of the UNet are in `log`."""
    return model.counting(log)


# The facade


def test_record_has_the_defaults_of_an_edit_but_for_cross_replace():
    """A record keeps the cross-attention of all steps, since edits of any schedule may follow."""
    parameters = inspect.signature(Pipeline.record).parameters
    for name in ("self_replace", "self_max_queries", "sites"):
        assert parameters[name].default == getattr(EditOptions, name)
    assert parameters["cross_replace"].default == 1.0


def test_the_defaults_of_an_edit_are_the_papers():
    """Cross .8 and self .4 (Hertz et al. 2022); self-attention at up to 32²; a blend's threshold .3, from .2 on.

    `tests/p2p/test_options.py` compares them with the signature of `Pipeline.edit`.
    """
    options, blend = EditOptions(), LocalBlend("cat")
    assert (options.cross_replace, options.self_replace, options.self_max_queries) == (0.8, 0.4, 1024)
    assert (blend.threshold, blend.without_threshold, blend.start) == (0.3, 0.3, 0.2)


def test_a_pipeline_shows_its_components(model):
    components = model.components
    assert model.unet is components.unet and model.vae is components.vae and model.text is components.text
    assert model.scheduler is components.scheduler and model.origin is components.origin
    assert repr(model) == f"Pipeline(tiny, torch.float32, {model.device})"
    with pytest.raises(AttributeError):
        model.components = None


def test_two_counters_do_not_mix(model):
    a, b = RowCounter(), RowCounter()
    first, second = model.counting(a), model.counting(b)
    first.generate(SOURCE, **SHORT)
    assert (a.rows, b.rows) == (4, 0)
    second.generate(SOURCE, guidance_scale=1, **SHORT)
    first.generate(SOURCE, **SHORT)
    assert (a.rows, b.rows) == (8, 2)
    model.generate(SOURCE, **SHORT)
    assert (a.rows, b.rows) == (8, 2) and model.components.counter is None


def test_a_pipeline_and_its_counting_copy_edit_each_others_runs(model, short):
    counter = RowCounter()
    counted = model.counting(counter)
    other_way = counted.generate(SOURCE, **SHORT)
    counter.rows = 0
    assert same_latents(counted.edit(short, TARGETS[0]), model.edit(other_way, TARGETS[0]))
    assert counter.rows > 0 and counted.components.shares_networks(model.components)
    rows = counter.rows
    model.edit(other_way, TARGETS[0])
    assert counter.rows == rows  # the pipeline that edits counts, not the one that made the run
    assert same_latents(model.counting(RowCounter()).record(other_way), short)


def test_every_method_shows_its_progress_by_the_pipelines_function(model, short):
    counts = []

    def progress(steps):
        counts.append(len(list(steps)))
        return steps

    shown = model.with_progress(progress)
    assert same_latents(shown.generate(SOURCE, **SHORT), short) and counts == [2]
    shown.edit(short, TARGET)
    shown.edit(SOURCE, TARGET, **SHORT)
    shown.record(short)
    shown.invert(short.picture, SOURCE, steps=3)
    assert counts == [2, 2, 2, 2, 3] and shown.counting(CallLog()).progress is progress


def test_progress_that_raises_cancels_a_run(counted, log):
    class Cancelled(Exception):
        pass

    def cancel(steps):
        yield from list(steps)[:1]
        raise Cancelled

    with pytest.raises(Cancelled):
        counted.with_progress(cancel).generate(SOURCE, **SHORT)
    assert log.calls == [2]


# Several pictures in one call


def test_several_prompts_or_seeds_give_the_runs_of_separate_calls_within_rounding(model, counted, log):
    """Measured: 2e-6 standard deviations at most; 1e-4 is allowed."""
    calls = [
        ([SOURCE, TARGET], 3, [(SOURCE, 3), (TARGET, 3)]),
        (SOURCE, [3, 4], [(SOURCE, 3), (SOURCE, 4)]),
        ((SOURCE, TARGET), range(3, 5), [(SOURCE, 3), (TARGET, 4)]),
    ]
    for prompt, seed, pairs in calls:
        log.calls.clear()
        runs = counted.generate(prompt, seed=seed, steps=2, size=(64, 72))
        assert [(run.prompt, run.seed) for run in runs] == pairs and log.calls == [4, 4]
        for run, (text, number) in zip(runs, pairs, strict=True):
            assert deviations(run, model.generate(text, seed=number, steps=2, size=(64, 72))) <= 1e-4
    for prompt, seed in (([SOURCE], 3), (SOURCE, [3])):  # a list of 1 is a list, and a batch of 1
        (run,) = model.generate(prompt, seed=seed, steps=2, size=(64, 72))
        assert same_latents(run, model.generate(SOURCE, **SHORT))


def test_more_pictures_than_a_batch_holds_are_split_evenly_and_shown_together(counted, log):
    previews = []
    runs = counted.generate(SOURCE, seed=range(9), steps=1, size=(64, 72), on_step=previews.append)
    assert log.calls == [2 * 5, 2 * 4] and previews[0].predicted_x0.shape == (9, 4, 8, 9)
    for n, run in enumerate(runs):
        torch.testing.assert_close(previews[0].predicted_x0[n : n + 1], run.predicted_x0(0), rtol=0, atol=1e-4)


def test_a_custom_attention_sees_all_pictures_at_once(model):
    store = AttentionStore(sites=lambda site: site.cross and site.stride == 4)
    runs = model.generate([SOURCE, TARGET] * 5, steps=1, size=(64, 72), attend=explicit(store))
    (maps,) = store.maps.values()
    assert len(runs) == len(maps) == 10 and runs[0].attend is runs[9].attend
    assert float((maps[0] - maps[2]).abs().max()) < 1e-4 < float((maps[0] - maps[1]).abs().max())


@pytest.mark.parametrize(
    "prompt, options, message",
    [
        ([], {}, "there is nothing to generate: the list of prompts or of seeds is empty"),
        (SOURCE, dict(seed=[]), "there is nothing to generate"),
        ([SOURCE, TARGET], dict(seed=[1, 2, 3]), "prompts and seeds go in pairs, and there are 2 and 3 of them"),
        ([SOURCE, 7], {}, "a prompt must be text, not int"),
        (SOURCE, dict(seed=[1, -1]), "seed must lie between 0 and 2^63 - 1, not -1"),
        (SOURCE, dict(seed=[1, 2], latents=torch.zeros(1, 4, 8, 9)), "latents are the noise itself: there is nothing"),
    ],
)
def test_several_pictures_that_are_refused_before_anything_runs(counted, log, prompt, options, message):
    with pytest.raises(ValueError) as error:
        counted.generate(prompt, steps=2, **options)
    assert message in str(error.value) and "\n" not in str(error.value) and not log.calls


def test_the_run_of_another_model_is_refused(short):
    other = minip2p.load()
    for function in (lambda: other.edit(short, TARGETS[0]), lambda: other.record(short)):
        with pytest.raises(ValueError, match=f"the run '{SOURCE}' is another model's: edit it with the model that"):
            function()


# The source, and edits of it


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(local_blend="cat"),
        dict(cross_replace=1.0, self_replace=1.0),
        dict(cross_replace=(0.3, 0.6), parity=True),
    ],
)
def test_an_edit_to_its_own_prompt_is_the_run_to_the_bit(model, run, options):
    edit = model.edit(run, run.prompt, **options)
    assert same_latents(edit, run) and edit.source_run.finish() is run and edit.prompt == run.prompt


def test_an_explicit_edit_to_its_own_prompt_is_the_run_within_rounding(model, run):
    assert 0 < deviations(model.edit(run, run.prompt, explicit=True), run) <= 1e-4


def test_explicit_and_fused_edits_agree(model, run):
    options = dict(reweight={"dog": 3}, cross_replace={"default_": 0.8, "house": 0.3})
    in_maps, in_values = (model.edit(run, TARGETS[0], explicit=flag, **options) for flag in (True, False))
    assert deviations(in_maps, in_values) <= 1e-4 < deviations(in_maps, run)


def test_the_source_is_the_same_to_the_bit_with_1_target_and_with_8(model, run):
    for targets in (EIGHT[:1], EIGHT):
        edits = model.edit(SOURCE, targets, **SETTINGS)
        assert [edit.prompt for edit in edits] == targets
        source_run = edits[0].source_run
        assert same_latents(source_run.finish(), run) and all(edit.source_run is source_run for edit in edits)
        assert all(torch.equal(edit.latents[0], run.latents[0]) and not same_latents(edit, run) for edit in edits)
    edit = model.edit(SOURCE, TARGETS[0], **SETTINGS, explicit=True, local_blend=("cat", "dog"))
    assert same_latents(edit.source_run.finish(), run)


def test_edits_in_one_call_equal_separate_calls(model, run):
    for together, target in zip(model.edit(run, TARGETS), TARGETS, strict=True):
        assert deviations(together, model.edit(run, target)) <= 1e-3


def test_one_target_gives_a_run_and_a_list_or_tuple_gives_a_list(model, short):
    single, (in_list,), (in_tuple,) = (model.edit(short, target) for target in (TARGETS[0], TARGETS[:1], (TARGETS[0],)))
    assert same_latents(single, in_list) and same_latents(single, in_tuple)


@pytest.mark.parametrize(
    "options", [{}, dict(local_blend=LocalBlend(("cat",), ("grass",), start=0.0)), dict(explicit=True)]
)
def test_streaming_equals_editing_a_run_to_the_bit(model, run, options):
    streamed = model.edit(SOURCE, TARGETS[:2], **SETTINGS, **options)
    assert all(map(same_latents, streamed, model.edit(run, TARGETS[:2], **options)))
    assert same_latents(streamed[0].source_run.finish(), run)


def test_without_cross_and_self_an_edit_is_plain_generation_to_the_bit(model, run):
    edit = model.edit(run, TARGETS[1], cross_replace=0, self_replace=0)
    assert same_latents(edit, model.generate(TARGETS[1], **SETTINGS))


def test_at_guidance_1_a_run_and_its_edits_are_consistent(model):
    run = model.generate(SOURCE, guidance_scale=1, **SHORT)
    assert same_latents(model.edit(run, SOURCE), run)
    edit = model.edit(SOURCE, TARGETS[0], guidance_scale=1, **SHORT)
    assert same_latents(edit.source_run.finish(), run)


def test_at_guidance_0_the_words_have_no_effect(model):
    run = model.generate(SOURCE, guidance_scale=0, **SHORT)
    assert same_latents(model.edit(run, TARGETS[0], local_blend=("cat", "dog")), run)


@pytest.mark.parametrize("size", [(64, 80), (72, 56)])  # the second's maps have odd sides
def test_pictures_need_not_be_square(model, size):
    run = model.generate(SOURCE, seed=SEED, steps=2, size=size)
    blend = LocalBlend(("cat",), ("dog",), strides=(1, 2), start=0)
    edit = model.edit(run, TARGETS[0], local_blend=blend, reweight={"dog": 2})
    mask = edit.blend_mask
    assert run.image.size == edit.image.size == size[::-1] and mask.shape == (size[0] // 8, size[1] // 8)
    assert torch.equal(edit.latents[-1][:, ~mask], run.latents[-1][:, ~mask])
    assert edit.maps(["dog", "grass"]).shape == (2, *size) and run.maps(
        "cat", sites=SiteFilter(strides=(4,))
    ).shape == (1, *size)
    assert same_latents(model.edit(run, SOURCE, local_blend="cat"), run)


def test_an_edit_in_bfloat16():
    """The latents stay float32; the identity edit is the source to the bit, and a swap is not; the two executions
    agree as far as bfloat16 reaches (8 bits of precision, two steps)."""
    half = minip2p.load(dtype=torch.bfloat16)
    run = half.generate(SOURCE, **SHORT)
    assert run.latents.dtype == torch.float32 and same_latents(half.edit(run, SOURCE), run)
    in_values, in_maps = (half.edit(run, TARGETS[0], explicit=flag).latents for flag in (False, True))
    assert not torch.equal(in_values, run.latents)
    assert (in_values - in_maps).square().mean().sqrt() < 0.05 * run.latents.std()


# What an edit does to the maps


def maps_of_edit(model, run, target, **options):
    """Cross-attention maps of the target, site -> t b h i j: before and after the edit."""

    def store(before):
        return AttentionStore(sites=lambda site: site.cross, each_step=True, before=before)

    before, after = store(True), store(False)
    model.edit(run, target, attend=explicit(chain(before, after)), **options)
    assert len(before.maps) == len(after.maps) == 7
    return before.maps, after.maps


def test_the_share_of_a_word_changes_that_words_columns_at_its_steps_alone(model, run):
    schedule = {"default_": 0.0, "dog": (0.4, 0.9)}
    before, after = maps_of_edit(model, run, TARGETS[0], cross_replace=schedule, self_replace=0.0)
    dog = list(model.text.prompt(TARGETS[0]).token_indices("dog"))
    steps = range(int(0.4 * (STEPS + 1)), int(0.9 * (STEPS + 1)))
    for site in before:
        changed = (before[site] != after[site]).any(1).any(1).any(1)  # t b h i j -> t j
        assert changed.nonzero().tolist() == [[step, j] for step in steps for j in dog]


def test_the_maps_after_an_edit_are_A_s_R_plus_A_e_S(model, run):
    source = AttentionStore(sites=lambda site: site.cross, each_step=True)
    model.generate(SOURCE, **SETTINGS, attend=explicit(source))
    options = dict(cross_replace={"default_": 0.5, "dog": 0.8}, reweight={"dog": 3, "grass": -1})
    before, after = maps_of_edit(model, run, TARGETS[0], **options)
    plan = plan_edit(*map(model.text.prompt, (SOURCE, TARGETS[0])), STEPS, EditOptions(**options))
    ones = torch.ones(77)
    for site in before:
        for step in range(STEPS):
            pair = plan.at(step).cross
            literal = source.maps[site][step] @ dense(pair.R, ones) + before[site][step] @ dense(pair.S, ones)
            torch.testing.assert_close(after[site][step], literal, rtol=1e-3, atol=1e-5)


def test_self_injection_gives_the_targets_the_sources_self_attention(model, run):
    source, target = (
        AttentionStore(sites=lambda site: not site.cross and site.stride == 2, each_step=True) for _ in range(2)
    )
    model.generate(SOURCE, **SETTINGS, attend=explicit(source))
    model.edit(run, TARGETS[:2], self_replace=(0.25, 0.75), self_max_queries=20, attend=explicit(target))
    for site, maps in target.maps.items():
        difference = (maps - source.maps[site]).abs().amax((2, 3, 4)) / source.maps[site].std()  # t b
        injected, free = difference[1:3], difference[3]  # int(.25 · 4) … int(.75 · 4)
        assert (injected < 1e-3).all() and (free > injected.max()).all(), difference


def test_self_max_queries_bounds_where_self_attention_is_injected(model, short):
    """Latents of 8 × 9 have self-attention at 72, 20 and 6 queries."""
    none, few, everywhere = (
        model.edit(short, TARGETS[0], cross_replace=0, self_replace=1, self_max_queries=n).latents for n in (0, 20, 72)
    )
    assert not torch.equal(few, everywhere) and not torch.equal(few, none)
    assert torch.equal(none, model.edit(short, TARGETS[0], cross_replace=0, self_replace=0).latents)


# What an edit costs


def test_k_edits_cost_at_most_2_n_times_1_plus_k_rows(counted, log):
    """The first step has one unconditional row for all targets, and the source runs to the last step that is read."""
    edits = counted.edit(SOURCE, TARGETS, **SETTINGS, cross_replace=0.5)
    assert log.calls == [2, 4, 2, 6, 6, 6] and log.rows < 2 * STEPS * (1 + len(TARGETS))
    assert edits[0].source_run.finish().steps == STEPS and log.calls[6:] == [2, 2]  # the steps that were not read
    edits[1].source_run.finish()
    assert len(log.calls) == 8


def test_at_guidance_1_an_edit_has_one_row_a_step_and_run(counted, log, model):
    counted.edit(model.generate(SOURCE, guidance_scale=1, **SHORT), TARGETS[0], cross_replace=1.0)
    assert log.calls == [1, 1, 1, 1]


def test_more_targets_than_a_batch_holds_are_split_evenly(model, counted, log):
    edits = counted.edit(SOURCE, [*EIGHT, *TARGETS], **SHORT, self_replace=0)
    assert log.calls[:3] == [2, 6, 6]  # eleven targets, two of one prompt: five and five, each with one uncond. row
    assert deviations(edits[9], model.edit(SOURCE, TARGETS[1], **SHORT, self_replace=0)) <= 1e-3


@pytest.mark.parametrize(
    "options, steps_read",
    [
        (dict(cross_replace=0.5, self_replace=0.25), 2),
        (dict(cross_replace=0.25, self_replace=0.75), 3),
        (dict(cross_replace=0, self_replace=0), 0),
        (dict(cross_replace=0, self_replace=0.5, local_blend=LocalBlend(mask=torch.ones(4, 4))), 2),
        (dict(cross_replace=0, self_replace=0, local_blend="house"), STEPS),
        (dict(cross_replace=0, self_replace=0, local_blend=LocalBlend((), ("house",))), 0),
    ],
)
def test_a_finished_source_runs_only_at_the_steps_that_read_it(counted, log, run, options, steps_read):
    counted.edit(run, TARGETS[:2], **options)
    assert log.rows == 2 * STEPS * 2 - 1 + 2 * steps_read


# A run's own attention


@pytest.mark.parametrize(
    "attend",
    [ROLL, lambda q, k, v, site: fused(2 * q, k, v), lambda q, k, v, site: fused(q, k, v) / 2],
    ids=["maps", "queries", "values"],
)
def test_an_edit_to_its_own_prompt_is_the_run_whatever_its_attention(model, short, attend):
    run = model.generate(SOURCE, **SHORT, attend=attend)
    assert not same_latents(run, short)
    assert same_latents(model.edit(run, run.prompt), run)


def test_a_streamed_source_has_the_attention_of_the_call(model):
    edit = model.edit(SOURCE, TARGETS[0], **SHORT, attend=ROLL)
    assert same_latents(edit.source_run.finish(), model.generate(SOURCE, **SHORT, attend=ROLL))


def test_an_edit_has_the_attention_of_its_source_unless_another_is_given(model, short):
    run = model.generate(SOURCE, **SHORT, attend=ROLL)
    inherited = model.edit(run, TARGETS[0])
    assert inherited.attend is ROLL and same_latents(inherited, model.edit(run, TARGETS[0], attend=ROLL))
    assert not same_latents(inherited, model.edit(run, TARGETS[0], attend=fused))
    with pytest.raises(ValueError, match="attend is a function of"):
        model.edit(short, TARGETS[0], attend=AttentionStore())


def test_an_explicit_edit_refuses_an_attention_without_maps(model):
    with pytest.raises(ValueError, match="attend=explicit"):
        model.edit(SOURCE, TARGETS[0], steps=1, explicit=True, attend=lambda q, k, v, site: torch.zeros_like(q))


def test_the_source_is_masked_by_the_attention_that_it_ran_with(model):
    """An edit that changes nothing: the source's mask of a word is then the target's."""
    settings = dict(seed=3, steps=3, size=(64, 72))
    run = model.generate(SOURCE, **settings, attend=ROLL)

    def mask(*words):
        blend = LocalBlend(*words, threshold=0.8, start=0)
        return model.edit(run, SOURCE, cross_replace=0, self_replace=0, local_blend=blend).blend_mask

    by_source, by_target = mask(("cat",)), mask((), "cat")
    assert torch.equal(by_source, by_target) and by_source.any() and not by_source.all()
    plain = model.generate(SOURCE, **settings)
    other = model.edit(plain, SOURCE, local_blend=LocalBlend("cat", threshold=0.8, start=0)).blend_mask
    assert not torch.equal(by_source, other)


def test_each_target_is_blended_by_its_own_heat(model):
    """In a batch with others or alone, the same mask; another target's heat would give another."""
    run = model.generate(SOURCE, seed=3, steps=3, size=(64, 72))
    prompts = ["a dog and a red car on the beach", "a house and a dog on grass"]
    options = dict(
        local_blend=LocalBlend((), "dog", threshold=0.6, start=0),
        cross_replace=0,
        self_replace=0,
    )
    together = [edit.blend_mask for edit in model.edit(run, prompts, **options)]
    alone = [model.edit(run, prompt, **options).blend_mask for prompt in prompts]
    assert all(map(torch.equal, together, alone)) and not torch.equal(*alone)


# Errors


def test_an_edit_that_is_not_finite_names_the_step(model):
    def broken(q, k, v, site):
        return v.mean(2, keepdim=True).expand_as(q) / 0

    with pytest.raises(ValueError, match="the latents are not finite after step 1"):
        model.edit(SOURCE, TARGETS[0], steps=2, cross_replace=0, self_replace=0, attend=broken)


@pytest.mark.parametrize(
    "target, options, message",
    [
        (
            TARGETS[1],
            dict(kind="swap"),
            "a swap needs as many words in the target as in the source, which have 9 and 7",
        ),
        (TARGETS[0], dict(kind="both"), "kind must be auto, swap or refine, not 'both'"),
        (TARGETS[0], dict(cross_replace={"cat": 0.5}), f"'cat' is not in the prompt '{TARGETS[0]}'"),
        (TARGETS[0], dict(cross_replace=2), "0 <= start <= end <= 1"),
        (TARGETS[0], dict(self_replace=-1), "0 <= start <= end <= 1"),
        (TARGETS[0], dict(reweight={"cow": 2}), "'cow' is not in the prompt"),
        (
            TARGETS[0],
            dict(reweight=[("dog", 2)]),
            "reweight takes weights by word, as {'fog': 2.0}, not [('dog', 2)]",
        ),
        (TARGETS[0], dict(reweight={"dog": "2"}), "the weight of 'dog' is 2, which is not a finite number"),
        (TARGETS[0], dict(reweight={"dog": float("nan")}), "the weight of 'dog' is nan, which is not a finite number"),
        (TARGETS[0], dict(local_blend="cow"), "'cow' is not in the prompt"),
        (TARGETS[0], dict(steps=3, seed=1), "steps, seed: a run has its own settings; give a prompt as the source"),
        ([], {}, "an edit needs a target prompt, and the list of targets is empty"),
        ([TARGETS[0], 7], {}, "a prompt must be text, not int"),
        (None, {}, "a prompt must be text, not NoneType"),
        (3, {}, "a prompt must be text, not int"),
    ],
)
def test_edits_that_are_refused_before_anything_runs(counted, log, run, target, options, message):
    with pytest.raises(ValueError) as error:
        counted.edit(run, target, **options)
    assert message in str(error.value) and "\n" not in str(error.value) and not log.calls


@pytest.mark.parametrize("source", [None, 3, b"a cat", ["a cat"]])
def test_a_source_is_a_run_or_a_prompt(model, source):
    for function in (lambda: model.edit(source, TARGETS[0]), lambda: model.record(source)):
        with pytest.raises(ValueError, match="the source of an edit is a run or a prompt, not"):
            function()


def test_an_unknown_option_is_named(model, short):
    for source in (SOURCE, short):
        with pytest.raises(TypeError, match="there is no option 'guidence'; did you mean guidance_scale"):
            model.edit(source, TARGETS[0], guidence=3)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "1", None])
def test_the_image_guidance_scale_is_a_finite_number(model, scale):
    with pytest.raises(ValueError, match="image_guidance_scale must be a finite number"):
        model.instruct(torch.zeros(3, 64, 64), "make it snow", image_guidance_scale=scale)


def test_numbers_may_be_numpys(model):
    run = model.generate(SOURCE, steps=np.int64(1), size=(64, 72), seed=np.int64(2), guidance_scale=np.float64(2))
    assert run.seed == 2 and same_latents(
        run, model.generate(SOURCE, steps=1, size=(64, 72), seed=2, guidance_scale=2.0)
    )


def test_a_changed_copy_of_a_pipeline_is_another_model(model, short):
    other = replace(model, components=replace(model.components, scheduler=replace_scheduler(model.scheduler)))
    with pytest.raises(ValueError, match="is another model's"):
        other.edit(short, TARGETS[0])


def replace_scheduler(scheduler):
    return type(scheduler)(scheduler.config)


# Clip skip


def test_clip_skip_belongs_to_the_run_its_edits_its_maps_and_its_file(model, tmp_path):
    """All that follows from a run reads its prompts at the same layer of the text encoder."""
    options = {**SHORT, "negative_prompt": "fog"}
    run, plain = model.generate(SOURCE, **options, clip_skip=2), model.generate(SOURCE, **options)
    assert run.clip_skip == 2 and not same_latents(run, plain)
    assert same_latents(plain, model.generate(SOURCE, **options, clip_skip=1))
    run.save(tmp_path / "run.safetensors")
    opened = model.open(tmp_path / "run.safetensors")
    edited = model.edit(run, TARGETS[0])
    assert opened.clip_skip == edited.clip_skip == 2 and same_latents(model.edit(opened, TARGETS[0]), edited)
    assert same_latents(model.edit(SOURCE, TARGETS[0], **options, clip_skip=2), edited)
    recorded = model.record(SOURCE, **options, clip_skip=2)
    assert recorded.clip_skip == 2 and same_latents(recorded, run)
    assert torch.equal(opened.maps("cat"), run.maps("cat"))
    assert not torch.equal(replace(run, clip_skip=1).maps("cat"), run.maps("cat"))
    assert not same_latents(model.edit(replace(run, clip_skip=1), TARGETS[0]), edited)


@pytest.mark.parametrize("method", ["ddim", "negative-prompt", "null-text", "edit-friendly"])
def test_clip_skip_reaches_every_inversion(model, method):
    latents = model.generate(SOURCE, **SHORT).picture
    options = {"num_inner_steps": 1} if method == "null-text" else {}
    run, plain = (model.invert(latents, SOURCE, method=method, steps=2, clip_skip=n, **options) for n in (2, 1))
    assert run.clip_skip == 2
    if method == "edit-friendly":  # its latents do not depend on the model, its noise does
        assert not torch.equal(run.conditioning.variance_noise, plain.conditioning.variance_noise)
    else:
        assert not same_latents(run, plain)


def test_clip_skip_beyond_the_text_encoder_is_one_line(model):
    message = "clip_skip must lie between 1, which skips nothing, and 3 for this model's text encoder, and is 4"
    with pytest.raises(ValueError, match=message):
        model.generate(SOURCE, clip_skip=4)


@pytest.mark.parametrize("source", ["prompt", "run"])
@pytest.mark.parametrize(
    "option, hint",
    [
        ("self", "there is no option 'self'; did you mean self_replace or self_max_queries?"),
        ("cros_replace", "there is no option 'cros_replace'; did you mean cross_replace"),
        ("guidance", "there is no option 'guidance'; did you mean guidance_scale or guidance_interval?"),
        ("frob", "there is no option 'frob'; a run has seed, steps, "),
    ],
)
def test_an_unknown_option_is_named_as_such(model, short, source, option, hint):
    with pytest.raises(TypeError) as error:
        model.edit(short if source == "run" else SOURCE, TARGETS[0], **{option: 0.5})
    assert str(error.value).startswith(hint)


def test_an_unknown_option_of_generate_is_named_as_such(model):
    with pytest.raises(TypeError, match="^there is no option 'sede'; did you mean seed\\?$"):
        model.generate(SOURCE, sede=1)
    with pytest.raises(TypeError, match="^cross_replace is an option of an edit, not of a run$"):
        model.generate(SOURCE, cross_replace=0.4)


@pytest.mark.parametrize("name", ["photo.png", "run.safetensors", "a cat"])
def test_the_name_of_a_file_is_not_a_prompt(model, log, tmp_path, monkeypatch, name):
    """As on the command line, where a space at the end makes a prompt of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(b"x")
    counted = model.counting(log)
    for start in (lambda: counted.edit(name, TARGETS[0]), lambda: counted.record(name), lambda: counted.live(name)):
        with pytest.raises(ValueError, match=f"^{name}: is a file, not a prompt: give a photograph to pipe.invert or"):
            start()
    assert not log.calls and model.resolve_source(name + " ", {}).prompt == name + " "


@pytest.mark.parametrize("run_source", [sample, lambda components, start: SourceRun(components, start).finish()])
def test_both_prompts_of_a_run_are_read_at_its_clip_skip(model, run_source):
    start = model.prepare(SOURCE, RunSettings(**SMALL, negative_prompt=FOG, clip_skip=2))
    step, components = model.scheduler.steps(2)[0], model.components
    noise = start.noise.to(model.device)
    eps = guided_noise(
        components,
        noise,
        step.t,
        model.text.encode_negative(FOG, 2),
        model.text(SOURCE, 2),
        guidance_scale=start.guidance_scale,
    )
    expected = components.scheduler.step(noise, eps, step)
    assert torch.equal(run_source(components, start).latents[1:2], expected.cpu())


def test_the_target_is_read_at_the_clip_skip_of_its_source(model):
    run = model.generate(SOURCE, **SMALL, clip_skip=2)
    plain = model.edit(run, TARGET, cross_replace=0, self_replace=0)
    expected = model.generate(TARGET, latents=run.latents[:1], steps=2, clip_skip=2)
    torch.testing.assert_close(plain.latents, expected.latents, rtol=1e-4, atol=1e-4)
    other = model.generate(TARGET, latents=run.latents[:1], steps=2)
    assert (other.latents - expected.latents).abs().max() > 1e-2


def test_an_inversion_reads_the_negative_prompt_at_its_clip_skip(model):
    latents = torch.randn(1, 4, 8, 9, generator=torch.Generator().manual_seed(0))
    settings = RunSettings(steps=2, guidance_scale=4.0, latents=latents, negative_prompt=FOG, clip_skip=2)
    start = model.prepare(SOURCE, settings)
    run = edit_friendly(model.components, start)
    sampled = sample(model.components, replace(start, noise=run.latents[:1], conditioning=run.conditioning))
    torch.testing.assert_close(sampled.latents[1], run.latents[1], rtol=1e-3, atol=1e-3)
    run = null_text(model.components, start, num_inner_steps=0)  # no update: the negative prompt itself
    negative = model.text.encode_negative(FOG, 2)
    assert torch.equal(run.conditioning.uncond_embeddings[:1].tokens, negative.tokens.cpu())


def test_maps_of_an_instruction_run_one_conditional_row_a_step(family):
    model, counter = minip2p.load(family("InstructPix2Pix")[1]), RowCounter()
    run = model.instruct(Image.new("RGB", (32, 32)), "a cat", steps=3)
    replace(run, components=model.counting(counter).components).maps("cat")
    assert counter.rows == 3
