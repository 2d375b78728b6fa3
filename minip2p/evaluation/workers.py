"""A pool of worker processes, each with a pipeline and the judge, which measure the cases of an evaluation.

Each process runs one thread: a picture of 128 x 128 pixels is too small to keep several cores busy.
"""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from minip2p.pipeline import Pipeline, load
from minip2p.sampling.progress import progress_bar
from minip2p.tiny.judge import Judge
from minip2p.tiny.processes import start_worker

CASES_PER_JOB = 5  # how many cases a process takes at a time

CaseResult = tuple[dict[str, float], list[Image.Image]]  # the figures and the pictures of a case
Warned = tuple[Warning | str, type[Warning], str, int]  # a warning, its category, file and line
Measure = Callable[[Pipeline, Judge, int, Any, int], CaseResult]  # (pipeline, judge, number, case, steps)


class WorkerPool:
    """As many processes as torch would use threads, each with the model in a folder (None: the one that ships) and the
    judge.

    The processes are spawned, so a script that uses a pool needs `if __name__ == "__main__":`. If an error or Ctrl-C
    leaves the `with` block, each worker finishes the job that it is working on and stops.
    """

    def __init__(self, folder: Path | None, steps: int):
        self.folder, self.steps = folder, steps
        self.pool = ProcessPoolExecutor(torch.get_num_threads(), get_context("spawn"), start_worker)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.pool.shutdown(cancel_futures=kind is not None)

    def run_all(self, measure: Measure, cases: Sequence[Any]) -> list[CaseResult]:
        """The results of all cases, in their order. A case's number is its place in the list."""
        numbered = list(enumerate(cases))
        shares = [numbered[start : start + CASES_PER_JOB] for start in range(0, len(numbered), CASES_PER_JOB)]
        jobs = [self.pool.submit(run_warned, measure, share, self.folder, self.steps) for share in shares]
        results = []
        for job in progress_bar(jobs):
            measured, warned = job.result()
            results += measured
            for warning in warned:
                warnings.showwarning(*warning)
        return results


def run_warned(
    measure: Measure, share: Sequence[tuple[int, Any]], folder: Path | None, steps: int
) -> tuple[list[CaseResult], list[Warned]]:
    """`run_share`, and the warnings of it, which the parent process shows as it shows its own."""
    with warnings.catch_warnings(record=True) as held:
        results = run_share(measure, share, folder, steps)
    return results, [(warning.message, warning.category, warning.filename, warning.lineno) for warning in held]


def run_share(measure: Measure, share: Sequence[tuple[int, Any]], folder: Path | None, steps: int) -> list[CaseResult]:
    """Measures several numbered cases in a worker process."""
    pipe, judge = load(folder), Judge.load()
    return [measure(pipe, judge, number, case, steps) for number, case in share]
