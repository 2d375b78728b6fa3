"""A pool of workers on the nodes of a Ray cluster, which share independent units of work (extra "ray").

Ray places the workers and carries units and results as plain data. The rest is done here, in the driver: it alone
writes files, gives each idle worker one unit, and gives the unit of a lost worker to another. So a unit is run twice
only if it was in flight when its worker, its node or the driver was lost.
"""

import os
import secrets
import signal
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from minip2p.errors import Notice
from minip2p.io.files import write_files
from minip2p.pipeline import Pipeline
from minip2p.sampling.progress import Progress, progress_bar

LOCAL = "local"  # the address of a cluster that is started for one command, on this machine
CONNECT_LIMIT = 10.0  # seconds in which the address of a cluster must answer
START_LIMIT = 600.0  # seconds in which a worker must be placed and have loaded the model
UNIT_LIMIT = 86_400.0  # seconds for a unit; after that its worker counts as lost
FETCH_LIMIT = 300.0  # seconds for the transfer of a result
TICK = 1.0  # seconds after which the limits are checked again
ATTEMPTS = 3  # how often a unit is run whose workers are lost, and how many workers in a row may be lost as they load
STORE_BYTES = 100 * 2**20  # of the object store of a local cluster

Load = Callable[[], tuple[Pipeline, Any]]  # the model and what scores, once for each worker
Measure = Callable[[Pipeline, Any, int, Any], Any]  # (model, what scores, number of the unit, unit) -> its result
WriteUnit = Callable[[Pipeline, Any, Any, Path], None]  # (model, what scores, unit, the folder of its files)
PICTURE_SUFFIX = ".png"
Warned = tuple[Warning | str, type[Warning], str, int]  # a warning, its category, file and line


class Worker:
    """What runs in a process of its own on a node: loads the model once, and then runs units."""

    def __init__(self, load: Load):
        self.make_loaded = load

    def load(self) -> str:
        """Loads the model. Returns its fingerprint."""
        torch.set_num_threads(1)
        self.loaded = self.make_loaded()
        return self.loaded[0].components.fingerprint

    def run(self, measure: Measure, number: int, unit: Any) -> tuple[Any, list[Warned]]:
        """The result of a unit and the warnings of it."""
        with warnings.catch_warnings(record=True) as held:
            result = measure(*self.loaded, number, unit)
        return result, [(warning.message, warning.category, warning.filename, warning.lineno) for warning in held]


@dataclass(frozen=True)
class Call:
    """What a worker is doing. number: of the unit; None while it loads. deadline: on the monotonic clock."""

    worker: Any
    number: int | None
    deadline: float


