"""Runs: sampling by hand; a source that nothing changes; edits that stream or replay with the same bits; their cost."""

import copy
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

import minip2p
from minip2p import AttentionStore, LocalBlend, chain, explicit
from minip2p.attention.contract import fused
from minip2p.p2p.algebra import dense
from minip2p.p2p.edit_plan import plan_edit
from minip2p.sampling.conditioning import Conditioning
from minip2p.unet import UNet

STEPS, SEED = 4, 5
SOURCE = "a cat and a house on grass"
TARGETS = ["a dog and a house on grass", "a cat and a house on grass at night", "a sketch of a cat on grass"]
EIGHT = [f"a {word} and a house on grass" for word in "dog horse duck car hat lamp cake lighthouse".split()]


@pytest.fixture(scope="module")
def run(model):
    return model.generate(SOURCE, seed=SEED, steps=STEPS)


@pytest.fixture
def rows(monkeypatch):
    """The number of rows of each call of the UNet."""
    counted, forward = [], UNet.forward

    def count(self, x, *rest, **named):
        counted.append(len(x))
        return forward(self, x, *rest, **named)

    monkeypatch.setattr(UNet, "forward", count)
    return counted


def same(one, other):
    """To the bit: latents, and so the picture."""
    return torch.equal(one.latents, other.latents)


def apart(one, other):
    """In deviations of the latents at the end."""
    return float((one.latents - other.latents).abs().max() / other.latents[-1].std())


# Sampling


def test_a_run_is_ddim_on_eps_u_plus_w_eps_c_minus_eps_u(model, run):
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(SEED))
    context, latents = model.text(["", SOURCE]), [x]
    for step in model.scheduler.steps(STEPS):
        eps_u, eps_c = model.unet(x.expand(2, -1, -1, -1), step.t, context).split(1)
        eps = eps_u + model.guidance_scale * (eps_c - eps_u)
        x0 = (x - (1 - step.alpha_cumprod) ** 0.5 * eps) / step.alpha_cumprod**0.5
        x = step.alpha_cumprod_prev**0.5 * x0 + (1 - step.alpha_cumprod_prev) ** 0.5 * eps
        latents.append(x)
    assert run.latents.shape == (STEPS + 1, 4, 16, 16) and run.steps == STEPS and run.seed == SEED
    assert torch.equal(run.latents[:1], latents[0]) and (run.latents - torch.cat(latents)).abs().max() <= 1e-4
    picture = model.vae.decode(x / model.vae.config.scaling_factor)[0].clamp(-1, 1).permute(1, 2, 0)
    assert run.image.size == (128, 128) and np.abs(np.asarray(run.image) - 127.5 * (picture.numpy() + 1)).max() <= 1


def test_the_same_seed_gives_the_same_picture_to_the_bit_and_another_does_not(model, run, capsys):
    again = model.generate(SOURCE, seed=SEED, steps=STEPS)
    assert same(again, run) and np.array_equal(np.asarray(again.image), np.asarray(run.image))
    assert not same(model.generate(SOURCE, seed=SEED + 1, steps=STEPS), run)
    assert capsys.readouterr() == ("", "")  # the progress bar is for terminals


def test_latents_are_the_noise_and_set_the_size(model, run):
    assert same(model.generate(SOURCE, latents=run.latents[:1], steps=STEPS), run)
    wide = model.generate(SOURCE, latents=torch.randn(1, 4, 5, 9), steps=1)
    assert wide.latents.shape == (2, 4, 5, 9) and wide.image.size == (72, 40) and wide.seed is None


def test_attend_acts_on_the_conditional_rows_alone(model):
    shapes = set()

    def nothing(q, k, v, site):
        shapes.add(len(q))
        return torch.zeros_like(q)

    first = model.text("").requires_grad_(False)
    x, words = torch.randn(1, 4, 16, 16), model.text(SOURCE)
    eps = [model.guided_noise(x, 500, first, words, w, attend) for w in (0.5, 1.0) for attend in (fused, nothing)]
    eps_u = model.guided_noise(x, 500, first, words, 0, fused)
    assert (2 * eps[0] - eps[2] - eps_u).abs().max() <= 1e-4 and (2 * eps[1] - eps[3] - eps_u).abs().max() <= 1e-4
    assert shapes == {1}
    assert not same(model.generate(SOURCE, steps=2, attend=nothing), model.generate(SOURCE, steps=2))


