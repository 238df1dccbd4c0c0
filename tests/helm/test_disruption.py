"""Evictions and slow starts: what Kubernetes is allowed to end, and how long it waits."""

import pytest

from tests.helm.rendering import EVERYTHING, VARIANTS, find, objects, processes

ROLES = ("tokenizer", "vision", "prefill", "decode", "expert")

each_variant = pytest.mark.parametrize("variant", VARIANTS)


@each_variant
def test_budgets_never_forbid_to_drain_a_node(variant):
    budgets = [one["spec"] for one in objects(variant) if one["kind"] == "PodDisruptionBudget"]
    assert budgets
    assert all(budget["maxUnavailable"] >= 1 and "minAvailable" not in budget for budget in budgets)
    assert all(budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow" for budget in budgets)


def test_budgets_count_whole_replicas():
    """A replica that lacks a shard serves nothing: its other shards may be evicted as well."""
    allowed = {role: find("PodDisruptionBudget", role, EVERYTHING)["spec"]["maxUnavailable"] for role in ROLES}
    assert allowed == {"tokenizer": 1, "vision": 1, "prefill": 2, "decode": 3, "expert": 4}
    assert find("PodDisruptionBudget", "gateway")["spec"]["maxUnavailable"] == 1


@each_variant
def test_slow_starts_fail_no_probe(variant):
    """A probe that waits one second for a process that imports torch fills the events with failures."""
    assert all(one["startupProbe"]["timeoutSeconds"] >= 5 for one in processes(variant).values())
