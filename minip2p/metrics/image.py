"""How much an edited image differs from its source: over the whole image, inside of a mask and outside of it.

Axes: images are 3 H W in [-1, 1], masks H W bool.
"""

import math
from collections.abc import Iterable
from statistics import stdev

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PSNR = 60.0  # dB; the PSNR of equal images would be infinite
SSIM_BORDER = 5  # pixels; where SSIM's windows, of 11 × 11, reach beyond the image


def mse(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """Mean squared error of two images on the scale of [0, 1], over the mask; NaN if the mask is empty."""
    error = (a - b).square() / 4
    return float(error.mean() if mask is None else error[:, mask].mean())


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio −10 log₁₀ MSE in dB, over the mask; at most MAX_PSNR, NaN if the mask is empty."""
    error = mse(a, b, mask)
    return error if math.isnan(error) else min(MAX_PSNR, -10 * math.log10(max(error, 1e-12)))


def ssim(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """Structural similarity (Wang et al. 2004) by scikit-image, with Gaussian windows of σ = 1.5.

    It is the mean of the index at the mask's pixels, or at all of them; NaN if the mask is empty. Libraries leave out a
    border of SSIM_BORDER pixels when they average over a whole image; here it counts, since a mask may lie there.
    `pie_bench_masked_metrics` leaves it out.
    """
    index = ssim_index(a, b)
    inside = index if mask is None else index[mask.cpu().numpy()]
    return float(inside.mean()) if np.size(inside) else math.nan


def ssim_index(a: Tensor, b: Tensor) -> np.ndarray:
    """The index of structural similarity at each pixel and channel, H W 3 float64; see `ssim`."""
    from skimage.metrics import structural_similarity

    arrays = [((image + 1) / 2).permute(1, 2, 0).double().cpu().numpy() for image in (a, b)]
    _, index = structural_similarity(
        *arrays,
        data_range=1.0,
        channel_axis=-1,
        full=True,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return index


def pie_bench_masked_metrics(source: Tensor, edited: Tensor, mask: Tensor) -> dict[str, float]:
    """PSNR, SSIM and MSE outside of a mask as PIE-Bench's published code computes them.

    That code sets both images to black inside of the mask and averages over all pixels. So the values improve as the
    mask grows, and cannot be compared between masks. For SSIM, its library (torchmetrics) leaves out a border of
    SSIM_BORDER pixels. Deviation: the PSNR of equal images, infinite there, is MAX_PSNR.
    NaN if the mask covers everything.
    """
    if mask.all():
        return dict.fromkeys(("psnr_filled", "ssim_filled", "mse_filled"), math.nan)
    a, b = (torch.where(mask, -1.0, image) for image in (source, edited))
    index = ssim_index(a, b)[SSIM_BORDER:-SSIM_BORDER, SSIM_BORDER:-SSIM_BORDER]
    return {"psnr_filled": psnr(a, b), "ssim_filled": float(index.mean()), "mse_filled": mse(a, b)}


def structure(source: Tensor, edited: Tensor) -> float:
    """Structure distance (Tumanyan et al. 2022, splicing ViT features) of two images' features n c.

    The mean squared difference of their self-similarity matrices S(f) = f̂ f̂ᵀ with f̂ = f / ‖f‖.
    """
    a, b = (F.normalize(f, dim=1) for f in (source, edited))
    return float(F.mse_loss(a @ a.mT, b @ b.mT))


def interval(values: Iterable[float | None]) -> tuple[float, float]:
    """The mean of the values that are neither None nor NaN, and half of its 95 % confidence interval, 1.96 s / √n.

    Both are NaN without a value; the half-width is NaN with only one.
    """
    numbers = present(values)
    half_width = 1.96 * stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.nan
    return mean(numbers), half_width


def mean(values: Iterable[float | None]) -> float:
    """The mean of the values that are neither None nor NaN; NaN without one."""
    numbers = present(values)
    return sum(numbers) / len(numbers) if numbers else math.nan


def present(values: Iterable[float | None]) -> list[float]:
    """The values that are neither None nor NaN."""
    return [value for value in values if value is not None and not math.isnan(value)]


def iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two masks; 0 if both are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0


def preservation(source: Tensor, edited: Tensor, mask: Tensor | None) -> dict[str, float]:
    """PSNR, SSIM and MSE against the source: of the whole image, inside of the mask and outside of it.

    Keys: "psnr", "psnr_inside", "psnr_outside" and so on. Without a mask, inside and outside are NaN.
    """
    empty = torch.zeros(source.shape[1:], dtype=torch.bool)
    areas: dict[str, Tensor | None] = {"": None, "_inside": empty, "_outside": empty}
    if mask is not None:
        areas |= {"_inside": mask, "_outside": ~mask}
    metrics = {"psnr": psnr, "ssim": ssim, "mse": mse}
    return {
        name + suffix: metric(source, edited, area)
        for name, metric in metrics.items()
        for suffix, area in areas.items()
    }
