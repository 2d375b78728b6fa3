"""How far an edit has gone: hand-worked numbers, and scikit-image itself for SSIM."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from minip2p.metrics.image import MAX_PSNR, iou, mse, preservation, psnr, ssim


def pictures(seed=0, size=(24, 20)):
    draw = torch.Generator().manual_seed(seed)
    a = torch.rand(3, *size, generator=draw) * 2 - 1
    return a, (a + 0.3 * torch.randn(3, *size, generator=draw)).clamp(-1, 1)


def test_mse_and_psnr_by_hand():
    """A fifth of the scale apart everywhere: MSE .2², PSNR −20 log10 .2; over a mask only what lies in it."""
    a = torch.zeros(3, 2, 2)
    b = torch.tensor([[0.4, 0.4], [0.0, 0.0]]).expand(3, 2, 2)
    top = torch.tensor([[True, True], [False, False]])
    assert mse(a, b) == pytest.approx(0.02) and mse(a, b, top) == pytest.approx(0.04) and mse(a, b, ~top) == 0
    assert psnr(a, b, top) == pytest.approx(13.979, abs=1e-3) and psnr(a, b, ~top) == psnr(a, a) == MAX_PSNR
    assert math.isnan(psnr(a, b, torch.zeros(2, 2, dtype=torch.bool)))


def test_psnr_and_ssim_are_scikit_images():
    """Float64; measured: equal to 1e-12. The arguments are those of Wang et al. 2004."""
    a, b = pictures()
    theirs = [((x + 1) / 2).permute(1, 2, 0).double().numpy() for x in (a, b)]
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(*theirs, data_range=1), abs=1e-4)
    index = structural_similarity(
        *theirs, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )[1]
    mask = torch.rand(24, 20, generator=torch.Generator().manual_seed(3)) > 0.5
    assert ssim(a, b) == pytest.approx(index.mean()) and ssim(a, b, mask) == pytest.approx(index[mask.numpy()].mean())
    assert ssim(a, a) == pytest.approx(1) and ssim(a, b) < 0.9


def test_iou_by_hand():
    a, b = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert iou(a, b) == pytest.approx(1 / 3) and iou(a, a) == 1 and iou(a & ~a, a & ~a) == 0 == iou(a, ~a)


def test_preservation_is_measured_inside_and_outside():
    a, b = pictures()
    mask = torch.zeros(24, 20, dtype=torch.bool)
    mask[:12] = True
    changed = torch.where(mask, b, a)
    found = preservation(a, changed, mask)
    assert found.keys() == {m + p for m in ("psnr", "ssim", "mse") for p in ("", "_inside", "_outside")}
    assert (
        found["mse_outside"] == 0
        and found["psnr_outside"] == MAX_PSNR
        and found["mse_inside"] == pytest.approx(2 * found["mse"])
    )
    assert found["ssim_inside"] < found["ssim"] < found["ssim_outside"]
    without = preservation(a, changed, None)
    assert without["psnr"] == found["psnr"] and all(math.isnan(without[m + "_inside"]) for m in ("psnr", "ssim", "mse"))
    assert all(np.isnan(without[m + "_outside"]) for m in ("psnr", "ssim", "mse"))
