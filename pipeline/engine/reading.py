"""Reading of large manifests by tasks of a cluster: the chunks, and so the plan, are those of one reader.

A task reads a file, or a span of a large JSON Lines file. The driver stores the chunks in their order, and holds few of them.
Ray is imported only for large manifests (late.py).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TextIO

from fsspec.implementations.local import LocalFileSystem

from pipeline.engine.pools import Resources
from pipeline.errors import ConfigError, JobError
from pipeline.manifest.checked import Check, CheckedChunk, checked
from pipeline.manifest.read import Seen, read_manifest
from pipeline.manifest.spans import Columns, IrregularError, Joined, Span, count_lines, is_divisible, read_span, spans
from pipeline.manifest.staging import Staging
from pipeline.manifest.store import unchanged
from pipeline.redaction import redacted, without_query
from pipeline.storage.filesystem import resolve
from pipeline.storage.objects import object_info
from pipeline.storage.read_ahead import read_ahead

LARGE_BYTES = 128 << 20
"""Total size of manifests that tasks read: one process takes about 20 s, as long as a start of Ray on a busy machine."""
RANGE_BYTES = 32 << 20
"""Bytes of a JSON Lines file for one task: ten chunks of usual rows."""
_TASKS_PER_CPU = 2
"""Tasks that run or have results waiting. The next to be stored may not be the first to end."""
_CHUNKS_AHEAD = 16
"""Chunks that a task may have waiting; it then pauses until its turn."""
_START_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A manifest, by its number and URI, or a span of it."""

    manifest: int
    uri: str
    span: Span | None = None


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
        embedded = not os.environ.get("RAY_ADDRESS")
        return embedded or not any(isinstance(resolve(uri)[0], LocalFileSystem) for uri in self.manifests)

    def start(
        self, stack: ExitStack, cluster: Callable[[TextIO], AbstractContextManager[Resources]], out: TextIO
    ) -> Resources | None:
        """Enter a cluster that reads the manifests, if they are large; it is left with `stack`."""
        if not self.is_large:
            return None
        print(f"starting Ray to read manifests of {sum(self.sizes) / 1e9:.1f} GB", file=out)
        resources = stack.enter_context(cluster(out))
        self.by_tasks = _tasks_start()
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
                with ExitStack() as stack:
                    pieces = list(self._pieces(stack))
                    self._store(staging, pieces, check, audio_optional=audio_optional)
                return staging
            except _WholeNeeded as irregular:
                self.whole.add(irregular.uri)

    def _pieces(self, stack: ExitStack) -> Iterator[Piece]:
        """Yield the pieces in order; divided manifests must not change while `stack` is open."""
        import ray

        count, counting = ray.remote(count_lines), dict[str, tuple[list[int], list[Any]]]()
        for uri, size in zip(self.manifests, self.sizes, strict=True):
            if size <= RANGE_BYTES or uri in self.whole or uri in counting or not is_divisible(uri):
                continue
            filesystem, path = resolve(uri)
            stack.enter_context(unchanged(filesystem, path, without_query(uri)))
            starts = list(range(0, size, RANGE_BYTES))
            counting[uri] = starts, [count.remote(uri, start, start + RANGE_BYTES) for start in starts]
        for number, uri in enumerate(self.manifests):
            if uri not in counting:
                yield Piece(number, uri)
                continue
            starts, refs = counting[uri]
            yield from (Piece(number, uri, span) for span in spans(starts, list(map(_result, refs))))

    def _store(self, staging: Staging, pieces: Sequence[Piece], check: Check, *, audio_optional: bool) -> None:
        """Store the chunks of all pieces in order, while tasks read the next ones."""
        import ray
        import ray.exceptions

        task = ray.remote(_read).options(num_returns="streaming", _generator_backpressure_num_objects=_CHUNKS_AHEAD)
        check_ref, left = ray.put(check), iter(pieces)
        most = _TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
        running = deque[tuple[Piece, Any]]()
        joined: tuple[int, Joined] | None = None
        try:
            while True:
                for piece in islice(left, most - len(running)):
                    running.append((piece, task.remote(piece, check_ref, audio_optional)))
                if not running:
                    break
                piece, chunks = running[0]
                if joined is not None and joined[0] != piece.manifest:
                    joined[1].seen.verify()
                    joined = None
                if joined is None and piece.span is not None:
                    joined = piece.manifest, Joined(Seen(without_query(piece.uri), audio_optional))
                try:
                    for ref in chunks:
                        chunk, columns = _result(ref)
                        if joined is not None:
                            joined[1].add(columns)
                        staging.add(piece.manifest, chunk)
                except IrregularError:
                    raise _WholeNeeded(piece.uri) from None
                running.popleft()
            if joined is not None:
                joined[1].seen.verify()
        finally:
            for _, chunks in running:
                with suppress(ray.exceptions.RayError):
                    ray.cancel(chunks)


class _WholeNeeded(Exception):
    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.uri = uri


def _size(uri: str) -> int:
    try:
        filesystem, path = resolve(uri)
        return int(object_info(filesystem, path).get("size") or 0)
    except (OSError, ConfigError, TypeError, ValueError):
        return 0  # the reader finds the reason


def _read(piece: Piece, check: Check, audio_optional: bool) -> Iterator[tuple[CheckedChunk, Columns | None]]:
    """Yield the chunks of a piece; those of a span with the columns that the driver checks."""
    if piece.span is None:
        for chunk in read_manifest(piece.uri, audio_optional=audio_optional):
            yield checked(chunk, check), None
        return
    for chunk, columns in read_span(piece.uri, piece.span, audio_optional=audio_optional):
        yield checked(chunk, check), columns


def _tasks_start() -> bool:
    """Return whether the cluster starts a task within `_START_WITHIN_S`; one without workers, or a full one, does not."""
    import ray

    task = ray.remote(_nothing).remote()
    ready, _ = ray.wait([task], timeout=_START_WITHIN_S)
    if not ready:
        ray.cancel(task)
    return bool(ready)


def _nothing() -> None:
    """Do nothing."""


def _result(ref: Any) -> Any:  # noqa: ANN401 - Ray's references are untyped
    """Return the result of a task. Raises: its own error if it is one of ours; JobError."""
    import ray
    import ray.exceptions

    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, (ConfigError, JobError, IrregularError)):
            raise cause from None
        lines = str(error).strip().splitlines()
        raise JobError(
            f"a task that reads a manifest failed: {redacted(lines[-1]) if lines else type(error).__name__}"
        ) from error
