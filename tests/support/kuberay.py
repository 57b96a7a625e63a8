"""The part of KubeRay's API (ray.io/v1, KubeRay 1.7) that `cluster/kubernetes` uses, field by field.

KubeRay's own CRDs are in no Python package. A field that is not listed here is a mistake until somebody has looked it up in
KubeRay's API reference. The pods inside are checked against Kubernetes' own schema.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _record(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


_TEXT: Schema = {"type": "string", "minLength": 1}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_PARAMS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_TEMPLATE = _record(["spec"], metadata={"type": "object"}, spec={"type": "object"})

_CLUSTER = _record(
    ["rayVersion", "headGroupSpec", "authOptions"],
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=_record(["mode"], mode={"enum": ["token"]}, secretName=_TEXT),
    enableInTreeAutoscaling=_FLAG,
    autoscalerOptions=_record(
        [],
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=_COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        resources={"type": "object"},
        securityContext={"type": "object"},
    ),
    headGroupSpec=_record(
        ["template", "rayStartParams"],
        serviceType={"enum": ["ClusterIP"]},
        enableIngress={"const": False},
        rayStartParams=_PARAMS,
        template=_TEMPLATE,
    ),
    workerGroupSpecs={
        "type": "array",
        "items": _record(
            ["groupName", "minReplicas", "maxReplicas", "template", "rayStartParams"],
            groupName={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
            replicas=_COUNT,
            minReplicas=_COUNT,
            maxReplicas=_COUNT,
            rayStartParams=_PARAMS,
            template=_TEMPLATE,
        ),
    },
)

_JOB = _record(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=_TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode"]},
    backoffLimit=_COUNT,
    shutdownAfterJobFinishes=_FLAG,
    ttlSecondsAfterFinished=_COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    submitterPodTemplate=_TEMPLATE,
    rayClusterSpec=_CLUSTER,
)

_CRON = _record(["schedule", "jobTemplate"], schedule=_TEXT, timeZone=_TEXT, suspend=_FLAG, jobTemplate=_JOB)


def _kind(kind: str, spec: Schema) -> Schema:
    return _record(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata={"type": "object"},
        spec=spec,
    )


SCHEMAS = {
    kind: _kind(kind, spec) for kind, spec in (("RayCluster", _CLUSTER), ("RayJob", _JOB), ("RayCronJob", _CRON))
}


def cluster_of(document: Schema) -> Schema:
    """Return the cluster's spec in a RayCluster, a RayJob or a RayCronJob."""
    spec: Schema = document["spec"]
    spec = spec.get("jobTemplate", spec)
    return spec.get("rayClusterSpec", spec)


def job_of(document: Schema) -> Schema | None:
    """Return the job's spec in a RayJob or a RayCronJob."""
    spec: Schema = document["spec"]
    return None if document["kind"] == "RayCluster" else spec.get("jobTemplate", spec)


def ray_pods(document: Schema) -> dict[str, Schema]:
    """Return the pod templates of head and workers, by group."""
    cluster = cluster_of(document)
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **groups}


def pods(document: Schema) -> dict[str, Schema]:
    """Return `ray_pods` and the pod that submits."""
    job = job_of(document)
    return {**ray_pods(document), **({"submitter": job["submitterPodTemplate"]} if job else {})}
