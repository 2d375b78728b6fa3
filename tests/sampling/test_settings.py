"""The settings of a run: their defaults, which exist once, and what is refused before anything is computed."""

import inspect
import math
from dataclasses import fields, replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minip2p import AttentionStore, Pipeline
from minip2p.attention.contract import explicit, fused
from minip2p.sampling.conditioning import Conditioning, ImageConditioning
from minip2p.sampling.settings import RunSettings, check_approximation, prepare_run
from minip2p.validation import is_finite

PROMPT = "a cat and a house on grass"


# RunSettings


@pytest.mark.parametrize("number", [np.float16(2), np.float32(2), np.float64(2), np.int64(2), Fraction(2), True])
@pytest.mark.filterwarnings("error")
def test_numbers_of_every_type_are_finite_or_not(number):
    assert is_finite(number) and is_finite(-number)
    for infinite in (np.float32(np.inf), np.float16(np.nan), math.inf, math.nan, 1e39, 10**400, Fraction(10**400), "2"):
        assert not is_finite(infinite)


def test_the_defaults_of_a_run():
    expected = dict(seed=0, steps=None, guidance_scale=None, size=None, negative_prompt="", clip_skip=1)
    expected |= dict(latents=None, attend=fused, guidance_interval=None, uncond_every=1)
    settings = RunSettings()
    assert {field.name: getattr(settings, field.name) for field in fields(settings)} == expected


def test_generate_takes_exactly_these_settings_with_these_defaults():
    parameters = inspect.signature(Pipeline.generate).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert keywords.pop("on_step") is None  # it only watches
    assert keywords == {field.name: field.default for field in fields(RunSettings)}


@pytest.mark.parametrize(
    "name", ["steps", "guidance_scale", "negative_prompt", "clip_skip", "guidance_interval", "uncond_every"]
)
def test_invert_has_the_same_defaults(name):
    assert inspect.signature(Pipeline.invert).parameters[name].default == getattr(RunSettings, name)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(guidance_scale=float("nan")), "guidance_scale must be a finite number, not nan"),
        (dict(guidance_scale=float("inf")), "guidance_scale must be a finite number, not inf"),
        (dict(guidance_scale=10**400), "guidance_scale must be a finite number"),
        (dict(guidance_scale="7"), "guidance_scale must be a finite number, not 7"),
        (dict(clip_skip=0), "clip_skip is counted from 1, which skips nothing, and is 0"),
        (dict(clip_skip=1.5), "clip_skip is counted from 1"),
        (dict(seed=1.5), "seed must lie between 0 and 2^63 - 1, not 1.5"),
        (dict(seed=-1), "seed must lie between 0 and 2^63 - 1, not -1"),
        (dict(seed=2**63), "seed must lie between 0 and 2^63 - 1"),
        (dict(attend=AttentionStore()), "wrap a function of maps, such as an AttentionStore, in explicit"),
        (dict(attend=None), "attend is a function of"),
        (dict(guidance_interval=0.5), "guidance_interval is two shares 0 <= start < end <= 1 of a run, not 0.5"),
        (dict(guidance_interval=(0.5, 0.5)), "guidance_interval is two shares 0 <= start < end"),
        (dict(guidance_interval=(0, 1.1)), "guidance_interval is two shares 0 <= start < end"),
        (dict(guidance_interval=(0, "1")), "guidance_interval is two shares 0 <= start < end"),
        (dict(guidance_interval=(0, 0.5, 1)), "guidance_interval is two shares 0 <= start < end"),
        (dict(uncond_every=0), "uncond_every must be a whole number from 1 on, not 0"),
        (dict(uncond_every=1.5), "uncond_every must be a whole number from 1 on, not 1.5"),
    ],
)
def test_values_that_no_model_takes_are_refused_without_a_model(options, message):
    with pytest.raises(ValueError) as error:
        RunSettings(**options)
    assert message in str(error.value) and "\n" not in str(error.value)


# Settings and a model


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(guidance_scale=1.0, uncond_every=2), "save unconditional rows, and there are none to save at guidance 1"),
        (dict(guidance_scale=0.0, guidance_interval=(0, 0.5)), "there are none to save at guidance 0"),
        (dict(steps=4, guidance_interval=(0.3, 0.4)), "none of the 4 steps lies from 0.3 to 0.4 of the run"),
    ],
)
def test_approximations_that_save_nothing_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.prepare(PROMPT, RunSettings(**options))


def test_approximations_of_models_with_other_guidance_are_refused(model, family):
    image = ImageConditioning(torch.zeros(1, 4, 8, 8), 1.5)
    with pytest.raises(ValueError, match="guided by its picture too"):
        unet = SimpleNamespace(reads_guidance=False)
        components = SimpleNamespace(unet=unet)
        check_approximation(components, Conditioning(image=image, uncond_every=2), 4, 4.0)
    with pytest.raises(ValueError, match="this model, which reads the guidance scale, has none"):
        check_approximation(
            SimpleNamespace(unet=SimpleNamespace(reads_guidance=True)), Conditioning(uncond_every=2), 4, 4.0
        )


