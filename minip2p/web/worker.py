"""A single thread that runs the jobs of all clients one after the other, and the queue of those that wait.

A job belongs to a client. It ends early, between two steps, when its client has left.
"""

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

LOG = logging.getLogger("minip2p.web")
NOTES: ContextVar[list[str] | None] = ContextVar("notes", default=None)  # the warnings of a job

Event = Mapping[str, Any]
CANCELLED: Event = MappingProxyType({"type": "error", "error": "the request was cancelled"})
SERVER_STOPS: Event = MappingProxyType({"type": "error", "error": "the server stops"})


class JobCancelled(Exception):
    """The client of a job has left, or the server stops."""


class QueueFull(Exception):
    """As many jobs wait as the queue holds. position: how many."""

    def __init__(self, position: int):
        super().__init__(f"{position} requests are waiting, and no more are accepted: try again in a moment")
        self.position = position


class Job:
    """Work for the model, with the events that its client reads.

    work: gets the job, and returns the last event. turn: in the worker's thread.
    """

    def __init__(self, work: Callable[["Job"], Event]):
        self.work = work
        self.turn: Future[None] = Future()
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Event] = asyncio.Queue()
        self.cancelled = threading.Event()
        self.position: int | None = None
        self.phase = ""
        self.preview: str | None = None

    def emit(self, event: Event) -> None:
        """Hands an event to the client, from any thread; to nobody where the server has ended."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.queue.put_nowait, event)

    def tell_position(self, position: int) -> None:
        """Says how many jobs are before this job; 0: it runs."""
        if position != self.position:
            self.position = position
            self.emit({"type": "queued", "position": position})

    def check(self) -> None:
        """Raises JobCancelled if nobody waits for the job any more."""
        if self.cancelled.is_set():
            raise JobCancelled

    def steps(self, steps: Iterable[Any]) -> Iterable[Any]:
        """The steps of a loop (a `Progress`). Tells each step, and stops between two when the job is cancelled."""
        items = list(steps)
        for n, item in enumerate(items, 1):
            self.check()
            yield item
            preview = {} if self.preview is None else {"preview": self.preview}
            self.preview = None
            self.emit({"type": "step", "phase": self.phase, "step": n, "steps": len(items), **preview})
        self.check()

    async def events(self) -> AsyncIterator[Event]:
        """The events up to the last, of type "result" or "error"."""
        while True:
            event = await self.queue.get()
            yield event
            if event["type"] in ("result", "error"):
                return

    async def result(self) -> Event:
        """The last event."""
        return [event async for event in self.events()][-1]


class Worker:
    """The thread, and the jobs: the first runs, the others wait. size: how many may wait."""

    def __init__(self, size: int):
        self.size = size
        self.jobs: list[Job] = []
        self.is_closed = False
        self.lock = threading.Lock()
        self.thread = ThreadPoolExecutor(1, "minip2p worker")

    def submit(self, job: Job) -> None:
        """Puts a job at the end of the queue. Raises QueueFull, and JobCancelled where the server stops."""
        if self.is_closed:
            raise JobCancelled
        with self.lock:
            if len(self.jobs) > self.size:
                raise QueueFull(len(self.jobs) - 1)
            self.jobs.append(job)
            self.tell_positions()
        job.turn = self.thread.submit(self.run, job)

    def cancel(self, job: Job) -> None:
        """Ends a job: at once if it waits, else after its current step. Nothing happens if it has ended."""
        job.cancelled.set()
        if job in self.jobs and job.turn.cancel():
            self.finish(job, CANCELLED)

    def close(self) -> None:
        """Ends all jobs and then the thread. The clients are told at once; a job that runs ends after its step."""
        self.is_closed = True
        for job in [*self.jobs]:
            job.emit(SERVER_STOPS)
            self.cancel(job)
        self.thread.shutdown(wait=False)

    def tell_positions(self) -> None:
        for n, job in enumerate(self.jobs):
            job.tell_position(n)

    def run(self, job: Job) -> None:
        """Runs a job. It is called in the thread."""
        NOTES.set([])
        try:
            job.check()
            event = job.work(job)
        except JobCancelled:
            event = CANCELLED
        except Exception as error:
            event = {"type": "error", "error": error_line(error)}
        NOTES.set(None)
        self.finish(job, event)

    def finish(self, job: Job, event: Event) -> None:
        with self.lock:
            self.jobs.remove(job)
            self.tell_positions()
        job.emit(event)


def error_line(error: Exception) -> str:
    """What a client is told of an error: one line. What is not the client's mistake is logged."""
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    is_memory = isinstance(error, RuntimeError) and re.search("memory|Storage size", str(error))
    if is_memory or isinstance(error, MemoryError):
        return "there is not enough memory for this"
    LOG.error("a request failed", exc_info=error)
    return f"the server has failed ({type(error).__name__}); its terminal says more"
