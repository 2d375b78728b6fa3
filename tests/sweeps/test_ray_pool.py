"""A sweep on a Ray cluster: the serial sweep to the byte, also when a worker is lost."""

import os
import secrets

import pytest
import torch
from paths import ROOT
from ray_units import FaultyPool

from minip2p.sweeps.grid import Grid
from minip2p.sweeps.ray_pool import check_address
from minip2p.sweeps.sweep import sweep

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
def serial(model, tmp_path_factory):
    """The folder of the serial sweep, with a thread, as a worker has, and its table."""
    folder, threads = tmp_path_factory.mktemp("serial"), torch.get_num_threads()
    torch.set_num_threads(1)
    rows = sweep(model, GRID, folder)
    torch.set_num_threads(threads)
    return folder, rows


def contents(folder):
    """The bytes of every file, by its path inside of the folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(model, cluster, tmp_path):
    """A function: runs the sweep in tmp_path/"out" with these faults, and returns its rows and its pool."""

    def run_sweep(faults):
        pool = FaultyPool(cluster.address, tmp_path / "log", faults, fingerprint=model.components.fingerprint)
        return sweep(model, GRID, tmp_path / "out", make_pool=lambda: pool), pool

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
