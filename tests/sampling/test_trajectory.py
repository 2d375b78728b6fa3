"""A run as a value: its picture, its heat maps and masks; and a run as the source of edits, step by step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from runs import CallLog, same_latents
from word_heat import SIZE, SOURCE, STEPS, TARGET, stored_run, word_heat

import minip2p
from minip2p import AttentionStore, LocalBlend, SiteFilter, explicit
from minip2p.attention.contract import fused
from minip2p.attention.masks import heatmap_to_mask
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.sampler import sample
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
    assert torch.equal(small.picture, model.components.decode(small.latents[-1:].to(model.device))[0].cpu())
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
    assert torch.equal(cat, heatmap_to_mask(heat, SIZE, "otsu", pool=False, smooth=True).cpu())
    propagated = heatmap_to_mask(run.heatmaps(["cat"], hops=2).total[0], SIZE, 0.5, pool=False, smooth=True)
    assert torch.equal(run.mask("cat", threshold=0.5, self_attention_hops=2), propagated.cpu())
    soft = run.mask(["cat", "house"], threshold=(0.2, 0.5))
    assert soft.dtype == torch.float32 and soft.min() >= 0 and soft.max() <= 1


def test_masks_of_a_run_can_be_combined_into_a_local_blend(model, source):
    run, _ = source
    mask = run.mask("cat") & ~run.mask("grass", threshold=0.5, self_attention_hops=0)
    assert model.edit(run, TARGET, local_blend=LocalBlend(mask=mask)).blend_mask is not None


def test_maps_of_pictures_that_are_not_square(model):
    run = model.generate(SOURCE, seed=3, steps=1, size=(136, 88))  # maps with odd sides
    assert run.maps(["cat", "grass"]).shape == (2, 136, 88) and run.maps(
        "cat", sites=SiteFilter(strides=(4,))
    ).shape == (1, 136, 88)


def test_maps_show_the_attention_that_the_run_had(model):
    run = model.generate(SOURCE, **SMALL, attend=ROLL)
    assert not torch.allclose(run.maps("cat"), replace(run, attend=fused).maps("cat"))


def test_maps_of_chosen_heads_steps_and_sites_are_the_mean_of_these(model, small):
    """By hand from the stored maps, summed in float32: 1e-5."""
    store = AttentionStore(sites=lambda site: site.cross and site.place == "up", each_step=True)
    replace(small, attend=explicit(store)).maps("cat")
    cat = list(model.text.prompt(SOURCE).token_indices("cat"))
    sites = SiteFilter(places=("up",), strides=(2, 4))
    chosen = [(site, maps) for site, maps in store.maps.items() if site.stride in (2, 4)]
    for steps in (range(1), [1], None):
        for heads in ((0, 3), [1], None):
            rows = slice(None) if steps is None else list(steps)
            by_hand = sum(
                F.interpolate(heat.reshape(1, 1, -(-8 // site.stride), -1), (4, 5), mode="nearest")
                for site, maps in chosen
                for heat in maps[rows, 0][:, slice(None) if heads is None else list(heads)][..., cat].sum(-1).mean(1)
            ) / (len(chosen) * (2 if steps is None else 1))
            by_hand = F.interpolate(by_hand, small.picture_size, mode="bilinear")[0]
            options = dict(heads=heads, steps=steps, sites=sites)
            torch.testing.assert_close(small.maps("cat", **options), by_hand, rtol=1e-5, atol=1e-6)
            same = replace(sites, heads=None if heads is None else tuple(heads))
            assert torch.equal(small.maps("cat", steps=steps, sites=same), small.maps("cat", **options))
    assert not torch.equal(small.mask("cat", heads=(0,), steps=[1]), small.mask("cat"))


def test_maps_of_chosen_steps_run_these_steps_alone(model):
    log = CallLog()
    run = model.counting(log).generate(SOURCE, seed=3, steps=5, size=(64, 72))
    log.calls.clear()
    run.maps("cat", steps={0, 3, 7})
    assert log.calls == [1, 1]


def test_the_shares_of_all_words_and_special_tokens_sum_to_1(model, small):
    """A comma has a token, and is no word: its share is what is left."""
    words = list(range(len(model.text.prompt(SOURCE).words)))
    shares = small.maps([*words, "<start>", "<end>", "<padding>"]).sum(0)
    torch.testing.assert_close(shares, torch.ones(64, 72), rtol=0, atol=1e-5)
    comma = model.generate("a cat, on grass", **SMALL)
    store = AttentionStore(sites=lambda site: site.cross and site.stride == 1)
    replace(comma, attend=explicit(store)).maps("cat")
    share = sum(maps[0, ..., 3].mean(0) for maps in store.maps.values()) / len(store.maps)
    share = F.interpolate(share.reshape(1, 1, 8, 9), (64, 72), mode="bilinear")[0, 0]
    shares = comma.maps(["a", "cat", "on", "grass", "<start>", "<end>", "<padding>"]).sum(0)
    torch.testing.assert_close(shares + share, torch.ones(64, 72), rtol=0, atol=1e-5)
    assert share.max() > 1e-3


def test_maps_are_saved_with_the_names_of_what_they_are_of(small, tmp_path):
    file = tmp_path / "cat.npz"
    options = dict(heads=(0, 2), steps=range(1, 9), sites=SiteFilter(places=("up",), strides=(1,)))
    small.save_maps(file, ["cat", ("a", 2), 3, "<end>"], **options)
    with np.load(file) as saved:  # which refuses pickles
        assert np.array_equal(saved["maps"], small.maps(["cat", ("a", 2), 3, "<end>"], **options))
        assert saved["words"].tolist() == ["cat", "('a', 2)", "3", "<end>"] and str(saved["prompt"]) == SOURCE
        assert saved["steps"].tolist() == [1] and saved["heads"].tolist() == [0, 2]
        up = [site for site in small.components.unet.sites if site.cross and site.place == "up" and site.stride == 1]
        assert saved["sites"].tolist() == [f"up.{site.index}.cross" for site in up] and up
    small.save_maps(file, "cat")
    with np.load(file) as saved:
        assert saved["steps"].tolist() == [0, 1] and saved["heads"].size == 0 and saved["maps"].shape == (1, 64, 72)
    with pytest.raises(ValueError, match="cat.npy: heat maps are written to an .npz file"):
        small.save_maps(tmp_path / "cat.npy", "cat")
    with pytest.raises(ValueError, match="'cow' is not in the prompt"):
        small.save_maps(tmp_path / "cow.npz", "cow")
    assert [path.name for path in tmp_path.iterdir()] == ["cat.npz"]


# Animations


@pytest.mark.parametrize("suffix", [".gif", ".WebP"])
def test_an_animation_shows_every_nth_prediction_and_the_picture(model, tmp_path, suffix):
    previews = []
    run = model.generate(SOURCE, seed=3, steps=6, size=(64, 72), on_step=previews.append)
    file = tmp_path / f"cat{suffix}"
    log = CallLog()
    replace(run, components=model.counting(log).components).gif(file, fps=5, every=2, pause=2)
    assert not log.calls
    frames, durations = [], []
    with Image.open(file) as animation:
        for n in range(animation.n_frames):
            animation.seek(n)
            frames.append(np.asarray(animation.convert("RGB"), dtype=float))
            durations.append(animation.info["duration"])
        assert animation.info["loop"] == 0
    assert durations == [200, 200, 200, 2000]
    shown = [*(previews[n].images[0] for n in (0, 2, 4)), run.image]
    for frame, picture in zip(frames, shown, strict=True):  # 256 colours, or lossy compression
        assert np.abs(frame - np.asarray(picture, dtype=float)).mean() < 6


def test_predictions_are_recovered_from_the_latents(model):
    """Measured: 4e-6 at most, in units of the latents; 1e-4 is allowed. At DDPM's steps as well."""
    previews = []
    run = model.generate(SOURCE, seed=3, steps=6, size=(64, 72), on_step=previews.append)
    for i, preview in enumerate(previews):
        torch.testing.assert_close(run.predicted_x0(i), preview.predicted_x0, rtol=0, atol=1e-4)
    noise = torch.randn(6, 4, 8, 9, generator=torch.Generator().manual_seed(1))
    start = model.prepare(SOURCE, RunSettings(seed=3, steps=6, size=(64, 72)))
    start = replace(start, conditioning=Conditioning(variance_noise=noise))
    previews.clear()
    run = sample(model.components, start, on_step=previews.append)
    for i, preview in enumerate(previews):
        torch.testing.assert_close(run.predicted_x0(i), preview.predicted_x0, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("a.png", {}, "a.png: an animation ends in .gif or .webp"),
        ("a.gif", dict(fps=0), "fps must be a number of frames a second from 0.1 to 50, not 0"),
        ("a.gif", dict(fps=51), "fps must be"),
        ("a.gif", dict(every=0), "every must be a whole number from 1 on, not 0"),
        ("a.gif", dict(every=1.5), "every must be"),
        ("a.gif", dict(pause=-1), "pause must be a number of seconds from 0 to 60, not -1"),
    ],
)
def test_animations_that_are_refused(small, tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        small.gif(tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_maps_run_one_conditional_row_a_step(model):
    log = CallLog()
    run = model.counting(log).generate(SOURCE, **SMALL)
    log.calls.clear()
    run.maps("cat")
    assert log.calls == [1, 1]


def test_maps_of_an_instruction_are_those_of_the_run_which_reads_the_picture():
    """The replayed row has the picture's channels, as the row of the run with the instruction and the picture has."""
    seen: list[torch.Tensor] = []

    def record(q, k, v, site):
        if site.cross:
            seen.append(q[-1:])  # of a step's three rows the last has both
        return fused(q, k, v, site)

    editor = minip2p.load("tiny-instruct")
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    run = editor.instruct(picture, "make the cat red", seed=1, steps=2, attend=record)
    of_run, seen[:] = list(seen), []
    replace(run, attend=fused).replay(lambda attend: record)
    assert len(seen) == len(of_run) and all(torch.allclose(a, b, atol=1e-4) for a, b in zip(seen, of_run, strict=True))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(threshold=2), "a mask's threshold must"),
        (dict(self_attention_hops=1.5), "self_attention_hops must be a whole number"),
        (dict(self_attention_hops=17), "self_attention_hops must be a whole number"),
        (dict(sites=(2,)), r"sites must be a SiteFilter, not \(2,\)"),
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
        ("cat", dict(sites=SiteFilter(strides=(3,))), "strides must be some of [1, 2, 4], as a tuple, not (3,)"),
        (
            "cat",
            dict(sites=SiteFilter(("mid",), (1,))),
            "there is no cross-attention at these sites: SiteFilter(places",
        ),
        ("cat", dict(heads=[9]), "heads must be some of [0, 1, 2, 3], as a tuple, not (9,)"),
        ("cat", dict(heads=2), "heads must be some of [0, 1, 2, 3], as a tuple, not 2"),
        ("cat", dict(heads=(0,), sites=SiteFilter(heads=(1,))), "the heads are named twice: by heads, and in sites"),
        ("cat", dict(steps=1), "steps must contain the numbers of steps, such as range(10), and is 1"),
        ("cat", dict(steps=range(2, 9)), "steps has none of the 2 steps of this run, which are counted from 0"),
    ],
)
def test_words_sites_and_steps_that_do_not_exist_are_named(small, words, options, message):
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


