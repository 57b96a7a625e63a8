"""The part of the hub's stand-in that writes: repositories that are created, files that are uploaded, and commits.

As on the hub, large files are uploaded first, by their sha256, and a commit names its parent: it is refused when that is not
the last one any more.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

Answer = tuple[int, dict[str, str], bytes]


def reply(document: object, status: int = 200, **headers: str) -> Answer:
    return status, {"Content-Type": "application/json", **headers}, json.dumps(document).encode()


def write(hub: Any, method: str, path: str, token: str, body: bytes) -> Answer:
    """Answer a POST or PUT. `hub.new_repository` makes an empty repository; `hub.writers` has the tokens that may write."""
    if method == "PUT":  # a signed address on the hub: it needs no token
        hub.uploaded[hashlib.sha256(body).hexdigest()] = body
        return reply({}) if path == f"/lfs/{hashlib.sha256(body).hexdigest()}" else reply({}, 400)
    if token not in hub.writers:
        return reply({"error": "Invalid credentials"}, 401)
    for pattern, answer in {
        "/api/validate-yaml": _validate,
        "/api/repos/create": _create,
        r"/datasets/[^/]+/[^/]+\.git/info/lfs/objects/batch": _batch,
    }.items():
        if re.fullmatch(pattern, path):
            return answer(hub, json.loads(body))
    match = re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)/(preupload|commit)/main", path)
    if match is None or match[1] not in hub.repositories:
        return reply({}, 404, **{"X-Error-Code": "RepoNotFound"})
    if match[2] == "preupload":
        modes = [
            {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith(".parquet") else "regular"}
            for each in json.loads(body)["files"]
        ]
        return reply({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
    return _commit(hub, match[1], [json.loads(line) for line in body.splitlines()])


def _validate(_hub: Any, card: dict[str, Any]) -> Answer:
    is_wrong = re.search("^license: wrong$", card["content"], re.MULTILINE) is not None
    errors = [{"message": '"license" must be one of [...]'}] * is_wrong
    return reply({"errors": errors, "warnings": []}, 400 if is_wrong else 200)


def _create(hub: Any, wanted: dict[str, Any]) -> Answer:
    name = f"{wanted['type']}s/{wanted['organization']}/{wanted['name']}"
    hub.new_repository(name, wanted.get("visibility", "public"))
    return reply({"url": f"{hub.endpoint}/{name}"})


def _batch(hub: Any, wanted: dict[str, Any]) -> Answer:
    return reply({"transfer": "basic", "objects": [_upload(hub, each) for each in wanted["objects"]]})


def _upload(hub: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """Return where a large file is to be uploaded; nowhere if the hub has it."""
    done = wanted["oid"] in hub.uploaded
    action = {"upload": {"href": f"{hub.endpoint}/lfs/{wanted['oid']}", "header": {}}}
    return {**wanted, **({} if done else {"actions": action})}


def _commit(hub: Any, name: str, lines: list[dict[str, Any]]) -> Answer:
    repository, (header, *changes) = hub.repositories[name], lines
    head = repository.refs["main"]
    if header["value"].get("parentCommit", head) != head:
        return reply({"error": "The parent commit is not the last one"}, 412)
    files = dict(repository.commits[head])
    for change in changes:
        value = change["value"]
        if change["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif change["key"] == "lfsFile" and value["oid"] in hub.uploaded:
            files[value["path"]] = hub.uploaded[value["oid"]]
        else:
            return reply({"error": f"unknown change {change['key']}"}, 400)
    commit = hashlib.sha1(f"{head} {len(repository.commits)}".encode()).hexdigest()
    repository.commits[commit], repository.refs["main"] = files, commit
    return reply({"commitUrl": f"{hub.endpoint}/{name}/commit/{commit}", "commitOid": commit, "success": True})