def test_at_guidance_1_the_conditional_prediction_is_all(model, rows):
    run = model.generate(SOURCE, steps=2, guidance_scale=1)
    assert rows == [1, 1]
    almost = model.generate(SOURCE, steps=2, guidance_scale=1.0000001)
    assert rows == [1, 1, 2, 2] and apart(almost, run) <= 1e-4
    assert same(model.edit(run, SOURCE), run)
    assert same(model.edit(SOURCE, TARGETS[0], steps=2, guidance_scale=1).source, run)


def test_a_run_that_goes_wrong_says_at_which_step(model):
    def broken(q, k, v, site):
        return v.mean(2, keepdim=True).expand_as(q) / 0

    with pytest.raises(ValueError, match="the latents are not finite after step 1"):
        model.generate(SOURCE, steps=2, attend=broken)
    with pytest.raises(ValueError, match="the latents are not finite after step 1"):
        model.edit(SOURCE, TARGETS[0], steps=2, cross_replace=0, self_replace=0, attend=broken)


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
    out = model.edit(run, run.prompt, **options)
    assert same(out, run) and out.source is run and out.prompt == run.prompt


def test_an_explicit_edit_to_its_own_prompt_is_the_run_within_rounding(model, run):
    assert 0 < apart(model.edit(run, run.prompt, explicit=True), run) <= 1e-4


def test_explicit_and_fused_edits_agree(model, run):
    options = dict(reweight={"dog": 3}, cross_replace={"default_": 0.8, "house": 0.3})
    made, other = (model.edit(run, TARGETS[0], explicit=explicit, **options) for explicit in (True, False))
    assert apart(made, other) <= 1e-4 < apart(made, run)


def test_the_source_is_the_same_to_the_bit_alone_with_1_target_and_with_8(model, run):
    for targets in (EIGHT[:1], EIGHT):
        outs = model.edit(SOURCE, targets, seed=SEED, steps=STEPS)
        assert len(outs) == len(targets) and [out.prompt for out in outs] == targets
        assert same(outs[0].source, run) and all(out.source is outs[0].source for out in outs)
        assert all(torch.equal(out.latents[0], run.latents[0]) and not same(out, run) for out in outs)
    assert same(
        model.edit(SOURCE, TARGETS[0], seed=SEED, steps=STEPS, explicit=True, local_blend=("cat", "dog")).source, run
    )


def test_edits_in_one_call_equal_separate_calls(model, run):
    for together, target in zip(model.edit(run, TARGETS), TARGETS, strict=True):
        assert apart(together, model.edit(run, target)) <= 1e-3


@pytest.mark.parametrize(
    "options", [{}, dict(local_blend=LocalBlend(("cat",), ("grass",), start=0.0)), dict(explicit=True)]
)
def test_streaming_equals_editing_a_run_to_the_bit(model, run, options):
    streamed = model.edit(SOURCE, TARGETS[:2], seed=SEED, steps=STEPS, **options)
    for one, other in zip(streamed, model.edit(run, TARGETS[:2], **options), strict=True):
        assert same(one, other) and same(one.source, run)


def test_without_cross_and_self_an_edit_is_plain_generation_to_the_bit(model, run):
    assert same(
        model.edit(run, TARGETS[1], cross_replace=0, self_replace=0), model.generate(TARGETS[1], seed=SEED, steps=STEPS)
    )


def test_the_unconditional_embedding_of_each_step_is_the_runs_own(model, run):
    night, day = model.text("night"), model.text("")
    as_negative, as_steps = (
        replace(run, negative_prompt="night"),
        replace(run, conditioning=Conditioning(night.repeat(STEPS, 1, 1))),
    )
    made = model.edit(as_negative, TARGETS[0])
    assert same(made, model.edit(as_steps, TARGETS[0])) and not same(made, model.edit(run, TARGETS[0]))
    last = model.edit(
        replace(run, conditioning=Conditioning(torch.cat([day.repeat(STEPS - 1, 1, 1), night]))), TARGETS[0]
    )
    assert torch.equal(last.latents[:-1], model.edit(run, TARGETS[0]).latents[:-1])
    assert not same(last, model.edit(run, TARGETS[0]))


