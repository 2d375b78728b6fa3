"""How a command reports what went wrong: one line on stderr, and an exit status."""

import errno
import io
import os
import sys
import warnings

import pytest
from command_line import run

from minip2p.errors import Notice, UnknownWords, fail, held_notices, run_guarded, with_flags


def outcome(capsys, work):
    status = run_guarded(work)
    return status, capsys.readouterr().err


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    "error, status, line",
    [
        (ValueError("x.png:\n  is broken"), 2, "minip2p: error: x.png: is broken\n"),
        (FileNotFoundError("x: no such file"), 2, "minip2p: error: x: no such file\n"),
        (OSError(errno.ENOSPC, "No space left", "x"), 2, "minip2p: error: x: No space left\n"),
        (MemoryError(), 2, "minip2p: error: there is not enough memory: smaller pictures need less\n"),
        (RuntimeError("not enough memory: you tried"), 2, "minip2p: error: there is not enough memory: "),
        (KeyboardInterrupt(), 130, "minip2p: interrupted\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe", "socket"), 2, "minip2p: error: socket: Broken pipe\n"),
    ],
)
def test_an_error_is_one_line_and_a_status(capsys, error, status, line):
    result, text = outcome(capsys, raising(error))
    assert result == status and text.startswith(line) and text.count("\n") == (line != "")


@pytest.mark.parametrize("error", [RuntimeError("shapes"), TypeError("x"), KeyError("x"), AssertionError()])
def test_a_bug_is_not_hidden(error):
    with pytest.raises(type(error)):
        run_guarded(raising(error))


def test_notices_are_one_line_each_and_printed_once(capsys):
    def work():
        for text in ("the first\n notice", "the first notice", "the second"):
            warnings.warn(text, Notice, stacklevel=1)
        for _ in range(2):
            with warnings.catch_warnings():  # after which Python itself shows a warning again
                warnings.warn("of a library", DeprecationWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        status, text = outcome(capsys, work)
    first, second, *other = text.splitlines()
    assert status == 0 and first == "minip2p: warning: the first notice" and second == "minip2p: warning: the second"
    assert "DeprecationWarning: of a library" in other[0]
    assert text.count("DeprecationWarning: of a library") == 1


def test_held_notices_come_after_the_check_and_not_with_its_error(capsys):
    def work(error=None):
        with held_notices():
            warnings.warn("a notice", Notice, stacklevel=1)
            print("checked", file=sys.stderr)
            if error:
                raise error

    assert outcome(capsys, work) == (0, "checked\nminip2p: warning: a notice\n")
    assert outcome(capsys, lambda: work(ValueError("wrong"))) == (2, "checked\nminip2p: error: wrong\n")


def test_a_word_that_the_model_does_not_know_is_named_once(capsys):
    """An edit warns of its source's words and of its target's, when it is checked and when it runs."""

    def work():
        with held_notices():
            for words in (("two", "cats"), ("two", "dogs")):
                warnings.warn(UnknownWords(*words), stacklevel=1)
        for words in (("two", "dogs"), ("two", "pigs")):
            warnings.warn(UnknownWords(*words), stacklevel=1)

    known = "`minip2p words` lists those that it knows"
    assert outcome(capsys, work)[1].splitlines() == [
        f"minip2p: warning: this model was trained without the words 'two', 'cats', 'dogs': {known}",
        f"minip2p: warning: this model was trained without the word 'pigs': {known}",
    ]


@pytest.mark.parametrize(
    "message, expected",
    [
        ("steps must lie between 1 and 9", "--steps must lie between 1 and 9"),
        ("the steps of cross_replace are shares", "the steps of --cross are shares"),
        ("steps: no such file", "steps: no such file"),
        ("steps/a.png: exists already", "steps/a.png: exists already"),
        ("x: pass a folder as config (its weights are not read)", "x: pass a folder as --config (its weights are not"),
        ("a config is for a single file", "a config is for a single file"),
    ],
)
def test_options_stand_in_for_keywords_but_not_for_words(message, expected):
    flags = {"steps": "--steps", "cross_replace": "--cross", "config": "--config"}
    assert with_flags(message, flags).startswith(expected)


def test_fail_prints_one_line(capsys):
    assert fail("a\nb", 3) == 3 and capsys.readouterr().err == "minip2p: error: a b\n"


@pytest.mark.parametrize(
    "encoding, expected", [("ascii", rb"\u732b \xe9 a"), ("cp1252", b"\\u732b \xe9 a"), ("utf-8", "猫 é a".encode())]
)
def test_a_character_that_stdout_does_not_have_is_printed_as_an_escape(monkeypatch, encoding, expected):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding))
    assert run_guarded(lambda: print("猫 é a")) == 0
    assert out.getvalue().strip() == expected


class FailingOutput(io.StringIO):
    """A stdout that raises an error from a number of lines on."""

    def __init__(self, number, lines):
        super().__init__()
        self.number, self.lines = number, lines

    def write(self, text):
        if self.getvalue().count("\n") >= self.lines:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


@pytest.mark.parametrize("number, status", [(errno.EPIPE, 0), (errno.ENOSPC, 2)])
def test_the_work_goes_on_where_stdout_cannot_be_written(number, status, tmp_path, monkeypatch, capsys):
    """All pictures are written; a full device is an error at the end, which names those that stdout does not."""
    out, done = FailingOutput(number, lines=1), []

    def work():
        for n in range(3):
            file = tmp_path / f"{n}.png"
            file.touch()
            print("seed", n, file, sep="\n", flush=True)
            done.append(n)

    monkeypatch.setattr(sys, "stdout", out)
    assert run_guarded(work) == status and done == [0, 1, 2] and sys.stdout is out
    errors = capsys.readouterr().err
    if status:
        files = ", ".join(str(tmp_path / f"{n}.png") for n in range(3))
        assert errors == (
            "minip2p: error: the standard output cannot be written (No space left on device), and the files are "
            f"written: {files}\n"
        )
    else:
        assert errors == ""


def test_the_work_goes_on_where_stderr_cannot_be_written(monkeypatch):
    monkeypatch.setattr(sys, "stderr", FailingOutput(errno.EPIPE, lines=0))
    done = []

    def work():
        warnings.warn("a notice", Notice, stacklevel=1)
        done.append(1)

    assert run_guarded(work) == 0 and done == [1]


@pytest.mark.parametrize("stdout", [None, io.StringIO()])
def test_a_stdout_that_is_no_stream_of_bytes_is_left_alone(monkeypatch, stdout):
    monkeypatch.setattr(sys, "stdout", stdout)
    assert run_guarded(lambda: None) == 0


def test_names_that_are_no_text_are_printed_byte_by_byte_where_stdout_allows_it(monkeypatch):
    """Python opens stdout so in the locale C, so that the name of every file can be printed."""
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "utf-8", "surrogateescape"))
    assert run_guarded(lambda: print("caf\udce9.png")) == 0 and out.getvalue().strip() == b"caf\xe9.png"


def test_pictures_with_a_name_that_stdout_does_not_have_are_listed(tmp_path, monkeypatch):
    """The picture used to be written, and then the command ended with status 2 and without its name."""
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "ascii"))
    assert run("generate", "a cat", "--steps", "1", "-o", tmp_path / "猫.png") == 0
    assert (tmp_path / "猫.png").exists()
    assert out.getvalue().decode("ascii").strip() == f"{tmp_path}/\\u732b.png"
