import pytest
from starlette.testclient import TestClient
from web import BASE, CAT, result

from minip2p.web.app import make_app


@pytest.fixture(scope="session")
def pipe(small_model):
    """The model of the server."""
    return small_model


@pytest.fixture(scope="session")
def client(pipe):
    """A client of a server, which all tests share."""
    with TestClient(make_app(pipe), base_url=BASE) as shared:
        yield shared


@pytest.fixture(scope="session")
def cat(client):
    """A run of the server."""
    return result(client, "generate", prompt=CAT, seed=1, steps=2)["run"]


@pytest.fixture(scope="session")
def source(pipe):
    """The same run by the library."""
    return pipe.generate(CAT, seed=1, steps=2)