@pytest.mark.parametrize("size", [(128, 160), (136, 88)])  # the second's maps have odd sides
def test_pictures_need_not_be_square(model, size):
    run = model.generate(SOURCE, seed=SEED, steps=2, size=size)
    out = model.edit(
        run, TARGETS[0], local_blend=LocalBlend(("cat",), ("dog",), strides=(1, 2), start=0), reweight={"dog": 2}
    )
    latent = (size[0] // 8, size[1] // 8)
    assert run.image.size == out.image.size == size[::-1] and out.mask.shape == latent
    assert torch.equal(out.latents[-1][:, ~out.mask], run.latents[-1][:, ~out.mask])
    assert out.maps(["dog", "grass"]).shape == (2, *size) and run.maps("cat", strides=(4,)).shape == (1, *size)
    assert same(model.edit(run, SOURCE, local_blend="cat"), run)


# What an edit does to the maps


def maps_of_edit(model, run, target, **options):
    """Cross-attention maps of the target, site -> t b h i j: before and after the edit."""
    before, after = (AttentionStore(sites=lambda site: site.cross, each=True, before=early) for early in (True, False))
    model.edit(run, target, attend=explicit(chain(before, after)), **options)
    assert len(before.maps) == len(after.maps) == 7
    return before.maps, after.maps


def test_tau_of_a_word_changes_that_words_columns_at_its_steps_alone(model, run):
    before, after = maps_of_edit(model, run, TARGETS[0], cross={"default_": 0.0, "dog": (0.4, 0.9)}, self_=0.0)
    dog = list(model.text.prompt(TARGETS[0]).token_indices("dog"))
    steps = range(int(0.4 * (STEPS + 1)), int(0.9 * (STEPS + 1)))
    for site in before:
        changed = (before[site] != after[site]).any(1).any(1).any(1)  # t b h i j -> t j
        assert changed.nonzero().tolist() == [[step, j] for step in steps for j in dog]


def test_the_maps_after_an_edit_are_A_s_R_plus_A_e_S(model, run):
    source = AttentionStore(sites=lambda site: site.cross, each=True)
    model.generate(SOURCE, seed=SEED, steps=STEPS, attend=explicit(source))
    options = dict(cross_replace={"default_": 0.5, "dog": 0.8}, reweight={"dog": 3, "grass": -1})
    before, after = maps_of_edit(model, run, TARGETS[0], **options)
    plan = plan_edit(*map(model.text.prompt, (SOURCE, TARGETS[0])), STEPS, **options)
    ones = torch.ones(77)
    for site in before:
        for step in range(STEPS):
            pair = plan.at(step).cross
            literal = source.maps[site][step] @ dense(pair.R, ones) + before[site][step] @ dense(pair.S, ones)
            torch.testing.assert_close(after[site][step], literal, rtol=1e-3, atol=1e-5)


def test_self_injection_gives_the_targets_the_sources_self_attention(model, run):
    source, target = (
        AttentionStore(sites=lambda site: not site.cross and site.stride == 2, each=True) for _ in range(2)
    )
    model.generate(SOURCE, seed=SEED, steps=STEPS, attend=explicit(source))
    model.edit(run, TARGETS[:2], self_replace=(0.25, 0.75), self_max_queries=64, attend=explicit(target))
    for site, maps in target.maps.items():
        gap = (maps - source.maps[site]).abs().amax((2, 3, 4)) / source.maps[site].std()  # t b
        assert (gap[1:3] < 1e-3).all() and (gap[3] > gap[1:3].max()).all(), gap  # int(.25 · 4) … int(.75 · 4)


# What an edit costs


def test_k_edits_cost_at_most_2_n_times_1_plus_k_rows(model, rows):
    """The first step has one unconditional row for all targets, and the source runs to the last step that is read."""
    outs = model.edit(SOURCE, TARGETS, seed=SEED, steps=STEPS, cross_replace=0.5)
    assert rows == [2, 4, 2, 6, 6, 6] and sum(rows) < 2 * STEPS * (1 + len(TARGETS))
    assert outs[0].source.steps == STEPS and rows[6:] == [2, 2]  # the rest of it when it is asked for
    assert outs[1].source is outs[0].source and len(rows) == 8


def test_at_guidance_0_the_unconditional_prediction_is_all(model, rows):
    run = model.generate(SOURCE, steps=2, guidance_scale=0)
    assert rows == [1, 1] and same(run, model.generate(TARGETS[0], steps=2, guidance_scale=0))
    assert apart(model.generate(SOURCE, steps=2, guidance_scale=1e-7), run) <= 1e-4
    assert same(model.edit(run, TARGETS[0], local_blend=("cat", "dog")), run)


def test_more_targets_than_a_batch_holds_go_in_parts_that_are_alike(model, rows):
    outs = model.edit(SOURCE, [*EIGHT, *TARGETS], seed=SEED, steps=2, self_replace=0)
    assert rows[:3] == [2, 6, 6]  # eleven targets, two of one prompt: five and five, each with one unconditional row
    assert apart(outs[9], model.edit(SOURCE, TARGETS[1], seed=SEED, steps=2, self_replace=0)) <= 1e-3


@pytest.mark.parametrize(
    "options, read",
    [
        (dict(cross_replace=0.5, self_replace=0.25), 2),
        (dict(cross_replace=0.25, self_replace=0.75), 3),
        (dict(cross_replace=0, self_replace=0), 0),
        (dict(cross_replace=0, self_replace=0.5, local_blend=LocalBlend(mask=torch.ones(4, 4))), 2),
        (dict(cross_replace=0, self_replace=0, local_blend="house"), STEPS),
        (dict(cross_replace=0, self_replace=0, local_blend=LocalBlend((), ("house",))), 0),
    ],
)
def test_a_recorded_source_is_run_only_at_the_steps_that_read_it(model, run, rows, options, read):
    model.edit(run, TARGETS[:2], **options)
    assert sum(rows) == 2 * STEPS * 2 - 1 + 2 * read


# Bad input


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(latents=torch.full((1, 4, 16, 16), float("nan"))), "latents must be finite; these have NaN or infinity"),
        (dict(latents=torch.zeros(1, 3, 16, 16)), "latents must be 1 4 h w, not (1, 3, 16, 16)"),
        (dict(latents=torch.zeros(2, 4, 16, 16)), "latents must be 1 4 h w, not (2, 4, 16, 16)"),
        (dict(latents=torch.zeros(4, 16, 16)), "latents must be 1 4 h w, not (4, 16, 16)"),
        (dict(latents=torch.zeros(1, 4, 16, 0)), "latents must be 1 4 h w, not (1, 4, 16, 0)"),
        (dict(guidance_scale=float("nan")), "guidance must be a finite number, not nan"),
        (dict(guidance_scale=float("inf")), "guidance must be a finite number, not inf"),
        (dict(steps=0), "steps must lie between 1 and 1000, not 0"),
        (dict(steps=1001), "between 1 and 1000, not 1001"),
        (dict(size=(130, 128)), "size must be two multiples of 8 of at least 32 pixels, not (130, 128)"),
        (dict(size=(128, 16)), "of at least 32 pixels, not (128, 16)"),
        (dict(size=(128,)), "size must be two multiples"),
        (dict(size=128), "size must be two multiples of 8 of at least 32 pixels, not 128"),
        (dict(size=(128.0, 128.0)), "not (128.0, 128.0)"),
        (dict(size="88"), "not 88"),
        (dict(steps=4.5), "steps must lie between 1 and 1000, not 4.5"),
        (dict(seed=1.5), "seed must lie between 0"),
        (dict(guidance_scale=10**400), "guidance must be a finite number"),
        (dict(guidance_scale="7"), "guidance must be a finite number, not 7"),
    ],
)
def test_bad_beginnings_are_named_in_one_line(model, options, says):
    for begin in (model.generate, lambda prompt, **options: model.edit(prompt, TARGETS[0], **options)):
        with pytest.raises(ValueError) as error:
            begin(SOURCE, **options)
        assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "target, options, says",
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
        (TARGETS[0], dict(reweight=[("dog", 2)]), "weights are given by word, as {'fog': 2.0}, not [('dog', 2)]"),
        (TARGETS[0], dict(reweight={"dog": "2"}), "the weight of 'dog' is 2, which is not a finite number"),
        (TARGETS[0], dict(reweight={"dog": float("nan")}), "the weight of 'dog' is nan, which is not a finite number"),
        (TARGETS[0], dict(local_blend="cow"), "'cow' is not in the prompt"),
        (TARGETS[0], dict(steps=3, seed=1), "steps, seed: a run has its own; give a prompt as the source to choose"),
        ([], {}, "an edit needs a target"),
        ([TARGETS[0], 7], {}, "a prompt must be text, not int"),
    ],
)
def test_bad_edits_are_named_in_one_line(model, run, rows, target, options, says):
    with pytest.raises(ValueError) as error:
        model.edit(run, target, **options)
    assert says in str(error.value) and "\n" not in str(error.value) and not rows


