"""How a command reports what went wrong to its user: one line on stderr, and an exit status."""

import os
import re
import sys
import warnings
from collections.abc import Callable
from io import TextIOWrapper
from typing import Any


class Notice(UserWarning):
    """Something that the user should know although the work goes on. The command line prints it as one line."""


def fail(message: str, status: int = 2) -> int:
    """Prints an error as one line on stderr and returns the exit status."""
    print(f"minip2p: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def notice_printer() -> Callable[..., None]:
    """A replacement for `warnings.showwarning` that prints each Notice once, as one line without its place in the code.

    Other warnings are printed in Python's own format.
    """
    printed = set()

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if not issubclass(category, Notice):
            print(warnings.formatwarning(message, category, filename, lineno), file=sys.stderr, end="")
        elif text not in printed:
            printed.add(text)
            print(f"minip2p: warning: {text}", file=sys.stderr)

    return show


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


def run_guarded(work: Callable[[], None]) -> int:
    """Runs a command and returns its exit status: 0, 2 for an error, 130 for an interrupt.

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
        return fail(str(error))
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (MemoryError, RuntimeError) as error:  # torch raises a plain RuntimeError when the CPU's memory is exhausted
        if isinstance(error, RuntimeError) and not re.search("memory|Storage size", str(error)):
            raise
        return fail("there is not enough memory; try a smaller --size")
    return 0
