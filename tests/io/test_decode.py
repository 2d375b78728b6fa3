"""Photographs as phones and cameras make them."""

import io
import struct
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, features

from minip2p.io import decode
from minip2p.io.images import read_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def jpeg(colour, size=(16, 16), **options):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def is_near(image, colour):
    return np.abs(np.subtract(image.getpixel((0, 0)), colour)).max() <= 3


def ramp(width, height):
    """A grey picture that brightens from left to right."""
    return Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90).resize((width, height))


# Large pictures


@pytest.mark.parametrize("size, reduced", [((12000, 9000), (6000, 4500)), ((16320, 12240), (8160, 6120))])
def test_photographs_of_108_and_200_megapixels_are_reduced_while_they_are_decoded(tmp_path, size, reduced):
    Image.new("L", size, 77).save(tmp_path / "x.jpg")
    before = Image.MAX_IMAGE_PIXELS
    image = read_image(tmp_path / "x.jpg")
    assert image.size == reduced and image.getpixel((5, 5)) == (77, 77, 77)
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_large_jpeg_is_decoded_at_a_reduced_size(tmp_path, monkeypatch):
    """Which takes a quarter of the memory."""
    monkeypatch.setattr(decode, "MAX_DECODED_PIXELS", 64 * 40)
    ramp(128, 80).save(tmp_path / "x.jpg")
    decoded = []
    monkeypatch.setattr(decode, "widen_12_bits", lambda image: decoded.append(image.size) or image)
    assert read_image(tmp_path / "x.jpg").size == (64, 40) and decoded == [(64, 40)]


@pytest.mark.parametrize(
    "kind, orientation",
    [(kind, orientation) for kind in ("jpg", "png", "tif") for orientation in (1, 6)] + [("gif", 1)],  # GIF has none
)
def test_a_large_picture_is_reduced_by_a_whole_factor(tmp_path, monkeypatch, kind, orientation):
    """Against the mean of each square. A rotated grey TIFF is one that Pillow 13.0 shears if it opens it by name."""
    monkeypatch.setattr(decode, "MAX_DECODED_PIXELS", 64 * 40)
    image, exif = ramp(128, 80), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"x.{kind}", **({} if kind == "gif" else {"exif": exif}))
    out = read_image(tmp_path / f"x.{kind}")
    expected = image.reduce(2) if orientation == 1 else image.reduce(2).transpose(Image.Transpose.ROTATE_270)
    assert out.size == expected.size
    assert np.abs(np.asarray(out, dtype=int)[..., 0] - np.asarray(expected, dtype=int)).max() <= 2


def test_a_transparent_colour_of_a_palette_is_reduced_as_transparent(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_DECODED_PIXELS", 16)
    Image.new("P", (8, 8), 0).save(tmp_path / "x.png", transparency=0)
    assert read_image(tmp_path / "x.png").getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pictures_of_every_mode_are_reduced(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(decode, "MAX_DECODED_PIXELS", 100)
    Image.new(mode, (21, 20)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").size == (7, 7)


def test_more_pixels_than_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    ramp(10, 10).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").size == (10, 10)
    ramp(11, 10).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="x.png: has more than 100 pixels; scale it down first"):
        read_image(tmp_path / "x.png")


def test_a_caller_may_set_a_lower_limit(tmp_path):
    ramp(11, 10).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", max_pixels=110).size == (11, 10)
    with pytest.raises(ValueError, match="x.png: has more than 108 pixels; scale it down first"):
        read_image(tmp_path / "x.png", max_pixels=108)


# Several pictures in one file


def test_the_main_picture_of_a_multi_picture_jpeg_is_read(tmp_path):
    main, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (8, 8), BLUE)
    main.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[second])
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.format == "MPO"
    image = read_image(tmp_path / "x.jpg")
    assert image.size == (16, 16) and is_near(image, RED)


