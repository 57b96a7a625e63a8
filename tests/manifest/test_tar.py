"""Tar files as manifests: samples, their columns, and what damage costs."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, Reason
from pipeline.manifest.read import expand
from pipeline.manifest.tar import read_tar
from pipeline.storage.fetch import fetch
from pipeline.storage.windows import WindowFile
from tests.support.cases import case
from tests.support.containers import addresses, tar_bytes, tar_file
from tests.support.manifests import jsonl, put, read

SOUND = b"RIFF" + bytes(3000)


def samples(count: int, folder: str = "") -> dict[str, bytes]:
    members = {}
    for n in range(count):
        members[f"{folder}{n:04d}.wav"] = SOUND + bytes([n])
        members[f"{folder}{n:04d}.json"] = json.dumps({"speaker": f"s{n % 3}", "language": "es"}).encode()
        members[f"{folder}{n:04d}.txt"] = f"hola {n}\n".encode()
    return members


def test_neighbours_of_an_audio_file_are_its_columns(tmp_path):
    """Fails if a sample's JSON or text is lost, goes to another row, or the address is not that of its audio."""
    path = tar_file(tmp_path / "a.tar", samples(5, "./day/"))
    rows, rejects = read(path)
    assert not rejects
    assert rows.select(["text", "language", "speaker"]).to_pylist() == [
        {"text": f"hola {n}", "language": "es", "speaker": f"s{n % 3}"} for n in range(5)
    ]
    assert rows["audio"].to_pylist() == [addresses(path)[f"./day/{n:04d}.wav"] for n in range(5)]
    assert rows["line"].to_pylist() == [1 + 3 * n for n in range(5)]
    assert [fetch(uri, max_bytes=9999)[-1] for uri in rows["audio"].to_pylist()] == list(range(5))
    packed, _ = read(tar_file(tmp_path / "a.tar.gz", samples(5, "./day/")))
    assert packed.drop_columns(["audio", "recording_id", "manifest"]) == rows.drop_columns(
        ["audio", "recording_id", "manifest"]
    )


def test_samples_of_every_form(tmp_path):
    """Fails if two audio files of a sample are one row, or a sample that is odd costs another one."""
    long = "x" * 140
    members = {
        "README.md": b"about",
        "a.left.wav": SOUND, "a.right.FLAC": SOUND, "a.json": b'{"path": "/etc/passwd", "audio": 7, "text": "t"}',
        "._b.wav": b"junk", "b.json": b'{"n": 1, "text": null}', "b.txt": b"the text", "b.mp3": SOUND,
        "c.wav": SOUND, "c.json": b"[1]",
        "d.wav": SOUND, "d.json": b'{"n": NaN}',
        "e.wav": SOUND, "e.txt": b"\xff",
        "f.json": b'{"n": 2}',
        f"{long}.wav": SOUND, f"{long}.json": b'{"n": 3}',
        "ñ/g.opus": SOUND, "ñ/g.npy": b"1",
        "h.wav": SOUND, "h.json": b"",
    }  # fmt: skip
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with case(form):
            path = tar_file(tmp_path / "a.tar", members, form=form)
            rows, rejects = read(path)
            by_address = {uri: name for name, uri in addresses(path).items()}
            found = {by_address[row["audio"]]: row for row in rows.to_pylist()}
            assert list(found) == ["a.left.wav", "a.right.FLAC", "b.mp3", f"{long}.wav", "ñ/g.opus"]
            assert len({row["recording_id"] for row in found.values()}) == 5
            assert (found["b.mp3"]["n"], found["b.mp3"]["text"], found[f"{long}.wav"]["n"]) == (1, "the text", 3)
            assert found["a.left.wav"]["json_audio"] == 7 and found["a.left.wav"]["path"] == "/etc/passwd"
            causes = {reject.raw: (reject.cause.reason, reject.cause.detail) for reject in rejects}
            assert len(causes) == len(rejects) == 6
            assert causes["README"][0] is causes["f"][0] is Reason.BAD_FIELD and "no audio file" in causes["f"][1]
            assert {reason for reason, _ in causes.values()} == {Reason.BAD_FIELD, Reason.MALFORMED}
            assert "c.json in the tar: not a JSON object" in causes["[1]"][1] and "e.txt" in causes["\ufffd"][1]
            assert {reject.audio and by_address[reject.audio] for reject in rejects} == {
                None, "c.wav", "d.wav", "e.wav", "h.wav"
            }  # fmt: skip


