"""The manifests, as kustomize makes them: every size, standing, once and nightly."""

from __future__ import annotations

import math
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import kubernetes_validate
import pyarrow as pa
import pytest
import yaml

from jobs import nightly
from jobs.annotate import command_line
from pipeline.config import JobConfig, load_config
from pipeline.dataset.packing import ShardSize
from pipeline.engine.estimate import CARD_SHARE, cards_hours, feeding_hours, measure
from pipeline.engine.pools import Resources, size_pools
from pipeline.pins import Role, Task
from tests.support.corpus import ROOT
from tests.support.kuberay import SCHEMAS, cluster_of, job_of, pods, ray_pods
from tests.support.pins import pins

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


PUBLISHED = pins(fusion_en=2_330_000_000, sentence_encoder_en=440_000_000, asr_en=1_620_000_000)
"""Sizes of the published models: 582 M and 110 M parameters of 4 bytes, 809 M of 2."""
HEAP_SHARE = 0.7
"""Of a pod's memory; Ray keeps the rest for its object store."""
COPY = 1.3
"""Memory of a loaded model over its files, on a machine with a GPU."""


@dataclass
class Node:
    """What is left of a pod."""

    cpus: float
    gpus: float
    memory_bytes: float

    def takes(self, cpus: float, gpus: float, memory_bytes: float) -> bool:
        if fits := self.cpus >= cpus and self.gpus >= gpus and self.memory_bytes >= memory_bytes:
            self.cpus, self.gpus, self.memory_bytes = (
                self.cpus - cpus,
                self.gpus - gpus,
                self.memory_bytes - memory_bytes,
            )
        return fits


def worker_nodes(built: Built, count: str) -> list[Node]:
    """As many as `count` (replicas, maxReplicas) says."""
    found = []
    for group in cluster_of(built.ray)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        size = (limits["cpu"], limits.get("nvidia.com/gpu", "0"), limits["memory"])
        cpus, gpus, memory_bytes = map(quantity, size)
        found += [Node(cpus, gpus, HEAP_SHARE * memory_bytes) for _ in range(group[count])]
    return found


