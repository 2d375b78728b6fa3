import pytest
from families import pipeline, single

import minip2p


@pytest.fixture(scope="session")
def model():
    """The embedded model. Tests share it: nobody changes it."""
    return minip2p.load()


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """A family's name -> (its pipeline, its folder, its single file), made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("families") / name.replace(" ", "-")
            pipe = pipeline(name)
            pipe.save_pretrained(folder)
            single(folder, folder.with_suffix(".safetensors"))
            made[name] = pipe, folder, folder.with_suffix(".safetensors")
        return made[name]

    return get
