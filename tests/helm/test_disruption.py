"""Evictions and slow starts: which pods Kubernetes may end, and how long it waits for a start."""

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
    """A replica without one of its shards serves nothing, so its other shards may be evicted as well."""
    allowed = {role: find("PodDisruptionBudget", role, EVERYTHING)["spec"]["maxUnavailable"] for role in ROLES}
    assert allowed == {"tokenizer": 1, "vision": 1, "prefill": 2, "decode": 3, "expert": 4}
    assert find("PodDisruptionBudget", "gateway")["spec"]["maxUnavailable"] == 1


@each_variant
def test_slow_starts_fail_no_probe(variant):
    """Importing torch takes seconds; a probe with a shorter timeout would report failures at every start."""
    assert all(one["startupProbe"]["timeoutSeconds"] >= 5 for one in processes(variant).values())
