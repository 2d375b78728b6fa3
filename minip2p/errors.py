"""What a program tells its user when something goes wrong: one line, and an exit status."""

import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any


class Notice(UserWarning):
    """What a user should know, though the work goes on: on the command line, one line."""


def fail(message: str, status: int = 2) -> int:
    print(f"minip2p: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def notice_printer() -> Callable[..., None]:
    """For the place of `warnings.showwarning`, which shows a line of code as well: each notice in one line, once."""
    seen = set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        text = " ".join(str(message).split())
        if not issubclass(category, Notice):
            print(warnings.formatwarning(message, category, *place[:2]), file=sys.stderr, end="")
        elif text not in seen:
            seen.add(text)
            print(f"minip2p: warning: {text}", file=sys.stderr)

    return show


def flush_stdout() -> None:
    """Flushes stdout. Where it cannot be written it is pointed nowhere, so that it fails no second time at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        raise


def run_guarded(work: Callable[[], None]) -> int:
    """Does the work and returns the exit status; what the user can mend is one line on stderr and not a traceback."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = notice_printer()
            work()
        flush_stdout()
    except BrokenPipeError:  # whoever read the output has seen enough
        return 0
    except KeyboardInterrupt:
        print("minip2p: interrupted", file=sys.stderr)
        return 130
    except ValueError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (MemoryError, RuntimeError) as error:  # where the CPU's memory ends, torch raises no more than RuntimeError
        if isinstance(error, RuntimeError) and not re.search("memory|Storage size", str(error)):
            raise
        return fail("there is not enough memory; try a smaller --size")
    return 0
