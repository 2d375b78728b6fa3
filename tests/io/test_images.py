"""Pictures as people have them: every mode, format and accident is the right pixels, or one clear line."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from minip2p.io.images import crop_box, fit_image, read_image

RED, WHITE = (255, 0, 0), (255, 255, 255)


def two_tone():
    """Four columns by two rows: red above, white below."""
    image = Image.new("RGB", (4, 2), WHITE)
    for x in range(4):
        image.putpixel((x, 0), RED)
    return image


def paletted():
    image = Image.new("P", (4, 2))
    image.putpalette([*RED, *WHITE, 0, 0, 9])
    image.putdata([0] * 4 + [1] * 4)
    return image


def see_through(mode):
    """White where it is transparent, whatever colour lies beneath."""
    image = two_tone().convert("RGBA")
    for x in range(4):
        image.putpixel((x, 1), (0, 0, 0, 0))
    return image.convert(mode) if mode != "P" else palette_with_hole()


def palette_with_hole():
    image = paletted()
    image.putpalette([*RED, 0, 0, 0])
    image.info["transparency"] = 1
    return image


def rotated(orientation):
    """The pixels as the camera lays them, which the orientation turns upright."""
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image, exif = two_tone().transpose(turned), Image.Exif()
    exif[0x0112] = orientation
    return image, exif


def saved(path, image, **options):
    image.save(path, **options)
    return path


def assert_is_two_tone(image, tolerance=0):
    assert image.mode == "RGB" and image.size == (4, 2)
    assert np.abs(np.asarray(image, int) - np.asarray(two_tone(), int)).max() <= tolerance


@pytest.mark.parametrize(
    "name, image, options",
    [
        ("rgb.png", two_tone(), {}),
        ("palette.png", paletted(), {}),
        ("palette.gif", paletted(), {}),
        ("alpha.png", see_through("RGBA"), {}),
        ("hole.png", palette_with_hole(), {"transparency": 1}),
        ("hole.gif", palette_with_hole(), {"transparency": 1}),
        ("plain.bmp", two_tone(), {}),
        ("plain.tif", two_tone(), {}),
        ("lossless.webp", two_tone(), {"lossless": True}),
        ("alpha.webp", see_through("RGBA"), {"lossless": True}),
        ("plain.ppm", two_tone(), {}),
        ("plain.tga", two_tone(), {}),
        ("a name with spaces.png", two_tone(), {}),
        ("ünïcödé-猫.png", two_tone(), {}),
        ("UPPER.PNG", two_tone(), {}),
        ("no-extension", two_tone(), {"format": "PNG"}),
        ("a-lie.jpg", two_tone(), {"format": "PNG"}),
        ("interlaced.png", two_tone(), {}),
        ("cmyk.tif", two_tone().convert("CMYK"), {}),
        ("deflated.tif", two_tone(), {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_every_format_and_mode_is_the_same_pixels(tmp_path, name, image, options):
    assert_is_two_tone(read_image(saved(tmp_path / name, image, **options)))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_jpeg_is_nearly_the_same(tmp_path, mode):
    big = two_tone().resize((64, 32), Image.Resampling.NEAREST)
    image = read_image(saved(tmp_path / "x.jpg", big.convert(mode), quality=95, subsampling=0))
    assert np.abs(np.asarray(image, int) - np.asarray(big, int)).mean() < 4


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_a_photograph_is_turned_upright(tmp_path, orientation, kind):
    image, exif = rotated(orientation)
    assert_is_two_tone(read_image(saved(tmp_path / f"x.{kind}", image, exif=exif)))


@pytest.mark.parametrize("mode, white", [("L", 255), ("1", 1), ("I;16", 65535), ("I", 65535)])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_grey_of_1_8_and_16_bits(tmp_path, mode, white, kind):
    if (mode, kind) == ("I", "png"):
        mode = "I;16"
    image = Image.new(mode, (2, 1))
    image.putpixel((1, 0), white)
    assert np.asarray(read_image(saved(tmp_path / f"x.{kind}", image))).tolist() == [[[0] * 3, [255] * 3]]


def test_16_bits_are_rounded_and_not_cut(tmp_path):
    image = Image.new("I;16", (3, 1))
    for x, value in enumerate((0x7FFF, 0x8080, 257)):
        image.putpixel((x, 0), value)
    assert np.asarray(read_image(saved(tmp_path / "x.png", image)))[0, :, 0].tolist() == [127, 128, 1]


def test_grey_with_alpha_is_laid_on_white(tmp_path):
    image = Image.new("LA", (2, 1), (0, 255))
    image.putpixel((1, 0), (0, 102))
    assert np.asarray(read_image(saved(tmp_path / "x.png", image)))[0, :, 0].tolist() == [0, 153]


def test_of_several_pictures_the_first(tmp_path):
    frames = [two_tone(), Image.new("RGB", (4, 2), "blue")]
    assert_is_two_tone(read_image(saved(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])))


def bomb(width, height):
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def png_bytes(size=(64, 64)):
    out = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(out, "PNG")
    return out.getvalue()


def text_bomb():
    out, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("x", "a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    two_tone().save(out, "PNG", pnginfo=info)
    return out.getvalue()


def floats():
    out = io.BytesIO()
    Image.new("F", (4, 2), 0.5).save(out, "TIFF")
    return out.getvalue()


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", "not a picture"),
        (b"hello", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "x.png: "),
        (png_bytes()[:40], "not a picture"),
        (png_bytes()[:-5000], "cannot be read"),
        (bomb(20000, 20000), "decompression bomb"),
        (bomb(11000, 10000), "decompression bomb"),
        (bomb(2**31 - 1, 2**31 - 1), "cannot be read"),
        (bomb(0, 5), "x.png: "),
        (text_bomb(), "cannot be read"),
        (floats(), "floating-point numbers"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "x.png: "),
        (b"GIF89a" + bytes(4), "x.png: "),
        (b"%PDF-1.4\n", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (bytes(range(256)) * 16, "not a picture"),
        (png_bytes()[:100] + bytes(200) + png_bytes()[300:], "cannot be read"),
    ],
)
def test_what_is_no_whole_picture_is_one_clear_line(tmp_path, data, says):
    file = tmp_path / "x.png"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=says) as caught:
        read_image(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_image(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match="a folder, not a picture"):
        read_image(tmp_path)


def test_cropping_keeps_the_middle_and_the_shape():
    assert crop_box((100, 50), (20, 20)) == (25, 0, 75, 50)
    assert crop_box((50, 100), (20, 40)) == (0, 37.5, 50, 62.5)
    wide = Image.new("RGB", (30, 10), "black")
    wide.paste(RED, (10, 0, 20, 10))
    assert (fit_image(wide, (10, 10)) == torch.tensor([1.0, -1, -1])[:, None, None]).all()
    assert (
        fit_image(wide, (10, 10), "stretch").shape == (3, 10, 10) and (fit_image(wide, (10, 10), "stretch") == -1).any()
    )


def test_a_picture_of_the_right_size_is_not_resampled():
    noise = Image.effect_noise((16, 8), 80).convert("RGB")
    pixels = (fit_image(noise, (8, 16)) + 1) * 127.5
    assert torch.equal(pixels.round().to(torch.uint8).permute(1, 2, 0), torch.from_numpy(np.asarray(noise).copy()))


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_the_smallest_and_narrowest_pictures_fit(size):
    assert torch.allclose(fit_image(Image.new("RGB", size, RED), (16, 24)), torch.tensor([1.0, -1, -1])[:, None, None])
