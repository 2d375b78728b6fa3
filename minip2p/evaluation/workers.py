"""TODO: describe."""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from PIL import Image

from minip2p.checkpoints.load import load
from minip2p.pipeline import Pipeline
from minip2p.sampling.progress import progress_bar
from minip2p.tiny.judge import Judge

CASES_PER_JOB = 5  # cases that a process of a crew takes at a time


CaseResult = tuple[dict[str, float], list[Image.Image]]  # what a case gave: its figures, its pictures


Measure = Callable[[Pipeline, Judge, int, Any, int], CaseResult]  # (model, judge, number, the case, steps)


class WorkerPool:
    """As many processes as torch would use threads, each with the model of a folder and the judge.

    They are started anew (spawn), so a script that makes one needs `if __name__ == "__main__":`. Left by an error or by
    Ctrl-C, a crew stops after the cases that it has in hand.
    """

    def __init__(self, folder: Path | None, steps: int):
        self.folder, self.steps = folder, steps
        self.pool = ProcessPoolExecutor(torch.get_num_threads(), get_context("spawn"), start_worker)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.pool.shutdown(cancel_futures=kind is not None)

    def run_all(self, measure: Measure, cases: Sequence[Any]) -> list[CaseResult]:
        """What every case gave, in their order."""
        numbered = list(enumerate(cases))
        shares = [numbered[start : start + CASES_PER_JOB] for start in range(0, len(numbered), CASES_PER_JOB)]
        jobs = [self.pool.submit(run_share, measure, share, self.folder, self.steps) for share in shares]
        return [found for job in progress_bar(jobs) for found in job.result()]


def start_worker() -> None:
    """Of a process of a crew: one thread; Ctrl-C is for the process that began it, and with that one it ends."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=exit_with_parent, daemon=True).start()


def exit_with_parent() -> None:
    """Ends this process as soon as the one that began it is gone, however it went."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def run_share(measure: Measure, share: Sequence[tuple[int, Any]], folder: Path | None, steps: int) -> list[CaseResult]:
    """What a process of a crew is given to do."""
    model, judge = load(folder), Judge.load()
    return [measure(model, judge, number, case, steps) for number, case in share]
