"""Items of containers: their addresses, who may read them, and their content from every kind of store."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import Reason, RejectedRow
from pipeline.manifest.fields import derived_id
from pipeline.redaction import without_query
from pipeline.storage import slices
from pipeline.storage.access import AudioRoots
from pipeline.storage.fetch import fetch
from pipeline.storage.items import RowItem, TarItem, item_of
from pipeline.storage.on_disk import fetched_to_disk
from pipeline.storage.uri import common_folder, resolve_audio
from tests.support.cases import case
from tests.support.containers import addresses, tar_bytes, tar_file

NAMES = [
    "a.wav",
    "./x/../a.wav",
    "n#1?b&c=d e%20.wav",
    "niño 🎤.wav",
    "a" * 150 + ".wav",
    "offset=1&size=2&name=x",
    "#",
]
CONTAINERS = ["/data/x.tar", "s3://b/k#1?.tar", "hf://datasets/o/d@" + "a" * 40 + "/x.tar.gz", "rel/x.tgz"]
CONTENT = {f"{n}/{name.replace('/', '_')}": os.urandom(700 + n) for n, name in enumerate(NAMES)}


@pytest.fixture(autouse=True)
def no_slices():
    slices._slices.clear()


def refusal(uri: str, **options) -> RejectedRow:
    with pytest.raises(RejectedRow) as caught:
        fetch(uri, **{"max_bytes": 10**6, **options})
    return caught.value


def test_an_address_is_what_it_was_made_of():
    """Fails if a name or key with `#`, `?`, `&` or a space is another one after it was written and read."""
    for container in CONTAINERS:
        for name in NAMES:
            for item in (TarItem(container, 512, 44, name), RowItem(container, 3, 7, name, "0a1b2c3d")):
                with case(item):
                    assert item_of(str(item)) == item
                    assert str(item).isprintable() and " " not in str(item).rpartition("#")[2]
                    assert without_query(str(item)) == str(item)


def test_plain_references_stay_plain():
    """Fails if a file or object whose name holds `#` is taken for an item, or its URI or id changes."""
    for uri in ("/a#1.wav", "s3://b/q#offset=1", "/a#offset=1&size=2", "/a#row=1", "#offset=1&size=2&name=x",
                "https://h/a.wav#t=1", "/x.tar#offset=1&size=2&name=a#b", "/x#offset=-1&size=2&name=x"):  # fmt: skip
        with case(uri):
            assert item_of(uri) is None
    assert resolve_audio("a#1.wav", "/d/m.jsonl") == "/d/a#1.wav"
    assert derived_id("/a#1.wav", None, None, None) == "rec-c3da21874ea57a979db5"


def test_the_container_is_what_is_resolved_and_allowed(tmp_path):
    """Fails if an item escapes the roots that hold for its container, or `..` in a member's name counts as a path."""
    place = "#offset=512&size=3&name=../../etc/passwd.wav"
    assert resolve_audio(f"sub/../x.tar{place}", "/d/m.jsonl") == f"/d/x.tar{place}"
    assert resolve_audio(f"x.tar{place}", "s3://b/k/m.jsonl") == f"s3://b/k/x.tar{place}"
    roots = AudioRoots.parse(["/d", "s3://b/k"], ["/d/m.jsonl"])
    roots.check(f"/d/x.tar{place}")
    roots.check(f"s3://b/k/x.tar{place}")
    for outside in ("/e/x.tar", "s3://b/x.tar", "https://h/x.tar", "/d2/x.tar"):
        with case(outside), pytest.raises(RejectedRow) as caught:
            roots.check(outside + place)
        assert caught.value.reason is Reason.NOT_ALLOWED and "passwd" not in caught.value.detail
    with pytest.raises(RejectedRow):
        resolve_audio(f"../../x.tar{place}", "s3://b/m.jsonl")
    assert common_folder([f"/d/a/x.tar{place}", f"/d/a/y.tar{place}"]) == "/d/a"
    (tmp_path / "out").mkdir()
    tar_file(tmp_path / "out/x.tar", CONTENT)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.tar").symlink_to(tmp_path / "out/x.tar")
    name, address = next(iter(addresses(tmp_path / "in/x.tar").items()))
    linked = AudioRoots.parse([str(tmp_path / "in")], [])
    assert refusal(address, allow=linked.check_opened).reason is Reason.NOT_ALLOWED
    assert fetch(address, max_bytes=10**6, allow=AudioRoots.parse([str(tmp_path)], []).check_opened) == CONTENT[name]


