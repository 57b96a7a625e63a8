"""How many actors of each kind a job runs, and what each of them holds; no Ray."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import JobConfig
from pipeline.errors import ConfigError
from pipeline.models import slots
from pipeline.plan import Plan

_POOL_SHARE = 0.6
"""Share of the logical CPUs that the actor pools may hold; the rest is for the CPU tasks that feed and drain them."""
_TASK_SHARE = 0.2
_MODEL_MEMORY_SHARE = 0.6
"""Share of the memory that copies of the models may fill."""
_MODEL_OVERHEAD = 1.3


@dataclass(frozen=True, slots=True)
class Resources:
    """What the cluster has.

    Attributes:
        cpus, gpus, memory_bytes: over all nodes.
        nodes: how many.
        node_cpus: of the smallest node that has any.
    """

    cpus: float
    gpus: float
    memory_bytes: float
    nodes: int
    node_cpus: float


@dataclass(frozen=True, slots=True)
class Pool:
    """The actors of one stage: how many, and what each holds."""

    stage: str
    actors: int
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Pools:
    """How many actors of each kind, and what each holds.

    Attributes:
        num_threads: CPU threads of a model; 0 leaves it to the library.
    """

    device: str
    transcribers: int
    recognisers: int
    actor_cpus: float
    task_cpus: float
    transcriber_gpus: float
    recogniser_gpus: float
    num_threads: int

    def by_stage(self) -> list[Pool]:
        """The pools that have actors, in the order of the stages."""
        pools = [
            Pool("transcribe", self.transcribers, self.actor_cpus, self.transcriber_gpus),
            Pool("recognise", self.recognisers, self.actor_cpus, self.recogniser_gpus),
        ]
        return [pool for pool in pools if pool.actors]


def choose_device(config: JobConfig, resources: Resources) -> str:
    """cuda when asked for or, under auto, when the cluster has a GPU. Raises: ConfigError."""
    # who says how many actors shall be asked for may have an autoscaler that brings their cards
    if config.device == "cuda" and not resources.gpus and config.emotion_actors is None:
        raise ConfigError(
            "--device cuda: Ray sees no GPU here; start the workers with GPUs, use --device cpu or, where an autoscaler "
            "brings them, say with --emotion-actors (and --asr-actors) how many workers to ask for"
        )
    if config.device == "auto":
        return "cuda" if resources.gpus else "cpu"
    return config.device


def size_pools(config: JobConfig, resources: Resources, plan: Plan, num_shards: int) -> Pools:
    """Pool sizes from the cluster and the models; every number can be set by a flag."""
    asr = slots.needs_asr(plan)
    device = choose_device(config, resources)
    cpus = max(1, int(resources.cpus))
    asr_gpus = emotion_gpus = 0.0
    if device == "cuda":
        asr_gpus = (config.asr_gpus or 0.5) if asr else 0.0
        emotion_gpus = config.emotion_gpus or (0.5 if asr else 1.0)
        fitting = int(resources.gpus / (asr_gpus + emotion_gpus))
    else:
        fitting = cpus // 2 if asr else cpus
        copies = _MODEL_OVERHEAD * sum(model["bytes"] for model in plan.models.values())
        fitting = min(fitting, int(_MODEL_MEMORY_SHARE * resources.memory_bytes / max(copies, 1.0)))
    default = max(1, min(fitting, num_shards))
    transcribers = (config.asr_actors or default) if asr else 0
    recognisers = config.emotion_actors or default
    actors = transcribers + recognisers
    return Pools(
        device=device,
        transcribers=transcribers,
        recognisers=recognisers,
        # where there are no CPUs yet, an autoscaler is to bring them: a whole one each
        actor_cpus=min(1.0, _POOL_SHARE * resources.cpus / actors) or 1.0,
        # of a node, since a task must fit beside the actors there; all of them together leave Ray Data room to choose: at
        # exactly as much as there is, it starts the tasks that come first and lets finished shards wait
        task_cpus=min(1.0, _TASK_SHARE * resources.node_cpus),
        transcriber_gpus=asr_gpus,
        recogniser_gpus=emotion_gpus,
        # from the machine alone: another number of threads could change the last bits of a resumed run's scores
        num_threads=max(1, cpus // (fitting * (2 if asr else 1) or 1)) if device == "cpu" else 0,
    )