def test_a_gain_map_is_left_out(tmp_path):
    """Ultra HDR: a JPEG whose second picture, after its end, says how much brighter a pixel may be shown."""
    xmp = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description hdrgm:Version="1.0"/>'
    main = Image.new("RGB", (16, 16), RED)
    main.save(tmp_path / "mpo.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), WHITE)])
    content = (tmp_path / "mpo.jpg").read_bytes()
    segment = b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp
    (tmp_path / "x.jpg").write_bytes(content[:2] + segment + content[2:])
    (tmp_path / "appended.jpg").write_bytes(jpeg(RED) + jpeg(WHITE, (8, 8)))
    for name in ("x.jpg", "appended.jpg"):
        image = read_image(tmp_path / name)
        assert image.size == (16, 16) and is_near(image, RED)


def test_a_broken_index_of_a_multi_picture_jpeg_and_broken_exif_data_do_not_matter(tmp_path):
    main = Image.new("RGB", (16, 16), RED)
    main.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[main])
    content = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(
        content.replace(b"MPF\0II*\0", b"MPF\0II*\1").replace(b"MPF\0MM\0*", b"MPF\0MM\1*")
    )
    (tmp_path / "y.jpg").write_bytes(jpeg(RED, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    assert is_near(read_image(tmp_path / "x.jpg"), RED) and is_near(read_image(tmp_path / "y.jpg"), RED)


# More than 8 bits


def png_of_16_bits(colour_type, samples):
    """A PNG of one pixel of 16-bit samples."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(f">{len(samples)}H", *samples))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "colour_type, samples, expected",
    [
        (0, [0x8080], (128, 128, 128)),
        (2, [0xFFFF, 0x8080, 0x0101], (255, 128, 1)),
        (4, [0, 0x6666], (153, 153, 153)),
        (6, [0xFFFF, 0, 0, 0x6666], (255, 153, 153)),
    ],
)
def test_png_of_16_bits(tmp_path, colour_type, samples, expected):
    """Grey, RGB, and both with a transparency of 60 % before white."""
    (tmp_path / "x.png").write_bytes(png_of_16_bits(colour_type, samples))
    assert read_image(tmp_path / "x.png").getpixel((0, 0)) == expected


def tiff(tags, pixels):
    """A small TIFF. tags: number -> value of 16 bits; the pixels are in one strip."""
    tags = {**tags, 278: tags[257], 279: len(pixels)}
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


GREY_TIFF = {256: 2, 257: 1, 258: 8, 259: 1, 262: 1, 277: 1}


def test_tiff_of_12_bits(tmp_path):
    """0xFFF and 0x109: 265 of 4095 is 16.501 of 255. With an orientation that turns them upside down."""
    for orientation, pixels in ((1, [WHITE, (17, 17, 17)]), (3, [(17, 17, 17), WHITE])):
        content = tiff({**GREY_TIFF, 258: 12, 274: orientation}, b"\xff\xf1\x09")
        (tmp_path / "x.tif").write_bytes(content)
        image = read_image(tmp_path / "x.tif")
        assert [image.getpixel((x, 0)) for x in range(2)] == pixels


def test_numbers_of_32_bits_have_no_known_white(tmp_path):
    image = Image.new("I", (2, 1), 70000)
    image.save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="x.tif: cannot be read .its pixels are numbers of more than 16 bits"):
        read_image(tmp_path / "x.tif")


# Formats that Pillow alone does not read


@pytest.mark.parametrize("tags", [{254: 1}, {50706: 4}])
def test_the_thumbnail_of_a_raw_file_is_not_taken_for_the_picture(tmp_path, tags):
    (tmp_path / "x.dng").write_bytes(tiff(GREY_TIFF | tags, b"\0\0"))
    with pytest.raises(ValueError, match="x.dng: is a camera's raw file, of which only the thumbnail can be"):
        read_image(tmp_path / "x.dng")


def ftyp(*brands):
    return struct.pack(">I", 16 + 4 * len(brands[1:])) + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])


@pytest.mark.parametrize(
    "content, message",
    [
        (ftyp(b"heic", b"mif1"), "is a HEIC picture, which needs pillow-heif: pip install pillow-heif"),
        (ftyp(b"mif1", b"heix"), "is a HEIC picture, which needs pillow-heif: pip install pillow-heif"),
        (ftyp(b"qt  "), "is not an image that Pillow can read"),
        (
            b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(9),
            "is a JPEG XL picture, which Pillow cannot read; export it as JPEG or PNG",
        ),
        (b"\xff\x0a" + bytes(20), "is a JPEG XL picture, which Pillow cannot read; export it as JPEG or PNG"),
    ],
)
def test_a_format_that_pillow_does_not_read_is_named(tmp_path, monkeypatch, content, message):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "x.heic").write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_image(tmp_path / "x.heic")
    assert str(error.value) == f"{tmp_path / 'x.heic'}: {message}"


def test_avif_is_read_or_named(tmp_path, monkeypatch):
    file = tmp_path / "x.avif"
    if features.check("avif"):
        Image.new("RGB", (16, 16), RED).save(file, quality=95)
        assert is_near(read_image(file), RED)

    def unidentified(*_):
        raise decode.UnidentifiedImageError

    file.write_bytes(ftyp(b"mif1", b"avif"))
    monkeypatch.setattr(decode, "open_file", unidentified)
    with pytest.raises(
        ValueError, match="x.avif: is an AVIF picture, which this Pillow cannot read: pip install -U pillow"
    ):
        read_image(file)


def test_heic_is_read_through_pillow_heif(tmp_path, monkeypatch):
    heif = SimpleNamespace(size=(16, 8), to_pillow=lambda: Image.new("RGB", (16, 8), GREEN))
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(open_heif=lambda path: heif))
    (tmp_path / "x.heic").write_bytes(ftyp(b"heic", b"mif1"))
    assert read_image(tmp_path / "x.heic").getpixel((0, 0)) == GREEN
    heif.size = (2**15, 2**15)
    with pytest.raises(ValueError, match="x.heic: has more than 268,435,456 pixels"):
        read_image(tmp_path / "x.heic")


def test_the_main_picture_of_a_real_heic_file_is_read_upright(tmp_path):
    import pillow_heif

    exif = Image.Exif()
    exif[0x0112] = 6
    file = pillow_heif.from_pillow(Image.new("RGB", (64, 32), BLUE))
    file.add_from_pillow(Image.new("RGB", (64, 32), RED))
    file.save(tmp_path / "x.heic", quality=95, primary_index=1, exif=exif.tobytes())
    image = read_image(tmp_path / "x.heic")
    assert image.size == (32, 64) and np.abs(np.subtract(image.getpixel((5, 5)), RED)).max() <= 6
