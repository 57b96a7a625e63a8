"""Make demo/corpus: synthesised English and Spanish speech, acted by prosody alone, and some rows broken on purpose.

usage: python tools/make_demo_corpus.py [OUT_DIR]          (default: demo/corpus; replaces it)

Needs Debian's espeak-ng and sox: `apt-get install espeak-ng sox`. The corpus is committed, so the demo needs neither.
With Debian 12's espeak-ng 1.51 and sox 14.4.2 and av 18 it comes out byte for byte the same on one kind of CPU; other
encoders may round otherwise, and nothing depends on it. Takes about 10 s.

No voice here feels anything: `label` says which emotion the rate, pitch, range, level and tremolo imitate.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import cast

import av
import numpy as np
import soundfile
from av.codec.context import Flags
from numpy.typing import NDArray

_DEFAULT_TARGET = Path(__file__).parents[1] / "demo" / "corpus"
_SYNTHESIS_HZ = 22_050
"""What espeak-ng writes."""


@dataclass(frozen=True)
class Speaker:
    """An espeak-ng voice. `en-gb` is not used: Debian resolves it to an mbrola voice that is not installed."""

    name: str
    language: str
    voice: str
    pitch: int


@dataclass(frozen=True)
class Prosody:
    """How an emotion is acted: words a minute, pitch added, pitch range and level, tremolo depth in percent."""

    words_per_minute: int
    pitch: int
    range_percent: int
    level_db: float
    tremolo_percent: int = 0


@dataclass(frozen=True)
class Clip:
    """One file of one sentence, and the manifest row for it; `told` says whether the row carries the text."""

    file: str
    speaker: Speaker
    label: str
    sentence: str
    told: bool


ADA = Speaker("Ada", "en", "en-gb-x-rp+f2", 52)
BEN = Speaker("Ben", "en", "en-us+m3", 34)
CLEO = Speaker("Cleo", "en", "en-us+f4", 60)
INES = Speaker("Inés", "es", "es+f3", 56)
MATEO = Speaker("Mateo", "es", "es-419+m2", 32)

PROSODY = {
    "anger": Prosody(200, 6, 150, -1.0),
    "disgust": Prosody(128, -14, 125, -7.0),
    "fear": Prosody(196, 22, 70, -10.0, tremolo_percent=45),
    "joy": Prosody(182, 16, 170, -3.0),
    "neutral": Prosody(155, 0, 90, -8.0),
    "sadness": Prosody(112, -12, 45, -14.0),
    "surprise": Prosody(170, 26, 220, -4.0),
}
"""The usual findings, coarsely (Scherer 2003, Speech Communication 40, table 1): anger and joy fast, high, loud and
wide; sadness slow, low, soft and flat; fear fast, high and shaking."""

CLIPS = (
    Clip("ada-lottery.wav", ADA, "joy", "We won! I still can't believe it, we really won!", True),
    Clip("ada-empty-house.flac", ADA, "sadness", "He left on Tuesday, and the house has been quiet since.", True),
    Clip("ada-footsteps.m4a", ADA, "fear", "Did you hear that? Someone is downstairs.", False),
    Clip("ben-twice.mp3", BEN, "anger", "I told you twice, and you did it anyway!", True),
    Clip("ben-parcel.wav", BEN, "neutral", "Your parcel will arrive between nine and twelve.", False),
    Clip("ben-milk.wav", BEN, "disgust", "Ugh, this milk smells like the inside of an old shoe.", True),
    Clip("cleo-lisbon.opus", CLEO, "surprise", "Oh! You came all the way from Lisbon?", True),
    Clip("cleo-garden.mp3", CLEO, "joy", "The roses are out, come and look, all of them at once!", False),
    Clip("ines-sobresaliente.wav", INES, "joy", "¡He aprobado! ¡Con la mejor nota de la clase!", True),
    Clip("ines-abuela.opus", INES, "sadness", "La silla de la abuela sigue junto a la ventana, vacía.", False),
    Clip("ines-buzon.wav", INES, "neutral", "Ha llamado a la oficina. Deje su mensaje después de la señal.", True),
    Clip("mateo-coche.mp3", MATEO, "anger", "¡Otra vez el coche en mi puerta! ¡Quítelo de ahí!", True),
    Clip("mateo-pasillo.m4a", MATEO, "fear", "No abras la puerta. Hay alguien en el pasillo.", False),
    Clip("mateo-nevera.flac", MATEO, "disgust", "¡Qué asco! Esto lleva un mes en la nevera.", True),
)
TELEPHONE = {"ben-parcel.wav", "ines-buzon.wav"}
"""8 kHz mu-law, as a telephone exchange stores it."""

TAKES = (("neutral", True), ("joy", True), ("anger", False))
TAKES_SENTENCE = "El tren sale a las ocho y no espera a nadie."

CALL = (
    (BEN, "neutral", "Good morning, this is the booking office."),
    (CLEO, "anger", "I have been waiting for forty minutes! Forty!"),
    (BEN, "sadness", "I am so sorry. We are only two people today."),
    (CLEO, "anger", "Then answer the telephone, both of you!"),
)
LETTER = (
    ("neutral", "Dear Tom, the spring has come to our side of the hill, and I am writing this in the garden."),
    ("joy", "The children have built a boat out of an old door, and it floats! It really floats!"),
    ("sadness", "Only the dog is missing. He is fourteen now, and he sleeps through most of the day."),
    ("fear", "Last night there was a storm, and I was sure that the roof would go."),
    ("surprise", "And guess who stood at the gate this morning? Your brother! With a suitcase!"),
    ("disgust", "He brought a cheese that we had to bury behind the shed."),
    ("neutral", "Write soon, and tell me when your train arrives. With love, Ada."),
)


def speak(speaker: Speaker, label: str, sentence: str, *, rate_hz: int = _SYNTHESIS_HZ) -> NDArray[np.int16]:
    """One acted sentence. Returns: [num_samples] at `rate_hz`, its peak at the level of the emotion."""
    prosody = PROSODY[label]
    marked = f'<speak><prosody range="{prosody.range_percent}%">{escape(sentence)}</prosody></speak>'
    with tempfile.TemporaryDirectory() as folder:
        spoken, finished = Path(folder) / "spoken.wav", Path(folder) / "finished.wav"
        rate, pitch = str(prosody.words_per_minute), str(speaker.pitch + prosody.pitch)
        _run("espeak-ng", "-m", "-v", speaker.voice, "-s", rate, "-p", pitch, "-w", spoken, marked)
        shaking = ["tremolo", "7", str(prosody.tremolo_percent)] if prosody.tremolo_percent else []
        # -D: no dither, which would be noise drawn anew each time; headroom first, so that nothing clips on the way
        _run("sox", "-D", spoken, finished, "gain", "-6", *shaking, "rate", "-v", rate_hz, "norm", prosody.level_db)
        return _samples(finished)


def _samples(path: Path) -> NDArray[np.int16]:
    samples, _ = soundfile.read(path, dtype="int16")
    return np.asarray(samples, dtype=np.int16)


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def silence(duration_s: float, rate_hz: int = _SYNTHESIS_HZ) -> NDArray[np.int16]:
    """Digital silence, [num_samples]."""
    return np.zeros(round(duration_s * rate_hz), np.int16)


def encode(path: Path, samples: NDArray[np.int16]) -> None:
    """Write mono samples at 22,050 Hz as MP3, Opus or M4A at a speech bit rate, without dates or serial numbers."""
    form, codec, rate_hz, bit_rate = {
        ".mp3": ("mp3", "libmp3lame", 22_050, 32_000),
        ".opus": ("ogg", "libopus", 48_000, 24_000),
        ".m4a": ("ipod", "aac", 22_050, 32_000),
    }[path.suffix]
    with av.open(str(path), "w", format=form, options={"fflags": "+bitexact"}) as container:
        stream = cast(av.AudioStream, container.add_stream(codec, rate=rate_hz, layout="mono"))
        stream.bit_rate = bit_rate
        stream.codec_context.flags |= Flags.bitexact
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
        frame.sample_rate, frame.pts = _SYNTHESIS_HZ, 0
        for converted in av.AudioResampler(stream.codec_context.format, "mono", rate_hz).resample(frame):
            container.mux(stream.encode(converted))
        container.mux(stream.encode(None))


def write_clip(folder: Path, clip: Clip) -> dict[str, object]:
    """Write one clip in the format its name asks for. Returns: its manifest row."""
    path = folder / "audio" / clip.file
    if path.suffix == ".wav":
        rate_hz, subtype = (8_000, "ULAW") if clip.file in TELEPHONE else (16_000, "PCM_16")
        soundfile.write(path, speak(clip.speaker, clip.label, clip.sentence, rate_hz=rate_hz), rate_hz, subtype)
    elif path.suffix == ".flac":  # a recorder's stereo: the speaker a little to the left
        left = speak(clip.speaker, clip.label, clip.sentence, rate_hz=44_100)
        soundfile.write(path, np.stack([left, left // 2], axis=1), 44_100, "PCM_16")
    else:
        encode(path, speak(clip.speaker, clip.label, clip.sentence))
    text = {"text": clip.sentence} if clip.told else {}
    return _row(path.stem, clip.file, clip.speaker, label=clip.label, **text)


def _row(recording_id: str, file: str, speaker: Speaker, **more: object) -> dict[str, object]:
    row = {"id": recording_id, "audio": f"audio/{file}", "language": speaker.language, "speaker": speaker.name}
    return {**row, **more}


def write_takes(folder: Path) -> list[dict[str, object]]:
    """One FLAC with the same words said three ways, and a row with offset and duration for each."""
    rows: list[dict[str, object]] = []
    pieces: list[NDArray[np.int16]] = []
    for label, told in TAKES:
        offset_s = sum(map(len, pieces)) / _SYNTHESIS_HZ
        take = np.concatenate([speak(INES, label, TAKES_SENTENCE), silence(0.3)])
        text = {"text": TAKES_SENTENCE} if told else {}
        span = {"offset": round(offset_s, 3), "duration": round(len(take) / _SYNTHESIS_HZ, 3)}
        rows.append(_row(f"ines-tren-{len(rows) + 1}", "ines-tren.flac", INES, label=label, **text, **span))
        pieces.append(take)
    soundfile.write(folder / "audio" / "ines-tren.flac", np.concatenate(pieces), _SYNTHESIS_HZ, "PCM_16")
    return rows


def write_call(folder: Path) -> list[dict[str, object]]:
    """A telephone call, one party a channel (8 kHz mu-law): two rows on one file, one of them with text."""
    turns = [(speaker, speak(speaker, label, sentence, rate_hz=8_000)) for speaker, label, sentence in CALL]
    channels = [
        np.concatenate(
            [piece for who, turn in turns for piece in (turn if who is speaker else turn * 0, silence(0.25, 8_000))]
        )
        for speaker in (BEN, CLEO)
    ]
    soundfile.write(folder / "audio" / "call.wav", np.stack(channels, axis=1), 8_000, "ULAW")
    said = " ".join(sentence for speaker, _, sentence in CALL if speaker is BEN)
    return [
        _row("call-office", "call.wav", BEN, label="neutral", text=said, channel=0),
        _row("call-customer", "call.wav", CLEO, label="anger", channel=1),
    ]


def write_letter(folder: Path) -> dict[str, object]:
    """A recording longer than 30 s without text, which the job cuts at the pauses; of no single emotion."""
    pieces = [piece for label, sentence in LETTER for piece in (speak(ADA, label, sentence), silence(1.1))]
    encode(folder / "audio" / "ada-letter.opus", np.concatenate(pieces))
    return _row("ada-letter", "ada-letter.opus", ADA)


def write_broken(folder: Path) -> list[str]:
    """Files that are no recordings. Returns: manifest lines that must all be rejected, one of them no JSON."""
    audio = folder / "audio"
    whole = (audio / "ben-milk.wav").read_bytes()
    (audio / "broken-cut-short.wav").write_bytes(whole[:30_000])
    (audio / "broken-shopping-list.wav").write_text("eggs, milk (fresh!), a new lamp\n", encoding="utf-8")
    (audio / "broken-nothing.mp3").write_bytes(b"")
    soundfile.write(audio / "broken-20-ms.wav", speak(BEN, "neutral", "No.", rate_hz=16_000)[1600:1920], 16_000)
    rows = [
        _row("broken-missing", "broken-never-recorded.wav", ADA, label="joy"),
        _row("broken-cut-short", "broken-cut-short.wav", BEN, label="disgust"),
        _row("broken-shopping-list", "broken-shopping-list.wav", CLEO),
        _row("broken-nothing", "broken-nothing.mp3", INES),
        _row("broken-20-ms", "broken-20-ms.wav", BEN, label="neutral"),
        _row("broken-same-id", "ada-lottery.wav", ADA, label="joy"),
        _row("broken-same-id", "mateo-coche.mp3", MATEO, label="anger"),
    ]
    return [*_lines(rows), '{"id": "broken-line", "audio": "audio/ben-milk.wav", "language": "en"']


def _lines(rows: Iterable[dict[str, object]]) -> Sequence[str]:
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def write(target: Path) -> Path:
    """Write the corpus into `target`, replacing its audio and manifest. Returns: the manifest."""
    shutil.rmtree(target / "audio", ignore_errors=True)
    (target / "audio").mkdir(parents=True)
    rows = [write_clip(target, clip) for clip in CLIPS]
    rows += [*write_takes(target), *write_call(target), write_letter(target)]
    manifest = target / "manifest.jsonl"
    manifest.write_text("\n".join([*_lines(rows), *write_broken(target)]) + "\n", encoding="utf-8")
    return manifest


if __name__ == "__main__":
    manifest_path = write(Path(sys.argv[1]) if len(sys.argv) > 1 else _DEFAULT_TARGET)
    sizes = [file.stat().st_size for file in manifest_path.parent.rglob("*") if file.is_file()]
    print(f"{manifest_path}: {len(sizes) - 1} audio files, {sum(sizes) / 1e6:.2f} MB")
