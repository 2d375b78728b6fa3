"""Text files as the editors of every system write them, and files that are written completely or not at all."""

import errno
import json
import os
import time
from pathlib import Path

import pytest

from minip2p.io.files import (
    atomic_write,
    claim_results_folder,
    different_names,
    parse_json,
    plain_text_folder,
    read_json,
    read_json_value,
    read_text,
    read_toml,
    shipped_weights,
    temporary_name,
    write_json,
    write_text,
)

TEXT = '{\n "name": "a café for 猫"\n}\n'
PLAIN, BOM = TEXT.encode(), b"\xef\xbb\xbf"
AS_WRITTEN = (PLAIN, BOM + PLAIN, PLAIN.replace(b"\n", b"\r\n"), PLAIN.replace(b"\n", b"\r"))
ENCODINGS = (
    (TEXT.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    (TEXT.encode("utf-16-le"), "is UTF-16 text; save it as UTF-8"),
    (TEXT.encode("utf-16-be"), "is UTF-16 text; save it as UTF-8"),
    (TEXT.encode("utf-32"), "is UTF-32 text; save it as UTF-8"),
    ("a\nb\ncafé".encode("latin-1"), "is not UTF-8 text (byte 0xe9 in line 3); save it as UTF-8"),
    (bytes(100), "is not text, it has zero bytes; copy or download it again"),
    (b"\x20\0\0\0\0\0\0\0{}", "is not text, it has zero bytes; copy or download it again"),
)


@pytest.mark.parametrize("content", [*AS_WRITTEN, BOM + PLAIN.replace(b"\n", b"\r\n")])
def test_text_of_every_system_is_read_alike(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert read_text(tmp_path / "x") == TEXT
    assert read_json(tmp_path / "x") == read_json_value(tmp_path / "x") == {"name": "a café for 猫"}
    (tmp_path / "x").write_bytes(content.replace(b'"name":', b"name =").replace(b"{", b"").replace(b"}", b""))
    assert read_toml(tmp_path / "x") == {"name": "a café for 猫"}


def test_empty_text_is_text(tmp_path):
    for content in (b"", BOM):
        (tmp_path / "x").write_bytes(content)
        assert read_text(tmp_path / "x") == "" and read_toml(tmp_path / "x") == {}


@pytest.mark.parametrize("read", [read_text, read_json, read_json_value, read_toml])
@pytest.mark.parametrize("content, message", ENCODINGS)
def test_other_encodings_are_refused_by_their_name(tmp_path, read, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError) as error:
        read(tmp_path / "x")
    assert str(error.value) == f"{tmp_path / 'x'}: {message}"


@pytest.mark.parametrize("read", [read_text, read_json, read_json_value, read_toml])
def test_a_missing_file_and_a_folder_are_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'x'}: no such file"):
        read(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: is a folder, not a file"):
        read(tmp_path)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path, *args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "x").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)  # as for a file of another user; root may read every file
    with pytest.raises(ValueError, match="x: cannot be read .Permission denied"):
        read_text(tmp_path / "x")


@pytest.mark.parametrize("text", ["", "{", "[" * 200_000, '{"a": ' + "1" * 6000 + "}"])
def test_what_is_not_json_is_one_line(tmp_path, text):
    (tmp_path / "x").write_text(text)
    for read in (read_json, read_json_value, lambda path: parse_json(text, str(path))):
        with pytest.raises(ValueError, match=f"^{tmp_path / 'x'}: cannot be read as JSON ") as error:
            read(tmp_path / "x")
        assert "\n" not in str(error.value)


def test_a_json_object_is_an_object(tmp_path):
    (tmp_path / "x").write_text("[1]")
    assert read_json_value(tmp_path / "x") == [1] == parse_json("\ufeff[1]", "x")
    with pytest.raises(ValueError, match="x: expected a JSON object, found list"):
        read_json(tmp_path / "x")