def test_text_goes_to_the_file_that_is_named_like_it(tmp_path):
    """Fails if names with dots, which are one sample for WebDataset, give an audio file the text of another one."""
    members = {"s1.u1.wav": SOUND, "s1.u1.txt": b"one", "s1.u2.wav": SOUND, "s1.u2.txt": b"two", "s1.u3.wav": SOUND,
               "s1.json": b'{"speaker": "s1"}', "b.wav": SOUND, "b.meta.json": b'{"speaker": "b"}'}  # fmt: skip
    rows, rejects = read(tar_file(tmp_path / "a.tar", members))
    assert not rejects and rows["text"].to_pylist() == ["one", "two", None, None]
    assert rows["speaker"].to_pylist() == ["s1", "s1", "s1", "b"]


def test_links_and_folders(tmp_path):
    """Fails if a link in a tar is followed or lost, or a folder is taken for a file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (("f.wav", tarfile.DIRTYPE), ("g.wav", tarfile.SYMTYPE), ("h.wav", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    rows, rejects = read(tmp_path / "a.tar")
    assert rows.num_rows == 0 and [reject.raw for reject in rejects] == ["g.wav", "h.wav"]
    assert all("link" in reject.cause.detail and "--hard-dereference" in reject.cause.detail for reject in rejects)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_behind_another_is_read(tmp_path, mode):
    """Fails if members after an end mark, as `cat a.tar b.tar` leaves them, are lost, or padding there is taken for damage."""
    first, second = (tar_bytes({f"{name}.wav": SOUND + name.encode()}, mode=mode) for name in "ab")
    path = put(tmp_path / ("x.tar.gz" if mode == "w:gz" else "x.tar"), first + second)
    rows, rejects = read(path)
    assert not rejects and [fetch(uri, max_bytes=9999)[-1:] for uri in rows["audio"].to_pylist()] == [b"a", b"b"]
    for padding in (bytes(9000), b"padding that is no header", b"\xff" * 700):
        with case(padding):
            rows, rejects = read(put(path, first + padding))
            assert rows.num_rows == 1 and not rejects


def test_files_that_are_no_tars(tmp_path):
    """Fails if the reject of a misnamed file calls it a tar that is cut off, so that nobody renames it."""
    plain, packed = (tar_bytes(samples(2), mode=mode) for mode in ("w", "w:gz"))
    for name, content, words in [
        ("a.tar", packed, "compressed with gzip: rename it to end in .tar.gz"), ("a.tar.gz", plain, "rename it to end in .tar"),
        ("b.tar", b"<html>" * 200, "not a tar"), ("c.tar", b"", "empty"),
    ]:  # fmt: skip
        with case(name):
            rows, (reject,) = read(put(tmp_path / name, content))
            assert rows.num_rows == 0 and reject.cause.reason is Reason.MALFORMED and words in reject.cause.detail


def covered(path: Path, whole: list[str]) -> tuple[int, str]:
    """The number of rows of a damaged tar, which are the first of the whole one, and the reject of the rest."""
    rows, rejects = read(path)
    names = [uri.rpartition("name=")[2] for uri in rows["audio"].to_pylist()]
    assert names == whole[: len(names)]
    (reject,) = rejects
    assert reject.cause.reason is Reason.MALFORMED and reject.line > (rows["line"].to_pylist() or [0])[-1]
    return len(names), reject.cause.detail


def test_damage_costs_one_reject_and_no_other_row(tmp_path):
    """Fails if a tar that is cut or overwritten stops the job, or silently has fewer rows."""
    content, whole = tar_bytes(samples(4)), [f"{n:04d}.wav" for n in range(4)]
    path = tmp_path / "a.tar"
    kept = set()
    for cut in [0, 1, 511, 512, *range(1000, 4 * 5632, 977), 4 * 5632]:
        with case(cut):
            path.write_bytes(content[:cut])
            count, detail = covered(path, whole)
            kept.add(count)
            assert "cut off" in detail or "ends inside" in detail
    assert kept == {0, 1, 2, 3, 4}
    for at in range(148, 4 * 5632, 5632):  # the checksums of the audio's headers
        with case(at):
            path.write_bytes(content[:at] + b"\xff\xff" + content[at + 2 :])
            assert covered(path, whole) == (
                at // 5632,
                f"the tar is damaged at byte {at - 148:,}: bad checksum; what follows in the tar cannot be found",
            )
    packed = tar_bytes(samples(4), mode="w:gz")
    for cut in range(0, len(packed), 23):
        with case(cut):
            (tmp_path / "b.tar.gz").write_bytes(packed[:cut])
            covered(tmp_path / "b.tar.gz", whole)


def test_no_bytes_stop_the_reader(tmp_path):
    """Fails if bytes that are no tar, or a tar with changed bytes, raise instead of becoming rejects."""
    dice, content = random.Random(4), tar_bytes({**samples(2), "y" * 120 + ".wav": SOUND}, form=tarfile.PAX_FORMAT)
    for _ in range(300):
        changed = bytearray(content)
        for _ in range(dice.choice([1, 3, 600])):
            changed[dice.choice([dice.randrange(len(changed)), dice.randrange(512)])] = dice.choice(
                [0, 48, 55, 255, 128]
            )
        (tmp_path / "a.tar").write_bytes(bytes(changed))
        read(tmp_path / "a.tar")
    long_names = tarfile.TarInfo("x")
    long_names.type, long_names.size = tarfile.GNUTYPE_LONGNAME, 512
    (tmp_path / "a.tar").write_bytes((long_names.tobuf() + bytes(512)) * 5000)
    assert covered(tmp_path / "a.tar", [])[0] == 0
    long_names.size = 10**11
    (tmp_path / "a.tar").write_bytes(long_names.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    assert "header of" in covered(tmp_path / "a.tar", [])[1]


def test_audio_is_not_read():
    """Fails if planning reads the audio of a tar, whose size is then what it costs."""
    content, read_bytes = tar_bytes({**samples(50), "big.wav": bytes(4 << 20)}), []

    def read_range(start: int, end: int) -> bytes:
        read_bytes.append(end - start)
        return content[start:end]

    (records,) = read_tar(WindowFile(read_range, len(content), 1024), 1000, "/a.tar")
    assert len(records.lines) == 51 and sum(read_bytes) < 0.9 * (len(content) - (4 << 20))


def test_tars_of_a_store(s3, tmp_path):
    """Fails if a tar in an object store has other rows than on a disk."""
    local = tar_file(tmp_path / "a.tar", {**samples(30), "big.wav": bytes(300_000), "last.wav": SOUND})
    s3.filesystem().pipe_file(f"{s3.bucket}/tars/a.tar", local.read_bytes())
    (uri,) = expand([f"s3://{s3.bucket}/tars/"])
    rows, rejects = read(uri)
    assert not rejects and rows.num_rows == 32
    assert rows["audio"].to_pylist() == [a.replace(str(local), uri) for a in read(local)[0]["audio"].to_pylist()]


def test_a_folder_of_tars(tmp_path):
    """Fails if tars beside a manifest, which refers to them, are read as well, or those of a folder without one are not."""
    tars = [tar_file(tmp_path / f"d/{n}.{end}", samples(1)) for n, end in enumerate(("tar", "tar.gz", "tgz"))]
    assert expand([str(tmp_path / "d")]) == list(map(str, tars))
    manifest = jsonl(tmp_path / "d/m.jsonl", {"audio": "x.wav"})
    assert expand([str(tmp_path / "d")]) == [str(manifest)]
    assert expand([str(tmp_path / "d/*.tar")]) == [str(tars[0])]
    with pytest.raises(ConfigError, match="over http"):
        read("http://127.0.0.1:9/a.tar")
