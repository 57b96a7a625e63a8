"""How many actors of each kind a job runs, and what each of them holds; no Ray.

On one machine pools are of fixed size. On a cluster a pool starts with what fits on the nodes that are there, one actor at
least, and follows nodes that join and leave: what an actor holds is a share of one node, so that a node that joins is filled
as the first ones were. docs/sizing.md has the rules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.config import JobConfig
from pipeline.dataset.plan import Plan, ShardSize
from pipeline.errors import ConfigError
from pipeline.pins import Task

_CPU_SHARD = ShardSize(rows=64, audio_s=600.0)
_GPU_SHARD = ShardSize(rows=1024, audio_s=3600.0)
_SMALLEST_SHARD_ROWS = 8
_SHARDS_PER_WORKER = 4
_POOL_SHARE = 0.6
"""Share of the logical CPUs that the actor pools may hold; the rest is for the CPU tasks that feed and drain them."""
_TASK_SHARE = 0.2
_TASK_STAGES = 2
"""Stages that are tasks: one before the pools, one after them."""
_MEMORY_OF_MODEL = 1.3 / 0.6
"""Bytes of memory for one of a model: the copy, room to work in, and a part of what tasks and the system need."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What the cluster has.

    Attributes:
        cpus, gpus, memory_bytes: over all nodes.
        nodes: how many.
        node_cpus, node_memory_bytes: of the smallest node that has CPUs; 2 and 0 where there are none yet.
        cpus_per_gpu: CPUs beside each GPU, on the node that has fewest; 2 where there are none yet.
        grows: whether nodes may join and leave: a cluster that is not the job's own.
    """

    cpus: float
    gpus: float
    memory_bytes: float
    nodes: int
    node_cpus: float
    node_memory_bytes: float = 0.0
    cpus_per_gpu: float = 2.0
    grows: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """The actors of one stage.

    Attributes:
        least, start, most: actors; `most` is None where only the cluster bounds them.
        cpus, gpus, memory_bytes: what each holds of a node, by Ray's account.
        model_bytes: size of the models that each loads.
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
    """How many actors of each kind, and what each holds.

    Attributes:
        pools: in the order of the stages.
        task_cpus: CPUs of a task that prepares or commits a shard.
        num_threads: CPU threads of a model; 0 leaves it to the library.
    """

    device: str
    pools: tuple[Pool, ...]
    task_cpus: float
    num_threads: int

    @property
    def reserved_share(self) -> float:
        """Share of a cluster that Ray Data keeps for the stages in equal parts: so much that pools end at `_POOL_SHARE`."""
        return (1 - _POOL_SHARE) * (len(self.pools) + _TASK_STAGES) / _TASK_STAGES


def choose_device(config: JobConfig, resources: Resources) -> str:
    """cuda when asked for or, under auto, when the cluster has a GPU. Raises: ConfigError."""
    if config.device == "cuda" and not resources.gpus and not resources.grows:
        raise ConfigError(
            "--device cuda: Ray sees no GPU on this machine; use --device cpu, or a cluster through RAY_ADDRESS"
        )
    if config.device == "auto":
        return "cuda" if resources.gpus else "cpu"
    return config.device


def size_pools(config: JobConfig, resources: Resources, plan: Plan, num_shards: int) -> Pools:
    """Pool sizes from the cluster and the models."""
    stages = ["transcribe", "recognise"] if plan.needs_asr else ["recognise"]
    device = choose_device(config, resources)
    gpus, memory, models = dict.fromkeys(stages, 0.0), dict.fromkeys(stages, 0.0), _model_bytes(plan, stages)
    # a place is a card or a node; copies, of each kind there
    if device == "cuda":
        gpus |= {"recognise": config.emotion_gpus or 1 / len(stages)}
        gpus |= {"transcribe": config.asr_gpus or 0.5} if len(stages) > 1 else {}
        share = sum(gpus.values())
        copies = int(1 / share) if share <= 1 else 1 / share  # what is left of two cards is no place for an actor
        places, place_cpus = int(resources.gpus), resources.cpus_per_gpu
    else:
        memory = {stage: _MEMORY_OF_MODEL * size for stage, size in models.items()}
        node_memory = resources.node_memory_bytes or resources.memory_bytes
        # so many of each kind as there are cores: which kind has more to do is the models' and the texts' affair, and the
        # system shares the cores out
        copies = max(1, min(int(resources.node_cpus), int(node_memory / max(1.0, sum(memory.values())))))
        places, place_cpus = int(resources.cpus / resources.node_cpus), resources.node_cpus
    fitting = max(1, min(int(places * copies), num_shards))
    asked = {"transcribe": config.asr_actors, "recognise": config.emotion_actors}
    start = {stage: min(asked[stage] or fitting, fitting) for stage in stages}
    cpus = min(1.0, _POOL_SHARE * place_cpus / (copies * len(stages)))
    if not resources.grows:  # so many as are asked for, however little is left for each
        start = {stage: asked[stage] or fitting for stage in stages}
        cpus = min(cpus, _POOL_SHARE * resources.cpus / sum(start.values()))
    # one of each must fit on a node, however large the models
    room = min(1.0, (resources.node_memory_bytes or math.inf) / max(1.0, sum(memory.values())))
    return Pools(
        device=device,
        pools=tuple(
            Pool(
                stage,
                least=1 if resources.grows else start[stage],
                start=start[stage],
                most=asked[stage] if resources.grows else start[stage],
                cpus=cpus,
                gpus=gpus[stage],
                memory_bytes=int(room * memory[stage]) if resources.grows else 0,
                model_bytes=models[stage],
            )
            for stage in stages
        ),
        # of a node, since a task must fit beside the actors there; all of them together leave Ray Data room to choose: at
        # exactly as much as there is, it starts the tasks that come first and lets finished shards wait
        task_cpus=min(1.0, _TASK_SHARE * resources.node_cpus),
        # from the machine alone: another number of threads could change the last bits of a resumed run's scores
        num_threads=max(1, int(resources.node_cpus / (copies * len(stages)))) if device == "cpu" else 0,
    )


def _model_bytes(plan: Plan, stages: list[str]) -> dict[str, int]:
    """Size of the models that an actor of each stage loads."""
    sizes = dict.fromkeys(stages, 0)
    for role, model in plan.models.items():
        sizes["transcribe" if role.task is Task.ASR else "recognise"] += model.size_bytes
    return sizes


def shard_size(config: JobConfig, rows: int, device: str, resources: Resources) -> ShardSize:
    """Usual shards, or smaller ones when a small corpus would leave workers idle."""
    usual, workers = (_GPU_SHARD, resources.gpus) if device == "cuda" else (_CPU_SHARD, resources.cpus)
    spread = max(_SMALLEST_SHARD_ROWS, math.ceil(rows / (_SHARDS_PER_WORKER * max(workers, 1.0))))
    return ShardSize(config.shard_rows or min(usual.rows, spread), config.shard_audio_s or usual.audio_s)
