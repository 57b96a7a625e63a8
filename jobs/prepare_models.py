"""Store the models of a job in a folder on disk or in an object store, so that jobs need no hub: `annotate --models`.

Run it on a machine with network access. Run it again after an interruption, to add modes or languages, or to check that
all files are present. Models in the folder's lock keep their commit until --update. Exit status: 0 the folder holds the
requested models; 1 storing failed, or --verify found a broken file; 2 the command line or a model cannot be used as
requested; 130 interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from jobs.options import add_options
from jobs.parser import Parser, run_guarded
from pipeline.config import MODEL_OPTIONS, ModelChoice, primary_language, validated
from pipeline.config.settings import Mode
from pipeline.errors import ConfigError
from pipeline.pins import Role
from pipeline.redaction import without_query

if TYPE_CHECKING:
    from pipeline.models.checkpoints.lock import LockedModel


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "prepare_models",
        usage="%(prog)s --output URI [options]",
        description="Fetch models at a pinned commit, check them tensor by tensor, convert pickles to safetensors and Whisper to "
        "CTranslate2, store them with a lock file of commits, hashes and licences. Then: jobs.annotate --models URI",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--output", metavar="URI", required=True, help="folder of the models: a path, s3://bucket/models, ..."
    )
    parser.add_argument(
        "--mode", nargs="+", action="extend", choices=get_args(Mode), help="those jobs will use (default: mean)"
    )
    parser.add_argument("--language", nargs="+", action="extend", metavar="CODE",
                        help="those the corpora hold (default: all that have a published or named emotion model)")  # fmt: skip
    models = add_options(parser, ModelChoice, only=MODEL_OPTIONS)["models"]
    models.add_argument(
        "--without-asr", action="store_true", help="no speech recogniser: every row will bring its text"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--update", action="store_true", help="take newer commits of models that the folder holds already")
    run.add_argument(
        "--verify", action="store_true", help="only read every file and compare it with the lock; no network"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare or verify the models and return the exit status."""
    flags = vars(command_line().parse_all(arguments))
    output, update, verify = flags.pop("output"), flags.pop("update", False), flags.pop("verify", False)
    return run_guarded(
        "prepare_models",
        lambda: _verify(output) if verify else _prepare(output, *_chosen(flags), update=update),
        afterwards="A lock is written when all is stored; the same command goes on.",
    )


def _chosen(flags: dict[str, Any]) -> tuple[dict[str, dict[Role, str]], list[str]]:
    """Return mode -> role -> model id, and the modes that were chosen. Raises: ConfigError."""
    from pipeline.models import roles

    modes = dict.fromkeys(flags.pop("mode", ["mean"]))
    languages = list(dict.fromkeys(map(primary_language, flags.pop("language", []))))
    without_asr = flags.pop("without_asr", False)
    named = {**flags, **({"language": languages[0]} if len(languages) == 1 else {})}
    chosen: dict[str, dict[Role, str]] = {}
    for mode in modes:
        choice = validated(ModelChoice, {**named, "mode": mode})
        # mode audio needs no transcripts, except to detect the language
        needs_asr = not without_asr and (mode != "audio" or bool(choice.asr_model))
        chosen[mode] = roles.choose(choice, languages or roles.known_languages(choice), needs_asr=needs_asr)
    return chosen, list(modes)


def _prepare(output: str, chosen: Mapping[str, Mapping[Role, str]], modes: Sequence[str], *, update: bool) -> int:
    # imported late: typing errors are reported before torch is loaded
    from pipeline.models.checkpoints.prepare import prepare

    there, new = prepare(output, chosen, update=update, tell=_tell)
    output = without_query(output)
    if not new:
        print(f"Nothing to do: lock {there.number} of {output} holds all of it, and every file is there.")
        return 0
    size = sum(model.size_bytes for model in there.lock.models.values())
    print(f"lock {there.number} of {output}: {len(there.lock.models)} models, {_size(size)}")
    mode = "" if "mean" in modes else f" --mode {modes[0]}"
    print(f"use it: python -m jobs.annotate --models {shlex.quote(output)}{mode} --manifest ... --output ...")
    return 0


def _verify(output: str) -> int:
    from pipeline.models.checkpoints.lock import broken_files, read_prepared
    from pipeline.storage.store import open_store

    prepared = read_prepared(output)
    if prepared is None:
        raise ConfigError(f"{output} holds no lock, so it is no prepared folder, or one whose preparation did not end")
    broken = broken_files(open_store(output), prepared.lock)
    for line in broken:
        print(f"broken  {line}")
    files = sum(len(model.files) for model in prepared.lock.models.values())
    if broken:
        print(f"{len(broken)} of {files} files are not what lock {prepared.number} says; delete them and prepare again")
        return 1
    print(f"sound: {files} files of {len(prepared.lock.models)} models are what lock {prepared.number} says")
    return 0


def _tell(what: str, spec: str, model: LockedModel) -> None:
    commit = f" at {model.revision[:12]}" if model.revision else ""
    licence = model.licence or "licence not stated"
    print("  ".join([f"{what:<13}", f"{spec}{commit}", _size(model.size_bytes), licence, *model.converted]), flush=True)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
