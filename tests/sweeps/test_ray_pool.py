"""A sweep on a Ray cluster: the serial sweep to the byte, also when workers, nodes or the driver are lost."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from threading import Thread

import pytest
import torch
from paths import ROOT
from ray_units import FaultyPool, LocalPool, load_judge, load_judged_model, load_model

from minip2p.errors import Notice
from minip2p.evaluation import edit_benchmark, move_benchmark
from minip2p.evaluation.move_cases import read_move_cases
from minip2p.evaluation.pie_bench import read_cases
from minip2p.pairs.make import make_pairs
from minip2p.pairs.prompts import read_prompts
from minip2p.pairs.settings import PairSettings
from minip2p.sweeps.grid import Grid
from minip2p.sweeps.ray_pool import RayPool, check_address
from minip2p.sweeps.sweep import sweep
from minip2p.tiny.judge import Judge

NODE = {
    "num_cpus": 1,
    "object_store_memory": 100 * 2**20,
    "include_dashboard": False,
    "include_log_monitor": False,
}
SEEDS = list(range(6))
FIELDS = {"source": "a cat on the beach", "target": "a dog on the beach", "seed": SEEDS, "steps": 2, "size": [32, 32]}
GRID = Grid.from_fields(FIELDS)


@pytest.mark.parametrize("address", ["", "8", "host", "ray://host:1", "host:port", "http://host:80"])
def test_what_is_no_address_is_an_error_in_one_line(address):
    with pytest.raises(ValueError, match="--ray takes host:port of a cluster's head, or auto, or nothing, and not"):
        check_address(address)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "127.0.0.1:99999999"])
def test_where_nobody_listens_there_is_no_cluster(address):
    with pytest.raises(ValueError, match=r"^--ray .*: no cluster answers there \(.+\)$"):
        check_address(address)


def add_node(cluster):
    """Adds a node. Ray allows it 30 seconds to start, which a busy machine may exceed, so this is tried four times."""
    for attempt in range(4):
        try:
            return cluster.add_node(**NODE)
        except Exception as error:
            if attempt == 3 or "timed out during startup" not in str(error):
                raise


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of a CPU each on this machine, which listen on its loopback interface."""
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}",  # of the workers
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        for _ in range(2):
            add_node(cluster)
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def serial(cpu_model, tmp_path_factory):
    """The folder of the serial sweep, with a thread, as a worker has, and its table."""
    folder, threads = tmp_path_factory.mktemp("serial"), torch.get_num_threads()
    torch.set_num_threads(1)
    rows = sweep(cpu_model, GRID, folder)
    torch.set_num_threads(threads)
    return folder, rows


