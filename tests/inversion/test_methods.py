"""All methods alike: their runs are edited, recorded, saved and predicted in cost; and clear errors."""

import re
from dataclasses import replace
from inspect import signature

import pytest
import torch
from paths import DATA
from runs import CallLog, same_latents

from minip2p.inversion.methods import METHODS, get_method
from minip2p.p2p.batching import plan_batches
from minip2p.p2p.editing import run_edits
from minip2p.p2p.options import EditOptions
from minip2p.p2p.targets import make_targets

RENDER = DATA / "renders" / "00.png"
TARGETS = ["a dog on the beach", "a cat on the beach at night"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_run_that_can_be_edited_recorded_and_saved(model, start, inverted, tmp_path, method):
    run = inverted(method)
    assert len(run.latents) == start.steps + 1 and run.prompt == start.prompt and run.seed is None
    edits = model.edit(run, TARGETS, local_blend="beach")
    assert all(torch.isfinite(edit.latents).all() for edit in edits) and edits[0].source_run.finish() is run
    run.save(tmp_path / "run.safetensors")
    opened = model.open(tmp_path / "run.safetensors")
    recorded = model.record(opened, file=tmp_path / "recorded.safetensors")
    for origin in (recorded, model.open(tmp_path / "recorded.safetensors")):
        assert same_latents(origin, run)
        assert all(map(same_latents, model.edit(origin, TARGETS, local_blend="beach"), edits))


@pytest.mark.parametrize("guidance_scale", [0, 1, 4.0])
@pytest.mark.parametrize("method", METHODS)
def test_the_cost_of_an_edit_is_predicted_whatever_the_run_is_conditioned_on(model, inverted, method, guidance_scale):
    run, log = inverted(method, guidance_scale), CallLog()
    counted = model.counting(log).components
    prompts = [f"a {word} on the beach" for word in ("dog", "hat", "pig")]
    for blend in (None, "beach"):
        log.calls.clear()
        targets = make_targets(counted, run, prompts, EditOptions(local_blend=blend))
        predicted = plan_batches(counted, run, targets, batch=2).predicted_rows(run)
        run_edits(counted, run, targets, batch=2)
        assert log.rows == predicted


@pytest.mark.parametrize("options", [{"guidance_interval": (0, 0.5)}, {"uncond_every": 2}])
@pytest.mark.parametrize("method", METHODS)
def test_approximations_of_an_inversions_edits_are_predicted_or_refused(model, method, options):
    def invert():
        return model.invert(RENDER, "a cat on the beach", method=method, steps=4, size=(64, 64), **options)

    if method in ("proximal", "null-text", "edit-friendly"):
        with pytest.raises(ValueError, match=f"{method} inversion needs the guidance of every step"):
            invert()
        return
    run, log = invert(), CallLog()
    (target,) = make_targets(model.components, run, [TARGETS[0]], EditOptions())
    predicted = plan_batches(model.components, run, [target]).predicted_rows(run)
    (edited,) = run_edits(model.counting(log).components, run, [target])
    assert log.rows == predicted
    exact = replace(run, conditioning=replace(run.conditioning, guidance_interval=None, uncond_every=1))
    assert torch.isfinite(edited.latents).all() and not same_latents(edited, model.edit(exact, TARGETS[0]))


def test_virtual_inversion_with_a_guided_source_takes_no_differences_over(model):
    options = {"method": "virtual", "steps": 2, "uncond_every": 2}
    with pytest.raises(ValueError, match="uncond_every: only at source_guidance_scale 1"):
        model.invert(RENDER, "a cat on the beach", source_guidance_scale=2.0, **options)


def test_methods_are_found_by_name():
    assert list(METHODS) == ["ddim", "direct", "negative-prompt", "proximal", "null-text", "edit-friendly", "virtual"]
    assert get_method("null-text", {"num_inner_steps": 3}) is METHODS["null-text"]
    for method in METHODS.values():
        assert list(signature(method).parameters)[:3] == ["components", "start", "progress"]


@pytest.mark.parametrize(
    "name, options, message",
    [
        (
            "magic",
            {},
            "the method is one of ddim, direct, negative-prompt, proximal, null-text, edit-friendly, virtual,",
        ),
        (["ddim"], {}, "the method is one of"),
        (None, {}, "the method is one of"),
        ("direct", dict(seed=1), "direct inversion has no seed, nor any other option"),
        (
            "null-text",
            dict(seed=1),
            "null-text inversion has no seed, only num_inner_steps, learning_rate, early_stop_epsilon, "
            "early_stop_epsilon_step, gradient_checkpointing",
        ),
        ("proximal", dict(progress=iter), "proximal inversion has no progress, only quantile"),
    ],
)
def test_methods_and_options_that_do_not_exist_are_named(model, name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        get_method(name, options)
    assert "\n" not in str(error.value)
    if "progress" not in options:
        with pytest.raises(ValueError, match=re.escape(message)):
            model.invert(RENDER, "a street", steps=1, method=name, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(method="proximal", quantile=1), "quantile must be a number from 0 on, below 1, not 1"),
        (dict(method="proximal", quantile=None), "quantile must be a number"),
        (dict(method="edit-friendly", skip=1), "skip must be a number from 0 on, below 1, not 1"),
        (dict(method="edit-friendly", seed="x"), "seed must be a whole number"),
        (dict(method="null-text", num_inner_steps=-1), "num_inner_steps must be a whole number"),
        (dict(method="null-text", learning_rate="x"), "learning_rate must be a number from 0 on, not 'x'"),
        (dict(method="negative-prompt", negative_prompt="fog"), "it takes no other"),
        (dict(steps=0), "steps must lie between"),
        (dict(vae_refine_steps=-1), "vae_refine_steps is a whole number of updates from 0 on, not -1"),
        (dict(vae_refine_steps=2.5), "vae_refine_steps is a whole number"),
        (dict(guidance_scale=float("nan")), "guidance_scale must be a finite number"),
    ],
)
def test_inversions_that_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message) as error:
        model.invert(RENDER, "a street", **{"steps": 1, "size": (64, 64)} | options)
    assert "\n" not in str(error.value)
