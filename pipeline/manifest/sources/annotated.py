"""Corpora with labels in CSV tables beside the audio: MELD and Spanish MEACorpus 2023."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.errors import ConfigError
from pipeline.manifest.sources.corpus import Corpus, Row, card_label, file_name, table_of
from pipeline.schema import emotion_of

_NO_AUDIO = "named in a table, but its audio is missing"
_NO_ROW = "audio that no table names"

_MELD_TABLES = {"train": "train_sent_emo.csv", "dev": "dev_sent_emo.csv", "test": "test_sent_emo.csv"}
_MELD_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
_MELD_FILE = re.compile(r"dia(\d+)_utt(\d+)\.\w+")
_MELD_FOLDER = re.compile(
    r"(?:^|[^a-z])(train|dev|test)(?:[^a-z]|$)"
)  # train_splits, dev_splits_complete, output_..._test
_WINDOWS = {code: bytes([code]).decode("cp1252") for code in (0x85, 0x91, 0x92, 0x93, 0x94, 0x96, 0x97)}
"""Characters to restore: MELD's UTF-8 contains the quotes, dashes and dots of Windows-1252 as control characters."""

_MEA_TABLE = "spanish-meacorpus-2023-dataset.csv"


def read_meld(files: Sequence[str], audio: Sequence[str]) -> Corpus:
    """Return the rows of MELD.

    Dialogue numbers restart in each split, so a clip is identified by its split too, which is in its folder's name.

    Raises: ConfigError when none of its tables exists.
    Source: Poria et al. 2019, doi 10.18653/v1/P19-1050, and the README of declare-lab/MELD.
    """
    corpus = Corpus()
    clips: dict[tuple[str, int, int], str] = {}
    for uri in audio:
        numbers, split = _MELD_FILE.fullmatch(file_name(uri)), _split_of_folder(uri)
        if numbers is None or split is None:
            corpus.leave_out(_NO_ROW, file_name(uri))
        else:
            clips[split, int(numbers[1]), int(numbers[2])] = uri
    tables = {split: table_of(files, name, _MELD_COLUMNS, corpus) for split, name in _MELD_TABLES.items()}
    if not any(tables.values()):
        raise ConfigError(f"the folder contains none of {', '.join(_MELD_TABLES.values())}; give MELD's top folder")
    for split, table in tables.items():
        for line in table or ():
            name = f"dia{line['Dialogue_ID']}_utt{line['Utterance_ID']}"
            if not (line["Dialogue_ID"].isdecimal() and line["Utterance_ID"].isdecimal()):
                corpus.leave_out("a line of a table that has no number", f"{split}/{name}")
                continue
            dialogue, utterance = int(line["Dialogue_ID"]), int(line["Utterance_ID"])
            name = f"dia{dialogue}_utt{utterance}"
            uri = clips.pop((split, dialogue, utterance), "")
            if uri:
                corpus.rows.append(
                    {
                        "id": f"meld-{split}-{name}",
                        "audio": uri,
                        **_labels(line["Emotion"], "en"),
                        "text": line["Utterance"].translate(_WINDOWS),
                        "language": "en",
                        "speaker": f"meld_{line['Speaker']}",
                        "split": split,
                        "dataset": "meld",
                        "dialogue": dialogue,
                    }
                )
            else:
                corpus.leave_out(_NO_AUDIO, f"{split}/{name}")
    for uri in clips.values():
        corpus.leave_out(_NO_ROW, file_name(uri))
    return corpus


def _split_of_folder(uri: str) -> str | None:
    """Return the split in the name of the nearest folder, or None."""
    for folder in reversed(uri.split("/")[:-1]):
        found = _MELD_FOLDER.search(folder.lower())
        if found:
            return found[1]
    return None


def read_meacorpus(files: Sequence[str], audio: Sequence[str]) -> Corpus:
    """Return the rows of Spanish MEACorpus 2023, whose users cut the audio themselves from the listed videos.

    The corpus does not identify speakers.

    Raises: ConfigError when its table is missing.
    Source: Pan et al. 2024, doi 10.1016/j.csi.2024.103856, and the table of NLP-UMUTeam/Spanish-MEACorpus-2023
        (`filename`, `label`, `transcription`, `split`; its README also names `gender` and `youtube_key`).
    """
    corpus = Corpus()
    table = table_of(files, _MEA_TABLE, ("filename", "label"), corpus)
    if table is None:
        raise ConfigError(f"the folder has no {_MEA_TABLE}; put the corpus's table beside its segments")
    stems = {
        _stem(file_name(uri)): uri for uri in audio
    }  # the table has .mp3 names, but users may have cut the videos to .wav
    for line in table:
        uri = stems.pop(_stem(line["filename"]), "")
        if uri:
            corpus.rows.append(
                {
                    "id": f"meacorpus-{_stem(line['filename'])}",
                    "audio": uri,
                    **_labels(line["label"], "es"),
                    "language": "es",
                    **{name: line[column] for name, column in _MEA_MORE if line.get(column)},
                    "dataset": "meacorpus",
                }
            )
        else:
            corpus.leave_out(_NO_AUDIO, line["filename"])
    for uri in stems.values():
        corpus.leave_out(_NO_ROW, file_name(uri))
    return corpus


_MEA_MORE = (("text", "transcription"), ("split", "split"), ("sex", "gender"), ("video", "youtube_key"))


def _labels(word: str, language: str) -> Row:
    return {"label": card_label(emotion_of(word), language), "corpus_label": word}


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