def test_the_actors_of_the_job_find_their_nodes(built):
    """Fails if the pools of a job find no place on the nodes it starts with, or grown as far as they may, on those it has then: a
    GPU whose second actor finds no CPU or no memory, a card that stays idle, or a node whose actors leave no room for a task.
    """
    now, later = worker_nodes(built, "replicas"), worker_nodes(built, "maxReplicas")
    resources = Resources(
        cpus=sum(node.cpus for node in now),
        gpus=sum(node.gpus for node in now),
        memory_bytes=sum(node.memory_bytes for node in now),
        nodes=len(now),
        node_cpus=min(node.cpus for node in now),
        node_memory_bytes=min(node.memory_bytes for node in now),
        cpus_per_gpu=min(node.cpus / node.gpus for node in now if node.gpus),
        grows=True,
    )
    pools = size_pools(job_config(built), resources, SimpleNamespace(models=PUBLISHED, needs_asr=True), 10**6)
    stages = {"transcribe": (Task.ASR,), "recognise": (Task.EMOTION, Task.SENTENCE_ENCODER)}
    for nodes, actors in ((now, lambda pool: pool.start), (later, lambda pool: pool.most)):
        for pool in pools.pools:
            memory_bytes = max(
                pool.memory_bytes, COPY * sum(PUBLISHED[Role(task, "en")].size_bytes for task in stages[pool.stage])
            )
            for number in range(actors(pool)):
                assert any(node.takes(pool.cpus, pool.gpus, memory_bytes) for node in nodes), (pool, number)
        assert not any(node.gpus for node in nodes), "a card, or half of one, that no actor uses"
        assert all(node.cpus >= pools.task_cpus for node in nodes)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_those_of_the_arithmetic(size, tmp_path_factory):
    """Fails if an overlay promises more or less than docs/sizing.md comes to, or its CPUs are not twice what its cards eat."""
    built = build(size, "standing", tmp_path_factory.getbasetemp())
    groups = {g["groupName"]: g for g in cluster_of(built.ray)["workerGroupSpecs"]}
    cards = groups["models"]["maxReplicas"]
    said = (ROOT / "cluster" / "kubernetes" / "overlays" / size / "kustomization.yaml").read_text()
    promised = re.search(r"For ([\d,]+) hours of short clips or ([\d,]+) hours of long recordings a day", said)
    assert promised is not None
    most_cores = 0.0
    for clip_s, text in zip((4.0, 1800.0), promised.groups(), strict=True):
        columns = {"duration_s": [clip_s] * 10_000, "language": ["en"] * 10_000}
        rows = pa.table({**columns, "text": pa.nulls(10_000, pa.string())})
        size_of_shards = ShardSize(rows=1024, audio_s=3600.0)
        corpus = measure([rows], mode="mean", segmentation="auto", group_by=["language"], size=size_of_shards)
        (card_h,) = (h for name, h in cards_hours(corpus, "mean").items() if name.startswith("A10"))
        a_day = cards * 24 * CARD_SHARE * corpus.audio_s / 3600 / card_h
        assert 0.95 * a_day <= float(text.replace(",", "")) <= a_day
        most_cores = max(most_cores, cards * feeding_hours(corpus, "mean") * CARD_SHARE / card_h)
    limits = groups["audio"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert groups["audio"]["maxReplicas"] == math.ceil(2 * most_cores / quantity(limits["cpu"]))


def test_pods_fit_the_machines_that_are_recommended(built):
    """Fails if a pod asks for all CPUs or memory of a machine with 8 CPUs, which its system pods share, or for more disk than
    the 20 GB that nodes of EKS have by default leave beside an image of 7 GB; such a pod waits for ever.
    """
    for template in pods(built.ray).values():
        (container,) = template["spec"]["containers"]
        requests = container["resources"]["requests"]
        assert quantity(requests["cpu"]) <= 7.9
        assert quantity(requests.get("ephemeral-storage", "1")) <= 5 * 2**30
        memory_gib = 30 if "nvidia.com/gpu" in requests else 14.5
        assert quantity(requests["memory"]) <= memory_gib * 2**30


def test_the_head_is_not_moved(built):
    """Fails if an autoscaler or a drained node may end the head, and with it the run."""
    head = ray_pods(built.ray)["head"]["metadata"]
    assert head["annotations"] == {
        "karpenter.sh/do-not-disrupt": "true",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    }
    (budget,) = built.named("PodDisruptionBudget").values()
    labels = {**head["labels"], "ray.io/node-type": "head"}  # the second is set by KubeRay
    assert matches(labels, budget["spec"]["selector"]) and budget["spec"]["maxUnavailable"] == 0


def test_a_failure_is_not_repeated_on_many_clusters(built):
    """Fails if a misspelt option starts cluster after cluster, or a run that hangs keeps its GPUs for good."""
    if (job := job_of(built.ray)) is not None:
        assert job["backoffLimit"] <= 1 and 0 < job["activeDeadlineSeconds"] <= 7 * 86_400


def test_names_and_tokens_are_reachable(built):
    """Fails if pods cannot resolve names where NodeLocal DNSCache answers, or get no token of GKE workload identity, or if they
    reach the metadata service, which gives the identity of the node."""
    rules = built.named("NetworkPolicy")["speech-emotion-among-themselves"]["spec"]["egress"]
    ports = {
        peer["ipBlock"]["cidr"]: {port["port"] for port in rule["ports"]}
        for rule in rules
        for peer in rule["to"]
        if "ipBlock" in peer
    }
    assert ports == {"169.254.20.10/32": {53}, "169.254.169.252/32": {988}, "0.0.0.0/0": {443}}
    (world,) = [peer["ipBlock"] for rule in rules for peer in rule["to"] if peer.get("ipBlock", {}).get("except")]
    assert world["except"] == ["169.254.0.0/16"]


def job_config(built: Built) -> JobConfig:
    content = built.named("ConfigMap")["speech-emotion-job"]["data"]["job.yaml"]
    return JobConfig(**yaml.safe_load(content))


@pytest.mark.parametrize("size", SIZES)
def test_the_options_are_those_of_the_job(size):
    """Fails if job.yaml names an option that jobs.annotate does not know."""
    config = load_config(str(ROOT / "cluster" / "kubernetes" / "overlays" / size / "job.yaml"), {})
    assert config.output.startswith("s3://") and config.models == "s3://BUCKET/models"


def test_the_entry_point_is_one_that_runs(built):
    """Fails if the command does not parse, or names a config that is not where the ConfigMap is mounted."""
    job = job_of(built.ray)
    if job is None:
        return
    python, dash_m, module, *words = shlex.split(job["entrypoint"])
    assert (python, dash_m) == ("python", "-m")
    if built.ray["kind"] == FORMS["nightly"]:
        assert module == "jobs.nightly" and shlex.join(shlex.split(job["entrypoint"])) == job["entrypoint"].strip()
        tonight = nightly.command_line().parse_all(words[: words.index("--")])
        words = words[words.index("--") + 1 :]
        assert vars(command_line().parse_all(words))["audio_root"] == tonight.corpus
    else:
        assert module == "jobs.annotate"
    path = Path(vars(command_line().parse_all(words))["config"])
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
        if dashboard:
            others = [
                peer["podSelector"]["matchLabels"] for peer in dashboard[0]["from"] if "namespaceSelector" in peer
            ]
            assert others == [
                {"app.kubernetes.io/name": "kuberay-operator"}, {"speech-emotion-client": "true"}]  # fmt: skip
