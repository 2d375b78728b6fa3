"""Masks: from heat maps by a threshold, and from image pixels to latent pixels and queries.

Axes: H W: image pixels; h w: latent pixels; y x: rows and columns of a map; i queries.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.attention.contract import Site
from minip2p.attention.heatmaps import map_size
from minip2p.validation import is_finite

EDGE_EPSILON = 1e-3  # variance of colours below which they tell no edge, of a range of 1


def mask_to_latent(mask: Tensor, latent_size: tuple[int, int]) -> Tensor:
    """A mask H W -> h w, bool: True at the latent pixels of which the mask covers half or more."""
    return F.interpolate(mask[None, None].float(), latent_size, mode="area")[0, 0].cpu() >= 0.5


def same_dtype(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two masks in one dtype: both bool, or both float32 if one of them is soft."""
    return (a, b) if a.dtype == b.dtype else (a.float(), b.float())


def mask_per_stride(mask: Tensor, latent_size: tuple[int, int], sites: Sequence[Site]) -> dict[int, Tensor]:
    """A mask H W -> stride -> i in [0, 1]: the share of each query's area that the mask covers."""
    sizes = {site.stride: map_size(latent_size, site.stride) for site in sites}
    return {stride: F.interpolate(mask[None, None], size, mode="area").flatten() for stride, size in sizes.items()}


def heatmap_to_mask(
    heat: Tensor, size: tuple[int, int], threshold: Any, pool: bool = True, smooth: bool = False
) -> Tensor:
    """A heat map y x -> a mask of `size`, by the steps of the published Prompt-to-Prompt code (`LocalBlend`):

        3 × 3 max-pooling (if `pool`), nearest upsampling, division by the maximum, > threshold

    threshold: see `threshold_mask`. smooth: upsample bicubically; the published code upsamples to the nearest.
    """
    heat = heat.clamp(min=0)  # a word that is reweighted by a negative number has negative heat: its mask is empty
    if pool:
        heat = F.max_pool2d(heat[None], 3, stride=1, padding=1)[0]
    heat = F.interpolate(heat[None, None], size, mode="bicubic" if smooth else "nearest")[0, 0].clamp(min=0)
    return threshold_mask(heat / heat.max(), threshold)


def threshold_mask(heat: Tensor, threshold: Any) -> Tensor:
    """Heat y x in [0, 1] -> a mask y x: bool, or float for a soft threshold. NaN (0 / 0, of no heat) becomes 0.

    threshold: a number: heat above it. "otsu": heat above Otsu's threshold. "85%": heat above the 85th
    percentile of the pixels. A pair (low, high): a soft mask, 0 up to low, 1 from high on, linear between.
    """
    if isinstance(threshold, tuple):
        low, high = threshold
        return ((heat - low) / (high - low)).clamp(0, 1).nan_to_num(0)
    if threshold == "otsu":
        threshold = otsu_threshold(heat)
    elif isinstance(threshold, str):
        threshold = heat.float().quantile(float(threshold[:-1]) / 100)
    return heat > threshold


def otsu_threshold(values: Tensor) -> float:
    """Otsu's threshold (Otsu 1979): of all values, the one that maximizes the variance between the two classes,

        n₀ n₁ (μ₀ − μ₁)²

    n and μ: the sizes and means of the values up to the threshold and above it.
    """
    x = values.detach().cpu().flatten().double().sort().values
    lower_count = torch.arange(1, len(x), dtype=torch.float64)
    upper_count = len(x) - lower_count
    lower_sum = x.cumsum(0)[:-1]
    upper_sum = x.sum() - lower_sum
    variance = lower_count * upper_count * (lower_sum / lower_count - upper_sum / upper_count) ** 2
    return float(x[variance.argmax()])


def follow_edges(mask: Tensor, picture: Tensor) -> Tensor:
    """A mask H W, bool, whose border follows the edges of a picture, 3 H W in [-1, 1], near to it.

    The guided filter (He, Sun and Tang 2013, Guided Image Filtering, section 3.5): in each window the mask is fitted by
    a linear function of the colours I in [0, 1],

        q = aᵀ I + b,    a = (Σ + ε U)⁻¹ cov(I, mask),    b = mean(mask) − aᵀ mean(I)

    where Σ is the covariance of the colours; a and b are then averaged over the windows of a pixel. The result is where
    q > ½. The windows are half as wide as the root of the mask's area; an empty mask stays empty.
    """
    radius = max(1, round(float(mask.sum()) ** 0.5 / 4))
    guide, p = (picture.cpu().double() + 1) / 2, mask.cpu().double()
    means = window_mean(guide, radius)
    products = window_mean(guide[:, None] * guide, radius) - means[:, None] * means
    with_mask = window_mean(guide * p, radius) - means * window_mean(p, radius)
    covariance = products.permute(2, 3, 0, 1) + EDGE_EPSILON * torch.eye(3, dtype=torch.float64)
    a = torch.linalg.solve(covariance, with_mask.permute(1, 2, 0)[..., None])[..., 0].permute(2, 0, 1)
    b = window_mean(p, radius) - (a * means).sum(0)
    return (window_mean(a, radius) * guide).sum(0) + window_mean(b, radius) > 0.5


def window_mean(x: Tensor, radius: int) -> Tensor:
    """The mean over the window of ± radius around each pixel, … y x; over the part of it that is in the picture."""
    for axis in (-2, -1):
        n = torch.arange(x.shape[axis])
        first, end = (n - radius).clamp(min=0), (n + radius + 1).clamp(max=len(n))
        sums = F.pad(x.movedim(axis, -1).cumsum(-1), (1, 0))
        x = ((sums[..., end] - sums[..., first]) / (end - first)).movedim(-1, axis)
    return x


def check_threshold(name: str, threshold: Any) -> None:
    """Raises ValueError for a threshold that `threshold_mask` does not take. name: what to call it in the error."""
    percent = isinstance(threshold, str) and threshold.endswith("%") and threshold[:-1].replace(".", "", 1).isdecimal()
    pair = isinstance(threshold, tuple) and len(threshold) == 2 and all(is_finite(end) for end in threshold)
    if pair:
        valid = 0 <= threshold[0] < threshold[1] <= 1
    elif percent:
        valid = float(threshold[:-1]) < 100
    else:
        valid = threshold == "otsu" or (is_finite(threshold) and 0 <= threshold <= 1)
    if not valid:
        raise ValueError(
            f'{name} must lie between 0 and 1, not {threshold}; or it is "otsu", a percentage such as '
            '"85%", or a soft pair (low, high)'
        )
