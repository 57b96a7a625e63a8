"""Who may import whom, and what may not stand in the code at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/**/*.py")])
NAMES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES}

ENGINE = {"pipeline.stages", "pipeline.metrics", "pipeline.driver"}
"""They alone load ray: the engine, its metrics, and the driver that starts it."""

LIGHT = [
    "pipeline.schema", "pipeline.errors", "pipeline.config", "pipeline.storage", "pipeline.roots", "pipeline.spool",
    "pipeline.plan", "pipeline.commit", "pipeline.dataset", "pipeline.work", "pipeline.annotate", "pipeline.finish",
    "pipeline.progress", "pipeline.stages", "pipeline.models.slots", "pipeline.models.transcribe", "jobs.annotate",
    "pipeline.leftovers", "pipeline.prune", "pipeline.verify.audit", "jobs.verify", "jobs.prune",
    "jobs.make_manifest", "jobs.evaluate",
    "pipeline.models.lock", "jobs.prepare_models",
]  # fmt: skip
"""What CPU tasks and a quick refusal load."""


def loaded_by(modules: list[str], packages: set[str]) -> set[str]:
    """Which of the packages one fresh interpreter has loaded after importing the modules."""
    code = f"import sys\nfor m in {modules!r}: __import__(m)\nprint(*sorted({packages!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@cache
def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]


@pytest.mark.parametrize(
    "group",
    [
        "pipeline.models",
        "pipeline.audio",
        "pipeline.manifest",
        "pipeline.verify",
        "pipeline.corpora",
        "pipeline.evaluate",
        "pipeline.analytics",
        "pipeline.report",
        "product",
    ],
)
def test_only_the_engine_knows_ray(group):
    """Fails if a model, an edge or the product layer loads ray, so that a notebook cannot use it without a cluster."""
    of_group = {
        name for name in NAMES.values()
        if (name.count(".") < 2 and name.startswith("pipeline.") if group == "product" else name.startswith(group))
    }  # fmt: skip
    assert len(of_group - ENGINE) > 5 or group in ("pipeline.audio", "pipeline.corpora", "pipeline.report")
    assert loaded_by(sorted(of_group - ENGINE), {"ray"}) == set()


def test_cpu_tasks_do_not_load_torch():
    """Fails if a step that runs on CPU pays seconds and 500 MB for models it does not run."""
    heavy = {"torch", "transformers", "librosa", "pandas"}
    assert loaded_by([name for name in LIGHT if name != "pipeline.stages"], heavy) == set()
    assert loaded_by(["pipeline.stages"], heavy - {"pandas"}) == set()  # pandas comes with ray


def test_a_command_line_is_refused_before_anything_heavy_is_loaded():
    """Fails if a job loads ray, torch or DuckDB to say that an option is unknown."""
    jobs = [name for name in NAMES.values() if name.startswith("jobs.")]
    assert loaded_by(jobs, {"duckdb", "scipy", "ray", "torch", "transformers", "faster_whisper", "matplotlib"}) == set()


def test_ray_is_imported_by_the_engine_alone():
    """Fails if a file imports ray, at whatever depth, that is not the engine: its stages, what they publish as metrics, and
    the client that hands a job to a cluster's job API.
    """
    found = set()
    for path, tree in trees():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] == "ray" for name in names):
                found.add(NAMES[path])
    assert found == {"pipeline.stages", "pipeline.metrics", "jobs.submit"}


def test_no_assert_outside_tests():
    """Fails if the code checks what `python -O` would not check."""
    found = [f"{path}:{n.lineno}" for path, tree in trees() for n in ast.walk(tree) if isinstance(n, ast.Assert)]
    assert not found


def test_one_guard_catches_everything():
    """Fails if a second place catches every exception, where faults would vanish."""
    broad = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "BaseException"
                if {"Exception", "BaseException"} & set(caught.strip("()").replace(" ", "").split(",")):
                    broad.append(NAMES[path])
    assert broad == ["pipeline.work"]


FORBIDDEN = ("trust_remote_code=True", "weights_only=False", "pickle.load", "eval(", "exec(", "shell=True", "utcnow(")


def test_what_may_not_stand_in_the_code():
    """Fails if code that came with a checkpoint, a pickle or a string could be run."""
    found = []
    for path, tree in trees():
        docstrings = {ast.get_docstring(n, clean=False) for n in ast.walk(tree)
                      if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)}  # fmt: skip
        text = ast.unparse(tree)
        for doc in docstrings - {None}:
            text = text.replace(str(doc), "")
        calls = {ast.unparse(n.func) + "(" for n in ast.walk(tree) if isinstance(n, ast.Call)}
        found += [(NAMES[path], word) for word in FORBIDDEN
                  if word in calls or (not word.endswith("(") and word in text)]  # fmt: skip
    assert not found


def test_files_stay_small_and_say_what_they_are():
    """Fails if a file has no docstring or more than 400 lines, or a function more than 60 (house style)."""
    faults = []
    for path, tree in trees():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        faults += [f"{NAMES[path]}: no docstring"] * (not ast.get_docstring(tree))
        faults += [f"{NAMES[path]}: {lines} lines"] * (lines > 400)
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.FunctionDef) and node.name != "_parser"
            ):  # a list of options is as long as its options
                length = (node.end_lineno or 0) - node.lineno
                faults += [f"{NAMES[path]}.{node.name}: {length} lines"] * (length >= 60)
    assert not faults
