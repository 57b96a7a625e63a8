"""Publishing of finished runs as a dataset of the Hugging Face hub, one commit per run.

    README.md                        the dataset card, see `pipeline.analytics.dataset_card`
    data/<run>-<number>.parquet      the utterances of the run
    runs/<run>-<token>.json          the record of the run, in the same commit: a run with a record is published

A commit names its parent. The hub refuses one whose parent is not the last commit any more; its publisher looks again, and
finds the run if another publisher was faster. The token names the plan, so that runs of another output with the same
number are not taken for these.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.analytics.dataset_card import card, run_record
from pipeline.analytics.grouped import grouped
from pipeline.dataset.parts import encodings
from pipeline.dataset.plan import Plan
from pipeline.dataset.reader import Rows, reading
from pipeline.errors import ConfigError, JobError, did_you_mean
from pipeline.layout import HUB, REPORT, hub_key, run_key
from pipeline.redaction import without_query
from pipeline.storage.cleanup import cause
from pipeline.storage.documents import FORMAT, read_document
from pipeline.storage.store import Store
from pipeline.storage.temporary import temporary_folder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_ROW_GROUP_BYTES = 32 * 2**20
_TRIES = 8
"""Number of commits of other publishers between a look and our own commit after which we give up."""
_CARD = "README.md"


@dataclass(frozen=True, slots=True)
class Publication:
    """A dataset repository, and how runs are published to it.

    Attributes:
        repository: ID on the hub, as in name/dataset.
        licence: identifier for the card, such as cc-by-4.0.
        left_out: columns that are not published.
        target_bytes: size at which a data file ends.
    """

    repository: str
    licence: str | None = None
    left_out: tuple[str, ...] = ()
    target_bytes: int = 256_000_000


def publish_to_hub(rows: Rows, to: Publication) -> Iterator[Plan]:
    """Commit every finished run that the repository lacks; create the repository, private, if it does not exist.

    The token is that of HF_TOKEN. The output gets a note of the repository, which `jobs.erase` prints.

    Yields: each run after its commit. Memory: a row group. Disk: the data files of one run.
    Raises: ConfigError for a missing token, a column that does not exist, or a repository that cannot be used or has runs of
        another output; JobError when a commit fails.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if not token:
        raise ConfigError(
            "--publish hf needs the environment variable HF_TOKEN, a token that may write to the repository"
        )
    schema = _schema(rows, to)
    disable_progress_bars()
    publisher = _Publisher(HfApi(token=token), rows, to, schema)
    if rows.plans:
        with _asking_the_hub(to.repository):
            publisher.require_repository()
        note = {"format": FORMAT, "repository": to.repository}
        rows.store.put_if_absent(hub_key(_digest(to.repository)), json.dumps(note).encode())
    for plan in rows.plans:
        with temporary_folder("hub-") as folder, _asking_the_hub(to.repository):
            is_new = publisher.commit(plan, folder)
        if is_new:
            yield plan


def repositories(store: Store) -> list[str]:
    """Return the repositories to which runs of an output were published."""
    return sorted(str(read_document(store, entry.key)["repository"]) for entry in store.list(HUB))


def _digest(repository: str) -> str:
    return hashlib.sha256(repository.encode()).hexdigest()[:16]


def _schema(rows: Rows, to: Publication) -> pa.Schema:
    schema = rows.schema()
    for name in to.left_out:
        if name not in schema.names:
            raise ConfigError(f"--leave-out {name}: no such column{did_you_mean(name, schema.names)}")
    return pa.schema([field for field in schema if field.name not in to.left_out])


