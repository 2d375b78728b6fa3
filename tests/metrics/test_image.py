"""Image metrics: numbers worked out by hand, and scikit-image for SSIM."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from minip2p.metrics.image import (
    MAX_PSNR,
    interval,
    iou,
    mean,
    mse,
    pie_bench_masked_metrics,
    preservation,
    psnr,
    ssim,
    structure,
)

METRICS = ("psnr", "ssim", "mse")


def random_images(seed=0, size=(24, 20)):
    """A random image and a noisy copy of it."""
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(3, *size, generator=g) * 2 - 1
    return a, (a + 0.3 * torch.randn(3, *size, generator=g)).clamp(-1, 1)


def test_mse_and_psnr_by_hand():
    """A difference of a fifth of the scale: MSE 0.2², PSNR −20 log₁₀ 0.2; over a mask only the pixels in it count."""
    a = torch.zeros(3, 2, 2)
    b = torch.tensor([[0.4, 0.4], [0.0, 0.0]]).expand(3, 2, 2)
    top = torch.tensor([[True, True], [False, False]])
    assert mse(a, b) == pytest.approx(0.02) and mse(a, b, top) == pytest.approx(0.04) and mse(a, b, ~top) == 0
    assert psnr(a, b, top) == pytest.approx(13.979, abs=1e-3) and psnr(a, b, ~top) == psnr(a, a) == MAX_PSNR
    assert math.isnan(psnr(a, b, torch.zeros(2, 2, dtype=torch.bool)))


def test_psnr_and_ssim_equal_scikit_image():
    """In float64; measured: equal to 1e-12. The arguments are those of Wang et al. 2004."""
    a, b = random_images()
    arrays = [((x + 1) / 2).permute(1, 2, 0).double().numpy() for x in (a, b)]
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(*arrays, data_range=1), abs=1e-4)
    index = structural_similarity(
        *arrays, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )[1]
    mask = torch.rand(24, 20, generator=torch.Generator().manual_seed(3)) > 0.5
    assert ssim(a, b) == pytest.approx(index.mean()) and ssim(a, b, mask) == pytest.approx(index[mask.numpy()].mean())
    assert ssim(a, a) == pytest.approx(1) and ssim(a, b) < 0.9


def test_iou_by_hand():
    a, b = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert iou(a, b) == pytest.approx(1 / 3) and iou(a, a) == 1 and iou(a & ~a, a & ~a) == 0 == iou(a, ~a)


def test_mean_and_interval_skip_what_is_missing():
    values = [1.0, None, 3.0, math.nan]
    assert mean(values) == 2 and interval(values) == pytest.approx((2, 1.96))  # s = √2, √n = √2
    assert interval([5.0, None])[0] == 5 and math.isnan(interval([5.0, None])[1])
    assert math.isnan(mean([None])) and all(map(math.isnan, interval([])))


def test_structure_is_the_mean_squared_difference_of_self_similarities():
    """Features at right angles against equal ones: two of the four similarities differ by 1."""
    orthogonal, equal = torch.eye(2), torch.tensor([[3.0, 0], [1, 0]])
    assert structure(orthogonal, equal) == pytest.approx(0.5)
    assert structure(orthogonal, 5 * orthogonal.flip(0)) == 0


def test_preservation_is_measured_inside_and_outside_of_the_mask():
    a, b = random_images()
    mask = torch.zeros(24, 20, dtype=torch.bool)
    mask[:12] = True
    values = preservation(a, torch.where(mask, b, a), mask)
    assert values.keys() == {metric + area for metric in METRICS for area in ("", "_inside", "_outside")}
    assert values["mse_outside"] == 0 and values["psnr_outside"] == MAX_PSNR
    assert values["mse_inside"] == pytest.approx(2 * values["mse"])
    assert values["ssim_inside"] < values["ssim"] < values["ssim_outside"]
    without = preservation(a, torch.where(mask, b, a), None)
    assert without["psnr"] == values["psnr"]
    assert all(math.isnan(without[metric + area]) for metric in METRICS for area in ("_inside", "_outside"))


def literal_ssim(a, b, border):
    """SSIM (Wang et al. 2004, eq. 13), window by window, of images H W 3 in [0, 1]; mean without a border."""
    offsets = np.arange(-5, 6)
    row = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(row, row) / row.sum() ** 2
    values = []
    for channel in range(3):
        for i in range(border, a.shape[0] - border):
            for j in range(border, a.shape[1] - border):
                x, y = (image[i - 5 : i + 6, j - 5 : j + 6, channel] for image in (a, b))
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cov = (window * (x - mx) * (y - my)).sum()
                value = (2 * mx * my + 0.01**2) * (2 * cov + 0.03**2)
                values.append(value / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2)))
    return np.mean(values)


def test_the_ssim_of_pie_bench_leaves_out_a_border_of_five_pixels():
    """As torchmetrics does. In float64, 1e-9. With the border, a mask that is large moves it."""
    a, b = random_images(size=(24, 20))
    mask = torch.zeros(24, 20, dtype=torch.bool)
    mask[:14, 3:] = True
    filled = [torch.where(mask, -1.0, image) for image in (a, b)]
    arrays = [((image + 1) / 2).permute(1, 2, 0).double().numpy() for image in filled]
    expected = literal_ssim(*arrays, border=5)
    value = pie_bench_masked_metrics(a, b, mask)["ssim_filled"]
    print(f"without the border {value:.4f}, with it {ssim(*filled):.4f}")
    assert value == pytest.approx(expected, abs=1e-9) and abs(ssim(*filled) - value) > 0.005
    assert value == pytest.approx(
        structural_similarity(
            *arrays, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


def test_the_metrics_of_pie_bench_are_of_pictures_that_are_black_inside_of_the_mask():
    """The error outside of the mask, over all pixels. Of 144 pixels, 36 outside of it differ by .5 (on [0, 1])."""
    a, b, mask = torch.zeros(3, 12, 12), torch.zeros(3, 12, 12), torch.zeros(12, 12, dtype=torch.bool)
    mask[:6], b[:, :, :6] = True, 1.0
    expected = 0.25 * 36 / 144
    metrics = pie_bench_masked_metrics(a, b, mask)
    assert metrics["mse_filled"] == pytest.approx(expected)
    assert metrics["psnr_filled"] == pytest.approx(-10 * math.log10(expected))
    assert mse(a, b, ~mask) == pytest.approx(2 * expected) and psnr(a, b) < metrics["psnr_filled"]
    assert all(map(math.isnan, pie_bench_masked_metrics(a, b, torch.ones_like(mask)).values()))  # nothing is outside
