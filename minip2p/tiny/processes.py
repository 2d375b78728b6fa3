"""How a worker process behaves: one thread, and an end together with its parent process."""

import os
import signal
from multiprocessing import parent_process
from threading import Thread

import torch


def start_worker() -> None:
    """Prepares a worker process: one thread, Ctrl-C left to the parent process, and an end together with the parent."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=exit_with_parent, daemon=True).start()


def exit_with_parent() -> None:
    """Ends this process as soon as its parent process has ended for whatever reason."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
