"""The context that all steps of a shard share: the output, the plan and the audio roots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.audio.limits import AudioLimits
from pipeline.dataset.plan import Plan
from pipeline.storage.access import AudioRoots
from pipeline.storage.store import Store, open_store


@dataclass(frozen=True, slots=True)
class Work:
    """The context of every step, small enough to send to every process."""

    output: str
    plan: Plan
    roots: AudioRoots

    @property
    def store(self) -> Store:
        """Return the store of the output."""
        return open_store(self.output)

    @property
    def limits(self) -> AudioLimits:
        """Return the bounds on one recording."""
        settings = self.plan.settings
        return AudioLimits(max_bytes=settings.max_bytes, max_duration_s=settings.max_duration_s)

    @property
    def channels(self) -> str:
        """Return the use of the channels of rows without one: `mix`, `split` or `auto`."""
        return self.plan.settings.channels

    @property
    def mode(self) -> str:
        """Return the mode of the settings: `text`, `audio` or a fusion mode."""
        return self.plan.settings.mode


def audio_roots(plan: Plan, now: Sequence[str]) -> AudioRoots:
    """Return the locations below which a plan's audio may be opened.

    Args:
        now: `--audio-root` of this run, for plans that recorded none.
    """
    return AudioRoots.parse(now if plan.audio_roots is None else plan.audio_roots, plan.manifests)
