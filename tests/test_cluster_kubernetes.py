"""The manifests, as kustomize makes them: every size, standing, once and nightly."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from jobs import nightly
from jobs.annotate import _parser
from pipeline.config import JobConfig, load_config
from tests.corpus import ROOT
from tests.kuberay import SCHEMAS, cluster_of, job_of, pods, ray_pods

KUBERNETES = "1.37"
SIZES = ("small", "medium", "large")
FORMS = {"standing": "RayCluster", "once": "RayJob", "nightly": "RayCronJob"}
DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text()


@dataclass(frozen=True)
class Built:
    """What `kubectl apply -k` would send."""

    ray: dict[str, Any]
    others: list[dict[str, Any]] = field(default_factory=list)

    def named(self, kind: str) -> dict[str, dict[str, Any]]:
        return {d["metadata"]["name"]: d for d in self.others if d["kind"] == kind}


@cache
def build(size: str, form: str, scratch: Path) -> Built:
    """Kustomize's output for a size in a form; the size of once/ and nightly/ is changed as README.md says."""
    tree = scratch / f"{size}-{form}"
    shutil.copytree(ROOT / "cluster" / "kubernetes", tree)
    once = tree / "once" / "kustomization.yaml"
    assert once.read_text().count("../overlays/small") == 1
    once.write_text(once.read_text().replace("../overlays/small", f"../overlays/{size}"))
    folder = tree / "overlays" / size if form == "standing" else tree / form
    tools = (["kubectl", "kustomize"], ["kustomize", "build"])
    tool = next((tool for tool in tools if shutil.which(tool[0])), None)
    if tool is None:
        pytest.skip("needs kubectl or kustomize, which no Python package carries")
    done = subprocess.run([*tool, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    documents = list(yaml.safe_load_all(done.stdout))
    (ray,) = [
        d for d in documents if d["apiVersion"].startswith("ray.io/")
    ]  # a template that is left over is one too many
    return Built(ray, [d for d in documents if d is not ray])


@pytest.fixture(params=[(size, form) for size in SIZES for form in FORMS], ids="-".join)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    size, form = request.param
    found = build(size, form, tmp_path_factory.getbasetemp())
    assert found.ray["kind"] == FORMS[form]
    return found


def quantity(text: str) -> float:
    """A Kubernetes quantity in its base unit."""
    number, suffix = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30}[suffix]


def matches(labels: dict[str, str], selector: dict[str, Any]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items()


def test_the_api_server_would_know_every_field(built):
    """Fails on a misspelt or misplaced field, which a cluster refuses or, worse, ignores."""
    jsonschema.validate(built.ray, SCHEMAS[built.ray["kind"]])
    for document in built.others:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    for name, template in pods(built.ray).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template["metadata"]}}
        kubernetes_validate.validate({**pod, "spec": template["spec"]}, KUBERNETES, strict=True)


def test_the_schema_of_kubernetes_refuses_what_is_wrong():
    """Fails if the check above could not fail."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [], "volume": []}}
    with pytest.raises(kubernetes_validate.ValidationError, match="volume"):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    with pytest.raises(jsonschema.ValidationError, match="rayClusterSpec"):
        jsonschema.validate({"entrypoint": "x"}, SCHEMAS["RayJob"]["properties"]["spec"])


def test_what_is_referred_to_is_there(built):
    """Fails if a pod waits forever for a volume, an account or a ConfigMap that nothing makes."""
    for template in pods(built.ray).values():
        spec = template["spec"]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} == set(volumes)
            assert container["image"].startswith("REGISTRY/"), "an image that the overlay does not name"
        maps = {v["configMap"]["name"] for v in volumes.values() if "configMap" in v}
        assert maps <= set(built.named("ConfigMap"))
        assert (
            {spec["serviceAccountName"]} <= set(built.named("ServiceAccount")) if "serviceAccountName" in spec else True
        )


def test_ray_is_the_one_of_the_lock_and_wants_its_token(built):
    """Fails if the operator waits for another Ray than the image has, or anybody in the network may submit."""
    cluster = cluster_of(built.ray)
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "requirements.lock").read_text().split()
    assert cluster["authOptions"] == {"mode": "token", "secretName": "speech-emotion-ray-token"}
    assert "Secret" not in {d["kind"] for d in built.others}, "a secret has no place in a repository"


def test_pods_have_no_rights_they_do_not_need(built):
    """Fails if audio from strangers is decoded by root, with privileges or beside a key to Kubernetes."""
    (uid,) = set(re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE))
    for name, template in pods(built.ray).items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == int(uid)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
        if name != "head":  # where the autoscaler runs
            assert spec["automountServiceAccountToken"] is False


def test_memory_and_disk_are_bounded_and_fit(built):
    """Fails if one pod could take its neighbours' memory, or its volumes hold more than it may."""
    for template in pods(built.ray).values():
        (container,) = template["spec"]["containers"]
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert limits["memory"] == requests["memory"]
        disks = [v["emptyDir"]["sizeLimit"] for v in template["spec"].get("volumes", []) if "emptyDir" in v]
        assert sum(map(quantity, disks)) < quantity(limits.get("ephemeral-storage", "1"))