class RayPool:
    """A worker for each CPU of a cluster, of one thread, or for each GPU, but not more than there are units.

    address: host:port of the cluster's head; "auto" for the cluster that runs on this machine; "local" starts one for
    this pool, which is reached from this machine only. load: makes what a worker keeps. on_gpu: whether it needs a GPU,
    which is then its device "cuda". fingerprint: of the model that the workers must have.
    start_limit: seconds in which a worker must be placed and have loaded. unit_limit: seconds for a unit.
    """

    def __init__(
        self,
        address: str,
        load: Load,
        *,
        fingerprint: str,
        on_gpu: bool = False,
        start_limit: float = START_LIMIT,
        unit_limit: float = UNIT_LIMIT,
    ):
        self.address, self.load, self.on_gpu, self.fingerprint = address, load, on_gpu, fingerprint
        self.start_limit, self.unit_limit = start_limit, unit_limit

    def __enter__(self) -> "RayPool":
        connect(self.address)
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()  # which ends the workers

    def run_all(
        self,
        measure: Measure,
        units: Sequence[Any],
        receive: Callable[[Any], None],
        progress: Progress = progress_bar,
        name: Callable[[Any], str] = str,
    ) -> None:
        """Runs all units. receive: takes each result in the driver as soon as it is there, in any order. name: what
        messages call a unit.

        A unit fails if `measure` raises an error in it, or if three workers are lost with it. It is reported by a
        Notice, and the others are finished; then ValueError is raised. Raises ValueError if there are no workers.
        """
        failed: dict[int, str] = {}
        for _, result in zip(progress(units), self.results(measure, units, failed, name), strict=False):
            receive(result)
        if failed:
            first = min(failed)
            example = f"{name(units[first])} ({failed[first]})"
            raise ValueError(
                f"{len(failed)} of {len(units)} units failed, such as {example}; the others are finished, and the same "
                "command runs only those that failed"
            )

    def results(
        self, measure: Measure, units: Sequence[Any], failed: dict[int, str], name: Callable[[Any], str]
    ) -> Iterator[Any]:
        """Yields the results of the units in the order in which they finish. failed: takes the errors of the others, by
        their numbers. name: as of `run_all`."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        left, attempts = deque(range(len(units))), [0] * len(units)
        calls: dict[Any, Call] = {}
        idle: list[Any] = []
        lost_starts, last_alive = 0, time.monotonic()

        def fail(number: int, reason: str) -> None:
            failed[number] = reason
            warnings.warn(f"unit {name(units[number])} failed: {reason}", Notice, stacklevel=2)

        def lose(call: Call, reason: str) -> None:
            nonlocal lost_starts
            stop(call.worker)
            if call.number is None:
                lost_starts += 1
                if lost_starts >= ATTEMPTS and not count_running():
                    raise ValueError(f"{ATTEMPTS} workers in a row were lost while they loaded the model: {reason}")
            elif attempts[call.number] == ATTEMPTS:
                fail(call.number, f"its worker was lost {ATTEMPTS} times: {reason}")
            else:
                left.appendleft(call.number)

        def count_running() -> int:
            return sum(call.number is not None for call in calls.values())

        def begin(worker: Any, number: int | None, ref: Any, limit: float) -> None:
            calls[ref] = Call(worker, number, time.monotonic() + limit)

        while left or count_running():
            for _ in range(min(len(left) + count_running(), self.capacity()) - len(calls) - len(idle)):
                worker = self.start_worker()
                begin(worker, None, worker.load.remote(), self.start_limit)
            while left and idle:
                worker, number = idle.pop(), left.popleft()
                attempts[number] += 1
                begin(worker, number, worker.run.remote(measure, number, units[number]), self.unit_limit)
            while idle:  # nothing is left for them, and a lost unit must not go to a worker that is lost as well
                stop(idle.pop())
            if count_running():
                last_alive = time.monotonic()
            elif time.monotonic() - last_alive > self.start_limit:
                raise ValueError(self.describe_shortage())
            if not calls:
                time.sleep(TICK)
                continue
            for ref in ray.wait(list(calls), timeout=TICK)[0]:
                call = calls.pop(ref)
                try:
                    result = ray.get(ref, timeout=FETCH_LIMIT)
                except RayTaskError as error:
                    stop(call.worker)  # an error of a GPU stays in its process
                    if call.number is None:
                        raise ValueError(f"a worker cannot load the model: {describe(error.cause)}") from None
                    fail(call.number, describe(error.cause))
                    continue
                except RayError as error:  # also of a node that is only out of reach: nobody writes there
                    lose(call, describe(error))
                    continue
                idle.append(call.worker)
                if call.number is None:
                    if result != self.fingerprint:
                        raise ValueError("a worker has another model than this machine: its folder or file differs")
                    lost_starts = 0
                    continue
                result, warned = result
                for warning in warned:
                    warnings.showwarning(*warning)
                yield result
            for ref, call in list(calls.items()):
                if time.monotonic() > call.deadline:
                    del calls[ref]
                    if call.number is None:
                        stop(call.worker)  # it was never placed, or loads too slowly; `last_alive` has the limit
                    else:
                        lose(call, f"it ran for more than {self.unit_limit:.0f} seconds")

    def start_worker(self) -> Any:
        """A new worker. Ray places it when its resources are free. It and its calls are not repeated by Ray."""
        import ray

        options = {"num_cpus": 1, "num_gpus": int(self.on_gpu), "max_restarts": 0, "max_task_retries": 0}
        return ray.remote(Worker).options(**options).remote(self.load)

    def capacity(self) -> int:
        """How many workers the nodes that are alive have room for."""
        import ray

        resources = ray.cluster_resources()
        return int(min(resources.get(name, 0) for name in ("CPU", *(["GPU"] if self.on_gpu else []))))

    def describe_shortage(self) -> str:
        """The error if no worker has started."""
        import ray

        kinds, free = ray.cluster_resources(), ray.available_resources()
        text = ", ".join(f"{free.get(name, 0):g} of {kinds.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
        return (
            f"no worker has started within {self.start_limit:.0f} s: it needs a CPU{' and a GPU' * self.on_gpu} and "
            f"the time to load the model, and {text} of the Ray cluster are free; what is finished is kept"
        )


def run_units(
    make_pool: Callable[[], RayPool],
    write_unit: WriteUnit,
    units: Sequence[Any],
    folder: Path,
    *,
    progress: Progress = progress_bar,
    name: Callable[[Any], str] = str,
) -> None:
    """Runs units whose results are files: the worker writes them to an empty folder of its own, the driver to `folder`.

    progress, name: as of `RayPool.run_all`, which see for what is raised.
    """

    def receive(files: Sequence[tuple[str, bytes]]) -> None:
        for path, content in files:
            write_files([(folder / path, content)])

    with make_pool() as pool:
        pool.run_all(partial(written_files, write_unit), units, receive, progress, name)


def written_files(
    write_unit: WriteUnit, pipe: Pipeline, scorer: Any, number: int, unit: Any
) -> list[tuple[str, bytes]]:
    """The relative paths and the contents of what is written of a unit; its figures, which say that it is finished,
    after its pictures."""
    with TemporaryDirectory() as folder:
        write_unit(pipe, scorer, unit, Path(folder))
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        files.sort(key=lambda path: path.suffix != PICTURE_SUFFIX)
        return [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in files]


def connect(address: str) -> None:
    """Joins the cluster at an address, or starts one. Raises ValueError.

    Ray's token authentication is on unless RAY_AUTH_MODE of the environment says otherwise, and usage statistics are
    off. A cluster that is started here has a random token, listens on the loopback interface and has no dashboard.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback; Ray's default on those systems
        options |= {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    else:
        check_address(address)
    import ray

    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises a plain Exception where a node does not start in 30 seconds
        hint = "is its token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, and this machine one of its nodes?"
        raise ValueError(f"--ray {address}: {describe(error)}{'' if address == LOCAL else f'; {hint}'}") from None
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, handler)  # Ray sets another


def check_address(address: str) -> None:
    """Raises ValueError for an address that is neither one of the two words nor host:port, and where nobody listens.
    Ray would wait for minutes."""
    if address in (LOCAL, "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ValueError(f"--ray takes host:port of a cluster's head, or auto, or nothing, and not {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_LIMIT).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"--ray {address}: no cluster answers there ({error})") from None


def stop(worker: Any) -> None:
    """Ends a worker, if it is still there."""
    import ray
    from ray.exceptions import RayError

    with suppress(RayError, ValueError):
        ray.kill(worker)


def describe(error: BaseException) -> str:
    """The kind of an error and its first line; of a worker that cannot be created, the last line of its traceback."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1 if 'creation task' in lines[0] else 0][:300]}"