@pytest.mark.parametrize("text", ["x = = 1", "x = 1\nx = 2", "x = " + "[" * 100_000])
def test_what_is_not_toml_is_one_line(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(ValueError, match="x: cannot be read as TOML ") as error:
        read_toml(tmp_path / "x")
    assert "\n" not in str(error.value)


def test_a_folder_with_plain_text_is_used_as_it_is(tmp_path):
    (tmp_path / "a.json").write_bytes(PLAIN)
    (tmp_path / "README.txt").write_bytes(b"\xff")
    with plain_text_folder(tmp_path, ["a.json", "b.json"]) as folder:
        assert folder == tmp_path


@pytest.mark.parametrize("content", AS_WRITTEN[1:])
def test_other_text_is_copied_as_plain_text(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    (tmp_path / "b.txt").write_bytes(PLAIN)
    with plain_text_folder(tmp_path, ["a.json", "b.txt", "c.json"]) as folder:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a.json": PLAIN, "b.txt": PLAIN}
    assert not folder.exists() and (tmp_path / "a.json").read_bytes() == content


# Writing


def test_text_is_written_alike_on_every_system(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "a\nb é\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"a\nb \xc3\xa9\n"
    write_json(tmp_path / "a.json", {"a": (1, None)})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'


def test_the_error_of_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space") as error, atomic_write(tmp_path / "x.png"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.filename == str(tmp_path / "x.png") and not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as partial:
        partial.write_text("half")
        assert partial.parent == path.parent and partial.match(".a.txt-*.partial")
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"] and path.read_text() == "before"
    with pytest.raises(IsADirectoryError, match="is a folder, and a file of that name was to be written"):
        write_text(tmp_path, "")


# Folders of results


def claim(folder, **settings):
    claim_results_folder(folder / "grid.json", folder / "parts", {"steps": 50, "seed": [1, 2]} | settings, "a sweep")


@pytest.mark.parametrize(
    "change", [lambda text: text, lambda text: BOM + text, lambda text: text.replace(b"\n", b"\r\n")]
)
def test_a_folder_of_results_is_continued_whatever_wrote_its_settings_anew(tmp_path, change):
    claim(tmp_path)
    (tmp_path / "parts").mkdir()
    (tmp_path / "grid.json").write_bytes(change((tmp_path / "grid.json").read_bytes()))
    claim(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"grid.json", "parts"}


def left_behind(path, minutes):
    """A temporary file that was written so many minutes ago."""
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.utime(path, (0, time.time() - 60 * minutes))


@pytest.mark.parametrize("name", [".grid.json-1.partial", "parts/.a.png-1.partial"])
def test_a_claim_removes_what_a_killed_process_left_and_not_what_a_neighbour_writes(tmp_path, name):
    if "/" in name:
        claim(tmp_path)
    left_behind(tmp_path / name, 59)
    claim(tmp_path)
    assert (tmp_path / name).exists()
    left_behind(tmp_path / name, 61)
    claim(tmp_path)
    assert not (tmp_path / name).exists() and (tmp_path / "grid.json").exists()


def test_two_processes_of_any_machines_write_to_different_temporary_files(tmp_path, monkeypatch):
    names = {temporary_name(tmp_path / "a.png").name for _ in range(3)}
    monkeypatch.setattr("platform.node", lambda: "node/7.cluster " + 99 * "x")
    assert len(names) == 3 and temporary_name(tmp_path / "b.png").match(".b.png-node7clusterx*-*-*.partial")


def test_a_folder_of_results_belongs_to_its_settings(tmp_path):
    claim(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds a sweep \(of other seed, steps\): choose another folder, or remove it"
    ):
        claim(tmp_path, steps=20, seed=True)
    with pytest.raises(ValueError, match="holds a sweep"):  # 50 and 50.0 are equal in Python
        claim(tmp_path, steps=50.0)
    text = (tmp_path / "grid.json").read_text()
    (tmp_path / "grid.json").write_text(text, encoding="utf-16")
    with pytest.raises(ValueError, match=r"holds a sweep \(.*grid.json: is UTF-16 text; save it as UTF-8\): choose"):
        claim(tmp_path)
    (tmp_path / "grid.json").unlink()
    (tmp_path / "parts").mkdir()
    with pytest.raises(ValueError, match="holds a sweep: choose another folder"):
        claim(tmp_path)
    assert not (tmp_path / "grid.json").exists()


def test_the_shipped_weights_are_found():
    assert json.loads((shipped_weights("tiny") / "model_index.json").read_text())["_class_name"]


def test_names_of_settings_that_differ_at_any_depth():
    assert different_names({"g": {"a": {"x": 1}}}, {"g": {"a": {"x": 2}}}) == ["g.a.x"]
    assert different_names({"a": 1, "c": 0}, {"b": 2, "c": 0}) == ["a", "b"]
    assert different_names({"a": {"x": 1}}, {}) == ["a"]
