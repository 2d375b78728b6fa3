"""A run as a value: its picture, its heat maps and masks; and a run as the source of edits, step by step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import CallLog, same_latents
from word_heat import SIZE, SOURCE, STEPS, TARGET, stored_run, word_heat

from minip2p import LocalBlend, explicit
from minip2p.attention.contract import fused
from minip2p.attention.masks import heatmap_to_mask
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import SourceRun, Trajectory

SMALL = dict(seed=3, steps=2, size=(64, 72))
ROLL = explicit(lambda probs, site: probs.roll(1, -1) if site.cross else probs)


@pytest.fixture(scope="module")
def source(model):
    """The source as a run, and its cross-attention maps at each step and site of stride 1."""
    return stored_run(model)


@pytest.fixture(scope="module")
def small(model):
    return model.generate(SOURCE, **SMALL)


# A finished run


def test_a_run_knows_its_size_and_its_picture(model, small):
    assert (small.steps, small.latent_size, small.picture_size) == (2, (8, 9), (64, 72))
    assert small.picture.shape == (3, 64, 72) and small.image.size == (72, 64)
    assert torch.equal(small.picture, model.components.decode(small.latents[-1:])[0])
    assert np.array_equal(np.asarray(small.image), ((small.picture + 1) * 127.5).round().byte().permute(1, 2, 0))


def test_a_run_from_its_start_has_everything_of_it(model):
    conditioning = Conditioning(skip_steps=1)
    settings = RunSettings(**SMALL, guidance_scale=2.0, negative_prompt="fog", attend=ROLL)
    start = replace(model.prepare(SOURCE, settings), conditioning=conditioning)
    run = Trajectory.from_start(model.components, start, torch.zeros(3, 4, 8, 9))
    assert (run.prompt, run.guidance_scale, run.negative_prompt, run.seed) == (SOURCE, 2.0, "fog", 3)
    assert run.conditioning is conditioning and run.attend is ROLL and run.components is model.components
    assert run.source_run is None and run.blend_mask is None and run.qk_cache is None


# Maps and masks


def test_the_maps_of_a_run_are_the_mean_of_its_attention(model, source):
    run, store = source
    maps = run.maps(["cat", "grass"])
    assert maps.shape == (2, *SIZE) and (maps >= 0).all() and (maps <= 1).all()
    prompt = model.text.prompt(SOURCE)
    by_hand = torch.stack([word_heat(store, prompt, word) for word in ("cat", "grass")]) / (STEPS * len(store.maps))
    by_hand = F.interpolate(by_hand[:, None], SIZE, mode="bilinear")[:, 0]
    torch.testing.assert_close(maps, by_hand, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(run.maps("grass"), maps[1:], rtol=1e-4, atol=1e-6)


def test_the_mask_of_a_run_is_its_heat_enlarged_smoothly_and_thresholded(source):
    run, _ = source
    cat = run.mask("cat")
    assert cat.shape == SIZE and cat.dtype == torch.bool and 0 < cat.sum() < cat.numel()
    heat = run.heatmaps(["cat"]).total[0]
    assert torch.equal(cat, heatmap_to_mask(heat, SIZE, "otsu", pool=False, smooth=True))
    propagated = heatmap_to_mask(run.heatmaps(["cat"], hops=2).total[0], SIZE, 0.5, pool=False, smooth=True)
    assert torch.equal(run.mask("cat", threshold=0.5, self_attention_hops=2), propagated)
    soft = run.mask(["cat", "house"], threshold=(0.2, 0.5))
    assert soft.dtype == torch.float32 and soft.min() >= 0 and soft.max() <= 1


def test_masks_of_a_run_can_be_combined_into_a_local_blend(model, source):
    run, _ = source
    mask = run.mask("cat") & ~run.mask("grass", threshold=0.5, self_attention_hops=0)
    assert model.edit(run, TARGET, local_blend=LocalBlend(mask=mask)).blend_mask is not None


def test_maps_of_pictures_that_are_not_square(model):
    run = model.generate(SOURCE, seed=3, steps=1, size=(136, 88))  # maps with odd sides
    assert run.maps(["cat", "grass"]).shape == (2, 136, 88) and run.maps("cat", strides=(4,)).shape == (1, 136, 88)


def test_maps_show_the_attention_that_the_run_had(model):
    run = model.generate(SOURCE, **SMALL, attend=ROLL)
    assert not torch.allclose(run.maps("cat"), replace(run, attend=fused).maps("cat"))


def test_maps_run_one_conditional_row_a_step(model):
    log = CallLog()
    run = model.counting(log).generate(SOURCE, **SMALL)
    log.calls.clear()
    run.maps("cat")
    assert log.calls == [1, 1]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(threshold=2), "a mask's threshold must"),
        (dict(self_attention_hops=1.5), "self_attention_hops must be a whole number"),
        (dict(self_attention_hops=17), "self_attention_hops must be a whole number"),
        (dict(strides=2), "strides must be a list or a tuple"),
    ],
)
def test_options_of_a_mask_that_are_refused(small, options, message):
    with pytest.raises(ValueError, match=message):
        small.mask("cat", **options)


@pytest.mark.parametrize(
    "words, options, message",
    [
        ("cow", {}, f"'cow' is not in the prompt '{SOURCE}'; its words are: a, cat, and, a, house, on, grass"),
        (["cat", ("cat", 2)], {}, "'cat' number 2 is not in the prompt"),
        ([], {}, "there is no word to show"),
        ("cat", dict(strides=(3,)), "no cross-attention has stride 3; this model's strides: [1, 2, 4]"),
    ],
)
def test_words_and_strides_that_do_not_exist_are_named(small, words, options, message):
    for read in (small.maps, small.mask):
        with pytest.raises(ValueError) as error:
            read(words, **options)
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("word", [None, 1.5, ("cat", "beach"), ("cat", "house", "grass"), (2, "cat")])
def test_a_word_of_the_wrong_kind_is_refused(small, word):
    for read in (small.mask, small.maps):
        with pytest.raises(ValueError, match="a word is given as text"):
            read(word)


def test_a_word_may_be_a_number_of_numpy(small):
    assert torch.equal(small.maps(np.int64(1)), small.maps(1))


# The source of an edit


def test_a_source_is_sampled_step_by_step(model, small):
    log = CallLog()
    source = SourceRun(model.counting(log).components, model.prepare(SOURCE, RunSettings(**SMALL)))
    assert source.prompt == SOURCE and len(source.latents) == 1
    assert source.advance(0) == {} and len(source.latents) == 2
    pairs = source.advance(1, lambda site, queries: site.cross and site.stride == 4)
    assert {(site.cross, site.stride) for site in pairs} == {(True, 4)} and log.calls == [2, 2]
    run = source.finish()
    assert same_latents(run, small) and (run.prompt, run.seed) == (SOURCE, 3) and log.calls == [2, 2]


def test_a_source_finishes_the_steps_that_were_not_read_and_only_once(model, small):
    log = CallLog()
    source = SourceRun(model.counting(log).components, model.prepare(SOURCE, RunSettings(**SMALL)))
    source.advance(0)
    progress = []
    assert same_latents(source.finish(lambda steps: progress.extend(steps) or list(progress)), small)
    assert progress == [1] and log.calls == [2, 2]
    assert same_latents(source.finish(), small) and log.calls == [2, 2]


def test_asking_for_the_source_of_an_edit_runs_nothing(model):
    log = CallLog()
    edit = model.counting(log).edit(SOURCE, TARGET, **SMALL, cross_replace=0, self_replace=0)
    before = list(log.calls)
    assert edit.source_run.prompt == SOURCE and len(edit.source_run.latents) == 1
    assert log.calls == before


def test_a_finished_source_runs_only_where_something_is_wanted(model, small):
    log = CallLog()
    source = SourceRun(model.counting(log).components, small)
    assert source.advance(0) == {} and not log.calls
    assert source.advance(1, lambda site, queries: queries <= 6) and log.calls == [2]
    assert source.finish() is small


def test_a_recorded_source_is_read_from_its_cache(model, small):
    log = CallLog()
    recorded = model.record(small, self_replace=0)

    def wants_cross(site, queries):
        return site.cross

    def wants_all(site, queries):
        return True

    assert recorded.is_recorded(0, None) and recorded.is_recorded(1, wants_cross)
    assert not recorded.is_recorded(0, wants_all) and not small.is_recorded(0, wants_cross)
    source = SourceRun(model.counting(log).components, recorded)
    pairs = source.advance(0, wants_cross)
    assert not log.calls
    computed = SourceRun(model.components, small).advance(0, wants_cross)
    assert pairs.keys() == computed.keys()
    assert all(torch.equal(a, b) for site in pairs for a, b in zip(pairs[site], computed[site], strict=True))
    assert source.advance(1, wants_all).keys() == set(model.unet.sites) and log.calls == [2]
