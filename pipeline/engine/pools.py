"""Sizes of the actor pools, and the resources of each actor. Imports no Ray.

On one machine pools have a fixed size. On a cluster a pool starts with the actors that fit on the present nodes, at least
one, and follows nodes that join and leave. Beside other jobs (sharing.py) it has an equal share of them, beyond which it does
not grow. An actor holds a share of one node, so that new nodes are filled like the first ones. docs/sizing.md has the rules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.config import JobConfig
from pipeline.dataset.packing import ShardSize
from pipeline.dataset.plan import Plan
from pipeline.errors import ConfigError
from pipeline.pins import Task

_CPU_SHARD = ShardSize(rows=64, audio_s=600.0)
_GPU_SHARD = ShardSize(rows=1024, audio_s=3600.0)
_SMALLEST_SHARD_ROWS = 8
_SHARDS_PER_WORKER = 4
POOL_SHARE = 0.6
"""Share of the logical CPUs that the actor pools may hold; the rest is for the CPU tasks before and after them."""
_TASK_SHARE = 0.2
_TASK_STAGES = 2
"""Number of stages that are tasks: one before the pools, one after them."""
_MEMORY_OF_MODEL = 1.3 / 0.6
"""Bytes of memory per byte of a model: the copy, working memory, and a share for tasks and the system."""


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of a cluster.

    Attributes:
        cpus: total over all nodes, as are `gpus` and `memory_bytes`.
        nodes: number of nodes.
        node_cpus: CPUs of the smallest node that has any; 2 while there is none.
        node_memory_bytes: memory of the smallest node that has CPUs; 0 while there is none.
        cpus_per_gpu: CPUs per GPU, on the node with the fewest; 2 while there is no GPU.
        grows: whether nodes may join and leave: a cluster that the job did not start.
        jobs: number of jobs that share it equally, this one included.
    """

    cpus: float
    gpus: float
    memory_bytes: float
    nodes: int
    node_cpus: float
    node_memory_bytes: float = 0.0
    cpus_per_gpu: float = 2.0
    grows: bool = False
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class Pool:
    """The actors of one stage.

    Attributes:
        least: minimum number of actors.
        start: initial number of actors.
        most: maximum number of actors; None when only the cluster limits it.
        cpus: logical resources of one actor on its node, as are `gpus` and `memory_bytes`.
        model_bytes: size of the models that one actor loads.
    """

    stage: str
    least: int
    start: int
    most: int | None
    cpus: float
    gpus: float
    memory_bytes: int
    model_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Pools:
    """The actor pools of a job.

    Attributes:
        pools: the pools in the order of the stages.
        task_cpus: CPUs of a task that prepares or commits a shard.
        num_threads: CPU threads of a model; 0 for the library's default.
    """

    device: str
    pools: tuple[Pool, ...]
    task_cpus: float
    num_threads: int

    def reserved_share(self, *, spread: bool) -> float:
        """Return the share of a cluster that Ray Data reserves for the stages in equal parts.

        It is chosen so that the pools grow up to `POOL_SHARE`.

        Args:
            spread: whether the shards come from a stage of their own, which needs no CPU, but counts as one (source.py).
        """
        return (1 - POOL_SHARE) * (len(self.pools) + _TASK_STAGES + spread) / _TASK_STAGES


def choose_device(config: JobConfig, resources: Resources) -> str:
    """Return the device: as configured, or for auto cuda when the cluster has a GPU, else cpu.

    Raises: ConfigError for cuda on a machine without a GPU.
    """
    if config.device == "cuda" and not resources.gpus and not resources.grows:
        raise ConfigError(
            "--device cuda: Ray sees no GPU on this machine; use --device cpu, or a cluster through RAY_ADDRESS"
        )
    if config.device == "auto":
        return "cuda" if resources.gpus else "cpu"
    return config.device


