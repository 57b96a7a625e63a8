"""The manifests of a job: read by the driver, or by tasks of a cluster if they are large (reading_tasks.py).

Ray is imported only for the latter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TextIO

from fsspec.implementations.local import LocalFileSystem

from pipeline.engine import late
from pipeline.engine.pools import Resources
from pipeline.errors import ConfigError
from pipeline.manifest.checked import Check
from pipeline.manifest.staging import Staging
from pipeline.storage.filesystem import resolve
from pipeline.storage.objects import object_info
from pipeline.storage.read_ahead import read_ahead

LARGE_BYTES = 128 << 20
"""Total size of manifests that tasks read: one process takes about 20 s, as long as a start of Ray on a busy machine."""


class WholeNeededError(Exception):
    """A manifest whose spans cannot be read apart.

    Attributes:
        uri: the manifest.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.uri = uri


@dataclass
class Reading:
    """The manifests of a job, with their sizes in bytes.

    Attributes:
        by_tasks: whether tasks read them.
        whole: manifests that are not divided, because their chunks depend on earlier lines.
    """

    manifests: Sequence[str]
    sizes: Sequence[int] = ()
    by_tasks: bool = False
    whole: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, manifests: Sequence[str]) -> Reading:
        """Look at the sizes of the manifests; 0 for those without one."""
        return cls(manifests, [size() for size in read_ahead(_size, manifests)])

    @property
    def is_large(self) -> bool:
        """Return whether tasks should read the manifests; files of the driver's machine only where all tasks run there."""
        if sum(self.sizes) < LARGE_BYTES:
            return False
        return not os.environ.get("RAY_ADDRESS") or not any(
            isinstance(resolve(uri)[0], LocalFileSystem) for uri in self.manifests
        )

    def start(
        self, stack: ExitStack, cluster: Callable[[TextIO], AbstractContextManager[Resources]], out: TextIO
    ) -> Resources | None:
        """Enter a cluster that reads the manifests, if they are large; it is left with `stack`."""
        if not self.is_large:
            return None
        print(f"starting Ray to read manifests of {sum(self.sizes) / 1e9:.1f} GB", file=out)
        resources = stack.enter_context(cluster(out))
        self.by_tasks = late.tasks_start()
        return resources

    def stage(self, new_staging: Callable[[], Staging], check: Check, *, audio_optional: bool) -> Staging:
        """Read the manifests into a new staging.

        Raises: the exceptions of `Staging.read`; JobError when a task fails for another reason.
        """
        while True:
            staging = new_staging()
            if not self.by_tasks:
                staging.read(self.manifests, check, audio_optional=audio_optional)
                return staging
            try:
                late.stage_by_tasks(staging, self, check, audio_optional=audio_optional)
                return staging
            except WholeNeededError as irregular:
                self.whole.add(irregular.uri)


def _size(uri: str) -> int:
    try:
        filesystem, path = resolve(uri)
        return int(object_info(filesystem, path).get("size") or 0)
    except (OSError, ConfigError, TypeError, ValueError):
        return 0  # the reader finds the reason
