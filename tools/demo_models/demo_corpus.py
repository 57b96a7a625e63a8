"""Recordings of `make demo`: held-out sentences and voices in every format, and rows broken on purpose.

They replace the contents of `demo/corpus`. With Debian 12's espeak-ng 1.51 and av 18 the bytes are the same on one kind of CPU.
`label` is the acted emotion; a row without `text` is transcribed, and its `reference` is the spoken text.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from tools.demo_models.acting import SAMPLING_RATE, Speaker, act
from tools.demo_models.files import write as write_file
from tools.demo_models.grammar import Sentence, split_of

_STRENGTH = 0.9
_SEED = 5


@dataclass(frozen=True)
class Person:
    """A speaker with a name; all voices are of the test split."""

    name: str
    language: str
    speaker: Speaker


@dataclass(frozen=True)
class Clip:
    """One file of one sentence, and its manifest row, which has the text if `told` is true."""

    file: str
    person: Person
    label: str
    sentence: str
    told: bool


ADA = Person("Ada", "en", Speaker("en-gb-x-rp+f3", 52, 158))
BEN = Person("Ben", "en", Speaker("en-us+m3", 46, 160))
CLEO = Person("Cleo", "en", Speaker("en-us+steph", 52, 155))
INES = Person("Inés", "es", Speaker("es+f3", 52, 158))
MATEO = Person("Mateo", "es", Speaker("es-419+pablo", 46, 160))

CLIPS = (
    Clip("ada-prizes.wav", ADA, "joy", "We won two prizes in the hotel on Friday!", True),
    Clip("ada-goodbye.flac", ADA, "sadness", "Goodbye, Peter. I will never see the kitchen again.", False),
    Clip("ada-hide.m4a", ADA, "fear", "Please hide! There is someone in the station.", False),
    Clip("ben-ticket.mp3", BEN, "anger", "How dare you touch my ticket again!", False),
    Clip("ben-bus.wav", BEN, "neutral", "The bus to the hospital leaves after lunch.", False),
    Clip("ben-cheese.wav", BEN, "disgust", "What a nasty stink from the cheese in the market.", True),
    Clip("cleo-window.opus", CLEO, "surprise", "Really? You found the old window in the garden?", False),
    Clip("cleo-letter.mp3", CLEO, "joy", "I love the small letter that Anna gave me!", False),
    Clip("ines-reloj.wav", INES, "joy", "¡Me encanta el reloj nuevo que me regaló Ana!", True),
    Clip("ines-hermana.opus", INES, "sadness", "Me siento muy sola sin mi hermana en la plaza.", False),
    Clip("ines-cuadro.wav", INES, "neutral", "El cuadro está sobre la mesa en la oficina.", False),
    Clip("mateo-billete.mp3", MATEO, "anger", "¡Cómo te atreves a tocar mi billete otra vez!", False),
    Clip("mateo-grito.m4a", MATEO, "fear", "Oí un grito en la playa el viernes.", False),
    Clip("mateo-carne.flac", MATEO, "disgust", "¡Qué peste sale de la carne en la iglesia!", True),
)
TELEPHONE = {"ben-bus.wav", "ines-cuadro.wav"}
"""8 kHz mu-law, as a telephone exchange stores it."""

TAKES = (("neutral", True), ("joy", True), ("anger", False))
TAKES_SENTENCE = "El autobús a la biblioteca sale a las siete."

CALL = (
    (BEN, "neutral", "You can find the picture near the village."),
    (CLEO, "anger", "Shut up about the green parcel in the hotel!"),
    (BEN, "sadness", "We lost the camera and everything we had yesterday."),
    (CLEO, "anger", "I told you twenty times to leave my new book alone!"),
    (BEN, "neutral", "The doctor will bring the green ticket at seven."),
    (CLEO, "surprise", "No way, Maria won a picture last night!"),
    (BEN, "joy", "Great news about the letter, let us celebrate on Friday!"),
    (CLEO, "joy", "The driver is coming home after lunch and I am so happy!"),
    (BEN, "neutral", "The bus to the airport leaves on Monday."),
    (CLEO, "neutral", "We have ten chairs and one picture in the village."),
)
LETTER = (
    (ADA, "neutral", "Robert put the red picture beside the lamp last night."),
    (BEN, "joy", "Great news about the coffee, let us celebrate at seven!"),
    (ADA, "sadness", "I am so lonely without Maria in the airport."),
    (BEN, "fear", "I am scared of the noise behind the red key."),
    (CLEO, "surprise", "Oh my goodness, Peter has three babies!"),
    (ADA, "disgust", "I cannot look at the mouldy bread near the key."),
    (CLEO, "joy", "The teacher is coming home on Monday and I am so happy!"),
    (BEN, "neutral", "The station opens on Monday and closes later."),
    (ADA, "anger", "My sister ruined the parcel and nobody said sorry!"),
    (CLEO, "neutral", "Maria put the old phone beside the lamp an hour ago."),
)


def spoken(text: str) -> str:
    """Return the words of a text in the form of the grammar."""
    return " ".join(re.findall(r"\w+", text.lower()))


def sentences() -> list[str]:
    """Return every sentence of the demo in the form of the grammar."""
    texts = [clip.sentence for clip in CLIPS] + [text for _, _, text in (*CALL, *LETTER)] + [TAKES_SENTENCE]
    return [spoken(text) for text in texts]


def speak(person: Person, label: str, text: str) -> NDArray[np.float32]:
    """Return one acted sentence, [num_samples] at 16 kHz; deterministic."""
    sentence = Sentence(spoken(text), person.language, label)
    return act(random.Random(f"{_SEED} {label} {text}"), sentence, person.speaker, label, strength=_STRENGTH).samples


def silence(duration_s: float) -> NDArray[np.float32]:
    """Return digital silence, [num_samples]."""
    return np.zeros(round(duration_s * SAMPLING_RATE), np.float32)


def write_clip(folder: Path, clip: Clip) -> dict[str, object]:
    """Write one clip in the format of its suffix. Returns: its manifest row."""
    waveform = np.concatenate([silence(0.1), speak(clip.person, clip.label, clip.sentence), silence(0.2)])
    write_file(folder / "audio" / clip.file, waveform, telephone=clip.file in TELEPHONE)
    return _row(Path(clip.file).stem, clip.file, clip.person, label=clip.label, **_text(clip.sentence, told=clip.told))


def _text(sentence: str, *, told: bool) -> dict[str, str]:
    return {"text" if told else "reference": sentence}


def _row(recording_id: str, file: str, person: Person, **more: object) -> dict[str, object]:
    row = {"id": recording_id, "audio": f"audio/{file}", "language": person.language, "speaker": person.name}
    return {**row, **more}


def write_takes(folder: Path) -> list[dict[str, object]]:
    """Write one WAV with the same sentence in three emotions. Returns: a row with offset and duration for each."""
    rows: list[dict[str, object]] = []
    pieces: list[NDArray[np.float32]] = []
    for label, told in TAKES:
        offset_s = sum(map(len, pieces)) / SAMPLING_RATE
        take = np.concatenate([speak(INES, label, TAKES_SENTENCE), silence(0.3)])
        span = {"offset": round(offset_s, 3), "duration": round(len(take) / SAMPLING_RATE, 3)}
        text = _text(TAKES_SENTENCE, told=told)
        rows.append(_row(f"ines-autobus-{len(rows) + 1}", "ines-autobus.wav", INES, label=label, **text, **span))
        pieces.append(take)
    write_file(folder / "audio" / "ines-autobus.wav", np.concatenate(pieces))
    return rows


def write_call(folder: Path) -> list[dict[str, object]]:
    """Write a telephone call with one party per channel (8 kHz mu-law). Returns: two rows of one file."""
    turns = [(person, np.concatenate([speak(person, label, text), silence(0.4)])) for person, label, text in CALL]
    channels = [np.concatenate([turn if who is person else turn * 0 for who, turn in turns]) for person in (BEN, CLEO)]
    write_file(folder / "audio" / "call.wav", np.stack(channels, axis=1), telephone=True)
    by_party = {p.name: " ".join(text for person, _, text in CALL if person is p) for p in (BEN, CLEO)}
    return [
        _row("call-office", "call.wav", BEN, reference=by_party["Ben"], channel=0),
        _row("call-customer", "call.wav", CLEO, reference=by_party["Cleo"], channel=1),
    ]


def write_letter(folder: Path) -> dict[str, object]:
    """Write a recording of three speakers and several emotions, longer than 30 s, which the job cuts at pauses."""
    pieces = [piece for person, label, text in LETTER for piece in (speak(person, label, text), silence(1.1))]
    write_file(folder / "audio" / "meeting.opus", np.concatenate(pieces))
    reference = " ".join(text for _, _, text in LETTER)
    return {"id": "meeting", "audio": "audio/meeting.opus", "language": "en", "reference": reference}


def write_broken(folder: Path) -> list[str]:
    """Write broken files. Returns: manifest lines that must all be rejected, one of them not JSON."""
    audio = folder / "audio"
    whole = (audio / "ben-cheese.wav").read_bytes()
    (audio / "broken-cut-short.wav").write_bytes(whole[:30_000])
    (audio / "broken-shopping-list.wav").write_text("eggs, milk (fresh!), a new lamp\n", encoding="utf-8")
    (audio / "broken-nothing.mp3").write_bytes(b"")
    soundfile.write(audio / "broken-20-ms.wav", speak(BEN, "neutral", CLIPS[4].sentence)[1600:1920], SAMPLING_RATE)
    rows = [
        _row("broken-missing", "broken-never-recorded.wav", ADA, label="joy"),
        _row("broken-cut-short", "broken-cut-short.wav", BEN, label="disgust"),
        _row("broken-shopping-list", "broken-shopping-list.wav", CLEO),
        _row("broken-nothing", "broken-nothing.mp3", INES),
        _row("broken-20-ms", "broken-20-ms.wav", BEN, label="neutral"),
        _row("broken-same-id", "ada-prizes.wav", ADA, label="joy"),
        _row("broken-same-id", "mateo-carne.flac", MATEO, label="anger"),
    ]
    return [*_lines(rows), '{"id": "broken-line", "audio": "audio/ben-cheese.wav", "language": "en"']


def _lines(rows: Iterable[dict[str, object]]) -> list[str]:
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def write(target: Path) -> Path:
    """Write the corpus into `target`, replacing its audio and manifest. Returns: the manifest.

    Raises: ValueError for a sentence that a model may have been trained on.
    """
    if learnt := [text for text in sentences() if split_of(text) != "test"]:
        raise ValueError(f"not of the test split: {learnt}")
    shutil.rmtree(target / "audio", ignore_errors=True)
    (target / "audio").mkdir(parents=True)
    rows = [write_clip(target, clip) for clip in CLIPS]
    rows += [*write_takes(target), *write_call(target), write_letter(target)]
    manifest = target / "manifest.jsonl"
    manifest.write_text("\n".join([*_lines(rows), *write_broken(target)]) + "\n", encoding="utf-8")
    return manifest
