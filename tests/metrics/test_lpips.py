"""LPIPS with random weights against its formula written out, and files that are something else."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from minip2p.metrics.lpips import Lpips

CHANNELS = (64, 128, 256, 384, 384, 512, 512)
FIRES = {
    3: (64, 16, 64),
    4: (128, 16, 64),
    6: (128, 32, 128),
    7: (256, 32, 128),
    9: (256, 48, 192),
    10: (384, 48, 192),
    11: (384, 64, 256),
    12: (512, 64, 256),
}


def random_weights():
    """All tensors of such a file, by torchvision's and lpips's names: name -> tensor."""
    shapes = {"features.0": (64, 3, 3, 3)}
    for n, (channels, squeezed, expanded) in FIRES.items():
        shapes[f"features.{n}.squeeze"] = (squeezed, channels, 1, 1)
        shapes[f"features.{n}.expand1x1"] = (expanded, squeezed, 1, 1)
        shapes[f"features.{n}.expand3x3"] = (expanded, squeezed, 3, 3)
    g = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = torch.randn(shape, generator=g) * math.sqrt(2 / math.prod(shape[1:]))
        weights[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=g)
    return weights | {f"lin{n}.model.1.weight": torch.rand(1, c, 1, 1, generator=g) for n, c in enumerate(CHANNELS)}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(random_weights() | {"classifier.1.weight": torch.zeros(3, 512, 1, 1)}, path)
    return path


@pytest.fixture(scope="module")
def images():
    g = torch.Generator().manual_seed(1)
    a = torch.rand(3, 70, 64, generator=g) * 2 - 1
    return a, (a + 0.3 * torch.randn(3, 70, 64, generator=g)).clamp(-1, 1)


def literal_lpips(a, b, w):
    """Zhang et al. (2018), eq. 1, for SqueezeNet 1.1, in float64."""

    def features(image):
        shift = torch.tensor([-0.03, -0.088, -0.188], dtype=torch.float64)
        scale = torch.tensor([0.458, 0.448, 0.45], dtype=torch.float64)
        x = ((image.permute(1, 2, 0) - shift) / scale).permute(2, 0, 1)[None]
        x = F.conv2d(x, w["features.0.weight"], w["features.0.bias"], stride=2).clamp(min=0)
        yield x
        for n in range(2, 13):
            if n not in FIRES:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
                continue
            name = f"features.{n}"
            x = F.conv2d(x, w[f"{name}.squeeze.weight"], w[f"{name}.squeeze.bias"]).clamp(min=0)
            wide = [F.conv2d(x, w[f"{name}.expand1x1.weight"], w[f"{name}.expand1x1.bias"])]
            wide += [F.conv2d(x, w[f"{name}.expand3x3.weight"], w[f"{name}.expand3x3.bias"], padding=1)]
            x = torch.cat(wide, 1).clamp(min=0)
            if n in (4, 7, 9, 10, 11, 12):
                yield x

    total = 0.0
    for n, (x, y) in enumerate(zip(features(a.double()), features(b.double()), strict=True)):
        difference = (x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)) ** 2
        total += (difference * w[f"lin{n}.model.1.weight"]).sum(1).mean().item()
    return total


def test_lpips_is_its_formula(file, images):
    """Float32 against float64, 1e-5 relative. With torchvision's network in the code of lpips 0.1.4 and of torchmetrics
    1.4 the same was measured: .01944823 from each."""
    weights = {name: tensor.double() for name, tensor in load_file(file).items()}
    expected = literal_lpips(*images, weights)
    lpips = Lpips(file)
    assert lpips(*images) == pytest.approx(expected, rel=1e-5) and expected > 0.1
    assert lpips(images[0], images[0]) == 0


def test_black_areas_in_both_images_do_not_disturb_it(file, images):
    a, b = (image.clone() for image in images)
    a[:, :, :40] = b[:, :, :40] = -1.0
    assert 0 < Lpips(file)(a, b) < Lpips(file)(*images)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("features.7.squeeze.bias"), "features.7.squeeze.bias is missing"),
        (lambda w: w.pop("lin6.model.1.weight"), "lin6.model.1.weight is missing"),
        (lambda w: w.update({"lin3.weight": torch.ones(1)}), "lin3.weight is unknown"),
        (
            lambda w: w.update({"features.0.weight": torch.ones(96, 3, 7, 7)}),
            r"features.0.weight is \[96, 3, 7, 7\] and must be \[64, 3, 3, 3\]",
        ),
    ],
)
def test_other_names_and_shapes_are_an_error_in_one_line(file, tmp_path, change, message):
    weights = load_file(file)
    change(weights)
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=f"other.safetensors: not LPIPS with SqueezeNet 1.1: {message}") as error:
        Lpips(tmp_path / "other.safetensors")
    assert "\n" not in str(error.value)


def test_a_pickled_or_missing_file_is_named_and_not_read(tmp_path):
    torch.save(random_weights(), tmp_path / "squeeze.pth")
    with pytest.raises(ValueError, match=r"squeeze.pth: not a whole safetensors file; docs/results.md says how"):
        Lpips(tmp_path / "squeeze.pth")
    with pytest.raises(FileNotFoundError, match="nothing: no such file; LPIPS needs a safetensors file"):
        Lpips(tmp_path / "nothing")


def test_other_weights_have_another_name(file, tmp_path):
    weights = load_file(file)
    weights["features.0.bias"] += 1
    save_file(weights, tmp_path / "other.safetensors")
    assert Lpips(tmp_path / "other.safetensors").name != Lpips(file).name == Lpips(file).name