def test_ids_last_when_a_tar_is_written_again():
    """Fails if the rows of a tar become new rows because its members moved, or the hub has a new commit."""
    ids = {
        derived_id(str(TarItem(f"hf://datasets/o/d@{commit}/x.tar", offset, size, "a.wav")), None, None, None)
        for commit in ("a" * 40, "b" * 40) for offset, size in ((512, 3), (1024, 4))
    }  # fmt: skip
    other = derived_id(str(TarItem("hf://datasets/o/d@main/x.tar", 512, 3, "b.wav")), None, None, None)
    assert len(ids) == 1 and other not in ids


@pytest.mark.parametrize("store", ["plain", "pax", "gz", "s3", "memory"])
def test_an_item_is_read_as_the_library_reads_it(store, tmp_path, request):
    """Fails if an item's bytes are not its own: from a disk or a store, compressed or not, with long and odd names."""
    form = tarfile.PAX_FORMAT if store == "pax" else tarfile.GNU_FORMAT
    path = tar_file(tmp_path / ("x.tar.gz" if store == "gz" else "x.tar"), CONTENT, form=form)
    container = str(path)
    if store == "s3":
        s3 = request.getfixturevalue("s3")
        container = f"s3://{s3.bucket}/items/x#1?.tar"
        s3.filesystem().pipe_file(container, path.read_bytes())
    elif store == "memory":
        import fsspec

        container = "memory://items/x.tar"
        fsspec.filesystem("memory").pipe_file("/items/x.tar", path.read_bytes())
    found = addresses(path, container)
    for name, content in reversed(CONTENT.items()):
        assert fetch(found[name], max_bytes=len(content)) == content
        with fetched_to_disk(found[name], max_bytes=10**6) as file:
            assert file.read() == content
        assert refusal(found[name], max_bytes=len(content) - 1).reason is Reason.TOO_LARGE


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_tar_that_was_written_again_gives_no_other_audio(ending, tmp_path):
    """Fails if an address of before returns the bytes of another recording, or of a tar that is gone or cut."""
    path = tar_file(tmp_path / f"x.{ending}", CONTENT)
    found = addresses(path)
    tar_file(path, dict(reversed(CONTENT.items())))
    assert {refusal(address).reason for address in found.values()} <= {Reason.CHANGED, Reason.TRUNCATED}
    slices._slices.clear()
    last = found[list(CONTENT)[-1]]
    path.write_bytes(tar_bytes(CONTENT)[:-11_000] if ending == "tar" else path.read_bytes()[:-900])
    assert refusal(last).reason in (Reason.CHANGED, Reason.TRUNCATED, Reason.DAMAGED)
    path.unlink()
    slices._slices.clear()
    assert refusal(last).reason is Reason.NOT_FOUND


def test_a_compressed_tar_is_read_once_for_many_items(tmp_path, monkeypatch):
    """Fails if every item of a compressed tar decompresses it from its start."""
    path = tar_file(tmp_path / "x.tgz", CONTENT)
    opened = []
    real = slices._stretch
    monkeypatch.setattr(slices, "_stretch", lambda *given: opened.append(1) or real(*given))
    for address in addresses(path).values():
        fetch(address, max_bytes=10**6)
    assert len(opened) == 1
    for name, size in {"_SLICE_BYTES": 1500, "_BYTES_BEFORE": 0, "_PIECE_BYTES": 512}.items():
        monkeypatch.setattr(slices, name, size)
    slices._slices.clear()
    assert [fetch(address, max_bytes=10**6) for address in addresses(path).values()] == list(CONTENT.values())
    assert 3 < len(opened) <= 1 + len(CONTENT)


def test_an_address_that_is_made_up_is_a_reject():
    """Fails if a manifest's own address makes a worker read bytes that are no member of a tar, or stops the job."""
    readme = str(Path(__file__))
    for place in ("offset=0&size=3&name=a", "offset=600&size=3&name=a", "offset=999999999999&size=3&name=a"):
        with case(place):
            assert refusal(f"{readme}#{place}").reason is Reason.CHANGED
    assert refusal(f"{readme}.tgz#offset=512&size=3&name=a").reason is Reason.NOT_FOUND
    assert refusal("http://127.0.0.1:9/x.tar#offset=512&size=3&name=a").reason is Reason.NOT_ALLOWED