def contents(folder):
    """The bytes of every file, by its path inside of the folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(cpu_model, cluster, tmp_path):
    """A function: runs the sweep in tmp_path/"out" with these faults, and returns its rows and its pool."""

    def run_sweep(faults, log="log", **options):
        options = {"fingerprint": cpu_model.components.fingerprint, **options}
        pool = FaultyPool(cluster.address, tmp_path / log, faults, **options)
        return sweep(cpu_model, GRID, tmp_path / "out", make_pool=lambda: pool), pool

    return run_sweep


@pytest.mark.ray
def test_two_nodes_make_the_serial_sweep_to_the_byte(run, serial, tmp_path):
    rows, pool = run({})
    assert rows == serial[1] and contents(tmp_path / "out") == contents(serial[0])
    assert pool.begun() == dict.fromkeys(SEEDS, 1)


@pytest.mark.ray
def test_the_unit_of_a_killed_worker_is_run_again_and_no_other(run, serial, tmp_path):
    rows, pool = run({1: "kill once"})
    assert rows == serial[1] and contents(tmp_path / "out") == contents(serial[0])
    assert pool.begun() == dict.fromkeys(SEEDS, 1) | {1: 2}


@pytest.mark.ray
def test_a_unit_that_does_not_end_is_given_to_another_worker(run, serial, tmp_path):
    rows, pool = run({2: "hang once"}, unit_limit=20)
    assert rows == serial[1] and pool.begun() == dict.fromkeys(SEEDS, 1) | {2: 2}


@pytest.mark.ray
def test_poisoned_units_are_reported_and_the_others_finish(run, serial, tmp_path):
    """An error, and a worker that dies each time. The same command then runs these alone."""
    message = r"^2 of 6 units failed, such as seed 1 \(ValueError: seed 1 is poisoned\); the others are finished"
    with pytest.warns(Notice) as notices, pytest.raises(ValueError, match=message) as error:
        run({1: "raise", 4: "kill"})
    assert "\n" not in str(error.value)
    texts = sorted(str(notice.message) for notice in notices)
    assert len(texts) == 2 and texts[0] == "unit seed 1 failed: ValueError: seed 1 is poisoned"
    assert texts[1].startswith("unit seed 4 failed: its worker was lost 3 times: ActorDiedError")
    finished = {path.stem for path in (tmp_path / "out" / "parts").iterdir()}
    assert finished == {f"seed{seed}" for seed in SEEDS if seed not in (1, 4)}
    assert len(list((tmp_path / "log").glob("4-*"))) == 3 and len(list((tmp_path / "log").iterdir())) == 8
    rows, pool = run({}, log="second")
    assert rows == serial[1] and contents(tmp_path / "out") == contents(serial[0])
    assert pool.begun() == {1: 1, 4: 1}


@pytest.mark.ray
def test_the_unit_of_a_removed_node_is_run_on_another(run, serial, cluster, tmp_path):
    node = next(iter(cluster.worker_nodes))

    def remove_when_busy():
        while not (tmp_path / "log" / "hangs").exists():
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)

    remover = Thread(target=remove_when_busy)
    remover.start()
    rows, pool = run({"all": f"node {node.node_id}"})
    remover.join()
    add_node(cluster)
    assert rows == serial[1] and contents(tmp_path / "out") == contents(serial[0])
    assert sorted(pool.begun().values()) == [1, 1, 1, 1, 1, 2]


@pytest.mark.ray
def test_a_killed_or_interrupted_driver_is_resumed(serial, cluster, tmp_path):
    """The command with SIGKILL, then with Ctrl-C, then to its end: what was finished is not written again."""
    file, out, parts = tmp_path / "grid.toml", tmp_path / "out", tmp_path / "out" / "parts"
    file.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in FIELDS.items()))
    command = [sys.executable, "-m", "minip2p", "sweep", file, "-o", out, "--ray", cluster.address]
    finished = {}
    for number, status in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (None, 0)):
        driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while number and driver.poll() is None and len(list(parts.glob("*.json"))) == len(finished):
            time.sleep(0.005)
        if number:
            driver.send_signal(number)
        printed, errors = driver.communicate(timeout=120)
        assert driver.returncode == status, errors
        assert {path: path.stat().st_mtime_ns for path in finished} == finished
        left = len(SEEDS) - len(finished)
        finished = {path: path.stat().st_mtime_ns for path in parts.glob("*.json")}
        assert (len(finished) < len(SEEDS)) == bool(number)
    assert f"\n{left * 8} rows of the UNet were run" in printed
    expected = contents(serial[0])
    assert {name: (out / name).read_bytes() for name in expected if name.suffix == ".png"} == {
        name: content for name, content in expected.items() if name.suffix == ".png"
    }
    assert len((out / "table.csv").read_text().splitlines()) == 1 + len(SEEDS)


@pytest.mark.ray
def test_a_worker_that_is_never_placed_is_an_error_after_a_time(run, cluster, tmp_path, monkeypatch):
    """There is no GPU; and the CPUs are taken."""
    with pytest.raises(ValueError, match="no worker has started within 2 s: it needs a CPU and a GPU .* 0 of 0 GPUs"):
        run({}, on_gpu=True, start_limit=2)

    def take_cpus(pool):
        import ray

        class Taker:
            def is_there(self):
                return True

        takers = [ray.remote(Taker).options(num_cpus=1).remote() for _ in range(2)]
        assert ray.get([taker.is_there.remote() for taker in takers], timeout=60)
        pool.takers = takers
        return pool

    enter = FaultyPool.__enter__
    monkeypatch.setattr(FaultyPool, "__enter__", lambda pool: take_cpus(enter(pool)))
    with pytest.raises(
        ValueError, match="no worker has started within 3 s: it needs a CPU and the time .* 0 of 2 CPUs"
    ):
        run({}, log="second", start_limit=3)
    assert not list((tmp_path / "out" / "parts").glob("*")) and not list((tmp_path / "log").iterdir())


@pytest.mark.ray
def test_workers_with_another_model_are_an_error(run):
    with pytest.raises(ValueError, match="a worker has another model than this machine"):
        run({}, fingerprint="another")


# Benchmarks and pairs, whose workers write files of their own


def run_edits(pipe, folder, pool=None):
    cases = read_cases()[:2]
    networks = edit_benchmark.Networks(Judge.load())
    edit_benchmark.run_benchmark(
        pipe, cases, ["vae", "ddim"], folder, steps=1, networks=networks, make_ray_pool=pool and (lambda: pool)
    )


def run_moves(pipe, folder, pool=None):
    cases = read_move_cases()[:2]
    move_benchmark.run_benchmark(pipe, cases, ["vae", "paste"], folder, steps=1, make_ray_pool=pool and (lambda: pool))


def run_pairs(pipe, folder, pool=None):
    settings = PairSettings(samples=1, steps=1, size=(64, 64), noises=1, least={"psnr": None})
    units = read_prompts(ROOT / "tests" / "data" / "pairs.jsonl")[:2]
    make_pairs(pipe, units, settings, folder, make_pool=pool and (lambda: pool))


UNITS = {"edits": (run_edits, 4), "moves": (run_moves, 2), "pairs": (run_pairs, 2)}  # and how many units there are


def without_seconds(folder):
    """The contents of a folder; of figures without the seconds."""
    files = contents(folder)
    rows = {path: json.loads(files[path]) for path in files if path.parts[0] == "rows"}
    return files | {path: {name: row[name] for name in row if name != "seconds"} for path, row in rows.items()}


@pytest.mark.parametrize("kind", UNITS)
@pytest.mark.parametrize("where", ["here", pytest.param("two nodes", marks=pytest.mark.ray)])
def test_the_files_of_workers_are_those_of_one_process(cpu_model, request, tmp_path, where, kind):
    """To the byte, but for the seconds. What is finished is not run again. The workers compute on the CPU."""
    run, count = UNITS[kind]
    loads = {"edits": load_judged_model, "moves": load_judge, "pairs": load_model}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run(cpu_model, tmp_path / "serial")
    torch.set_num_threads(threads)
    if where == "here":
        pool = LocalPool(loads[kind])
    else:
        address = request.getfixturevalue("cluster").address
        pool = RayPool(address, loads[kind], fingerprint=cpu_model.components.fingerprint)
    run(cpu_model, tmp_path / "out", pool)
    assert without_seconds(tmp_path / "out") == without_seconds(tmp_path / "serial")
    if where == "here":
        assert len(pool.names) == count and all(name.isprintable() and len(name) < 90 for name in pool.names)
        run(cpu_model, tmp_path / "out", pool)
        assert len(pool.names) == count
