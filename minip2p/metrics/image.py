"""How far an edit has gone from its source, and where: over a mask and outside of it.

Pictures are 3 H W in [-1, 1], masks H W bool.
"""

import math
from collections.abc import Iterable
from statistics import stdev

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PSNR = 60.0  # dB: pictures that are equal have no PSNR


def mse(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """Mean squared error of pictures, on the scale of [0, 1]; NaN where the mask is empty."""
    error = (a - b).square() / 4
    return float(error.mean() if where is None else error[:, where].mean())


def psnr(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio, −10 log10 MSE, in dB; at most CAP, and NaN where the mask is empty."""
    error = mse(a, b, where)
    return error if math.isnan(error) else min(MAX_PSNR, -10 * math.log10(max(error, 1e-12)))


def ssim(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """Structural similarity (Wang et al. 2004) by scikit-image: Gaussian windows, σ 1.5; the mean over the mask of the
    index at each pixel, NaN where the mask is empty."""
    from skimage.metrics import structural_similarity

    pictures = [((picture + 1) / 2).permute(1, 2, 0).double().cpu().numpy() for picture in (a, b)]
    _, index = structural_similarity(
        *pictures,
        data_range=1.0,
        channel_axis=-1,
        full=True,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    inside = index if where is None else index[where.cpu().numpy()]
    return float(inside.mean()) if np.size(inside) else math.nan


def pie_bench_masked_metrics(source: Tensor, edited: Tensor, mask: Tensor) -> dict[str, float]:
    """PSNR, SSIM and MSE outside of a mask as PIE-Bench's published code has them: of whole pictures that are black
    inside. So they are the better the larger the mask is, and cannot be compared between masks. NaN where the mask is
    everywhere."""
    if mask.all():
        return dict.fromkeys(("psnr_filled", "ssim_filled", "mse_filled"), math.nan)
    dark, other = (torch.where(mask, -1.0, picture) for picture in (source, edited))
    return {f"{name}_filled": measure(dark, other) for name, measure in (("psnr", psnr), ("ssim", ssim), ("mse", mse))}


def structure(source: Tensor, edited: Tensor) -> float:
    """Structure distance (Tumanyan et al. 2022, splicing ViT features): the mean squared difference of how alike the
    places of each picture are among themselves, S(f) = f̂ f̂ᵀ with f̂ = f / ‖f‖; of features n c."""
    a, b = (F.normalize(f, dim=1) for f in (source, edited))
    return float(F.mse_loss(a @ a.mT, b @ b.mT))


def interval(values: Iterable[float | None]) -> tuple[float, float]:
    """The mean of the values that there are and the half of its 95 % confidence interval, 1.96 s / √n; NaN for none."""
    there = [value for value in values if value is not None and not math.isnan(value)]
    if not there:
        return math.nan, math.nan
    return mean(there), 1.96 * stdev(there) / math.sqrt(len(there)) if len(there) > 1 else math.nan


def mean(values: Iterable[float | None]) -> float:
    """Of the values that there are, neither None nor NaN; NaN where there are none."""
    there = [value for value in values if value is not None and not math.isnan(value)]
    return sum(there) / len(there) if there else math.nan


def iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two masks; 0 where both are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0


def preservation(source: Tensor, edited: Tensor, mask: Tensor | None) -> dict[str, float]:
    """PSNR, SSIM and MSE against the source: of the whole picture, inside of a mask and outside of it (NaN without)."""
    nowhere = torch.zeros(source.shape[1:], dtype=torch.bool)
    places = {"": None, "_inside": nowhere, "_outside": nowhere}
    if mask is not None:
        places |= {"_inside": mask, "_outside": ~mask}
    measures = {"psnr": psnr, "ssim": ssim, "mse": mse}
    return {
        name + place: measure(source, edited, where)
        for name, measure in measures.items()
        for place, where in places.items()
    }
