"""Checks of the output location: refuses those that Ray deletes with the job, warns of those invisible to other nodes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import ConfigError

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable in which Ray's job supervisor describes the submission to the driver (Ray 2.60, job_supervisor.py)."""
_WORKING_DIRS = ("runtime_resources", "working_dir_files")
"""Folders below which Ray unpacks the working directory of a job, which it deletes when the job has ended."""
_LOCAL_PREFIX = re.compile(r"(?:file|local):(?://)?")


def require_lasting(output: str, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse an output folder that is deleted when a submitted job ends.

    A job submitted to Ray runs in one of Ray's folders on the head node, so a relative path or a home folder does not
    refer to the user's machine. Outside a submitted job nothing is refused.

    Raises: ConfigError saying where the output would be written.
    """
    path = local_path(output)
    if path is None or not _is_submitted(environment):
        return
    folder = os.path.realpath(os.path.expanduser(path))  # noqa: PTH111 - as fsspec does, also for an unknown ~user
    if not path.startswith("/"):
        what = "names a home folder of the head node" if path.startswith("~") else "is a relative path"
    elif _is_working_dir(folder):
        what = "is below the working directory that Ray unpacks for the job"
    else:
        return
    raise ConfigError(
        f"--output {output!r} {what}, and this is a job submitted to Ray: the results would be written to {folder} on the "
        "head node, which goes away with the job or its node. Name an object store (s3://bucket/prefix) or an absolute "
        "path on a file system that every node shares"
    )


def local_path(uri: str) -> str | None:
    """Return the path that a URI names on this machine, unchanged; None for an object store."""
    bare = _LOCAL_PREFIX.sub("", uri, count=1) if _LOCAL_PREFIX.match(uri) else uri
    return None if "://" in bare else bare


def unshared_warning(output: str, nodes: int) -> str | None:
    """Return a warning for a local output on a cluster of several nodes; None otherwise."""
    if nodes < 2 or local_path(output) is None:
        return None
    return (
        f"--output {output!r} is a local path and the cluster has {nodes} nodes: the job fails unless it is on a file system "
        "that all of them share"
    )


def _is_submitted(environment: Mapping[str, str]) -> bool:
    try:
        described = json.loads(environment.get(_JOB_CONFIG) or "{}")
    except ValueError:
        described = {}
    metadata = described.get("metadata") if isinstance(described, dict) else None
    return bool(metadata and "job_submission_id" in metadata) or _is_working_dir(str(Path.cwd()))


def _is_working_dir(folder: str) -> bool:
    parts = Path(folder).parts
    return any(parts[at : at + 2] == _WORKING_DIRS for at in range(len(parts)))