def test_an_edit_in_bfloat16():
    """The latents stay float32; the identity edit is the source to the bit, and a swap is not; the two executions
    agree as far as bfloat16 reaches (8 bits of precision, two steps)."""
    half = minip2p.load(dtype=torch.bfloat16)
    made = half.generate(SOURCE, steps=2)
    assert made.latents.dtype == torch.float32 and half.edit(made, SOURCE).latents.equal(made.latents)
    fast, shown = (half.edit(made, TARGETS[0], explicit=explicit).latents for explicit in (False, True))
    assert not fast.equal(made.latents)
    assert (fast - shown).square().mean().sqrt() < 0.05 * made.latents.std()


def test_the_run_of_another_model_is_refused(model, run):
    with pytest.raises(ValueError, match=f"the run '{SOURCE}' is another model's"):
        minip2p.load().edit(run, TARGETS[0])


@pytest.mark.parametrize(
    "words, options, says",
    [
        ("cow", {}, f"'cow' is not in the prompt '{SOURCE}'; its words are: a, cat, and, a, house, on, grass"),
        (["cat", ("cat", 2)], {}, "'cat' number 2 is not in the prompt"),
        ([], {}, "maps of no words"),
        ("cat", dict(strides=(3,)), "no cross-attention has stride 3; this model's strides: [1, 2, 4]"),
    ],
)
def test_maps_of_what_is_not_there(run, words, options, says):
    with pytest.raises(ValueError) as error:
        run.maps(words, **options)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_prompts_unknown_option_is_named(model):
    with pytest.raises(TypeError, match="unexpected keyword argument 'guidence'"):
        model.edit(SOURCE, TARGETS[0], guidence=3)


