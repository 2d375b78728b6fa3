"""A picture to invert, and its inversions, which tests of this folder share. Nobody changes them."""

import warnings

import pytest
import torch
from paths import DATA

from minip2p.errors import Notice
from minip2p.inversion.encode import encode_photo
from minip2p.inversion.methods import METHODS
from minip2p.sampling.conditioning import load_photo
from minip2p.sampling.settings import RunSettings

PROMPT, STEPS, SIZE, GUIDANCE = "a cat on the beach", 4, (64, 72), 4.0
# A short optimisation, and an edit-friendly inversion whose edits skip steps.
OPTIONS = {"null-text": dict(num_inner_steps=2), "edit-friendly": dict(skip=0.5)}


@pytest.fixture(scope="session")
def latents(model):
    """The latents of a picture of noise."""
    picture = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return encode_photo(model.components, picture[None]).cpu()


@pytest.fixture(scope="session")
def start(model, latents):
    """What an inversion starts from: a picture's latents in place of noise."""
    return model.prepare(PROMPT, RunSettings(steps=STEPS, guidance_scale=GUIDANCE, latents=latents))


@pytest.fixture(scope="session")
def start_of_render():
    """A function: a model and a number of steps -> the start of the inversion of a held-out render.

    To the model that is a photograph.
    """

    def prepare(model, steps, guidance_scale=GUIDANCE):
        photo = load_photo(model.components, DATA / "renders" / "00.png", (64, 64), "crop")
        latents = encode_photo(model.components, photo[None]).cpu()
        settings = RunSettings(steps=steps, guidance_scale=guidance_scale, latents=latents)
        return model.prepare("on the street, a blue umbrella and a red lamp", settings)

    return prepare


@pytest.fixture(scope="session")
def inverted(model, latents):
    """A function: a method and a guidance scale -> the inversion of the picture, computed once."""
    runs = {}

    def invert(method, guidance_scale=GUIDANCE):
        key = method, guidance_scale
        if key not in runs:
            settings = RunSettings(steps=STEPS, guidance_scale=guidance_scale, latents=latents)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Notice)  # with four coarse steps null-text inversion may diverge
                runs[key] = METHODS[method](
                    model.components, model.prepare(PROMPT, settings), **OPTIONS.get(method, {})
                )
        return runs[key]

    return invert
