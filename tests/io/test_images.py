"""Reading images and masks: every format and mode gives the right pixels; broken files give one clear line."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from minip2p.errors import Notice
from minip2p.io.images import (
    check_image_tensor,
    composite,
    crop_box,
    fit_image,
    read_image,
    read_mask,
    read_mask_image,
    to_pil,
    to_rgb,
)

RED, WHITE = (255, 0, 0), (255, 255, 255)


def two_tone():
    """Four columns and two rows: red above, white below."""
    image = Image.new("RGB", (4, 2), WHITE)
    for x in range(4):
        image.putpixel((x, 0), RED)
    return image


def palette_image():
    """`two_tone` with a palette."""
    image = Image.new("P", (4, 2))
    image.putpalette([*RED, *WHITE, 0, 0, 9])
    image.putdata([0] * 4 + [1] * 4)
    return image


def transparent_below():
    """`two_tone` with transparent black pixels in place of the white ones."""
    image = two_tone().convert("RGBA")
    for x in range(4):
        image.putpixel((x, 1), (0, 0, 0, 0))
    return image


def palette_image_transparent_below():
    """`palette_image` with a transparent colour in place of white."""
    image = palette_image()
    image.putpalette([*RED, 0, 0, 0])
    image.info["transparency"] = 1
    return image


def rotated(orientation):
    """`two_tone` as a camera stores it, and the EXIF data that turn it upright."""
    transpose = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image, exif = two_tone().transpose(transpose), Image.Exif()
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
        ("palette.png", palette_image(), {}),
        ("palette.gif", palette_image(), {}),
        ("alpha.png", transparent_below(), {}),
        ("hole.png", palette_image_transparent_below(), {"transparency": 1}),
        ("hole.gif", palette_image_transparent_below(), {"transparency": 1}),
        ("plain.bmp", two_tone(), {}),
        ("plain.tif", two_tone(), {}),
        ("lossless.webp", two_tone(), {"lossless": True}),
        ("alpha.webp", transparent_below(), {"lossless": True}),
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
def test_every_format_and_mode_gives_the_same_pixels(tmp_path, name, image, options):
    assert_is_two_tone(read_image(saved(tmp_path / name, image, **options)))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_jpeg_gives_nearly_the_same_pixels(tmp_path, mode):
    big = two_tone().resize((64, 32), Image.Resampling.NEAREST)
    image = read_image(saved(tmp_path / "x.jpg", big.convert(mode), quality=95, subsampling=0))
    assert np.abs(np.asarray(image, int) - np.asarray(big, int)).mean() < 4


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, kind):
    image, exif = rotated(orientation)
    assert_is_two_tone(read_image(saved(tmp_path / f"x.{kind}", image, exif=exif)))


@pytest.mark.parametrize("mode, white", [("L", 255), ("1", 1), ("I;16", 65535), ("I", 65535)])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_grey_images_of_1_8_and_16_bits(tmp_path, mode, white, kind):
    if (mode, kind) == ("I", "png"):
        mode = "I;16"
    image = Image.new(mode, (2, 1))
    image.putpixel((1, 0), white)
    assert np.asarray(read_image(saved(tmp_path / f"x.{kind}", image))).tolist() == [[[0] * 3, [255] * 3]]


def test_16_bits_are_rounded_to_8_and_not_truncated(tmp_path):
    image = Image.new("I;16", (3, 1))
    for x, value in enumerate((0x7FFF, 0x8080, 257)):
        image.putpixel((x, 0), value)
    assert np.asarray(read_image(saved(tmp_path / "x.png", image)))[0, :, 0].tolist() == [127, 128, 1]


def test_grey_with_alpha_is_blended_with_white(tmp_path):
    image = Image.new("LA", (2, 1), (0, 255))
    image.putpixel((1, 0), (0, 102))
    assert np.asarray(read_image(saved(tmp_path / "x.png", image)))[0, :, 0].tolist() == [0, 153]


def test_the_first_of_several_frames_is_read(tmp_path):
    frames = [two_tone(), Image.new("RGB", (4, 2), "blue")]
    assert_is_two_tone(read_image(saved(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])))


def bomb(width, height):
    """A PNG of a few bytes whose header claims so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def png_bytes(size=(64, 64)):
    out = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(out, "PNG")
    return out.getvalue()


