"""Listings of many objects, page by page: a whole listing in memory takes 1.3 kB per object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fsspec import AbstractFileSystem

Call = Callable[[Callable[[], Any]], Any]
"""Function that makes one request, with retries."""


def objects_below(filesystem: AbstractFileSystem, path: str, call: Call) -> Iterator[dict[str, Any]]:
    """Yield fsspec's details of every object below the folder `path`, in no order; none if it is missing.

    On S3, one request for each thousand objects, and one page in memory. fsspec's `find`, used elsewhere, holds all.
    """
    if not hasattr(filesystem, "call_s3"):
        yield from call(lambda: filesystem.find(path, detail=True)).values()
        return
    bucket, key, _ = filesystem.split_path(path)
    prefix = f"{key.rstrip('/')}/" if key else ""
    token: dict[str, str] = {}
    while True:
        ask = partial(filesystem.call_s3, "list_objects_v2", Bucket=bucket, Prefix=prefix, **token)
        try:
            page = call(ask)
        except FileNotFoundError:  # the bucket
            return
        for found in page.get("Contents", ()):
            # the consoles of object stores create empty objects named like folders
            if not found["Key"].endswith("/"):
                yield {**found, "name": f"{bucket}/{found['Key']}", "size": found["Size"], "type": "file"}
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}