def test_a_prepared_run_has_its_settings_as_the_model_understands_them(model):
    attend = explicit()
    settings = RunSettings(
        seed=np.int64(3), steps=7, guidance_scale=2.5, size=(40, 72), negative_prompt="fog", attend=attend
    )
    start = model.prepare(PROMPT, settings)
    assert (start.prompt, start.steps, start.guidance_scale, start.seed) == (PROMPT, 7, 2.5, 3)
    assert start.negative_prompt == "fog" and start.attend is attend
    assert torch.equal(start.noise, torch.randn(1, 4, 5, 9, generator=torch.Generator().manual_seed(3)))
    assert start.conditioning.image is None and start.conditioning.uncond_embeddings is None


def test_without_settings_a_run_has_the_models_size_and_guidance(model):
    start = model.prepare(PROMPT)
    assert start.noise.shape == (1, 4, 16, 16) and start.steps == 50 and start.seed == 0
    assert start.guidance_scale == model.default_guidance == 4.0


def test_guidance_0_of_a_distilled_model_means_no_guidance(model):
    """The cards of distilled models say 0; other models take 0 as it is."""
    for default, expected in ((1.0, 1.0), (4.0, 0.0)):
        settings = RunSettings(guidance_scale=0)
        assert prepare_run(model.components, PROMPT, settings, default_guidance=default).guidance_scale == expected


def test_latents_take_the_place_of_seed_and_size(model):
    latents = torch.randn(1, 4, 5, 9, dtype=torch.float64)
    start = model.prepare(PROMPT, RunSettings(latents=latents, seed=4, size=(128, 128)))
    assert torch.equal(start.noise, latents.float()) and start.noise.dtype == torch.float32 and start.seed is None


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(latents=torch.full((1, 4, 16, 16), float("nan"))), "latents must be finite; these have NaN or infinity"),
        (dict(latents=torch.zeros(1, 3, 16, 16)), "latents must be 1 4 h w, not (1, 3, 16, 16)"),
        (dict(latents=torch.zeros(2, 4, 16, 16)), "latents must be 1 4 h w, not (2, 4, 16, 16)"),
        (dict(latents=torch.zeros(4, 16, 16)), "latents must be 1 4 h w, not (4, 16, 16)"),
        (dict(latents=torch.zeros(1, 4, 16, 0)), "latents must be 1 4 h w, not (1, 4, 16, 0)"),
        (dict(latents=np.zeros((1, 4, 16, 16))), "latents must be 1 4 h w"),
        (dict(guidance_scale=float("nan")), "guidance_scale must be a finite number, not nan"),
        (dict(guidance_scale=float("inf")), "guidance_scale must be a finite number, not inf"),
        (dict(guidance_scale=10**400), "guidance_scale must be a finite number"),
        (dict(guidance_scale="7"), "guidance_scale must be a finite number, not 7"),
        (dict(steps=0), "steps must lie between 1 and 1000, not 0"),
        (dict(steps=1001), "between 1 and 1000, not 1001"),
        (dict(steps=4.5), "steps must lie between 1 and 1000, not 4.5"),
        (dict(size=(130, 128)), "size must be two multiples of 8 of at least 32 pixels, not (130, 128)"),
        (dict(size=(128, 16)), "of at least 32 pixels, not (128, 16)"),
        (dict(size=(128,)), "size must be two multiples"),
        (dict(size=128), "size must be two multiples of 8 of at least 32 pixels, not 128"),
        (dict(size=(128.0, 128.0)), "not (128.0, 128.0)"),
        (dict(size="88"), "not 88"),
        (dict(clip_skip=0), "clip_skip is counted from 1, which skips nothing, and is 0"),
        (dict(clip_skip=1.5), "clip_skip is counted from 1"),
        (dict(seed=1.5), "seed must lie between 0"),
        (dict(negative_prompt=None), "a prompt must be text, not NoneType"),
        (dict(negative_prompt="\udcff"), "bytes in it that are not UTF-8"),
        (dict(attend=AttentionStore()), "wrap a function of maps, such as an AttentionStore, in explicit"),
        (dict(attend=None), "attend is a function of"),
    ],
)
def test_settings_that_a_model_cannot_take_are_one_clear_line(model, options, message):
    begin = [model.generate, lambda prompt, **settings: model.prepare(prompt, RunSettings(**settings))]
    if options.get("attend", fused) is not None:  # an edit takes None as the source's attention
        begin.append(lambda prompt, **settings: model.edit(prompt, PROMPT, **settings))
    for function in begin:
        with pytest.raises(ValueError) as error:
            function(PROMPT, **options)
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("prompt", [None, 3, b"a cat", ["a cat", "a dog"]])
def test_a_prompt_must_be_text(model, prompt):
    with pytest.raises(ValueError, match="a prompt must be text"):
        model.prepare(prompt)


def test_a_model_without_image_channels_takes_no_image(model):
    image = ImageConditioning(torch.zeros(1, 4, 16, 16))
    with pytest.raises(ValueError, match="this model reads no picture besides its latents"):
        model.prepare(PROMPT, image=image)


def test_settings_and_starts_are_values():
    settings = RunSettings(seed=3)
    with pytest.raises(AttributeError):
        settings.seed = 4
    assert replace(settings, steps=2).seed == 3
