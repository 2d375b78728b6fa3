"""How many threads a command computes with, and how they wait for each other.

Only the command line does this. The library leaves the process as it is.
"""

import os
import warnings
from collections.abc import MutableMapping
from time import perf_counter

from minip2p.errors import Notice

# What makes OpenMP wait without spinning, GNU's (torch on Linux) and LLVM's (on macOS). They read it when they load.
PASSIVE_WAITING = (("OMP_WAIT_POLICY", "PASSIVE"), ("KMP_BLOCKTIME", "0"))
THREADS_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
BUSY = 1.5  # waiting and running programs for each core, from which a machine is busy
ROUNDS = 3  # each number of threads is measured so often, in turn
SECONDS = 0.03  # of each measurement
GAIN = 1.5  # so much faster fewer threads must be: results differ in their last bits with the number of threads


def wait_passively(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets threads that wait for others sleep. Spinning threads hold each other up on a busy machine.

    It must be called before torch is imported. Variables that are set remain as they are.
    """
    if not any(name in environment for name, _ in (*PASSIVE_WAITING, ("GOMP_SPINCOUNT", ""))):
        environment.update(PASSIVE_WAITING)


def choose_threads() -> None:
    """Sets torch's number of threads to the fastest, by measuring, unless an environment variable names one.

    Warns, by a Notice, where other programs keep the machine busy.
    """
    import torch

    usual = torch.get_num_threads()
    if usual == 1 or any(os.environ.get(name) for name in THREADS_VARIABLES):
        return
    best = fastest(measure([usual, *halves(usual)]))
    torch.set_num_threads(best)
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0, os.cpu_count() or 1
    if best != usual or load > BUSY * cores:
        number = f"{best} of {usual} threads" if best != usual else f"{best} threads"
        warnings.warn(
            f"other programs keep this machine busy (load {load:.1f} on {cores} cores): this will take longer than "
            f"usual; computing with {number}, the fastest as measured, which OMP_NUM_THREADS overrides",
            Notice,
            stacklevel=2,
        )


def halves(number: int) -> list[int]:
    """8 -> [4, 2, 1]."""
    return [number >> shift for shift in range(1, number.bit_length())]


def fastest(seconds: dict[int, float]) -> int:
    """The largest number of threads that no smaller number beats by more than GAIN. seconds: of each number."""
    numbers = sorted(seconds, reverse=True)
    best = numbers[0]
    for number in numbers[1:]:
        if seconds[number] * GAIN < seconds[best]:
            best = number
    return best


def measure(numbers: list[int]) -> dict[int, float]:
    """The seconds that a small convolution takes with each number of threads: the best of ROUNDS means."""
    import torch
    import torch.nn.functional as F

    usual = torch.get_num_threads()
    x, kernel = torch.ones(2, 64, 32, 32), torch.ones(64, 64, 3, 3)
    best = dict.fromkeys(numbers, float("inf"))
    try:
        with torch.inference_mode():
            for _ in range(ROUNDS):
                for number in numbers:
                    torch.set_num_threads(number)
                    F.conv2d(x, kernel, padding=1)
                    calls, start = 0, perf_counter()
                    while not calls or perf_counter() < start + SECONDS:
                        F.conv2d(x, kernel, padding=1)
                        calls += 1
                    best[number] = min(best[number], (perf_counter() - start) / calls)
    finally:
        torch.set_num_threads(usual)
    return best
