"""How a command reports what went wrong to its user: one line on stderr, and an exit status."""

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import MappingProxyType
from typing import Any, TextIO, cast


class Notice(UserWarning):
    """Something that the user should know although the work goes on. The command line prints it as one line."""


class UnknownWords(Notice):
    """A Notice of words that a model was not trained with. The command line names each word once.

    args: the words.
    """

    def __str__(self) -> str:
        words = ", ".join(repr(word[:40]) for word in self.args)
        plural = "s" if len(self.args) > 1 else ""
        return f"this model was trained without the word{plural} {words}: `minip2p words` lists those that it knows"


def report(text: str) -> None:
    """Prints a line on stderr. Nobody reads it where stderr cannot be written, and the work goes on."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def fail(message: str, status: int = 2) -> int:
    """Prints an error as one line on stderr and returns the exit status."""
    report(f"minip2p: error: {' '.join(message.split())}")
    return status


def notice_printer() -> Callable[..., None]:
    """A replacement for `warnings.showwarning` that prints each warning once.

    A Notice is one line without its place in the code; others are in Python's own format.
    """
    printed: set[str] = set()

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
        if isinstance(message, UnknownWords):
            message = UnknownWords(*(word for word in dict.fromkeys(message.args) if word not in printed))
            printed.update(message.args)
            if not message.args:
                return
        if issubclass(category, Notice):
            text = f"minip2p: warning: {' '.join(str(message).split())}"
        else:
            text = warnings.formatwarning(message, category, filename, lineno).removesuffix("\n")
        if text not in printed:
            printed.add(text)
            report(text)

    return show


@contextmanager
def held_notices() -> Iterator[None]:
    """Holds warnings back and shows them at the end. After an error none is shown, so that the error is the only line.

    A command checks its arguments in this context. The words that a model was not trained with become one line.
    """
    with warnings.catch_warnings(record=True) as held:
        yield
    unknown = [word for warning in held if isinstance(warning.message, UnknownWords) for word in warning.message.args]
    for warning in held:
        message = warning.message
        if isinstance(message, UnknownWords):
            message = UnknownWords(*unknown)
        warnings.showwarning(message, warning.category, warning.filename, warning.lineno)


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """An error message of the library with the options of the command line instead of keywords.

    flags: keyword -> option. A keyword that is an English word too, as `steps`, is replaced only where the message
    begins with it, as in "steps must lie …", or asks for something "as config".
    """
    for keyword, flag in flags.items():
        word = re.escape(keyword)
        message = re.sub(rf"\b{word}\b" if "_" in word else rf"^{word}(?= )|(?<=\bas ){word}\b", flag, message)
    return message


def escape_unprintable() -> None:
    """Lets stdout print a character that its encoding does not have as an escape, such as \\u732b, instead of failing.

    A results line must not fail after the pictures have been written. stderr does this by default.
    """
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


class PatientOutput:
    """Stands in for stdout, and raises no error where that cannot be written, so that the work goes on.

    stream: the stdout to write to, after each line. error: the first error of it; after that nothing is written. lost:
    the text that was not written.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.error: OSError | None = None
        self.lost = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self.lost += text
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        if self.error is not None:
            return
        try:
            self.stream.write(self.lost)
            self.stream.flush()
            self.lost = ""
        except OSError as error:
            self.error = error
            # Otherwise Python itself would fail when it flushes stdout at its end.
            with suppress(OSError), open(os.devnull, "w") as null_device:
                os.dup2(null_device.fileno(), self.stream.fileno())


@contextmanager
def patient_stdout() -> Iterator[None]:
    """Lets stdout be a `PatientOutput`. Raises OSError at the end if it could not be written.

    It names the files that the lost lines are the names of. No error is that the reader has gone, as `head` does.
    """
    stdout = sys.stdout
    if stdout is None:  # as in a program without a console
        yield
        return
    output = PatientOutput(stdout)
    sys.stdout = cast(TextIO, output)
    try:
        yield
        output.flush()
    finally:
        sys.stdout = stdout
    if output.error is not None and not isinstance(output.error, BrokenPipeError):
        files = [
            name for name in (line.partition("  ")[0] for line in output.lost.splitlines()) if os.path.isfile(name)
        ]
        written = f", and the files are written: {', '.join(files)}" if files else ""
        raise OSError(f"the standard output cannot be written ({output.error.strerror}){written}")


def run_guarded(work: Callable[[], None], flags: Mapping[str, str] = MappingProxyType({})) -> int:
    """Runs a command and returns its exit status: 0, 2 for an error, 130 for an interrupt.

    flags: the options of its command line by the keywords of the library that they set, see `with_flags`.

    Errors that the user can correct (ValueError, OSError, no memory) become one line on stderr instead of a traceback.
    Other exceptions, which are bugs, are raised.
    """
    try:
        escape_unprintable()
        with warnings.catch_warnings():
            warnings.showwarning = notice_printer()
            with patient_stdout():
                work()
    except KeyboardInterrupt:
        report("minip2p: interrupted")
        return 130
    except ValueError as error:
        return fail(with_flags(str(error), flags))
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (MemoryError, RuntimeError) as error:  # torch raises a plain RuntimeError when the CPU's memory is exhausted
        if isinstance(error, RuntimeError) and not re.search("memory|Storage size", str(error)):
            raise
        return fail("there is not enough memory: smaller pictures need less")
    return 0