def test_the_source_of_a_photographs_edit_runs_its_words_alone(model, small):
    """Its attention is what a guided step has, but for rounding: 1e-4 in float32 (measured: 2e-6)."""

    def wants_all(site, queries):
        return True

    log = CallLog()
    photo = replace(small, inversion="direct")
    pairs = SourceRun(model.counting(log).components, photo).advance(1, wants_all)
    assert log.calls == [1]
    guided = SourceRun(model.components, small).advance(1, wants_all)
    assert pairs.keys() == guided.keys() == set(model.unet.sites)
    assert max(float((a - b).abs().max()) for s in pairs for a, b in zip(pairs[s], guided[s], strict=True)) < 1e-4


class Unconditional:
    """An attention that treats the rows without words too."""

    def __init__(self):
        self.sites = []

    def __call__(self, q, k, v, site):
        return fused(q, k, v, site)

    def unconditional(self, q, k, v, site):
        self.sites.append(site)
        return fused(q, k, v, site)


class Stepped(Unconditional):
    """The same, at each step."""

    def at(self, step):
        both = Unconditional()
        both.sites = self.sites
        return both

    unconditional = property()


@pytest.mark.parametrize("attend", [Unconditional(), Stepped()], ids=["plain", "by step"])
def test_an_attention_of_the_rows_without_words_sees_them_in_the_source_of_a_photograph_too(attend, model, small):
    log = CallLog()
    photo = replace(small, inversion="direct", attend=attend)
    assert SourceRun(model.counting(log).components, photo).advance(1, lambda site, queries: True)
    assert log.calls == [2] and attend.sites == list(model.unet.sites)


@pytest.mark.parametrize("inversion", ["ddim", "negative-prompt", "proximal", "null-text", "virtual"])
def test_the_source_of_other_photographs_repeats_what_made_it(inversion, model, small):
    log = CallLog()
    source = SourceRun(model.counting(log).components, replace(small, inversion=inversion))
    assert source.advance(1, lambda site, queries: True) and log.calls == [2]


def test_a_source_that_corrects_its_edits_has_a_correction_where_its_attention_is_read_too(model, small):
    conditioning = replace(small.conditioning, source_guidance_scale=1.0)
    photo = replace(small, inversion="direct", conditioning=conditioning)
    source = SourceRun(model.components, photo)
    assert source.advance(1, lambda site, queries: True) and source.corrections.keys() == {1}


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
