"""Detection of folders whose files are not plain manifests: outputs of ours, and Delta, Iceberg, Lance and Hudi tables.

A table's log determines which of its files and rows are valid; read file by file, deleted and replaced rows would
reappear. An output of `jobs.annotate` contains results under the names of manifest columns; read as a manifest, it
would double every row. Neither is read; the error explains how to get a manifest of it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError
from pipeline.layout import DATASET, FOLDERS
from pipeline.storage.filesystem import resolve
from pipeline.storage.hub import is_hub
from pipeline.storage.listing import Contents, list_folder, printable
from pipeline.storage.retry import ABSENT, DENIED

_LOGS = {"_delta_log": "Delta", "_versions": "Lance", ".hoodie": "Hudi"}
"""Table format by the name of the folder that it creates beside its data."""

_EXPORTS = {
    "Delta": "import deltalake; table = deltalake.DeltaTable({uri!r}).to_pyarrow_table()",
    "Iceberg": "import pyiceberg.catalog as c; table = c.load_catalog().load_table('NAMESPACE.NAME').scan().to_arrow()",
    "Lance": "import lance; table = lance.dataset({uri!r}).to_table()",
}
"""Python code that reads the valid rows, by format."""


class Guard:
    """A check that refuses files of outputs and tables, given directly or found below a folder.

    Args:
        output: the job's output, if known: a folder, or a file that the job replaces.
    """

    def __init__(self, output: str | None) -> None:
        self._output = resolve(output) if output else None
        self._allowed: set[str] = set()

    def is_output(self, filesystem: AbstractFileSystem, path: str) -> bool:
        """Return whether a path is the output itself, under any name."""
        if self._output is None:
            return False
        other, output = self._output
        if isinstance(filesystem, LocalFileSystem) and isinstance(other, LocalFileSystem):
            with suppress(OSError):
                return Path(path).samefile(output)
            return False
        return type(filesystem) is type(other) and path.strip("/") == output.strip("/")

    def check(self, filesystem: AbstractFileSystem, contents: Contents, display_uri: str) -> None:
        """Refuse a listed folder that is a table or an output. Raises: ConfigError."""
        if DATASET in contents.files:
            raise _of_output(display_uri, contents.path)
        for name, form in _LOGS.items():
            if name in contents.folders:
                raise _of_table(display_uri, contents.path, form)
        if "metadata" in contents.folders and _is_iceberg(filesystem, contents.path):
            raise _of_table(display_uri, contents.path, "Iceberg")

    def check_above(
        self, filesystem: AbstractFileSystem, path: str, display_uri: str, *, is_file: bool = False
    ) -> None:
        """Refuse a file or folder of a table or an output. Costs several requests for each folder above it.

        Raises: ConfigError.
        """
        names = {path, os.path.realpath(path)} if isinstance(filesystem, LocalFileSystem) else {path}
        for name in names:
            folder, below = name.rstrip("/"), ""
            if is_file:
                folder, _, below = name.rpartition("/")
            # of the hub, what is above a repository cannot be asked
            while folder and f"{folder}\0{below}" not in self._allowed and ("@" in folder or not is_hub(filesystem)):
                self._check_one(filesystem, folder, below, display_uri)
                self._allowed.add(f"{folder}\0{below}")
                folder, _, last = folder.rpartition("/")
                below = last

    def _check_one(self, filesystem: AbstractFileSystem, folder: str, below: str, display_uri: str) -> None:
        """Check one folder; `below` is the name in it on the requested path, empty for the folder itself."""
        if (not below or below in FOLDERS) and (
            self.is_output(filesystem, folder) or _exists(filesystem, f"{folder}/{DATASET}")
        ):
            raise _of_output(display_uri, folder)
        for name, form in _LOGS.items():
            if _exists(filesystem, f"{folder}/{name}"):
                raise _of_table(display_uri, folder, form)
        if _is_iceberg(filesystem, folder):
            raise _of_table(display_uri, folder, "Iceberg")


def _exists(filesystem: AbstractFileSystem, path: str) -> bool:
    """Return whether a path exists; False if access is denied, since a role may be limited to a prefix below."""
    try:
        return bool(filesystem.exists(path))
    except (*ABSENT, *DENIED):
        return False


def _is_iceberg(filesystem: AbstractFileSystem, folder: str) -> bool:
    path = f"{folder}/metadata"
    if not _exists(filesystem, path):
        return False
    try:
        files = list_folder(filesystem, path).files
    except (*ABSENT, ConfigError):
        return False
    return any(name.endswith((".metadata.json", ".metadata.json.gz")) for name in files)


def _of_output(display_uri: str, folder: str) -> ConfigError:
    return ConfigError(
        f"manifest {display_uri}: {printable(folder)} is an output of jobs.annotate, and its rows would be annotated again. Name "
        "the manifests themselves, or move the output out of the folder; to annotate the same recordings in another way, "
        "give their manifest and another --output; for a manifest of its utterances, python -m jobs.make_manifest OUTPUT "
        "--layout output"
    )


def _of_table(display_uri: str, folder: str, form: str) -> ConfigError:
    export = "with Spark"
    if form in _EXPORTS:
        code = _EXPORTS[form].format(uri=printable(folder))
        export = f"python -c \"{code}; import pyarrow.parquet as p; p.write_table(table, 'm.parquet')\""
    return ConfigError(
        f"manifest {display_uri}: {printable(folder)} is a table of the {form} format, whose log says which rows count; its "
        f"files still hold deleted and replaced rows. Export the rows that count and give that file, for example: {export}"
    )
