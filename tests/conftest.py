import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from fake_device import FAKE, fake_device

import minip2p

ON_DEVICE = {"device", "model", "small_model"}  # a test that uses one of these fixtures runs on the device


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        default="cpu",
        help="where the embedded model of the tests is: cuda, mps, or fake, which any machine has",
    )


def pytest_configure(config):
    name = config.getoption("--device")
    try:
        torch.empty(0, device="meta" if name == FAKE else name)
    except (RuntimeError, AssertionError) as error:
        raise pytest.UsageError(f"--device {name}: {str(error).splitlines()[0]}") from None


def pytest_collection_modifyitems(config, items):
    """On another device than the CPU, tests without the model are left out: they would show nothing new."""
    if config.getoption("--device") != "cpu":
        elsewhere = [item for item in items if ON_DEVICE.isdisjoint(item.fixturenames)]
        items[:] = [item for item in items if not ON_DEVICE.isdisjoint(item.fixturenames)]
        config.hook.pytest_deselected(items=elsewhere)


@pytest.fixture(scope="session", autouse=True)
def on_device(request):
    """The fake device exists while tests run on it. CUDA computes float32 without TF32, in which tests do not agree."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with fake_device() if request.config.getoption("--device") == FAKE else nullcontext():
        yield


@pytest.fixture(scope="session")
def device(request, on_device):
    """The device of the model, for the tensors that a test makes."""
    name = request.config.getoption("--device")
    return torch.device("meta" if name == FAKE else name)


@pytest.fixture(scope="session")
def cpu_model():
    """The embedded model on the CPU. Tests share it: nobody changes it."""
    return minip2p.load()


@pytest.fixture(scope="session")
def model(device, cpu_model):
    """The embedded model on the device of --device. Tests share it: nobody changes it."""
    return cpu_model if device.type == "cpu" else minip2p.load(device=str(device))


def with_small_pictures(pipe):
    """The model with pictures of 64 x 64 pixels, which take less time."""
    unet = copy.copy(pipe.unet)  # which shares the weights
    unet.config = replace(unet.config, sample_size=8)
    return replace(pipe, components=replace(pipe.components, unet=unet))


@pytest.fixture(scope="session")
def small_cpu_model(cpu_model):
    """The embedded model with small pictures, on the CPU."""
    return with_small_pictures(cpu_model)


@pytest.fixture(scope="session")
def small_model(model, cpu_model, small_cpu_model):
    """The embedded model with small pictures, on the device of --device."""
    return small_cpu_model if model is cpu_model else with_small_pictures(model)


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
