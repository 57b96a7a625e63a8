"""Listings page by page."""

from __future__ import annotations

import tracemalloc

from pipeline.storage.pages import objects_below


class Pages:
    """A file system that answers `list_objects_v2` with numbered pages, as S3 does."""

    def __init__(self, pages: int, size: int, *, present: bool = True) -> None:
        self.pages, self.size, self.present = pages, size, present
        self.asked: list[tuple[str, str]] = []

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def call_s3(self, _method: str, **named: str) -> dict[str, object]:
        if not self.present:
            raise FileNotFoundError(named["Bucket"])
        prefix, token = named["Prefix"], named.get("ContinuationToken", "0")
        self.asked.append((prefix, token))
        page = int(token)
        keys = [f"{prefix}{page * self.size + number:08d}" for number in range(self.size)]
        found = {"Contents": [{"Key": key, "Size": 7, "ETag": "e" * 200} for key in [*keys, f"{prefix}folder/"]]}
        more = {"IsTruncated": True, "NextContinuationToken": str(page + 1)}
        return {**found, **(more if page + 1 < self.pages else {"IsTruncated": False})}


def test_every_page_is_listed_and_folder_marks_are_not() -> None:
    """Fails if a listing ends with its first page, begins anew, or names the empty objects that stand for folders."""
    files = Pages(3, 4)
    found = [(each["name"], each["size"]) for each in objects_below(files, "bucket/out/parts", lambda call: call())]
    assert found == [(f"bucket/out/parts/{number:08d}", 7) for number in range(12)]
    assert files.asked == [("out/parts/", "0"), ("out/parts/", "1"), ("out/parts/", "2")]


def test_a_missing_bucket_is_an_empty_listing() -> None:
    """Fails if a job in a new bucket ends with a traceback instead of the sentence of the probe."""
    assert not list(objects_below(Pages(1, 1, present=False), "bucket/out", lambda call: call()))


def test_a_long_listing_holds_one_page() -> None:
    """Fails if memory grows with the number of objects: 10^7 of them would need 13 GB."""
    tracemalloc.start()
    assert sum(1 for _ in objects_below(Pages(50, 1000), "bucket/out", lambda call: call())) == 50_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000
