"""LPIPS (Zhang et al. 2018): how much two images differ for a network that was trained on photographs.

The network is SqueezeNet 1.1 (Iandola et al. 2016), as in PIE-Bench. Its weights come from a file of the user's.

Axes: images are 3 H W in [-1, 1]; b c h w features.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from minip2p.io.tensors import fingerprint, printable, read_tensors

# The mean and the standard deviation of photographs, for channels in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# The layers of SqueezeNet whose features are compared, and the features' channels.
LAYERS = ((1, 64), (4, 128), (7, 256), (9, 384), (10, 384), (11, 512), (12, 512))
MIN_NORM = 1e-8  # added to the squared length of features, as torchmetrics does


class Fire(nn.Module):
    """A block of SqueezeNet: few channels, from which kernels of 1 × 1 and 3 × 3 make many."""

    def __init__(self, channels: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1).relu()


class LpipsNetwork(nn.Module):
    """SqueezeNet 1.1 up to its last features, by torchvision's names, and the weights of the features by lpips's."""

    def __init__(self) -> None:
        super().__init__()
        fires = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128)}
        fires |= {9: (256, 48, 192), 10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256)}
        start: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU()]
        blocks = [Fire(*fires[n]) if n in fires else nn.MaxPool2d(3, 2, ceil_mode=True) for n in range(2, 13)]
        self.features = nn.Sequential(*start, *blocks)
        for n, (_, channels) in enumerate(LAYERS):
            lin = nn.ModuleDict({"model": nn.ModuleDict({"1": nn.Conv2d(channels, 1, 1, bias=False)})})
            self.add_module(f"lin{n}", lin)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The features of images b 3 h w at each of LAYERS, each b c h w of length 1."""
        outputs = []
        for layer in self.features:
            x = layer(x)
            outputs.append(x)
        return [outputs[n] / (MIN_NORM + outputs[n].square().sum(1, keepdim=True)).sqrt() for n, _ in LAYERS]


class Lpips:
    """The distance of two images: at each layer the squared difference of the features, which have length 1, weighted
    by channel and averaged over the image; summed over the layers. 0 for equal images.

    file: a safetensors file with SqueezeNet's weights (`features.…`, as torchvision names them) and those of LPIPS
    (`lin0.model.1.weight` to `lin6.model.1.weight`). SqueezeNet's classifier may be in it, and is not read.
    Raises FileNotFoundError or ValueError with one line that names the file.
    """

    def __init__(self, file: str | Path):
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(f"{file}: no such file; LPIPS needs a safetensors file, see docs/results.md")
        try:
            tensors = read_tensors(path)
        except ValueError:
            raise ValueError(f"{file}: not a whole safetensors file; docs/results.md says how to make it") from None
        self.network = LpipsNetwork().eval().requires_grad_(False)
        expected = self.network.state_dict()
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
        for name in (*expected, *tensors):
            if name not in tensors:
                problem = "is missing"
            elif name not in expected:
                problem = "is unknown"
            elif tensors[name].shape != expected[name].shape:
                problem = f"is {list(tensors[name].shape)} and must be {list(expected[name].shape)}"
            else:
                continue
            raise ValueError(f"{file}: not LPIPS with SqueezeNet 1.1: {printable(name)} {problem}")
        self.network.load_state_dict(tensors)

    @property
    def name(self) -> str:
        """A name that tells these weights from others, by a fingerprint."""
        return f"lpips {fingerprint([self.network])}"

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> float:
        """The distance of two images."""
        shift, scale = (torch.tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        distance = 0.0
        for n, features in enumerate(self.network((torch.stack([a, b]).float().cpu() - shift) / scale)):
            weights = self.network.get_parameter(f"lin{n}.model.1.weight")
            distance += float(((features[:1] - features[1:]).square() * weights.view(1, -1, 1, 1)).mean((2, 3)).sum())
        return distance
