"""How a command reports what went wrong to its user: one line on stderr, and an exit status."""

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from types import MappingProxyType
from typing import Any


class Notice(UserWarning):
    """Something that the user should know although the work goes on. The command line prints it as one line."""


def fail(message: str, status: int = 2) -> int:
    """Prints an error as one line on stderr and returns the exit status."""
    print(f"minip2p: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def notice_printer() -> Callable[..., None]:
    """A replacement for `warnings.showwarning` that prints each warning once.

    A Notice is one line without its place in the code; others are in Python's own format.
    """
    printed = set()

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
        if issubclass(category, Notice):
            text = f"minip2p: warning: {' '.join(str(message).split())}\n"
        else:
            text = warnings.formatwarning(message, category, filename, lineno)
        if text not in printed:
            printed.add(text)
            print(text, file=sys.stderr, end="")

    return show


@contextmanager
def held_notices() -> Iterator[None]:
    """Holds warnings back and shows them at the end. After an error none is shown, so that the error is the only line.

    A command checks its arguments in this context.
    """
    with warnings.catch_warnings(record=True) as held:
        yield
    for warning in held:
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


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


def flush_stdout() -> None:
    """Flushes stdout. If that fails, redirects stdout to the null device, so that it does not fail again at exit."""
    try:
        if sys.stdout is not None:  # as in a program without a console
            sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w") as null_device:
            os.dup2(null_device.fileno(), 1)
        raise


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
            work()
        flush_stdout()
    except BrokenPipeError:  # the program that reads the output has stopped, as `head` does
        return 0
    except KeyboardInterrupt:
        print("minip2p: interrupted", file=sys.stderr)
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