def text_bomb():
    """A PNG whose compressed text chunk is larger than Pillow allows."""
    out, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("x", "a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    two_tone().save(out, "PNG", pnginfo=info)
    return out.getvalue()


def float_tiff():
    """A TIFF with floating-point pixels."""
    out = io.BytesIO()
    Image.new("F", (4, 2), 0.5).save(out, "TIFF")
    return out.getvalue()


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "is empty"),
        (b"hello", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "x.png: "),
        (png_bytes()[:40], "not an image"),
        (png_bytes()[:-5000], "cannot be read"),
        (bomb(20000, 20000), "x.png: has more than 268,435,456 pixels; scale it down first"),
        (bomb(11000, 10000), "cannot be read .*truncated"),
        (bomb(2**31 - 1, 2**31 - 1), "has more than 268,435,456 pixels"),
        (bomb(0, 5), "x.png: "),
        (text_bomb(), "cannot be read"),
        (float_tiff(), "floating-point numbers"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "x.png: "),
        (b"GIF89a" + bytes(4), "x.png: "),
        (b"%PDF-1.4\n", "is a PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing"),
        (bytes(range(256)) * 16, "not an image"),
        (png_bytes()[:100] + bytes(200) + png_bytes()[300:], "cannot be read"),
    ],
)
def test_a_broken_image_file_gives_one_clear_line(tmp_path, data, message):
    file = tmp_path / "x.png"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_image(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_image(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match="a folder, not an image"):
        read_image(tmp_path)


def test_cropping_keeps_the_centre_and_the_aspect_ratio():
    assert crop_box((100, 50), (20, 20)) == (25, 0, 75, 50)
    assert crop_box((50, 100), (20, 40)) == (0, 37.5, 50, 62.5)
    wide = Image.new("RGB", (30, 10), "black")
    wide.paste(RED, (10, 0, 20, 10))
    assert (fit_image(wide, (10, 10)) == torch.tensor([1.0, -1, -1])[:, None, None]).all()
    stretched = fit_image(wide, (10, 10), "stretch")
    assert stretched.shape == (3, 10, 10) and (stretched == -1).any()


def test_an_image_of_the_right_size_is_not_resampled():
    noise = Image.effect_noise((16, 8), 80).convert("RGB")
    pixels = (fit_image(noise, (8, 16)) + 1) * 127.5
    assert torch.equal(pixels.round().to(torch.uint8).permute(1, 2, 0), torch.from_numpy(np.asarray(noise).copy()))


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_the_smallest_and_narrowest_images_fit(size):
    assert torch.allclose(fit_image(Image.new("RGB", size, RED), (16, 24)), torch.tensor([1.0, -1, -1])[:, None, None])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((two_tone(), (8, 8), "pad"), 'fit is "crop" or "stretch", not \'pad\''),
        ((b"png", (8, 8)), "an image is a file, a Pillow image or a tensor, not bytes"),
        ((Image.new("RGB", (0, 0)), (8, 8)), "the image has no pixels"),
    ],
)
def test_what_fit_image_refuses(arguments, message):
    with pytest.raises(ValueError) as error:
        fit_image(*arguments)
    assert str(error.value) == message


# Image tensors


def test_to_pil_rounds_to_8_bits():
    image = torch.tensor([-1.0, 0, 1])[:, None, None].expand(3, 2, 4)
    assert np.asarray(to_pil(image))[0, 0].tolist() == [0, 128, 255] and to_pil(image).size == (4, 2)
    assert torch.equal(fit_image(to_pil(fit_image(two_tone(), (2, 4))), (2, 4)), fit_image(two_tone(), (2, 4)))


def test_composite_takes_the_original_outside_of_the_mask_and_the_edited_image_inside():
    edited, original = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    out = composite(edited, original, torch.tensor([[1.0, 0.0], [0.25, 1.0]]))
    assert torch.equal(out[:, :2, :2], edited[:, :2, :2]) and torch.equal(out[:, :2, 2:], original[:, :2, 2:])
    torch.testing.assert_close(out[:, 2:, :2], 0.25 * edited[:, 2:, :2] + 0.75 * original[:, 2:, :2])
    assert torch.equal(composite(edited, original, torch.ones(2, 2, dtype=torch.bool)), edited)


def test_an_image_tensor_is_3_H_W_in_minus_1_to_1():
    assert check_image_tensor(torch.zeros(3, 4, 6), None) == (4, 6)
    with pytest.raises(ValueError, match="keeps its size: leave size out"):
        check_image_tensor(torch.zeros(3, 4, 6), (4, 6))
    wrong = torch.zeros(1, 3, 4, 6), torch.zeros(1, 4, 6), torch.zeros(3, 0, 0), torch.zeros(3, 4, 6).bool()
    for image in (*wrong, torch.full((3, 4, 6), 1.01), torch.full((3, 4, 6), torch.nan)):
        with pytest.raises(ValueError, match=r"an image tensor is 3 H W in \[-1, 1\], of floating-point numbers"):
            check_image_tensor(image, None)