def test_ray_spills_and_models_are_kept_where_there_is_a_volume(built):
    """Fails if spilled blocks or models fill the node's own disk, each actor's copy of them at worst."""
    cluster = cluster_of(built.ray)
    caches = set(re.findall(r"XDG_CACHE_HOME=(\S+)", DOCKERFILE))
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert group["rayStartParams"]["object-spilling-directory"] in mounts
        assert caches <= mounts


def test_gpus_are_asked_for_and_the_head_is_safe(built):
    """Fails if the models' pods land on machines without GPUs, work on the head, or the head on a spot machine."""
    groups = ray_pods(built.ray)
    gpus = {name: t["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for name, t in groups.items()}
    assert gpus == {"head": None, "audio": None, "models": "1"}
    images = {name: t["spec"]["containers"][0]["image"].rpartition("/")[2] for name, t in groups.items()}
    assert {name for name, image in images.items() if image.startswith("speech-emotion-cuda:")} == {"models"}
    tolerated = {name: {t["key"] for t in template["spec"].get("tolerations", [])} for name, template in groups.items()}
    assert "spot" in tolerated["audio"] and {"spot", "nvidia.com/gpu"} <= tolerated["models"] and not tolerated["head"]
    assert cluster_of(built.ray)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (term,) = groups["head"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert {rule["operator"] for rule in term["matchExpressions"]} == {"NotIn"}


def test_the_pools_fit_the_cluster(built):
    """Fails if the job asks for more GPUs than the autoscaler may add, fewer than it may, or starts without any."""
    config = job_config(built)
    sizes = {g["groupName"]: g for g in cluster_of(built.ray)["workerGroupSpecs"]}
    for group in sizes.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert config.device == "cuda" and sizes["models"]["minReplicas"] >= 1
    assert config.asr_actors == config.emotion_actors == sizes["models"]["maxReplicas"]


def job_config(built: Built) -> JobConfig:
    content = built.named("ConfigMap")["speech-emotion-job"]["data"]["job.yaml"]
    return JobConfig(**yaml.safe_load(content))


@pytest.mark.parametrize("size", SIZES)
def test_the_options_are_those_of_the_job(size):
    """Fails if job.yaml names an option that jobs.annotate does not know."""
    config = load_config(str(ROOT / "cluster" / "kubernetes" / "overlays" / size / "job.yaml"), {})
    assert config.output.startswith("s3://") and config.fusion_model and config.asr_model


def test_the_entry_point_is_one_that_runs(built):
    """Fails if the command does not parse, or names a config that is not where the ConfigMap is mounted."""
    job = job_of(built.ray)
    if job is None:
        return
    python, dash_m, module, *words = shlex.split(job["entrypoint"])
    assert (python, dash_m) == ("python", "-m")
    if built.ray["kind"] == FORMS["nightly"]:
        assert module == "jobs.nightly" and shlex.join(shlex.split(job["entrypoint"])) == job["entrypoint"].strip()
        tonight = nightly._parser().parse_all(words[: words.index("--")])
        words = words[words.index("--") + 1 :]
        assert vars(_parser().parse_all(words))["audio_root"] == tonight.corpus
    else:
        assert module == "jobs.annotate"
    path = Path(vars(_parser().parse_all(words))["config"])
    (container,) = ray_pods(built.ray)["head"]["spec"]["containers"]
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "job"]
    assert (
        str(path.parent) == mount["mountPath"] and path.name in built.named("ConfigMap")["speech-emotion-job"]["data"]
    )
    assert job["shutdownAfterJobFinishes"], "a ttl without it is refused, and GPUs stay on"


def test_only_the_operator_and_the_submitter_reach_the_dashboard(built):
    """Fails if a Ray pod is under no policy, the dashboard is open to others, or the submitter is shut out."""
    policies = list(built.named("NetworkPolicy").values())
    for name, template in ray_pods(built.ray).items():
        labels = {**template["metadata"]["labels"], "ray.io/node-type": "head" if name == "head" else "worker"}
        over = [p["spec"] for p in policies if matches(labels, p["spec"]["podSelector"])]
        assert over and all(p["policyTypes"] == ["Ingress", "Egress"] for p in over)
        rules = [rule for policy in over for rule in policy["ingress"]]
        everywhere = [rule["from"] for rule in rules if "ports" not in rule]
        assert everywhere == [[{"podSelector": {"matchLabels": {"app": "speech-emotion"}}}]]
        dashboard = [rule for rule in rules if 8265 in [p["port"] for p in rule.get("ports", [])]]
        assert len(dashboard) == (name == "head")
        job = job_of(built.ray)
        if dashboard and job:
            submitter = job["submitterPodTemplate"]["metadata"]["labels"]
            peers = [peer["podSelector"] for peer in dashboard[0]["from"] if "namespaceSelector" not in peer]
            assert [matches(submitter, peer) for peer in peers] == [True]
