"""The objects for the Prometheus operator, against the rules that promtool tests and the pods that KubeRay starts."""

from __future__ import annotations

from typing import Any

import yaml

from tests.support.corpus import ROOT

CLUSTER = ROOT / "cluster"
BASE = CLUSTER / "kubernetes" / "base"
MONITORING = CLUSTER / "kubernetes" / "monitoring"


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((MONITORING / name).read_text())
    return content


def test_the_operator_gets_the_rules_that_are_tested() -> None:
    """Fails if a rule is changed for Prometheus and not for its operator, or the other way round."""
    rule = load("prometheusrule.yaml")
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CLUSTER / "prometheus" / "alerts.yaml").read_text())


def test_every_ray_pod_is_scraped_at_a_port_that_the_policy_opens() -> None:
    """Fails if the monitor selects no pods, names a port that a group does not have, or is shut out by the network policy."""
    monitor = load("podmonitor.yaml")
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    cluster = yaml.safe_load((BASE / "raycluster.yaml").read_text())["spec"]
    ports = set()
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        template = group["template"]
        assert wanted.items() <= template["metadata"]["labels"].items()
        (container,) = template["spec"]["containers"]
        ports |= {port["containerPort"] for port in container["ports"] if port["name"] == endpoint["port"]}
    (policy,) = [
        policy
        for policy in yaml.safe_load_all((BASE / "network.yaml").read_text())
        if policy["spec"]["podSelector"]["matchLabels"] == wanted
    ]
    opened = [
        {port["port"] for port in rule["ports"]}
        for rule in policy["spec"]["ingress"]
        if "namespaceSelector" in rule["from"][0]
    ]
    assert opened == [ports] and len(ports) == 1


def test_the_operator_selects_both_objects() -> None:
    """Fails if one of the objects is not applied, or lacks the label by which the usual chart selects them."""
    overlay = load("kustomization.yaml")
    assert {load(name)["kind"] for name in overlay["resources"]} == {"PodMonitor", "PrometheusRule"}
    assert overlay["labels"] == [{"pairs": {"release": "prometheus"}}]
