import copy
from dataclasses import replace

import pytest

import minip2p


@pytest.fixture(scope="session")
def model():
    """The embedded model. Tests share it: nobody changes it."""
    return minip2p.load()


@pytest.fixture(scope="session")
def small_model(model):
    """The embedded model with pictures of 64 x 64 pixels, which take less time."""
    unet = copy.copy(model.unet)  # which shares the weights
    unet.config = replace(unet.config, sample_size=8)
    return replace(model, components=replace(model.components, unet=unet))


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """A function: the name of a family -> (diffusers' pipeline of its small model, its folder, its single file)."""
    from families import pipeline, write_single_file  # imports diffusers, which most tests do not need

    models = {}

    def get(name):
        if name not in models:
            folder = tmp_path_factory.mktemp("families") / name.replace(" ", "-")
            pipe = pipeline(name)
            pipe.save_pretrained(folder)
            file = folder.with_suffix(".safetensors")
            write_single_file(folder, file)
            models[name] = pipe, folder, file
        return models[name]

    return get
