"""A process that is killed while it writes files, imitated inside of the test's own process."""

import itertools
import os
from pathlib import Path


class Killed(BaseException):
    """Raised in the place of a SIGKILL."""


def kill_at_replacement(monkeypatch, moment):
    """Until the patches are undone: the file replacement with this number (from 0) and all later ones raise `Killed`,
    and nothing is cleaned up. The files are then as a SIGKILL at that moment leaves them, temporary files included."""
    replace, numbers = os.replace, itertools.count()

    def stop(source, target):
        if next(numbers) >= moment:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
