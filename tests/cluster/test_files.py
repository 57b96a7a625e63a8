"""The image and the files for AWS, checked without a container engine or a cloud."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli

from tests.support.corpus import ROOT

CLUSTER = ROOT / "cluster"
DOCKERFILE = CLUSTER / "Dockerfile"
BIN = Path(sys.executable).parent


def lock(path: Path) -> dict[str, str]:
    """Names and versions of a lock file."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def copied() -> set[str]:
    """What the Dockerfile copies, from the root of the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    return {source for line in lines for source in line.split()}


# -- the image


def test_the_dockerfile_has_no_lint():
    """Fails on what hadolint knows to be wrong: unpinned versions, caches left in a layer, a last user that is root."""
    done = subprocess.run([BIN / "hadolint", DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_target_ends_with_the_same_user_and_no_root():
    """Fails if one of the images runs as root."""
    stages = re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.MULTILINE)[1:]
    targets = {re.search(r" AS (\S+)", s)[1]: re.findall(r"^USER (\S+)", s, re.MULTILINE) for s in stages}  # type: ignore[index]
    assert targets["cpu"] == targets["cuda"] != [] and not targets["cpu"][-1].startswith(("0", "root"))


def test_the_build_sees_what_it_copies_and_nothing_else():
    """Fails if .dockerignore hides a file the image needs, or lets in a corpus, a key or a checkout's history."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert patterns[0] == "*"
    assert {pattern[1:] for pattern in patterns if pattern.startswith("!")} == copied()
    assert all((ROOT / source).exists() for source in copied())


def test_what_is_copied_is_enough_to_run_the_job(tmp_path):
    """Fails if a module that the job imports is not in the image."""
    for source in copied():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
    modules = [f"{'.'.join(p.relative_to(tmp_path).with_suffix('').parts)}" for p in tmp_path.glob("jobs/[a-z]*.py")]
    code = f"import pipeline.engine.run\nfor name in {modules!r}: __import__(name)\nprint(pipeline.engine.run.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path)) and "jobs.annotate" in modules


def required_by_extras() -> set[str]:
    """The packages named by the extras of which each serves one option."""
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [text for extra, texts in optional.items() if extra not in ("analytics", "dev") for text in texts]
    return {canonicalize_name(Requirement(text).name) for text in named}


def runtime_requirements() -> set[str]:
    """The packages that the image installs: the project's own requirements, the analytics', and theirs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["analytics"]]
    queue, found = [Requirement(text) for text in named], set()
    while queue:
        requirement = queue.pop()
        for extra in {"", *requirement.extras}:
            key = (canonicalize_name(requirement.name), extra)
            if key not in found:
                found.add(key)
                theirs = [Requirement(text) for text in requires(requirement.name) or []]
                queue += [r for r in theirs if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def pins_of_the_image(folder: Path, lock_text: str, extras: str = "analytics") -> dict[str, list[str]]:
    """The files that the Dockerfile's script makes of a lock file."""
    folder.mkdir()
    (folder / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (folder / "requirements.lock").write_text(lock_text)
    (script,) = re.findall(r"<<'SCRIPT'\n(.*?)^SCRIPT$", DOCKERFILE.read_text(), re.MULTILINE | re.DOTALL)
    subprocess.run([sys.executable, "-c", script.replace("/build/", f"{folder}/"), extras], check=True)
    return {name: (folder / name).read_text().splitlines() for name in ("requirements.txt", "constraints.txt")}


def test_a_linters_pin_does_not_rebuild_the_packages(tmp_path):
    """Fails if a layer of 7 GB depends on the pins of tools, misses the pin of a package in the image, or ignores an extra."""
    text = (ROOT / "requirements.lock").read_text()
    other = re.sub(r"^ruff==.*$", "ruff==99", text, flags=re.MULTILINE)
    assert other != text
    made = pins_of_the_image(tmp_path / "a", text)
    assert made == pins_of_the_image(tmp_path / "b", other)
    pinned = {canonicalize_name(line.partition("==")[0]) for line in made["constraints.txt"]}
    assert runtime_requirements() <= pinned and "ruff" not in pinned
    more = pins_of_the_image(tmp_path / "c", text, "analytics,delta")["requirements.txt"]
    assert set(more) - set(made["requirements.txt"]) == {"deltalake>=1.6"}


def test_what_the_code_imports_is_in_the_image_at_a_locked_version():
    """Fails if the code imports a package that only the tests bring, or an image built tomorrow could get another version."""
    installed = runtime_requirements()
    allowed = installed | required_by_extras()  # which are imported where they are asked for
    assert installed <= set(lock(ROOT / "requirements.lock"))
    distributions = packages_distributions()
    for path in [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.partition(".")[0] for name in names} - {
                "pipeline",
                "jobs",
                *sys.stdlib_module_names,
            }:
                assert {canonicalize_name(name) for name in distributions[top]} & allowed, f"{path}: {top}"


def test_the_cuda_lock_is_of_the_torch_that_is_locked():
    """Fails if torch was moved on without asking which CUDA libraries the new one brings."""
    content = (CLUSTER / "cuda.lock").read_text()
    assert f"torch {lock(ROOT / 'requirements.lock')['torch']} on PyPI" in content
    versions = lock(CLUSTER / "cuda.lock")
    assert all(versions.values()) and versions["nvidia-cublas-cu12"].startswith("12."), (
        "CTranslate2 loads libcublas.so.12"
    )


# -- AWS


def ray_up() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CLUSTER / "aws" / "ray-up.yaml").read_text())
    return content