@dataclass(frozen=True, slots=True)
class _Publisher:
    api: HfApi
    rows: Rows
    to: Publication
    schema: pa.Schema

    def require_repository(self) -> None:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            self.api.dataset_info(self.to.repository)
        except RepositoryNotFoundError:
            self.api.create_repo(self.to.repository, repo_type="dataset", private=True, exist_ok=True)

    def commit(self, plan: Plan, folder: Path) -> bool:
        """Publish one run. Returns: False when the repository has it."""
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.errors import HfHubHTTPError

        files: list[Path] | None = None
        for _ in range(_TRIES):
            info = self.api.dataset_info(self.to.repository)
            names = {sibling.rfilename for sibling in info.siblings or []}
            if _record_name(plan) in names:
                return False
            self._require_ours(plan, names)
            if files is None:
                files = _write(self.rows.of([plan.plan]), plan.plan, self.schema, folder, self.to.target_bytes)
            record = json.dumps(self._record(plan), indent=1, ensure_ascii=False).encode()
            additions = [
                CommitOperationAdd(_CARD, self._card(plan, names, info.sha, folder).encode()),
                CommitOperationAdd(_record_name(plan), record),
                *(CommitOperationAdd(f"data/{file.name}", str(file)) for file in files),
            ]
            self.rows.require_no_erasure_since()
            try:
                self.api.create_commit(
                    self.to.repository,
                    additions,
                    commit_message=f"Run {plan.plan}",
                    repo_type="dataset",
                    parent_commit=info.sha,
                )
            except HfHubHTTPError as error:
                if error.response.status_code == HTTPStatus.PRECONDITION_FAILED:
                    continue  # another commit came between
                raise
            return True
        raise JobError(f"hub dataset {self.to.repository} changes all the time; run this again")

    def _record(self, plan: Plan) -> dict[str, Any]:
        report: Mapping[str, Any] = json.loads(self.rows.store.read(run_key(plan.plan, REPORT)))
        return {"format": FORMAT, **run_record(report, self.to.left_out)}

    def _require_ours(self, plan: Plan, names: set[str]) -> None:
        others = sorted(name for name in names if name.startswith((f"runs/{plan.plan}-", f"data/{plan.plan}-")))
        if others:
            raise ConfigError(
                f"hub dataset {self.to.repository} has {others[0]}, which is not of run {plan.plan} of "
                f"{without_query(self.rows.store.root)}: publish each output to a repository of its own"
            )

    def _card(self, plan: Plan, names: set[str], commit: str | None, folder: Path) -> str:
        """Return the card with all runs that the commit of `plan` leaves in the repository."""
        existing, to = None, self.to
        if _CARD in names:
            path = self.api.hf_hub_download(
                to.repository, _CARD, repo_type="dataset", revision=commit, cache_dir=folder / "card"
            )
            existing = Path(path).read_text(encoding="utf-8")
        published = [each for each in self.rows.plans if _record_name(each) in names or each.plan == plan.plan]
        return card(
            existing,
            title=to.repository,
            licence=to.licence,
            records=list(map(self._record, published)),
            schema=self.schema,
            settings=plan.settings,
        )


def _record_name(plan: Plan) -> str:
    return f"runs/{plan.plan}-{plan.token}.json"


def _write(rows: Rows, name: str, schema: pa.Schema, folder: Path, target_bytes: int) -> list[Path]:
    """Write utterances to files `<name>-<number>.parquet` of about the requested size."""
    files: list[Path] = []
    writer: pq.ParquetWriter | None = None
    options = encodings(schema)
    with reading():
        stream = rows.utterances().scanner(columns=schema.names).to_reader()
        for table in grouped(stream, _ROW_GROUP_BYTES):
            if writer is None:
                files.append(folder / f"{name}-{len(files):05d}.parquet")
                writer = pq.ParquetWriter(files[-1], schema, **options)
            writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))
            if files[-1].stat().st_size >= target_bytes:
                writer.close()
                writer = None
    if writer is not None:
        writer.close()
    return files


@contextmanager
def _asking_the_hub(repository: str) -> Iterator[None]:
    """Turn errors of the hub's client into one sentence. Raises: ConfigError, JobError."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # OSError, the HTTP client's errors, and that in which the hub's client hides the cause of a failed upload
    failures: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, RuntimeError)
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConfigError("--publish hf needs the hub, and HF_HUB_OFFLINE is set") from error
    except HfHubHTTPError as error:
        if error.response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            raise ConfigError(
                f"hub dataset {repository} cannot be written to: HF_TOKEN has no access ({cause(error)})"
            ) from error
        raise JobError(f"hub dataset {repository}: {cause(error)}") from error
    except failures as error:
        raise JobError(f"hub dataset {repository}: {cause(error.__cause__ or error)}") from error
    except ValueError as error:  # an ID that is none, or metadata that the hub refuses
        raise ConfigError(f"hub dataset {repository}: {' '.join(str(error).split())[:300]}") from error
