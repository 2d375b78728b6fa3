"""The queue: positions, cancelled jobs, errors, and the end of the server. Without a model."""

import asyncio
import gc
import threading
import warnings
import weakref

import pytest
from web import wait_until

from minip2p.web.worker import Job, JobCancelled, QueueFull, Worker


class Gate:
    """Work that waits until it is opened, in steps."""

    def __init__(self):
        self.opened, self.steps = threading.Event(), 0

    def __call__(self, job):
        job.phase = "gate"
        for _ in job.steps(range(1000)):
            self.steps += 1
            self.opened.wait(0.005)
        return {"type": "result", "steps": self.steps}


def run(test, size=3):
    """Runs a test, a function of a worker, in an event loop."""

    async def main():
        worker = Worker(size)
        try:
            await asyncio.wait_for(test(worker), 20)
        finally:
            worker.close()
            worker.thread.shutdown()
            assert not worker.jobs

    asyncio.run(main())


def submit(worker, work):
    job = Job(work)
    worker.submit(job)
    return job


def quick(job):
    return {"type": "result"}


async def steps_begin(job):
    async for event in job.events():
        if event["type"] == "step":
            return


def test_a_job_tells_its_position_its_steps_and_its_result():
    async def test(worker):
        def work(job):
            job.phase = "count"
            for n in job.steps([1, 2]):
                if n == 1:
                    job.preview = "picture"
            return {"type": "result", "value": 7}

        events = [event async for event in submit(worker, work).events()]
        steps = [{"type": "step", "phase": "count", "step": n, "steps": 2} for n in (1, 2)]
        assert events == [
            {"type": "queued", "position": 0},
            {**steps[0], "preview": "picture"},
            steps[1],
            {"type": "result", "value": 7},
        ]

    run(test)


def test_waiting_jobs_are_told_where_they_stand():
    async def test(worker):
        gate = Gate()
        first = submit(worker, gate)
        await steps_begin(first)
        second, third, fourth = (submit(worker, quick) for _ in range(3))
        worker.cancel(third)
        gate.opened.set()
        assert [event.get("position") async for event in second.events()] == [1, 0, None]
        assert [event.get("position") async for event in fourth.events()] == [3, 2, 1, 0, None]
        assert (await third.result())["error"] == "the request was cancelled"

    run(test)


def test_a_full_queue_refuses_and_says_how_many_wait():
    async def test(worker):
        gate = Gate()
        await steps_begin(submit(worker, gate))
        jobs = [submit(worker, quick) for _ in range(2)]
        with pytest.raises(QueueFull, match="2 requests are waiting, and no more are accepted") as full:
            submit(worker, quick)
        assert full.value.position == 2
        gate.opened.set()
        assert [(await job.result())["type"] for job in jobs] == ["result"] * 2
        assert (await submit(worker, quick).result())["type"] == "result"

    run(test, size=2)


def test_as_many_jobs_as_the_queue_holds_wait_for_the_one_that_is_about_to_run():
    async def test(worker):
        jobs = [submit(worker, Gate()) for _ in range(2)]  # at once, before the thread has begun the first
        with pytest.raises(QueueFull):
            submit(worker, quick)
        for job in jobs:
            worker.cancel(job)
            await job.result()
        assert (await submit(worker, quick).result())["type"] == "result"

    run(test, size=1)


def test_a_running_job_ends_between_two_steps():
    async def test(worker):
        gate = Gate()
        job = submit(worker, gate)
        await steps_begin(job)
        worker.cancel(job)
        assert (await job.result())["error"] == "the request was cancelled" and gate.steps < 100
        worker.cancel(job)  # once more, when it has ended
        assert (await submit(worker, quick).result())["type"] == "result"

    run(test)


def test_a_job_that_is_cancelled_in_its_last_step_has_no_result():
    async def test(worker):
        def work(job):
            for _ in job.steps([1]):
                job.cancelled.set()
            return {"type": "result"}

        assert (await submit(worker, work).result())["error"] == "the request was cancelled"

    run(test)


def test_events_go_to_nobody_when_the_server_has_ended():
    async def main():
        return Job(quick)

    asyncio.run(main()).emit({"type": "result"})


def test_a_job_leaves_nothing_in_memory():
    async def test(worker):
        class Memory:
            pass

        for cancelled in (False, True):
            memory, gate = Memory(), Gate()
            known = weakref.ref(memory)
            job = submit(worker, lambda job, memory=memory, gate=gate: gate(job))
            del memory
            await steps_begin(job)
            if cancelled:
                worker.cancel(job)
            gate.opened.set()
            await job.result()
            del job
            wait_until(lambda known=known: gc.collect() is not None and known() is None)

    run(test)


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("the word\n'dog'"), "the word 'dog'"),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), "there is not enough memory for this"),
        (MemoryError(), "there is not enough memory for this"),
        (KeyError("secret"), "the server has failed (KeyError); its terminal says more"),
        (RuntimeError("shapes"), "the server has failed (RuntimeError); its terminal says more"),
    ],
)
def test_an_error_is_one_line_and_the_worker_goes_on(error, line, caplog):
    async def test(worker):
        def fail(job):
            raise error

        assert await submit(worker, fail).result() == {"type": "error", "error": line}
        assert (await submit(worker, quick).result())["type"] == "result"

    run(test)
    assert ("a request failed" in caplog.text) == line.startswith("the server has failed")


def test_the_end_of_the_server_ends_all_jobs():
    async def test(worker):
        gate = Gate()
        first, second = submit(worker, gate), submit(worker, quick)
        await steps_begin(first)
        worker.close()
        assert (await first.result())["error"] == (await second.result())["error"] == "the server stops"
        with pytest.raises(JobCancelled):
            submit(worker, quick)

    run(test)


def test_clients_are_told_of_the_end_although_a_step_takes_long():
    async def test(worker):
        opened = threading.Event()

        def work(job):
            for _ in job.steps([1]):
                opened.wait(10)
            return {"type": "result"}

        job = submit(worker, work)
        wait_until(lambda: job.turn.running())
        worker.close()
        assert (await job.result())["error"] == "the server stops" and worker.jobs == [job]
        opened.set()

    run(test)


def test_warnings_do_not_disturb_a_job():
    async def test(worker):
        def warn(job):
            warnings.warn("look out", UserWarning, stacklevel=1)
            return {"type": "result"}

        with pytest.warns(UserWarning, match="look out"):
            assert (await submit(worker, warn).result())["type"] == "result"

    run(test)
