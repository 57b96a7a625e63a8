"""Staging of manifests on the driver's disk in one streaming pass, with detection of duplicates.

Costs four bytes of the driver's memory per row and 16 per reject; on disk one copy of the manifest, and 24 bytes for
each id and each id of an earlier plan. Since a manifest is read only once, changes to it cannot cause contradictions.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import Reason, Reject, Stage
from pipeline.manifest.checked import Check, CheckedChunk, PackedRows, checked, packed, stored
from pipeline.manifest.choice import Choice
from pipeline.manifest.columns import json_of
from pipeline.manifest.fit import Misfit, fit
from pipeline.manifest.hash_buckets import HashBuckets, Keys, as_keys, key_of, repeated
from pipeline.manifest.policy import Causes, Evaluator, Policy, counted
from pipeline.manifest.python_values import plain_row
from pipeline.manifest.read import read_manifest, unify
from pipeline.manifest.records import RAW_CHARACTERS
from pipeline.manifest.rejects import (
    extra_schema,
    joined_keys,
    refused_table,
    reject_keys,
    reject_schema,
    without_secrets,
    without_words,
)
from pipeline.schema import ROW_SCHEMA

Mask = NDArray[np.bool_]


@dataclass
class Staging:
    """Content of the manifests: accepted rows and rejects in chunk files below `folder`.

    Attributes:
        rows: number of accepted rows, including duplicates until `select`.
        inferred: pass-through columns of the manifests, with the types merged by `unify`.
        extra: pass-through columns of the plan; set it to the result of `settle_types` for `inferred` before `select`.
        choice: lines that may be selected; None for all. Every line is read and counts in the search for duplicates and
            in the types of columns, so the choice does not change what becomes of a line.
        policy: conditions that exclude rows. Excluded rows count in the same way.
        words: whether rejects have the texts and raw lines of their rows.
    """

    folder: Path
    choice: Choice | None = None
    policy: Policy = field(default_factory=Policy)
    words: bool = True
    inferred: pa.Schema = field(default_factory=lambda: pa.schema([]))
    extra: pa.Schema = field(default_factory=lambda: pa.schema([]))
    rows: int = 0
    chunks: list[Path] = field(default_factory=list)
    reject_chunks: list[Path] = field(default_factory=list)
    _refused_chunks: set[Path] = field(default_factory=set)  # of reject_chunks: rows that could be read
    _reject_keys: bytearray = field(default_factory=bytearray)
    _reject_ids: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(dir=self.folder))
        self._ids, self._refused_ids = HashBuckets(own / "ids"), HashBuckets(own / "refused")

    def read(self, manifests: Sequence[str], check: Check, *, audio_optional: bool = False) -> None:
        """Stream the manifests to disk."""
        for number, manifest in enumerate(manifests):
            for chunk in read_manifest(manifest, audio_optional=audio_optional):
                self.add(number, checked(chunk, check))

    def add(self, manifest: int, chunk: CheckedChunk) -> None:
        """Write the next chunk to disk, of the manifest of this number; the chunks must come in their order."""
        self._find(chunk.schema)  # includes refused rows, since their rejects have these columns
        self._refused_ids.add(chunk.refused_keys)
        self._add_packed(chunk.rows, manifest)
        self._add_rejects(chunk.refused, manifest=manifest, readable=True)
        self._add_rejects(chunk.unread, manifest=manifest, readable=False)

    def _find(self, schema: pa.Schema) -> None:
        self.inferred = self.extra = unify([self.inferred, extra_schema(schema)])

    def add_rows(self, rows: pa.Table) -> None:
        """Write accepted rows to disk."""
        self._find(rows.schema)
        self._add_packed(PackedRows.of(rows), manifest=0)

    def _add_packed(self, rows: PackedRows, manifest: int) -> None:
        if not rows.num_rows:
            return
        self._ids.add(rows.keys)
        if self.choice is not None:
            named = rows.columns("recording_id", "line")
            ids, lines = named["recording_id"].to_pylist(), named["line"].to_pylist()
            self.choice.add(manifest, ids, lines, first=self.rows, rejected=False)
        self.rows += rows.num_rows
        self.chunks.append(stored(rows.content, self.folder / f"rows-{len(self.chunks):06d}.parquet"))

    def _add_rejects(self, rejects: pa.Table, *, manifest: int, readable: bool) -> None:
        if not rejects.num_rows:
            return
        if self.choice is not None:
            lines = rejects["line"].to_pylist()
            given = zip(rejects["recording_id"].to_pylist(), lines, strict=True)
            # a line that cannot be read has no id
            ids = [f"{manifest}:{line}" if name is None else name for name, line in given]
            self.choice.add(manifest, ids, lines, first=self._reject_count(), rejected=True)
        self._reject_keys += joined_keys(self._written(rejects))
        self._reject_ids += b"".join(key_of(name or "") for name in rejects["recording_id"].to_pylist())
        self.reject_chunks.append(
            stored(packed(rejects), self.folder / f"rejects-{len(self.reject_chunks):06d}.parquet")
        )
        if readable:
            self._refused_chunks.add(self.reject_chunks[-1])

    def _written(self, rejects: pa.Table) -> pa.Table:
        """Return rejects as a plan has them."""
        return rejects if self.words else without_words(rejects)

    def _reject_count(self) -> int:
        return len(as_keys(self._reject_keys))

    def select(
        self,
        held_ids: Iterable[Keys],
        held_rejects: Keys,
        retriable: Keys | None = None,
        erased: Callable[[Keys], Mask] | None = None,
    ) -> Selection:
        """Select the new rows, of those that `choice` and `policy` allow.

        Left out are rows of earlier plans, rows with a value that their column's type cannot hold, and rows of one id
        with different contents. Of equal rows, one is selected.

        Args:
            held_ids: keys of the ids in earlier plans, in batches.
            held_rejects: keys of rejects in earlier plans, see `reject_keys`.
            retriable: keys of ids in earlier plans whose rows are selected nevertheless.
            erased: returns a mask of the keys, of ids or rejects, that were erased.
        Raises: ConfigError for a policy that cannot be evaluated.
        """
        causes, reject_causes = self._causes()
        misfit = self._misfit_rows()
        new, retried, gone, doubtful, beside_refused = self._compared(held_ids, retriable, erased, misfit)
        chosen = np.ones(self.rows, dtype=bool) if self.choice is None else self.choice.mask(self.rows, rejected=False)
        earlier = chosen & ~new & ~gone
        misfit &= new
        new &= ~misfit
        clashing = self._settle(doubtful & new, new)
        # another row with this id was refused: whatever the order, neither may represent the id
        beside_refused &= new
        clashing |= beside_refused
        new &= ~beside_refused
        new_rejects, gone_rejects = self._new_rejects(held_rejects, erased)
        if self.choice is not None:
            # the first row represents equal ones, and a choice takes the lines of an id in order
            new, clashing, misfit = new & chosen, clashing & chosen, misfit & chosen
            new_rejects &= self.choice.mask(len(new_rejects), rejected=True)
        found = np.concatenate([causes[new | clashing | misfit], reject_causes[new_rejects]])
        kept = causes == 0
        return Selection(
            self,
            new & kept,
            clashing & kept,
            misfit & kept,
            int(earlier.sum()),
            new_rejects & (reject_causes == 0),
            held_rejects,
            excluded=counted(found),
            held_excluded=int((earlier & ~kept).sum()),
            retried=retried,
            erased=int((chosen & gone).sum() + gone_rejects.sum()),
        )

    def _compared(
        self, held_ids: Iterable[Keys], retriable: Keys | None, erased: Callable[[Keys], Mask] | None, misfit: Mask
    ) -> tuple[Mask, Mask, Mask, Mask, Mask]:
        """Return masks of rows whose id is new, retriable, erased, on several rows, or on a refused row too."""
        new = np.ones(self.rows, dtype=bool)
        retried, gone, doubtful, beside_refused = (np.zeros(self.rows, dtype=bool) for _ in range(4))
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            theirs = HashBuckets(Path(folder) / "held")
            for some in held_ids:
                theirs.add(some)
            buckets = zip(self._ids.buckets(), theirs.buckets(), self._refused_ids.buckets(), strict=True)
            for (keys, positions), (held, _), (refused, _) in buckets:
                if retriable is not None and len(retriable):
                    retried[positions] = np.isin(keys, retriable)
                gone[positions] = erased(keys) if erased is not None else False
                new[positions] = (~np.isin(keys, held) | retried[positions]) & ~gone[positions]
                beside_refused[positions] = np.isin(keys, refused) | np.isin(keys, keys[misfit[positions]])
                doubtful[positions] = repeated(keys)
        return new, retried, gone, doubtful, beside_refused

    def _new_rejects(self, held: Keys, erased: Callable[[Keys], Mask] | None) -> tuple[Mask, Mask]:
        """Return masks of the rejects that no plan has and that were not erased, and of those that were."""
        keys = as_keys(self._reject_keys)
        gone = np.zeros(len(keys), dtype=bool)
        if erased is not None:
            gone |= erased(keys) | erased(as_keys(self._reject_ids))
        return ~np.isin(keys, held) & ~gone, gone

    def _causes(self) -> tuple[Causes, Causes]:
        """Return the cause for which `policy` excludes each row and each reject; none without a policy."""
        causes = np.zeros(self.rows, dtype=np.int8)
        reject_causes = np.zeros(self._reject_count(), dtype=np.int8)
        if self.policy:
            with self.policy.evaluator() as evaluator:
                for start, table, _ in self._tables():
                    causes[start : start + table.num_rows] = evaluator.causes(table)
                self._refused_causes(evaluator, reject_causes)
        return causes, reject_causes

    def _refused_causes(self, evaluator: Evaluator, causes: Causes) -> None:
        """Set the causes of rejects that are rows; a line that cannot be read has no columns to evaluate."""
        start, schema = 0, reject_schema(self.extra)
        for path in self.reject_chunks:
            table = _read(path)
            if path in self._refused_chunks:
                causes[start : start + table.num_rows] = evaluator.causes(fit(table, schema)[0])
            start += table.num_rows

    def _misfit_rows(self) -> Mask:
        """Return a mask of the rows with a value that the settled type of its column cannot hold."""
        mask = np.zeros(self.rows, dtype=bool)
        if self.extra.equals(self.inferred):
            return mask  # the types come from the values themselves
        for start, _, misfits in self._tables():
            mask[[start + row for row in misfits]] = True
        return mask

    def _settle(self, doubtful: Mask, new: Mask) -> Mask:
        """Drop equal rows of repeated ids from `new`, and return the mask of rows whose contents differ."""
        clashing = np.zeros(self.rows, dtype=bool)
        if not doubtful.any():
            return clashing
        positions_of: dict[bytes, list[int]] = defaultdict(list)
        contents: dict[bytes, bytes] = {}
        for start, table, _ in self._tables():
            for position in np.flatnonzero(doubtful[start : start + table.num_rows]).tolist():
                row = plain_row(table, position)
                key, content = key_of(str(row["recording_id"])), _content_key(row)
                positions_of[key].append(start + position)
                if content != contents.setdefault(key, content):
                    clashing[start + position] = True
        for positions in positions_of.values():
            clashing[positions] = clashing[positions].any()
            new[positions[1:]] = False
        new &= ~clashing
        return clashing

    def _tables(self) -> Iterator[tuple[int, pa.Table, dict[int, list[Misfit]]]]:
        """Yield the chunks with one schema: position of the first row, rows, and misfits by row."""
        start = 0
        schema = pa.schema([*ROW_SCHEMA, *self.extra])
        for path in self.chunks:
            table, misfits = fit(_read(path), schema)
            yield start, table, misfits
            start += table.num_rows


@dataclass
class Selection:
    """Rows and rejects of a staging selected for a new plan.

    Attributes:
        held: number of rows in earlier plans.
        excluded: number of excluded rows by option; rows of earlier plans are not counted.
        held_excluded: number of rows in earlier plans that the policy would exclude.
        erased: number of rows and rejects that were erased from the output.
        retried: mask of rows that earlier plans rejected and that may be taken over.
    """

    staging: Staging
    new: Mask
    clashing: Mask
    misfit: Mask
    held: int
    new_rejects: Mask
    held_rejects: Keys
    excluded: Mapping[str, int] = field(default_factory=dict)
    held_excluded: int = 0
    retried: Mask | None = None
    erased: int = 0

    def __bool__(self) -> bool:
        """Return whether there are rows or rejects to plan."""
        return bool(self.new.any()) or any(True for _ in self.rejects())

    @property
    def rows(self) -> int:
        """Number of new rows."""
        return int(self.new.sum())

    @property
    def retried_rows(self) -> int:
        """Number of new rows that earlier plans rejected."""
        return 0 if self.retried is None else int((self.new & self.retried).sum())

    def split(self) -> Iterator[Selection]:
        """Yield new rows with all rejects, then rows that are taken over; each only if there are any.

        Rows that are taken over have failed before, so a plan of their own keeps them out of the limits on rejects of the
        others. The first has the counts of excluded rows.
        """
        nothing = np.zeros_like(self.new)
        again = nothing if self.retried is None else self.new & self.retried
        fresh = replace(self, new=self.new & ~again)
        excluded = self.excluded
        if fresh:
            yield fresh
            excluded = {}
        if again.any():
            no_rejects = np.zeros_like(self.new_rejects)
            yield replace(self, new=again, clashing=nothing, misfit=nothing, new_rejects=no_rejects, excluded=excluded)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the new rows, chunk by chunk, with one schema."""
        for start, table, _ in self.staging._tables():
            mask = self.new[start : start + table.num_rows]
            if mask.any():
                yield table.filter(pa.array(mask))

    def rejects(self) -> Iterator[pa.Table]:
        """Yield the new rejects, chunk by chunk, with one schema and without the queries of URLs."""
        return map(without_secrets, self._rejects())

    def _rejects(self) -> Iterator[pa.Table]:
        schema = reject_schema(self.staging.extra)
        start = 0
        for path in self.staging.reject_chunks:
            table, misfits = fit(_read(path), schema)
            mask = self.new_rejects[start : start + table.num_rows]
            start += table.num_rows
            if mask.any():
                yield self.staging._written(_with_misfits(table, misfits).filter(pa.array(mask)))
        for start, table, misfits in self.staging._tables():
            yield from self._later_rejects(start, table, misfits, schema)

    def _later_rejects(
        self, start: int, table: pa.Table, misfits: dict[int, list[Misfit]], schema: pa.Schema
    ) -> Iterator[pa.Table]:
        """Yield the rejects of one chunk's rows that were accepted when read but not selected."""
        refused: dict[int, Reject] = {}
        raw: dict[int, str] = {}
        for row in np.flatnonzero(self.clashing[start : start + table.num_rows]).tolist():
            detail = "several rows with different contents have this id"
            refused[row] = Reject(Reason.DUPLICATE_ID, detail, Stage.MANIFEST)
        for row in np.flatnonzero(self.misfit[start : start + table.num_rows]).tolist():
            detail = "; ".join(misfit.sentence for misfit in misfits[row])
            refused[row] = Reject(Reason.BAD_FIELD, detail, Stage.MANIFEST)
            raw[row] = json_of({misfit.column: misfit.value for misfit in misfits[row]})[:RAW_CHARACTERS]
        if not refused:
            return
        rejects = refused_table(table, refused)
        texts = pa.array([raw.get(row) for row in sorted(refused)], pa.string())
        rejects = self.staging._written(rejects.set_column(schema.get_field_index("raw"), schema.field("raw"), texts))
        mask = ~np.isin(reject_keys(rejects), self.held_rejects)
        if mask.any():
            yield rejects.filter(pa.array(mask))


def _read(path: Path) -> pa.Table:
    """Read a chunk with only its own columns; `pq.read_table` adds columns from the names of folders above it."""
    with pq.ParquetFile(path) as file:
        return file.read()


def _with_misfits(rejects: pa.Table, misfits: dict[int, list[Misfit]]) -> pa.Table:
    """Return rejects with their misfit values added to `detail`."""
    if not misfits:
        return rejects
    details = [
        "; ".join([detail, *(misfit.sentence for misfit in misfits.get(row, ()))])
        for row, detail in enumerate(rejects["detail"].to_pylist())
    ]
    place = rejects.schema.get_field_index("detail")
    return rejects.set_column(place, rejects.schema.field(place), pa.array(details, pa.string()))


def _content_key(row: dict[str, object]) -> bytes:
    """Return a key of a row's content without its manifest and line: rows of one id with equal keys are one row."""
    content = {name: value for name, value in row.items() if name not in ("manifest", "line")}
    return key_of(json.dumps(content, sort_keys=True, default=repr))
