"""A single thread that runs the jobs of all clients one after the other, and the queue of those that wait.

A job belongs to a client. It ends early, between two steps, when its client has left.
"""

import asyncio
import logging
import re
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
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

    work: gets the job, and returns the last event. release: called once when the job has ended.
    """

    def __init__(self, work: Callable[["Job"], Event], release: Callable[[], None] = lambda: None):
        self.work: Callable[[Job], Event] | None = work
        self.release = release
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
    """The thread, and the jobs that wait for it. size: of the queue."""

    def __init__(self, size: int):
        self.size = size
        self.waiting: deque[Job] = deque()
        self.running: Job | None = None
        self.is_closed = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.work, name="minip2p worker", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Puts a job at the end of the queue. Raises QueueFull, and JobCancelled where the server stops."""
        with self.changed:
            if self.is_closed:
                raise JobCancelled
            if len(self.waiting) >= self.size:
                raise QueueFull(len(self.waiting))
            self.waiting.append(job)
            self.tell_positions()
            self.changed.notify()

    def cancel(self, job: Job) -> None:
        """Ends a job: at once if it waits, else after its current step. Nothing happens if it has ended."""
        job.cancelled.set()
        with self.changed:
            if job not in self.waiting:
                return
            self.waiting.remove(job)
            self.tell_positions()
        self.finish(job, CANCELLED)

    def close(self) -> None:
        """Ends all jobs and then the thread. The clients are told at once; a job that runs ends after its step."""
        with self.changed:
            self.is_closed = True
            jobs = [*self.waiting, *([self.running] if self.running else [])]
            self.changed.notify()
        for job in jobs:
            job.emit(SERVER_STOPS)
            self.cancel(job)

    def join(self, timeout: float) -> None:
        """Waits for the thread to end."""
        self.thread.join(timeout)

    def tell_positions(self) -> None:
        for n, job in enumerate(self.waiting):
            job.tell_position(n + (self.running is not None))

    def next_job(self) -> Job | None:
        """Waits for a job; None when the worker is closed."""
        with self.changed:
            self.running = None
            self.tell_positions()
            while not self.waiting and not self.is_closed:
                self.changed.wait()
            if not self.waiting:
                return None
            self.running = self.waiting.popleft()
            self.running.tell_position(0)
            self.tell_positions()
            return self.running

    def work(self) -> None:
        while (job := self.next_job()) is not None:
            self.finish(job, self.run(job))
            del job  # nothing of it stays in memory while the thread waits

    def run(self, job: Job) -> Event:
        """Runs a job and returns its last event."""
        NOTES.set([])
        try:
            job.check()
            assert job.work is not None
            return job.work(job)
        except JobCancelled:
            return SERVER_STOPS if self.is_closed else CANCELLED
        except Exception as error:
            return {"type": "error", "error": error_line(error)}
        finally:
            NOTES.set(None)

    def finish(self, job: Job, event: Event) -> None:
        job.work = None  # with what it holds in memory
        job.release()
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
