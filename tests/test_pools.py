"""What actors and tasks hold, on clusters of every shape."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.config import load_config
from pipeline.pools import Pools, Resources, size_pools

MODELS = {"fusion/en": {"bytes": 1e6}}


def sized(nodes: int, node_cpus: float, *, gpus: float = 0.0, asr: bool = False) -> Pools:
    config = load_config(None, {"manifest": ["m"], "output": "o", "device": "cuda" if gpus else "cpu"})
    plan = SimpleNamespace(models=MODELS | ({"asr/en": {"bytes": 1e6}} if asr else {}))
    return size_pools(config, Resources(nodes * node_cpus, gpus * nodes, 1e12, nodes, node_cpus), plan, 10_000)


@pytest.mark.parametrize("asr", [False, True])
@pytest.mark.parametrize("gpus", [0.0, 1.0])
@pytest.mark.parametrize("node_cpus", [1, 2, 4, 8, 64])
@pytest.mark.parametrize("nodes", [1, 2, 16])
def test_a_task_fits_beside_the_actors_of_a_node(nodes, node_cpus, gpus, asr):
    """Fails if, with actors spread evenly, no node has room for a task: the job then hangs for good."""
    pools = sized(nodes, node_cpus, gpus=gpus, asr=asr)
    actors = (pools.transcribers + pools.recognisers) / nodes
    assert actors * pools.actor_cpus + pools.task_cpus <= node_cpus + 1e-9


@pytest.mark.parametrize("nodes", [2, 16])
def test_finished_shards_do_not_wait_for_all_others(nodes):
    """Fails if preparing, the pool and committing ask for all there is: Ray Data then commits last what it reserves last."""
    pools = sized(nodes, 2)
    asked = pools.recognisers * pools.actor_cpus + 2 * pools.task_cpus
    assert asked < 0.9 * nodes * 2


def test_a_cluster_without_cpus_yet():
    """Fails if actors ask for nothing while an autoscaler is still to bring the nodes: all would be put on the head."""
    assert size_pools(
        load_config(None, {"manifest": ["m"], "output": "o", "device": "cpu"}),
        Resources(0.0, 0.0, 1e12, 1, 1.0), SimpleNamespace(models=MODELS), 10,
    ).actor_cpus == 1.0  # fmt: skip
