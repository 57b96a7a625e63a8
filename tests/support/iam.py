"""An evaluator of IAM policies, for the few operations and conditions that `cluster/aws` uses."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.support.fault_proxy import Request

Statement = dict[str, Any]


def statements(path: Path, bucket: str) -> list[Statement]:
    """Return the statements of a policy, with its bucket filled in."""
    document = json.loads(path.read_text().replace("BUCKET", bucket))
    assert document["Version"] == "2012-10-17"
    return list(document["Statement"])


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def asked_for(request: Request) -> tuple[str, str, dict[str, str]]:
    """Return action, resource and condition keys of an S3 request with the bucket in its path, as AWS names them."""
    bucket, _, key = unquote(request.path).lstrip("/").partition("/")
    query = {name: values[0] for name, values in parse_qs(request.query, keep_blank_values=True).items()}
    resource = f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"
    keys: dict[str, str] = {}
    if not key:
        assert request.method in ("GET", "HEAD"), request
        if "versioning" in query or "uploads" in query:
            return (
                f"s3:{'GetBucketVersioning' if 'versioning' in query else 'ListBucketMultipartUploads'}",
                resource,
                keys,
            )
        return "s3:ListBucket", resource, {"s3:prefix": query.get("prefix", "")}
    if request.method in ("GET", "HEAD"):
        return "s3:GetObject", resource, keys
    if request.method == "DELETE":
        return "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", resource, keys
    creates = not ("uploads" in query or "partNumber" in query)  # those that take If-None-Match
    keys["s3:ObjectCreationOperation"] = str(creates).lower()
    if request.if_absent:
        keys["s3:if-none-match"] = "*"
    return "s3:PutObject", resource, keys


def applies(statement: Statement, action: str, resource: str, keys: dict[str, str]) -> bool:
    """Return whether a statement applies to this request."""
    return (
        action in listed(statement["Action"])
        and any(fnmatchcase(resource, pattern) for pattern in listed(statement["Resource"]))
        and all(
            _holds(operator, keys.get(key), listed(values))
            for operator, wanted in statement.get("Condition", {}).items()
            for key, values in wanted.items()
        )
    )


def _holds(operator: str, value: str | None, wanted: list[str]) -> bool:
    if operator == "Null":
        return str(value is None).lower() in wanted
    if operator == "Bool":
        return value in wanted
    assert operator == "StringLike", f"a condition this evaluator does not know: {operator}"
    return value is not None and any(fnmatchcase(value, pattern) for pattern in wanted)


def allowed(policies: list[Statement], request: Request) -> bool:
    """Return whether the policies allow the request: a Deny that applies wins over any Allow."""
    question = asked_for(request)
    effects = {statement["Effect"] for statement in policies if applies(statement, *question)}
    return effects == {"Allow"}
