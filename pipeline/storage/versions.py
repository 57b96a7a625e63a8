"""Old versions of objects: a bucket with versioning keeps what is deleted or replaced."""

from __future__ import annotations

from typing import Any

from pipeline.errors import ConfigError
from pipeline.redaction import without_query
from pipeline.storage.cleanup import reaching
from pipeline.storage.filesystem import resolve
from pipeline.storage.retry import retried
from pipeline.storage.store import LocalStore, Store


def require_unversioned(store: Store, purpose: str) -> None:
    """Check that deleted objects are gone. A store other than S3 and its kin is not asked.

    Args:
        purpose: the start of the message, such as `--texts deletes the texts of a finished run`.
    Raises: ConfigError when the bucket keeps old versions, or does not say whether it does.
    """
    if isinstance(store, LocalStore):
        return
    filesystem, root = resolve(store.root)
    if not hasattr(filesystem, "call_s3"):
        return
    bucket, _, _ = filesystem.split_path(root)
    with reaching(store):
        answer: dict[str, Any] = retried(
            lambda: filesystem.call_s3("get_bucket_versioning", Bucket=bucket),
            what=f"asking for versioning of {bucket}",
        )
    if answer.get("Status"):
        raise ConfigError(
            f"{purpose}, but bucket {bucket} of {without_query(store.root)} keeps or has kept old versions of objects "
            f"(versioning: {answer['Status']}). Use an output in a bucket without versioning"
        )
