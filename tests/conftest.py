import pytest

import minip2p


@pytest.fixture(scope="session")
def model():
    """The embedded model. Tests share it: nobody changes it."""
    return minip2p.load()


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