def test_a_notice_says_how_a_tensor_in_0_to_1_is_read(recwarn):
    with pytest.warns(Notice, match=r"is taken as it is, in \[-1, 1\]; if it is in \[0, 1\], give 2 \* image - 1"):
        check_image_tensor(torch.linspace(0, 1, 72).view(3, 4, 6), None)
    recwarn.clear()
    check_image_tensor(torch.linspace(-1, 1, 72).view(3, 4, 6), None)
    assert not recwarn.list


@pytest.mark.parametrize("largest, grey", [(1, 0), (255, 1)])
def test_a_notice_says_that_8_bits_in_a_16_bit_mode_are_nearly_black(largest, grey):
    image = Image.fromarray(np.full((2, 2), largest, np.int32))
    with pytest.warns(Notice, match=f"is read as 16 bits, of which its largest number, {largest}, is nearly black"):
        assert to_rgb(image).getpixel((0, 0)) == (grey,) * 3


def test_numbers_below_0_are_black():
    assert to_rgb(Image.fromarray(np.array([[-5, 65535]], np.int32))).getpixel((0, 0)) == (0, 0, 0)


def test_pixels_of_16_bits_need_no_notice(recwarn):
    for largest in (0, 256, 65535):
        assert to_rgb(Image.fromarray(np.full((2, 2), largest, np.int32))).size == (2, 2)
    assert not recwarn.list


# Masks


def test_a_mask_is_a_tensor_an_array_or_an_image():
    expected = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    image = Image.fromarray((expected.numpy() * 255).astype(np.uint8))
    for mask in (expected, expected.numpy(), expected.bool(), expected.half(), image, image.convert("RGB")):
        assert torch.equal(read_mask(mask), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "LA"])
def test_a_mask_image_of_0_and_1_is_black_and_white_and_a_notice_says_so(tmp_path, mode):
    """As label images have it. Of a palette the colours count."""
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    if mode == "P":
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([0, 0, 0, 1, 1, 1])
    image = image.convert(mode)
    image.save(tmp_path / "x.png")
    with pytest.warns(Notice, match="^a mask: its brightest pixel is 1 of 255, and 1 is taken for white$"):
        assert read_mask(image).tolist() == [[0, 1], [1, 0]]
    with pytest.warns(Notice, match="x.png: its brightest pixel is 1 of 255, and 1 is taken for white$"):
        assert read_mask_image(tmp_path / "x.png").getpixel((1, 0)) == (255, 255, 255)


def test_other_dark_masks_stay_dark(recwarn):
    for value in (0, 2):
        assert read_mask(Image.new("L", (2, 2), value)).max() == pytest.approx(value / 255)
    assert not recwarn.list


def test_a_mask_may_undershoot_a_little_as_resampling_does():
    assert read_mask(np.array([[-0.25, 1.0]])).tolist() == [[-0.25, 1.0]]


def test_a_mask_may_be_an_array_that_is_not_writable(recwarn):
    mask = np.ones((2, 2), bool)
    mask.flags.writeable = False
    assert read_mask(mask).all() and not recwarn.list


def test_a_transparent_pixel_of_a_mask_is_black():
    image = Image.new("LA", (2, 1), (255, 255))
    image.putpixel((1, 0), (255, 0))
    assert read_mask(image).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    "mask, message",
    [
        ("mask.png", "a mask is an image, an array or a tensor, not str"),
        (np.full((4, 4), 255, np.uint8), "a mask lies between 0 and 1, but its maximum is 255: divide it by 255?"),
        (torch.full((4, 4), torch.nan), "a mask lies between 0 and 1, but 16 values are NaN or infinite"),
        (np.array([[0, np.inf], [-np.inf, 1]]), "a mask lies between 0 and 1, but 2 values are NaN or infinite"),
        (torch.full((1, 4, 4), 255.0), "a mask must be rows × columns of numbers, not of shape (1, 4, 4)"),
        (np.full((4, 4), -1.0), "a mask lies between 0 and 1, but its minimum is -1"),
        (np.full((4, 4), None), "a mask is an array of numbers, not of object"),
        (torch.ones(0, 0), "a mask must be rows × columns of numbers, not of shape (0, 0)"),
    ],
)
def test_what_is_not_a_mask_is_refused(mask, message):
    with pytest.raises(ValueError) as error:
        read_mask(mask)
    assert str(error.value) == message
