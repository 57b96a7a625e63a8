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
from jobs.printer import Printer
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
        "--mode", nargs="+", action="extend", choices=get_args(Mode), help="modes that jobs will use (default: mean)"
    )
    parser.add_argument(
        "--language",
        nargs="+",
        action="extend",
        metavar="CODE",
        help="languages of the corpora (default: all that have a published or named emotion model)",
    )
    models = add_options(parser, ModelChoice, only=MODEL_OPTIONS)["models"]
    models.add_argument("--without-asr", action="store_true", help="store no speech recogniser: every row has a text")
    run = parser.add_argument_group("run")
    run.add_argument(
        "--update", action="store_true", help="fetch newer commits of models that are in the folder already"
    )
    run.add_argument("--verify", action="store_true", help="only compare every file with the lock; needs no network")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare or verify the models and return the exit status."""
    flags = vars(command_line().parse_all(arguments))
    output, update, verify = flags.pop("output"), flags.pop("update", False), flags.pop("verify", False)

    def run(printer: Printer) -> int:
        return _verify(output, printer) if verify else _prepare(output, *_chosen(flags), printer, update=update)

    afterwards = "The lock is written once every model is stored; the same command continues from here."
    return run_guarded("prepare_models", run, json=flags.pop("json", False), afterwards=afterwards)


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


def _prepare(
    output: str, chosen: Mapping[str, Mapping[Role, str]], modes: Sequence[str], printer: Printer, *, update: bool
) -> int:
    # imported late: typing errors are reported before torch is loaded
    from pipeline.models.checkpoints.prepare import prepare

    prepared, new = prepare(
        output, chosen, update=update, tell=lambda role, spec, model: printer.line(_line(role, spec, model))
    )
    output, models = without_query(output), prepared.lock.models
    size_bytes = sum(model.size_bytes for model in models.values())
    if new:
        printer.line(f"lock {prepared.number} of {output}: {len(models)} models, {_size(size_bytes)}")
        mode = "" if "mean" in modes else f" --mode {modes[0]}"
        printer.line(
            f"use it: python -m jobs.annotate --models {shlex.quote(output)}{mode} --manifest ... --output ..."
        )
    else:
        printer.line(f"Nothing to do: lock {prepared.number} of {output} lists every model, and every file exists.")
    printer.document(
        {
            "output": output,
            "lock": prepared.number,
            "new": new,
            "size_bytes": size_bytes,
            "models": {
                spec: {**model.model_dump(exclude={"files"}), "size_bytes": model.size_bytes}
                for spec, model in models.items()
            },
        }
    )
    return 0


def _verify(output: str, printer: Printer) -> int:
    from pipeline.models.checkpoints.lock import broken_files, read_prepared
    from pipeline.storage.store import open_store

    prepared = read_prepared(output)
    if prepared is None:
        raise ConfigError(
            f"{without_query(output)} has no lock: it is not a folder of prepared models, or its preparation was interrupted. "
            "Run the command without --verify"
        )
    broken = broken_files(open_store(output), prepared.lock)
    for line in broken:
        printer.line(f"broken  {line}")
    files, models = sum(len(model.files) for model in prepared.lock.models.values()), len(prepared.lock.models)
    if broken:
        printer.line(
            f"{len(broken)} of {files} files differ from lock {prepared.number}; delete them and prepare again"
        )
    else:
        printer.line(f"sound: {files} files of {models} models match lock {prepared.number}")
    printer.document(
        {
            "output": without_query(output),
            "lock": prepared.number,
            "status": "broken" if broken else "sound",
            "models": models,
            "files": files,
            "broken": broken,
        }
    )
    return 1 if broken else 0


def _line(role: str, spec: str, model: LockedModel) -> str:
    commit = f" at {model.revision[:12]}" if model.revision else ""
    licence = model.licence or "licence not stated"
    return "  ".join([f"{role:<13}", f"{spec}{commit}", _size(model.size_bytes), licence, *model.converted])


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
