"""Tar and Parquet files that hold audio, for tests of inputs."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.items import TarItem


def tar_bytes(members: Mapping[str, bytes], *, mode: str = "w", form: int = tarfile.GNU_FORMAT) -> bytes:
    """The content of a tar, compressed where the mode says so."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def tar_file(path: Path, members: Mapping[str, bytes], **options: object) -> Path:
    mode = "w:gz" if path.name.endswith("gz") else "w"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, mode=mode, **options))  # type: ignore[arg-type]
    return path


def addresses(path: Path | str, container: str | None = None) -> dict[str, str]:
    """The address of every member of a tar file, by its name, from the standard library's reader."""
    with tarfile.open(path) as tar:
        return {m.name: str(TarItem(container or str(path), m.offset_data, m.size, m.name)) for m in tar if m.isreg()}


def hub_parquet(
    path: Path | None,
    contents: Sequence[bytes | None],
    *,
    row_group_rows: int = 3,
    binary: bool = False,
    **columns: object,
) -> bytes:
    """A Parquet file as `datasets` writes one: `audio` is a struct of `bytes` and `path`, or only binary."""
    rows = [content if binary else {"bytes": content, "path": f"{n}.wav"} for n, content in enumerate(contents)]
    kind = pa.binary() if binary else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"audio": pa.array(rows, kind), **columns})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=row_group_rows)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()
