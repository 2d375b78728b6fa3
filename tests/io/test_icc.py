"""Colour profiles: colours become sRGB, and a profile that cannot be used is ignored with a notice."""

import io
import warnings

import icc_profiles
import numpy as np
import pytest
from PIL import Image, ImageCms

from minip2p.errors import Notice
from minip2p.io.icc import sample_colours
from minip2p.io.images import fit_image, read_image, to_pil, to_rgb

P3_GREEN, SRGB_GREEN = (60, 180, 75), (0, 183, 57)


def with_profile(image, content):
    image.info["icc_profile"] = content
    return image


def solid(mode, colour, content):
    return with_profile(Image.new(mode, (4, 4), colour), content)


def colour_of(image):
    return image.getpixel((0, 0))


def srgb_profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
    "kind, options, tolerance",
    [
        ("png", {}, 0),
        ("tif", {}, 0),
        ("webp", {"lossless": True}, 0),
        ("jpg", {"quality": 100, "subsampling": 0}, 1),
        ("avif", {"quality": 100}, 3),
    ],
)
def test_display_p3_becomes_srgb_in_every_format(tmp_path, kind, options, tolerance):
    if f".{kind}" not in Image.registered_extensions():
        pytest.skip("this Pillow does not write the format")
    Image.new("RGB", (8, 8), P3_GREEN).save(tmp_path / f"x.{kind}", icc_profile=icc_profiles.display_p3(), **options)
    out = read_image(tmp_path / f"x.{kind}")
    assert np.abs(np.subtract(colour_of(out), SRGB_GREEN)).max() <= tolerance
    assert "icc_profile" not in out.info


def test_a_picture_is_converted_once():
    image = solid("RGB", P3_GREEN, icc_profiles.display_p3())
    assert colour_of(to_rgb(to_rgb(image))) == SRGB_GREEN
    assert colour_of(to_pil(fit_image(image, (8, 8)))) == SRGB_GREEN
    assert colour_of(image) == P3_GREEN and image.info["icc_profile"] == icc_profiles.display_p3()


def test_transparency_is_blended_after_the_conversion():
    image = solid("RGBA", (*P3_GREEN, 128), icc_profiles.display_p3())
    expected = np.array(SRGB_GREEN) * (128 / 255) + 255 * (127 / 255)
    assert np.abs(np.subtract(colour_of(to_rgb(image)), expected)).max() <= 1
    palette = with_profile(Image.new("RGB", (4, 4), P3_GREEN).convert("P", palette=Image.Palette.ADAPTIVE), None)
    palette.info["icc_profile"] = icc_profiles.display_p3()
    assert colour_of(to_rgb(palette)) == SRGB_GREEN
    opaque = solid("LA", (128, 255), icc_profiles.grey(1.0))
    assert colour_of(to_rgb(opaque)) == (188, 188, 188)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_with_a_profile_may_be_transparent(tmp_path, mode):
    """A PNG has a transparent grey (L) or a channel of its own (LA)."""
    image = Image.new(mode, (2, 1), 128 if mode == "L" else (128, 255))
    image.putpixel((1, 0), 7 if mode == "L" else (7, 0))
    transparency = {"transparency": 7} if mode == "L" else {}
    image.save(tmp_path / "x.png", icc_profile=icc_profiles.grey(1.0), **transparency)
    out = read_image(tmp_path / "x.png")
    assert [out.getpixel((x, 0)) for x in (0, 1)] == [(188, 188, 188), (255, 255, 255)]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_the_profile_of_srgb_changes_no_pixel(mode):
    image = noise(mode)
    assert to_rgb(with_profile(image.copy(), srgb_profile())).tobytes() == to_rgb(image).tobytes()


def test_a_profile_of_srgb_that_is_not_precise_changes_no_pixel():
    """Its conversion would change some colours by 1."""
    image, content = sample_colours("RGB"), icc_profiles.rgb(icc_profiles.SRGB_COLORANTS)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"))
    assert np.abs(np.subtract(converted, image, dtype=int)).max() == 1
    assert to_rgb(with_profile(image.copy(), content)).tobytes() == image.tobytes()


