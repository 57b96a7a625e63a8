"""Corpora with labels in their file names: RAVDESS, TESS, SAVEE, CREMA-D, EMO-DB.

Files of emotions outside the seven classes (RAVDESS' calm, EMO-DB's boredom) are omitted, since the model card does not
assign them to a class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.manifest.sources.corpus import Corpus, Row, card_label, file_name, table_of
from pipeline.redaction import without_query

_NOT_NAMED_SO = "not named as the corpus names its files"


@dataclass(frozen=True, slots=True)
class Naming:
    """The file naming scheme of one corpus.

    Attributes:
        pattern: matches the end of the path; its group `emotion` is a key of `words`.
        words: maps the corpus' code to its own word and the emotion of our vocabulary, or None.
        describe: returns other columns from the name. Columns with value None are omitted.
    """

    dataset: str
    language: str
    pattern: re.Pattern[str]
    words: Mapping[str, tuple[str, str | None]]
    describe: Callable[[re.Match[str]], Row]

    def read(self, corpus: Corpus, audio: Sequence[str], sexes: Mapping[str, str]) -> None:
        """Add a row for each file with a matching name. `sexes` has the sex by speaker, from a table if any."""
        for uri in audio:
            match = self.pattern.search(without_query(uri))
            if match is None:
                corpus.leave_out(_NOT_NAMED_SO, file_name(uri))
                continue
            word, emotion = self.words[match["emotion"].upper()]
            if emotion is None:
                corpus.leave_out(f"{word}, which is not one of the seven classes", file_name(uri))
                continue
            details = self.describe(match)
            if details.pop("silent", False):
                corpus.leave_out("video without sound", file_name(uri))
                continue
            row = {
                "id": f"{self.dataset}-{match['name']}".replace("/", "-"),
                "audio": uri,
                "label": card_label(emotion, self.language),
                "corpus_label": word,
                "language": self.language,
                **details,
                "speaker": f"{self.dataset}_{match['speaker']}",
                "sex": details.get("sex") or sexes.get(match["speaker"]),
                "dataset": self.dataset,
            }
            corpus.rows.append({name: value for name, value in row.items() if value is not None})


_ENDING = r"\.\w+$"

_RAVDESS_TEXTS = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}


def _ravdess(match: re.Match[str]) -> Row:
    modality, channel, _, intensity, statement, repetition, actor = match["name"].split("-")
    return {
        "silent": modality == "02",
        "text": _RAVDESS_TEXTS[statement],
        "intensity": {"01": "normal", "02": "strong"}[intensity],
        "vocal_channel": {"01": "speech", "02": "song"}[channel],
        "repetition": int(repetition),
        "sex": "male" if int(actor) % 2 else "female",
    }


# Source: Livingstone & Russo 2018, doi 10.1371/journal.pone.0196391, and the file naming on its Zenodo page (1188976)
RAVDESS = Naming(
    "ravdess",
    "en",
    re.compile(r"(?P<name>0[123]-0[12]-(?P<emotion>0[1-8])-0[12]-0[12]-0[12]-(?P<speaker>[01][0-9]|2[0-4]))" + _ENDING),
    {
        "01": ("neutral", "neutral"),
        "02": ("calm", None),
        "03": ("happy", "joy"),
        "04": ("sad", "sadness"),
        "05": ("angry", "anger"),
        "06": ("fearful", "fear"),
        "07": ("disgust", "disgust"),
        "08": ("surprised", "surprise"),
    },
    _ravdess,
)

# Source: Pichora-Fuller & Dupuis 2020, doi 10.5683/SP2/E8H2MF; "ps" is pleasant surprise, and one file begins with OA_
TESS = Naming(
    "tess",
    "en",
    re.compile(
        r"(?P<name>(?P<speaker>OAF|YAF|OA)_(?P<word>[A-Za-z]+)_(?P<emotion>angry|disgust|fear|happy|neutral|ps|sad))"
        + _ENDING
    ),
    {
        "ANGRY": ("angry", "anger"),
        "DISGUST": ("disgust", "disgust"),
        "FEAR": ("fear", "fear"),
        "HAPPY": ("happy", "joy"),
        "NEUTRAL": ("neutral", "neutral"),
        "PS": ("pleasant surprise", "surprise"),
        "SAD": ("sad", "sadness"),
    },
    lambda match: {"text": f"Say the word {match['word']}", "sex": "female"},
)

# Source: Haq & Jackson 2010, kahlan.eps.surrey.ac.uk/savee: folders DC, JE, JK, KL; some copies write DC_a01.wav. Men only.
SAVEE = Naming(
    "savee",
    "en",
    re.compile(r"(?:^|/)(?P<name>(?P<speaker>DC|JE|JK|KL)[/_](?P<emotion>sa|su|a|d|f|h|n)\d\d)" + _ENDING),
    {
        "A": ("anger", "anger"),
        "D": ("disgust", "disgust"),
        "F": ("fear", "fear"),
        "H": ("happiness", "joy"),
        "N": ("neutral", "neutral"),
        "SA": ("sadness", "sadness"),
        "SU": ("surprise", "surprise"),
    },
    lambda match: {"sex": "male"},
)

_CREMA_TEXTS = {
    "IEO": "It's eleven o'clock",
    "TIE": "That is exactly what happened",
    "IOM": "I'm on my way to the meeting",
    "IWW": "I wonder what this is about",
    "TAI": "The airplane is almost full",
    "MTI": "Maybe tomorrow it will be cold",
    "IWL": "I would like a new alarm clock",
    "ITH": "I think I have a doctor's appointment",
    "DFA": "Don't forget a jacket",
    "ITS": "I think I've seen this before",
    "TSI": "The surface is slick",
    "WSI": "We'll stop in a couple of minutes",
}

# Source: Cao et al. 2014, doi 10.1109/TAFFC.2014.2336244, and the README of CheyneyComputerScience/CREMA-D; one level is "X"
CREMA_D = Naming(
    "crema-d",
    "en",
    re.compile(
        rf"(?P<name>(?P<speaker>1\d\d\d)_(?P<sentence>{'|'.join(_CREMA_TEXTS)})_(?P<emotion>ANG|DIS|FEA|HAP|NEU|SAD)"
        r"_(?P<level>LO|MD|HI|XX?))" + _ENDING
    ),
    {
        "ANG": ("anger", "anger"),
        "DIS": ("disgust", "disgust"),
        "FEA": ("fear", "fear"),
        "HAP": ("happy", "joy"),
        "NEU": ("neutral", "neutral"),
        "SAD": ("sad", "sadness"),
    },
    lambda match: {
        "text": _CREMA_TEXTS[match["sentence"]],
        "intensity": {"LO": "low", "MD": "medium", "HI": "high"}.get(match["level"], "unspecified"),
    },
)

_EMO_DB_TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}

# Source: Burkhardt et al. 2005, doi 10.21437/Interspeech.2005-446, and emodb.bilderbar.info/index-1280.html
EMO_DB = Naming(
    "emo-db",
    "de",
    re.compile(
        rf"(?P<name>(?P<speaker>03|08|09|1[0-6])(?P<sentence>{'|'.join(_EMO_DB_TEXTS)})(?P<emotion>[WLEAFTN])[a-z])"
        + _ENDING
    ),
    {
        "W": ("anger", "anger"),
        "L": ("boredom", None),
        "E": ("disgust", "disgust"),
        "A": ("anxiety", "fear"),
        "F": ("happiness", "joy"),
        "T": ("sadness", "sadness"),
        "N": ("neutral", "neutral"),
    },
    lambda match: {
        "text": _EMO_DB_TEXTS[match["sentence"]],
        "sex": "male" if match["speaker"] in ("03", "10", "11", "12", "15") else "female",
    },
)


def read_named(naming: Naming, files: Sequence[str], audio: Sequence[str]) -> Corpus:
    """Return the rows of a corpus with the naming scheme `naming`.

    Raises: ConfigError when no file name matches.
    """
    corpus = Corpus()
    demographics = table_of(files, "VideoDemographics.csv", ("ActorID", "Sex"), corpus) if naming is CREMA_D else None
    sexes = {row["ActorID"]: row["Sex"].strip().lower() for row in demographics or ()}
    naming.read(corpus, audio, sexes)
    if not corpus.rows and len(corpus.left_out.get(_NOT_NAMED_SO, ())) == len(audio):
        raise ConfigError(f"none of the {len(audio):,} audio files has a {naming.dataset} name, for example {audio[0]}")
    return corpus