def test_ray_up_would_accept_the_cluster():
    """Fails on a key that Ray's launcher does not know, or a file to be copied that is not there."""
    config = ray_up()
    validate_config(prepare_config(json.loads(json.dumps(config))))
    for target, source in config["file_mounts"].items():
        assert source.startswith("~") or (ROOT / source).is_file(), target


def test_the_machines_are_ones_that_ec2_would_start():
    """Fails on a misspelt parameter: EC2 refuses the request, at night, when the first worker is wanted."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for kind in ray_up()["available_node_types"].values():
        node = dict(kind["node_config"])
        (node["SubnetId"],) = node.pop("SubnetIds")  # Ray spreads machines over them
        faults = botocore.validate.ParamValidator().validate({**node, "MinCount": 1, "MaxCount": 1}, shape)
        assert not faults.has_errors(), faults.generate_report()
        assert node["MetadataOptions"]["HttpTokens"] == "required"


def test_ray_knows_the_options_it_is_started_with():
    """Fails if an option of `ray start` went with a newer Ray."""
    known = {
        option for parameter in cli.commands["start"].params for option in parameter.opts + parameter.secondary_opts
    }
    config = ray_up()
    commands = " ".join([*config["head_start_ray_commands"], *config["worker_start_ray_commands"]])
    used = set(re.findall(r"(--[a-z-]+)", commands))
    spec = yaml.safe_load((CLUSTER / "kubernetes" / "base" / "raycluster.yaml").read_text())["spec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        used |= {f"--{name}" for name in group["rayStartParams"]}
    assert len(used) > 5 and used <= known, used - known
    assert "--dashboard-host=127.0.0.1" in commands


def policy(name: str) -> list[dict[str, Any]]:
    document = json.loads((CLUSTER / "aws" / f"{name}.json").read_text())
    assert document["Version"] == "2012-10-17"
    return document["Statement"]  # type: ignore[no-any-return]


def actions(name: str) -> set[str]:
    found: set[str] = set()
    for statement in policy(name):
        found |= {statement["Action"]} if isinstance(statement["Action"], str) else set(statement["Action"])
    return found


def test_no_role_of_the_job_may_delete():
    """Fails if a worker could remove or overwrite what is committed, or write among the audio."""
    assert actions("reader") == {"s3:GetObject", "s3:ListBucket"}
    assert actions("writer") == {"s3:GetObject", "s3:PutObject", "s3:ListBucket"}
    for name in ("reader", "writer"):
        for statement in policy(name):
            resources = statement["Resource"]
            for resource in [resources] if isinstance(resources, str) else resources:
                assert re.fullmatch(r"arn:aws:s3:::BUCKET(/[a-z]+/\*)?", resource), "wider than a prefix"
    assert [s["Resource"] for s in policy("writer") if "s3:PutObject" in s["Action"]] == [
        "arn:aws:s3:::BUCKET/emotions/*"
    ]


def test_only_the_roles_made_for_it_may_delete():
    """Fails if the policy of the eraser reaches beyond the output, or the one for texts beyond the texts of runs."""
    assert {s["Resource"] for s in policy("eraser") if "s3:DeleteObject" in s["Action"]} == {
        "arn:aws:s3:::BUCKET/emotions/*"
    }
    assert [(s["Action"], s["Resource"].partition("BUCKET")[2]) for s in policy("texts")] == [
        ("s3:DeleteObject", "/emotions/_runs/*/shards/*-texts.parquet"),
        ("s3:GetBucketVersioning", ""),
    ]


def test_s3_takes_the_lifecycle_rule():
    """Fails if the rule is not one that S3 takes, or ends anything but uploads nobody completed."""
    rules = json.loads((CLUSTER / "aws" / "lifecycle.json").read_text())
    shape = botocore.session.get_session().get_service_model("s3").shape_for("BucketLifecycleConfiguration")
    faults = botocore.validate.ParamValidator().validate(rules, shape)
    assert not faults.has_errors(), faults.generate_report()
    (rule,) = rules["Rules"]
    assert not {"Expiration", "NoncurrentVersionExpiration", "Transitions"} & set(rule)
    assert rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] >= 1
