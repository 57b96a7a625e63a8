"""What actors and tasks hold, on clusters of every shape, and how far pools go."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from pipeline.config import load_config
from pipeline.engine.pools import Pools, Resources, choose_device, size_pools
from pipeline.errors import ConfigError
from tests.support.cases import case
from tests.support.corpus import annotate, rows, write_manifest
from tests.support.noop_models import environment, models_of
from tests.support.pins import pins

GB = 1e9


def sized(
    nodes: int,
    node_cpus: float,
    *,
    gpus: float = 0.0,
    asr: bool = False,
    node_gb: float = 100.0,
    grows: bool = True,
    **flags: object,
) -> Pools:
    """Pools for models of 1 GB each on equal nodes, 10,000 shards."""
    resources = Resources(
        nodes * node_cpus, gpus * nodes, nodes * node_gb * GB, nodes, node_cpus or 2.0, node_gb * GB,
        cpus_per_gpu=node_cpus / gpus if gpus and nodes else 2.0, grows=grows,
    )  # fmt: skip
    return sized_on(resources, asr=asr, **flags)


def sized_on(resources: Resources, *, asr: bool, **flags: object) -> Pools:
    """Pools for models of 1 GB each and 10,000 shards."""
    device = "cuda" if resources.gpus else "cpu"
    config = load_config(None, {"manifest": ["m"], "output": "o", "device": device, **flags})
    models = pins(fusion_en=GB, asr_en=GB) if asr else pins(fusion_en=GB)
    plan = SimpleNamespace(models=models, needs_asr=asr)
    return size_pools(config, resources, plan, 10_000)


def counts(pools: Pools) -> list[tuple[int, int, int | None]]:
    return [(pool.least, pool.start, pool.most) for pool in pools.pools]


def test_a_task_fits_beside_the_actors_of_a_node():
    """Fails if, with actors spread evenly, no node has room for a task: the job then hangs for good."""
    for asr, gpus, node_cpus, nodes in itertools.product([False, True], [0.0, 1.0], [1, 2, 4, 8, 64], [1, 2, 16]):
        with case(asr, gpus, node_cpus, nodes):
            pools = sized(nodes, node_cpus, gpus=gpus, asr=asr, node_gb=1000.0)
            held = sum(pool.start * pool.cpus for pool in pools.pools) / nodes
            assert held + pools.task_cpus <= node_cpus + 1e-9


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("asr", [False, True])
def test_pools_that_grow_leave_the_tasks_their_cpus(asr, spread):
    """Fails if Ray Data may let pools grow over the CPUs of the tasks that feed them, or not fill a cluster's share."""
    pools = sized(4, 16, asr=asr)
    stages = len(pools.pools) + 2 + spread
    assert pools.reserved_share(spread=spread) <= 1 + 1e-9
    kept_by_tasks = 2 * pools.reserved_share(spread=spread) / stages
    started = sum(pool.start * pool.cpus for pool in pools.pools) / 64
    assert started == pytest.approx(0.6) and kept_by_tasks == pytest.approx(0.4)


@pytest.mark.parametrize("nodes", [2, 16])
def test_finished_shards_do_not_wait_for_all_others(nodes):
    """Fails if preparing, the pool and committing ask for all there is: Ray Data then commits last what it reserves last."""
    pools = sized(nodes, 2)
    (pool,) = pools.pools
    assert pool.start * pool.cpus + 2 * pools.task_cpus < 0.9 * nodes * 2


@pytest.mark.usefixtures("own_ray")
def test_shards_are_committed_while_others_are_prepared(tmp_path):
    """Fails if a job commits only when all is prepared: killed before, it would have nothing to show."""
    shards, path = 300, tmp_path / "steps"
    # Ray Data counts its CPUs anew at each such request; by default they are ten seconds apart
    armed = {"RAY_DATA_MIN_GAP_BETWEEN_AUTOSCALING_REQUESTS": "1"}
    models, widths = models_of("text")
    options = [*models, "--language", "en", "--shard-rows", "1"]
    armed |= environment(widths, steps=path)
    annotate(write_manifest(tmp_path / "m.jsonl", rows(shards)), tmp_path / "out", *options, env=armed)
    steps = path.read_text()
    assert (steps.count("p"), steps.count("c")) == (shards, shards)
    assert steps[: steps.rindex("p")].count("c") > shards / 2


