"""TODO: describe."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.attention.contract import Site
from minip2p.attention.heatmaps import map_size
from minip2p.validation import is_finite


def mask_to_latent(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask H W as h w bool: the pixels of which it covers half or more."""
    return F.interpolate(mask[None, None].float(), size, mode="area")[0, 0].cpu() >= 0.5


def same_dtype(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two masks as bool, or where either is soft as float32."""
    return (a, b) if a.dtype == b.dtype else (a.float(), b.float())


def mask_per_stride(mask: Tensor, latent: tuple[int, int], sites: Sequence[Site]) -> dict[int, Tensor]:
    """A mask H W as m of the queries at each stride, i in [0, 1]: what it covers of each."""
    sizes = {site.stride: map_size(latent, site.stride) for site in sites}
    return {n: F.interpolate(mask[None, None], size, mode="area").flatten() for n, size in sizes.items()}


def heatmap_to_mask(
    heat: Tensor, size: tuple[int, int], threshold: Any, pool: bool = True, smooth: bool = False
) -> Tensor:
    """A mask h w from a heat map y x (Hertz et al. 2022, local editing; the published code's steps):

        3 × 3 max-pool, nearest upsampling, divide by the maximum, > threshold

    smooth: bicubic upsampling instead. threshold: see `cut`.
    """
    heat = heat.clamp(min=0)  # a negative weight makes negative heat: nothing to divide by, and nowhere to be
    if pool:
        heat = F.max_pool2d(heat[None], 3, stride=1, padding=1)[0]
    heat = F.interpolate(heat[None, None], size, mode="bicubic" if smooth else "nearest")[0, 0].clamp(min=0)
    return threshold_mask(heat / heat.max(), threshold)


def threshold_mask(heat: Tensor, threshold: Any) -> Tensor:
    """A mask from heat in [0, 1], y x: bool above the threshold, a number or "otsu"; or "85%": above so many percent of
    the pixels; or, for (low, high), soft: 0 up to low, 1 from high on, and a ramp between. NaN, as of no heat, is 0."""
    if isinstance(threshold, tuple):
        low, high = threshold
        return ((heat - low) / (high - low)).clamp(0, 1).nan_to_num(0)
    if threshold == "otsu":
        threshold = otsu_threshold(heat)
    elif isinstance(threshold, str):
        threshold = float(heat.float().quantile(float(threshold[:-1]) / 100))
    return heat > threshold


def otsu_threshold(values: Tensor) -> float:
    """The threshold for which the variance between the two classes is greatest (Otsu 1979), of all that part them:

    n_0 n_1 (μ_0 − μ_1)²
    """
    x = values.detach().cpu().flatten().double().sort().values
    count, below = torch.arange(1, len(x), dtype=torch.float64), x.cumsum(0)[:-1]
    rest = len(x) - count
    between = count * rest * (below / count - (x.sum() - below) / rest) ** 2
    return float(x[between.argmax()])


def check_threshold(name: str, threshold: Any) -> None:
    """Raises ValueError for what `cut` cannot take."""
    percent = isinstance(threshold, str) and threshold.endswith("%") and threshold[:-1].replace(".", "", 1).isdecimal()
    pair = isinstance(threshold, tuple) and len(threshold) == 2 and all(is_finite(one) for one in threshold)
    if pair:
        good = 0 <= threshold[0] < threshold[1] <= 1
    elif percent:
        good = float(threshold[:-1]) < 100
    else:
        good = threshold == "otsu" or (is_finite(threshold) and 0 <= threshold <= 1)
    if not good:
        raise ValueError(
            f'{name} must lie between 0 and 1, not {threshold}; or it is "otsu", a percentage as '
            '"85%", or a soft pair (low, high)'
        )