# A run's own attention

ROLL = explicit(lambda probs, site: probs.roll(1, -1) if site.cross else probs)


def test_an_edit_into_its_own_prompt_is_no_edit_whatever_attention_the_run_had(model):
    run = model.generate(SOURCE, seed=3, steps=2, attend=ROLL)
    assert not torch.equal(run.latents, model.generate(SOURCE, seed=3, steps=2).latents)
    assert torch.equal(model.edit(run, run.prompt).latents, run.latents)


def test_a_streamed_source_has_the_attention_that_is_given(model):
    out = model.edit(SOURCE, TARGETS[0], seed=3, steps=2, attend=ROLL)
    assert torch.equal(out.source.latents, model.generate(SOURCE, seed=3, steps=2, attend=ROLL).latents)


def test_maps_are_of_the_attention_that_the_run_had(model):
    run = model.generate(SOURCE, seed=3, steps=2, attend=ROLL)
    assert not torch.allclose(run.maps("cat"), replace(run, attend=fused).maps("cat"))


def test_an_explicit_edit_refuses_an_attention_without_maps(model):
    with pytest.raises(ValueError, match="attend=explicit"):
        model.edit(SOURCE, TARGETS[0], steps=1, explicit=True, attend=lambda q, k, v, site: torch.zeros_like(q))


def test_self_pixels_bounds_where_self_attention_is_injected(model):
    run = model.generate(SOURCE, seed=3, steps=2)
    few, all_ = (
        model.edit(run, TARGETS[0], cross_replace=0, self_replace=1, self_max_queries=n).latents for n in (64, 256)
    )
    none = model.edit(run, TARGETS[0], cross_replace=0, self_replace=1, self_max_queries=0).latents
    assert not torch.equal(few, all_) and not torch.equal(few, none)
    assert torch.equal(none, model.edit(run, TARGETS[0], cross_replace=0, self_replace=0).latents)


def test_an_edit_into_its_own_prompt_is_no_edit_with_an_attention_that_shows_no_maps(model):
    """Both maps of an edit are the run's own attention's, in value space too."""
    for own in (lambda q, k, v, site: fused(2 * q, k, v), lambda q, k, v, site: fused(q, k, v) / 2):
        run = model.generate(SOURCE, seed=3, steps=2, attend=own)
        assert not torch.equal(run.latents, model.generate(SOURCE, seed=3, steps=2).latents)
        assert torch.equal(model.edit(run, run.prompt).latents, run.latents)