def test_a_cluster_starts_with_what_fits_and_grows_to_what_is_allowed():
    """Fails if actors are asked for that fit nowhere yet, which hold the cards of another pool, or a pool's bound is not kept."""
    assert counts(sized(2, 8, gpus=1.0, asr=True)) == [(1, 2, None), (1, 2, None)]
    assert counts(sized(2, 8, gpus=4.0)) == [(1, 8, None)]
    allowed = {"asr_actors": 1, "emotion_actors": 32}
    assert counts(sized(2, 8, gpus=1.0, asr=True, **allowed)) == [(1, 1, 1), (1, 2, 32)]
    assert counts(sized(2, 8, asr=True)) == [(1, 16, None), (1, 16, None)]
    # 0.5 + 0.3 of a card: 4 cards hold 4 of each, not the 5 that their sum would
    assert counts(sized(4, 8, gpus=1.0, asr=True, emotion_gpus=0.3)) == [(1, 4, None), (1, 4, None)]


def test_one_machine_keeps_its_pools():
    """Fails if a laptop's pools are cut when idle and load their models again, or are not as large as asked for."""
    assert counts(sized(1, 8, grows=False, asr=True)) == [(8, 8, 8), (8, 8, 8)]
    pools = sized(1, 2, grows=False, emotion_actors=4)
    assert counts(pools) == [(4, 4, 4)] and pools.pools[0].cpus == pytest.approx(0.3)
    assert pools.pools[0].memory_bytes == 0


def test_memory_bounds_the_actors_of_a_node():
    """Fails if models fill a node's memory, at the start or when a pool grows, or if one of each no longer fits a small node."""
    (heard, recognised) = sized(2, 8, asr=True, node_gb=10.0).pools
    assert heard.start == recognised.start == 4, "two of each on a node: 2.2 GB an actor"
    assert (
        2 * (heard.memory_bytes + recognised.memory_bytes)
        <= 10 * GB
        < 3 * (heard.memory_bytes + recognised.memory_bytes)
    )
    small = sized(2, 8, asr=True, node_gb=3.0).pools
    assert [pool.start for pool in small] == [2, 2] and sum(pool.memory_bytes for pool in small) <= 3 * GB
    assert [pool.memory_bytes for pool in sized(2, 8, gpus=1.0, asr=True).pools] == [0, 0], "models are on the cards"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_cluster_that_is_still_to_come(device):
    """Fails if actors ask for nothing, so that all are put on the head, or for so much that a small node has no room for them."""
    resources = Resources(0.0, 0.0, 8 * GB, 1, 2.0, grows=True)
    config = load_config(None, {"manifest": ["m"], "output": "o", "device": device})
    plan = SimpleNamespace(models=pins(asr_en=GB, fusion_en=GB), needs_asr=True)
    pools = size_pools(config, resources, plan, 10)
    assert counts(pools) == [(1, 1, None), (1, 1, None)]
    assert all(pool.cpus > 0 and pool.gpus == (0.5 if device == "cuda" else 0) for pool in pools.pools)
    assert sum(pool.cpus for pool in pools.pools) + pools.task_cpus <= 2


def test_gpus_that_may_still_come_are_waited_for():
    """Fails if a cluster that scales from zero is refused, or one machine without a GPU is not."""
    config = load_config(None, {"manifest": ["m"], "output": "o", "device": "cuda"})
    machine = Resources(4.0, 0.0, GB, 1, 4.0)
    assert choose_device(config, Resources(4.0, 0.0, GB, 1, 4.0, grows=True)) == "cuda"
    with pytest.raises(ConfigError, match="sees no GPU on this machine"):
        choose_device(config, machine)
