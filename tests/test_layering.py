"""Which package may import which, and constructs that may not occur in the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/**/*.py")])
NAMES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES}

LOOSE = {"errors", "redaction", "schema", "layout", "pins", "stats", "processes", "api"}
"""Modules of `pipeline` outside its packages."""

_WORDS = {"errors", "redaction", "schema", "layout", "pins"}
MAY_IMPORT = {
    "redaction": set(),
    "errors": {"redaction"},
    "layout": set(),
    "pins": set(),
    "processes": set(),
    "stats": set(),
    "schema": {"errors"},
    "config": {*_WORDS, "storage"},
    "storage": {"errors", "redaction"},
    "audio": {"errors", "processes"},
    "manifest": {*_WORDS, "config", "storage", "audio"},
    "models": {*_WORDS, "config", "storage", "audio", "processes", "stats"},
    "dataset": {*_WORDS, "config", "storage", "audio", "manifest", "stats"},
    "shard": {*_WORDS, "config", "storage", "manifest", "audio", "models", "dataset", "stats"},
    "engine": {*LOOSE - {"api"}, "config", "storage", "manifest", "audio", "models", "dataset", "shard"},
    "analytics": {*LOOSE - {"api"}, "config", "storage", "manifest", "audio", "models", "dataset"},
    "api": {*_WORDS, "config", "storage", "manifest", "models", "dataset", "shard", "engine", "analytics"},
}
"""Package or loose module: what it may import besides itself. `engine` and `analytics` are imported by `api` and the jobs
alone."""

LIGHT = [
    "pipeline.schema", "pipeline.errors", "pipeline.config", "pipeline.storage.store", "pipeline.storage.fetch",
    "pipeline.storage.access",
    "pipeline.manifest.staging", "pipeline.dataset.plan", "pipeline.dataset.parts", "pipeline.dataset.compatibility",
    "pipeline.shard.context", "pipeline.shard.prepare", "pipeline.shard.transcribe", "pipeline.shard.recognise",
    "pipeline.shard.commit", "pipeline.engine.progress",
    "pipeline.models.roles", "pipeline.models.recognisers", "pipeline.models.whisper", "jobs.annotate",
    "pipeline.storage.cleanup",
    "pipeline.dataset.prune", "pipeline.dataset.verify.audit", "jobs.verify", "jobs.prune", "jobs.make_manifest",
    "jobs.evaluate", "pipeline.models.checkpoints.lock", "jobs.prepare_models",
]  # fmt: skip
"""Modules that CPU tasks and a quick refusal load."""


def package_of(module: str) -> str:
    """The package or loose module of `pipeline` that a module belongs to; `jobs` for entry points."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "pipeline" else first


def loaded_by(modules: list[str], packages: set[str]) -> set[str]:
    """The packages that a fresh interpreter has loaded after importing the modules."""
    code = f"import sys\nfor m in {modules!r}: __import__(m)\nprint(*sorted({packages!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]


def imports(tree: ast.Module) -> set[str]:
    """Every module that a file imports, at whatever depth."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "pipeline" else {module}
    return names


def test_packages_import_only_what_the_table_allows():
    """Fails if a package imports one above it, such as a model that knows of plans or an audit that loads a model."""
    wrong = []
    for path, tree in trees():
        package = package_of(NAMES[path])
        if not package or package == "jobs":
            continue
        used = {package_of(name) for name in imports(tree) if name.startswith("pipeline.")}
        known = used & MAY_IMPORT.keys()
        wrong += [f"{NAMES[path]} imports {other}" for other in sorted(known - MAY_IMPORT[package] - {package})]
    assert not wrong


def test_loose_modules_are_few():
    """Fails if a module is added beside the packages instead of in one."""
    loose = {path.stem for path in SOURCES if path.parent == ROOT / "pipeline"} - {"__init__"}
    assert loose == LOOSE and len(loose) <= 8


@pytest.mark.parametrize("package", sorted(MAY_IMPORT.keys() - LOOSE - {"engine"}))
def test_only_the_engine_loads_ray(package):
    """Fails if a package loads ray, so that a notebook cannot use it without a cluster."""
    of_package = sorted(name for name in NAMES.values() if package_of(name) == package)
    assert of_package and loaded_by(of_package, {"ray"}) == set()


def test_cpu_tasks_do_not_load_torch():
    """Fails if a step on CPU pays seconds and 500 MB for models it does not run, or a job with nothing to do imports Ray."""
    heavy = {"torch", "transformers", "librosa", "pandas"}
    assert loaded_by(LIGHT, heavy) == set()
    assert loaded_by(["pipeline.engine.stages"], heavy - {"pandas"}) == set()  # ray imports pandas
    assert (
        loaded_by(["pipeline.engine.run"], {*heavy, "ray"}) == set()
    )  # so the first line of a job appears before that import


def test_a_command_line_is_refused_before_anything_heavy_is_loaded():
    """Fails if a job loads ray, torch or DuckDB to say that an option is unknown."""
    jobs = [name for name in NAMES.values() if name.startswith("jobs.")]
    assert loaded_by(jobs, {"duckdb", "scipy", "ray", "torch", "transformers", "faster_whisper", "matplotlib"}) == set()


def test_ray_is_imported_by_the_engine_alone():
    """Fails if a file outside the engine imports ray, except the client that submits a job to a cluster's job API."""
    found = {NAMES[path] for path, tree in trees() if any(name.partition(".")[0] == "ray" for name in imports(tree))}
    assert {name for name in found if package_of(name) != "engine"} == {"jobs.submit"}


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
    assert broad == ["pipeline.shard.isolation"]


FORBIDDEN = ("trust_remote_code=True", "weights_only=False", "pickle.load", "eval(", "exec(", "shell=True", "utcnow(")


def test_no_code_from_data_is_run():
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


def test_output_paths_are_spelled_in_one_file():
    """Fails if a path of the output is written out anywhere but in `pipeline/layout.py`."""
    paths = (
        "_runs/",
        "utterances/",
        "rejects/",
        "_SUCCESS",
        "_dataset.json",
        "report.html",
        "report.json",
        "plan.json",
    )
    found = set()
    for path, tree in trees():
        documented = {
            id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
        }
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if id(node) not in documented and " " not in text and any(each in text for each in paths):
                found.add(NAMES[path])
    assert found <= {"pipeline.layout"}


def test_files_stay_small_and_have_docstrings():
    """Fails if a file has no docstring or more than 400 lines, or a function more than 60 (house style)."""
    faults = []
    for path, tree in trees():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        faults += [f"{NAMES[path]}: no docstring"] * (not ast.get_docstring(tree))
        faults += [f"{NAMES[path]}: {lines} lines"] * (lines > 400)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno
                faults += [f"{NAMES[path]}.{node.name}: {length} lines"] * (length >= 60)
    assert not faults