def test_a_profile_that_changes_dark_greys_alone_is_used():
    """Gamma 2.2 and the curve of sRGB are within 2 for most greys; 10 becomes 255 · 12.92 (10 / 255)^2.2 = 2.6."""
    assert colour_of(to_rgb(solid("L", 10, icc_profiles.grey(2.2)))) == (3, 3, 3)


@pytest.mark.parametrize("gamma", [1.0, 1.8])
@pytest.mark.parametrize("mode, half", [("L", 128), ("I;16", 128 * 257)])
def test_grey_profiles(gamma, mode, half):
    """A luminance of (128 / 255)^γ in sRGB's curve."""
    expected = 255 * (1.055 * ((128 / 255) ** gamma) ** (1 / 2.4) - 0.055)
    out = colour_of(to_rgb(solid(mode, half, icc_profiles.grey(gamma))))
    assert out[0] == out[1] == out[2] == pytest.approx(expected, abs=0.6)


def test_cmyk_with_a_profile(tmp_path):
    """Cyan is L* 70, a* -30, b* -40 by the profile, (0, 189, 243) in sRGB; without a profile it is (0, 255, 255)."""

    def lab(c, m, y, k):
        return (0, 0, 0) if k else (100 - 30 * c - 40 * m - 10 * y, 60 * m - 30 * c, 80 * y - 40 * c - 5 * m)

    content = icc_profiles.cmyk(lab)
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "x.jpg", quality=100, icc_profile=content)
    assert np.abs(np.subtract(colour_of(read_image(tmp_path / "x.jpg")), (0, 189, 243))).max() <= 2
    assert colour_of(to_rgb(solid("CMYK", (0, 0, 0, 0), content))) == (255, 255, 255)
    assert colour_of(to_rgb(Image.new("CMYK", (4, 4), (255, 0, 0, 0)))) == (0, 255, 255)


@pytest.mark.parametrize(
    "mode, content, reason",
    [
        ("RGB", b"junk" * 50, "cannot open profile"),
        ("RGB", icc_profiles.display_p3()[:200], "cannot open profile"),
        ("RGB", icc_profiles.display_p3().replace(b"rXYZ", b"zXYZ"), "cannot build transform"),
        ("L", b"\0", "cannot open profile"),
        ("RGB", icc_profiles.grey(1.0), "it is for GRAY pixels, and the picture's are RGB"),
        ("CMYK", icc_profiles.display_p3(), "it is for RGB pixels, and the picture's are CMYK"),
    ],
)
def test_a_profile_that_cannot_be_used_is_ignored_with_a_notice(tmp_path, mode, content, reason):
    noise(mode).save(tmp_path / "x.tif", icc_profile=content)
    with pytest.warns(Notice, match=reason) as caught:
        out = read_image(tmp_path / "x.tif")
    (text,) = [str(warning.message) for warning in caught]
    assert text.startswith(f"{tmp_path / 'x.tif'}: its colour profile is ignored (")
    assert "\n" not in text and out.tobytes() == noise(mode).convert("RGB").tobytes()


def test_a_lab_picture_needs_no_profile(tmp_path):
    """Its profile is for Lab colours, and the warning used to say that it is not for those of the picture."""
    lab = Image.new("LAB", (4, 4), (138, 128 + 80, 128 + 67 - 256 + 256))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    lab.save(tmp_path / "x.tif", icc_profile=profile)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = read_image(tmp_path / "x.tif")
    red, green, blue = out.getpixel((0, 0))  # L* 54, a* 80, b* 67 is sRGB's red
    assert red > 245 and green < 25 and blue < 25 and out.mode == "RGB"


def test_a_picture_without_a_profile_has_no_notice():
    file = io.BytesIO()
    noise().save(file, "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_rgb(Image.open(file)).tobytes() == noise().tobytes()
