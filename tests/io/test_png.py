"""PNG files: their names, and all of them written or none."""

import pytest
from PIL import Image

from minip2p.io import png


def test_slugs_are_plain_and_short():
    assert png.slug("A cat, on/the ../beach?") == "a-cat-on-the-beach"
    assert png.slug("?!") == "picture"
    assert len(png.slug("word " * 100)) <= 40


def test_all_pictures_are_written_or_none(tmp_path):
    (tmp_path / "a.png").write_text("as it was")

    class FailingImage(Image.Image):
        def save(self, file, *_, **__):
            file.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        png.write_pngs([(tmp_path / "a.png", Image.new("RGB", (8, 8)), ""), (tmp_path / "b.png", FailingImage(), "")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "as it was"


def test_check_writable_leaves_nothing_behind(tmp_path):
    png.check_writable([tmp_path / "new" / "deep" / "a.png", tmp_path / "b.png"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, error", [("folder", IsADirectoryError), ("file/a.png", NotADirectoryError)])
def test_check_writable_finds_what_is_in_the_way(name, error, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    message = "is a folder, and a file of that name" if name == "folder" else f"{tmp_path / 'file'} is not a folder"
    with pytest.raises(error, match=f"^{tmp_path / name}: {message}"):
        png.check_writable([tmp_path / name])
