import pytest
from fake_device import FAKE, fake_device
from starlette.testclient import TestClient
from web import BASE, CAT, result

from minip2p.web.app import make_app
from minip2p.web.worker import Worker


@pytest.fixture(scope="session", autouse=True)
def worker_on_device(request, on_device):
    """The fake device exists in one thread, so each job in the thread of the server's worker has one of its own."""
    run = Worker.run

    def run_on_device(self, job):
        with fake_device():
            run(self, job)

    with pytest.MonkeyPatch.context() as patch:
        if request.config.getoption("--device") == FAKE:
            patch.setattr(Worker, "run", run_on_device)
        yield


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
