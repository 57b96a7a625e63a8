"""Large files are mapped from disk: samples and rejects are those of the same bytes in memory, and memory is the waveform."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.audio import content as content_module
from pipeline.audio.decode import decode, probe
from pipeline.audio.sandbox import Decoded, Sandbox
from pipeline.errors import RejectedRow
from tests.audio.test_memory import measured_mib
from tests.hostile import make_audio as make
from tests.support.sounds import CLIPS, SOUND

ID3 = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256)
TAG = b"TAG" + bytes(125)
CASES = {
    **{path.name: path.read_bytes() for path in CLIPS},
    **SOUND,
    **{f"{name} with tags": ID3 + SOUND[name] + TAG for name in ("flac", "mp3", "wav", "m4a") if name in SOUND},
    **{f"{name} cut": content[: len(content) * 2 // 3] for name, content in SOUND.items()},
    "zeros": bytes(5000),
    "text": b"no audio at all, but some words" * 40,
}


@contextmanager
def mapped(content: bytes) -> Iterator[mmap.mmap]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        yield mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def result(content, **options) -> object:
    try:
        return decode(content, **options)
    except RejectedRow as rejected:
        return str(rejected)


@pytest.mark.parametrize("name", CASES)
def test_a_mapped_file_decodes_as_its_bytes_do(name, monkeypatch):
    """Fails if a walker or a decoder reads a mapping differently, or a sample changes when pages are released."""
    monkeypatch.setattr(content_module, "_KEPT_PAGES_BYTES", 10_000)
    for options in ({}, {"offset_s": 0.5, "duration_s": 0.7}, {"channel": 0}):
        with mapped(CASES[name]) as mapping:
            ours, theirs = result(mapping, **options), result(CASES[name], **options)
        if isinstance(theirs, str):
            assert ours == theirs
        else:
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["flac", "mp3"])
def test_the_header_of_a_mapped_file_is_the_same(name):
    """Fails if `probe` cannot read a mapping."""
    with mapped(SOUND[name]) as mapping:
        assert probe(mapping) == probe(SOUND[name])


def test_a_file_on_disk_is_decoded_by_a_child_that_maps_it(tmp_path):
    """Fails if the descriptor does not reach the child, or the child of other files is disturbed by it."""
    path = tmp_path / "a.flac"
    path.write_bytes(SOUND["flac"])
    broken = tmp_path / "b.flac"
    broken.write_bytes(SOUND["flac"][:4000])
    with Sandbox() as sandbox:
        before = sandbox.decode(SOUND["wav"])
        with path.open("rb") as file:
            np.testing.assert_array_equal(sandbox.decode(file, offset_s=0.5), decode(SOUND["flac"], offset_s=0.5))
        with broken.open("rb") as file, pytest.raises(RejectedRow) as caught:
            sandbox.decode(file)
        assert str(caught.value) == result(SOUND["flac"][:4000])
        np.testing.assert_array_equal(sandbox.decode(SOUND["wav"]), before)


def test_neither_process_holds_the_bytes_of_a_large_recording(tmp_path):
    """Fails if the worker or the decoder holds the file: 1.7 GiB each for four hours of FLAC, beside the waveform."""
    path = tmp_path / "long.wav"
    path.write_bytes(make.snd(np.zeros((20 * 60 * 44_100, 2), np.float32), 44_100, "WAV", "PCM_16"))
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from types import SimpleNamespace\n"
        "from pipeline.audio.limits import AudioLimits\n"
        "from pipeline.shard.recording import load_recording\n"
        "from pipeline.storage.access import AudioRoots\n"
        "peak_kib = lambda: int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
        "roots = AudioRoots.parse((str(Path(sys.argv[1]).parent),), [])\n"
        "work = SimpleNamespace(roots=roots, limits=AudioLimits(), channels='mix')\n"
        "record = {'audio': sys.argv[1], 'offset_s': None, 'duration_s': None, 'channel': None}\n"
        "before = peak_kib()\n"
        "waveform = load_recording(work, record).waveforms[None]\n"
        "ours = peak_kib() - before - waveform.nbytes / 1024\n"
        "print(max(ours, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before) / 1024)\n"
    )
    assert measured_mib(script, str(path)) < 100, "the file is 202 MiB"


def test_small_recordings_read_again_stay_in_memory(tmp_path, monkeypatch):
    """Fails if every short recording that is decoded again costs the start of a process."""
    from pipeline.audio.limits import AudioLimits
    from pipeline.shard import recording
    from pipeline.storage.access import AudioRoots

    path = tmp_path / "a.wav"
    path.write_bytes(SOUND["wav"])
    given: list[object] = []

    def fake(content: object, **_: object) -> Decoded:
        given.append(content)
        return Decoded([np.zeros(1, np.float32)], False)

    monkeypatch.setattr(recording, "sandbox", lambda: SimpleNamespace(decode_channels=fake))
    work = SimpleNamespace(roots=AudioRoots.parse((str(tmp_path),), []), limits=AudioLimits(), channels="mix")
    record = {"audio": str(path), "offset_s": None, "duration_s": None, "channel": None}
    first = recording.load_recording(work, record)
    assert given == [SOUND["wav"]]
    assert recording.load_recording(work, record, SOUND["wav"]).identity == first.identity
    monkeypatch.setattr(recording, "_MAPPED_BYTES", 100)
    assert recording.load_recording(work, record).identity == first.identity
    assert not isinstance(given[-1], bytes)