def test_a_sources_mask_is_of_the_attention_that_the_source_ran_with(model):
    """An edit that changes nothing: the source's mask of a word is then the target's."""
    run = model.generate(SOURCE, seed=3, steps=3, attend=ROLL)
    by_source, by_target = (
        model.edit(
            run, SOURCE, cross_replace=0, self_replace=0, local_blend=LocalBlend(*words, threshold=0.8, start=0)
        ).mask
        for words in (("cat",), ((), "cat"))
    )
    assert torch.equal(by_source, by_target) and by_source.any() and not by_source.all()
    straight = model.generate(SOURCE, seed=3, steps=3)
    other = model.edit(straight, SOURCE, local_blend=LocalBlend("cat", threshold=0.8, start=0)).mask
    assert not torch.equal(by_source, other)


class Noting:
    """An attention that notes the steps at which it is asked for."""

    def __init__(self):
        self.steps = []

    def at(self, step):
        self.steps.append(step)
        return fused

    def __call__(self, q, k, v, site):
        raise AssertionError("`at` was not asked")


def test_every_run_asks_its_attention_for_each_step(model):
    noting = Noting()
    run = model.generate(SOURCE, seed=3, steps=3, attend=noting)
    assert noting.steps == [0, 1, 2]
    run.maps("cat")
    assert noting.steps == 2 * [0, 1, 2]
    model.edit(run, TARGETS[0], attend=fused)
    assert noting.steps == 3 * [0, 1, 2]


def test_each_of_several_targets_is_blended_by_its_own_heat(model):
    """In a batch with others or alone, the same mask; another target's heat would give another."""
    run = model.generate(SOURCE, seed=3, steps=3)
    prompts = ["a dog and a house on grass", "a house and a dog on grass"]
    blend = LocalBlend((), "dog", threshold=0.6, start=0)
    together = [out.mask for out in model.edit(run, prompts, local_blend=blend, cross_replace=0, self_replace=0)]
    alone = [model.edit(run, prompt, local_blend=blend, cross_replace=0, self_replace=0).mask for prompt in prompts]
    assert all(map(torch.equal, together, alone)) and not torch.equal(*alone)


def test_the_defaults_of_an_edit_are_the_papers():
    """Cross .8 and self .4 (Hertz et al. 2022); self-attention at up to 32²; a blend's threshold .3, from .2 on."""
    for function in (minip2p.Pipeline.edit, plan_edit):
        given = {name: p.default for name, p in inspect.signature(function).parameters.items()}
        assert (given["cross"], given["self_replace"], given["self_pixels"], given["kind"]) == (0.8, 0.4, 1024, "auto")
    blend = LocalBlend("cat")
    assert (blend.threshold, blend.without_threshold, blend.start) == (0.3, 0.3, 0.2)


def test_damaged_weights_are_named(model):
    damaged = copy.deepcopy(model)
    damaged.unet.conv_in.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(
        ValueError,
        match=r"unet/diffusion_pytorch_model.safetensors: conv_in.weight is not finite: the weights are damaged",
    ):
        damaged.generate(SOURCE, steps=1)
    damaged = copy.deepcopy(model)
    damaged.vae.decoder.conv_in.weight.data[0, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"vae/.*.safetensors: decoder.conv_in.weight is not finite"):
        _ = damaged.generate(SOURCE, steps=1).image


@pytest.mark.parametrize(
    "options, says",
    [
        ({"attend": AttentionStore()}, "a function of maps, as a Store is, goes into explicit"),
        ({"attend": None}, "attend is a function of"),
        ({"negative": None}, "a prompt must be text, not NoneType"),
        ({"negative": "\udcff"}, "bytes in it that are not UTF-8"),
        ({"latents": np.zeros((1, 4, 16, 16))}, "latents must be 1 4 h w"),
    ],
)
def test_options_of_the_wrong_kind_are_named(model, options, says):
    with pytest.raises(ValueError, match=says):
        model.generate(SOURCE, steps=1, **options)


def test_prompts_targets_and_words_of_the_wrong_kind_are_named(model):
    run = model.generate(SOURCE, steps=1, seed=np.int64(2))
    assert run.seed == 2
    for wrong in (None, 3, b"a cat", ["a cat", "a dog"]):
        with pytest.raises(ValueError, match="a prompt must be text"):
            model.generate(wrong, steps=1)
    for wrong in (None, 3):
        with pytest.raises(ValueError, match="a prompt must be text"):
            model.edit(run, wrong)
    for wrong in (None, 1.5, ("cat", "house", "grass"), (2, "cat")):
        with pytest.raises(ValueError, match="a word is given as text"):
            run.maps(wrong)
    assert torch.equal(run.maps(np.int64(1)), run.maps(1))
