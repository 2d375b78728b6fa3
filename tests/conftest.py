import pytest

import minip2p


@pytest.fixture(scope="session")
def model():
    """The embedded model. Tests share it: nobody changes it."""
    return minip2p.load()