def size_pools(config: JobConfig, resources: Resources, plan: Plan, num_shards: int) -> Pools:
    """Compute the pool sizes from the cluster's resources and the sizes of the models."""
    stages = ["transcribe", "recognise"] if plan.needs_asr else ["recognise"]
    device = choose_device(config, resources)
    gpus, memory, models = dict.fromkeys(stages, 0.0), dict.fromkeys(stages, 0.0), _model_bytes(plan, stages)
    # a place is a GPU or a node; copies is the number of actors of each stage on one place
    if device == "cuda":
        gpus |= {"recognise": config.emotion_gpus or 1 / len(stages)}
        gpus |= {"transcribe": config.asr_gpus or 0.5} if len(stages) > 1 else {}
        share = sum(gpus.values())
        copies = int(1 / share) if share <= 1 else 1 / share  # an actor cannot use the remainders of two GPUs
        places, place_cpus = int(resources.gpus), resources.cpus_per_gpu
    else:
        memory = {stage: _MEMORY_OF_MODEL * size for stage, size in models.items()}
        node_memory = resources.node_memory_bytes or resources.memory_bytes
        # as many actors of each stage as cores: the load of each depends on models and texts, and the operating system
        # schedules them
        copies = max(1, min(int(resources.node_cpus), int(node_memory / max(1.0, sum(memory.values())))))
        places, place_cpus = int(resources.cpus / resources.node_cpus), resources.node_cpus
    fitting = max(1, min(int(places * copies / resources.jobs), num_shards))
    configured = {"transcribe": config.asr_actors, "recognise": config.emotion_actors}
    start = {stage: min(configured[stage] or fitting, fitting) for stage in stages}
    cpus = min(1.0, POOL_SHARE * place_cpus / (copies * len(stages)))
    if not resources.grows:  # as many as configured, however few CPUs each gets
        start = {stage: configured[stage] or fitting for stage in stages}
        cpus = min(cpus, POOL_SHARE * resources.cpus / sum(start.values()))
    alone = resources.grows and resources.jobs == 1
    # one actor of each stage must fit on a node together, however large the models
    room = min(1.0, (resources.node_memory_bytes or math.inf) / max(1.0, sum(memory.values())))
    return Pools(
        device=device,
        pools=tuple(
            Pool(
                stage,
                least=1 if resources.grows else start[stage],
                start=start[stage],
                most=configured[stage] if alone else start[stage],
                cpus=cpus,
                gpus=gpus[stage],
                memory_bytes=int(room * memory[stage]) if resources.grows else 0,
                model_bytes=models[stage],
            )
            for stage in stages
        ),
        # relative to a node, since a task must fit beside the actors there. The sum stays below the available CPUs: if all
        # were taken, Ray Data would start the first tasks and let finished shards wait
        task_cpus=min(1.0, _TASK_SHARE * resources.node_cpus),
        # depends only on the machine: another number of threads could change the last bits of a resumed run's scores
        num_threads=max(1, int(resources.node_cpus / (copies * len(stages)))) if device == "cpu" else 0,
    )


def _model_bytes(plan: Plan, stages: list[str]) -> dict[str, int]:
    """Return the size of the models that an actor of each stage loads."""
    sizes = dict.fromkeys(stages, 0)
    for role, model in plan.models.items():
        sizes["transcribe" if role.task is Task.ASR else "recognise"] += model.size_bytes
    return sizes


def shard_size(config: JobConfig, rows: int, device: str, resources: Resources) -> ShardSize:
    """Return the usual shard size, or a smaller one when a small corpus would leave workers idle."""
    usual, workers = (_GPU_SHARD, resources.gpus) if device == "cuda" else (_CPU_SHARD, resources.cpus)
    spread = max(_SMALLEST_SHARD_ROWS, math.ceil(rows / (_SHARDS_PER_WORKER * max(workers, 1.0))))
    return ShardSize(config.shard_rows or min(usual.rows, spread), config.shard_audio_s or usual.audio_s)
