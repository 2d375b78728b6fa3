"""What runs in the workers of a Ray cluster in the tests. They import it by name."""

import os
import signal
import time
from functools import partial

import minip2p
from minip2p.evaluation.edit_benchmark import Networks
from minip2p.sweeps.ray_pool import RayPool
from minip2p.tiny.judge import Judge


def load_model():
    """The model that ships, and no scorer."""
    return minip2p.load(), None


def load_judge():
    """The model that ships, and its judge."""
    return minip2p.load(), Judge.load()


def load_judged_model():
    """The model that ships, and its judge as what measures edits of photographs."""
    return minip2p.load(), Networks(Judge.load())


def run_with_faults(pipe, score, number, unit, *, measure, log, faults):
    """A unit that leaves a file in a folder each time it is begun, and has one of these faults.

    kill: its worker dies; kill once: only the first time; hang once: it does not end the first time; raise: an error;
    node NAME: it does not end on the node of this name.
    """
    import ray

    seed = unit.seed
    begun = len(list(log.glob(f"{seed}-*")))
    (log / f"{seed}-{begun}").touch()
    fault = faults.get(seed, faults.get("all", ""))
    if fault == "kill" or (fault == "kill once" and not begun):
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang once" and not begun:
        time.sleep(600)
    if fault == f"node {ray.get_runtime_context().get_node_id()}":
        (log / "hangs").touch()
        time.sleep(600)
    if fault == "raise":
        raise ValueError(f"seed {seed} is poisoned")
    return measure(pipe, score, number, unit)


class FaultyPool(RayPool):
    """A pool that logs what is begun, in a folder, and whose units have faults, see `run_with_faults`."""

    def __init__(self, address, log, faults, **options):
        super().__init__(address, load_model, **options)
        self.log, self.faults = log, faults
        log.mkdir()

    def run_all(self, measure, units, *rest):
        super().run_all(partial(run_with_faults, measure=measure, log=self.log, faults=self.faults), units, *rest)

    def begun(self):
        """How often each unit was begun."""
        names = [path.name.partition("-")[0] for path in self.log.glob("*-*")]
        return {int(name): names.count(name) for name in sorted(names, key=int)}


class LocalPool:
    """A `RayPool` without Ray: it runs the units in this process, the last first. names: of what was run."""

    def __init__(self, load):
        self.load, self.names = load, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run_all(self, measure, units, receive, progress, name):
        loaded = self.load()
        for number in reversed(range(len(units))):
            self.names.append(name(units[number]))
            receive(measure(*loaded, number, units[number]))
