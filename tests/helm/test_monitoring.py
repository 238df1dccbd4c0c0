"""Dashboards and rules: Prometheus parses every query, and we export every metric and label in it."""

import ast
import functools
import itertools
import json
import re

from tests.helm.rendering import EVERYTHING, find, names
from tests.monitoring import CHART, DASHBOARDS, RULES, RULES_FILE, metrics_in, panels, promtool, queries

ROOT = CHART.parents[1]
PROMETHEUS_OWN = {"namespace", "pod", "le"}  # labels added by scraping and by histograms
_OF_HISTOGRAM = ("_bucket", "_sum", "_count")
SUFFIXES = dict.fromkeys(("Histogram", "PlainHistogram", "HistogramMetricFamily"), _OF_HISTOGRAM)

ALERT_TESTS = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: 'moonshard_gateway_requests_total{{namespace="a", dialect="chat", status="200"}}', values: '0+90x30'}}
      - {{series: 'moonshard_gateway_requests_total{{namespace="a", dialect="chat", status="503"}}', values: '0+10x30'}}
      - {{series: 'moonshard_gateway_requests_total{{namespace="b", dialect="chat", status="200"}}', values: '0+90x30'}}
      - {{series: 'moonshard_gateway_held_requests{{namespace="a", role="decode", pod="g"}}', values: '1x60'}}
      - {{series: 'moonshard_gateway_serving_replicas{{namespace="a", role="decode", pod="g"}}', values: '0x60'}}
      - {{series: 'moonshard_dispatch_live_replicas{{namespace="a", shard="1", pod="d"}}', values: '0x60'}}
      - {{series: 'moonshard_dispatch_live_replicas{{namespace="a", shard="0", pod="d"}}', values: '1x60'}}
      - {{series: 'moonshard_kv_blocks{{namespace="a", state="used", pod="d"}}', values: '30x60'}}
      - {{series: 'moonshard_kv_blocks{{namespace="a", state="free", pod="d"}}', values: '10x60'}}
      - {{series: 'moonshard_store_reads_total{{namespace="a", kind="kv", outcome="damaged"}}', values: '0 0 0 1x60'}}
    promql_expr_test:
      - {{expr: 'moonshard:gateway_errors:ratio5m', eval_time: 20m, exp_samples: [{{labels: '{errors}', value: 0.1}}]}}
      - {{expr: 'moonshard:kv_blocks_used:ratio', eval_time: 20m, exp_samples: [{{labels: '{blocks}', value: 0.75}}]}}
      - {{expr: 'count by (alertname) (ALERTS{{alertstate="firing"}})', eval_time: 31m, exp_samples: [{firing}]}}
"""


@functools.cache
def exported():
    """Return the labels of every sample that the processes' source code can export, by sample name."""
    found = {}
    for path in itertools.chain((ROOT / "services").rglob("*.py"), (ROOT / "gateway").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            words = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if words and str(words[0]).startswith("moonshard_"):
                kind = getattr(node.func, "id", "")
                given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "labels")]
                labels = {label.value for one in given if isinstance(one, ast.List) for label in one.elts}
                # A helper of the code takes a single label as a string.
                labels |= set(words[2:]) if kind in {"_counter", "PlainHistogram"} else set()
                counts = kind in {"_counter", "CounterMetricFamily"}
                for suffix in SUFFIXES.get(kind, ("_total" if counts else "",)):
                    found[words[0] + suffix] = labels
    return found


def test_every_query_asks_for_metrics_that_are_exported():
    there = exported()
    assert len(there) > 60
    unknown = {(where, name) for where, expr in queries() for name in metrics_in(expr) if name not in there}
    assert unknown == set()


def test_every_label_of_a_query_is_one_of_the_metric():
    there = exported()
    wrong = []
    for where, expr in queries():
        for name, matchers in re.findall(r"(moonshard_\w+)\{([^}]*)\}", expr):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers))
            wrong += [(where, name, label) for label in labels - there[name] - PROMETHEUS_OWN]
        grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expr) for label in group.split(",")}
        own = set().union(*(there[name] for name in metrics_in(expr)), PROMETHEUS_OWN)
        recorded = {"dialect", "status", "role"} if "moonshard:" in expr else set()
        wrong += [(where, label) for label in grouped - own - recorded]
    assert wrong == []


def test_recorded_names_are_recorded():
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    used = {name for _, expr in queries() for name in re.findall(r"moonshard:[\w:]+", expr)}
    assert used == recorded


def test_prometheus_understands_every_query(tmp_path):
    asked = [expr.replace("$__rate_interval", "5m").replace("$namespace", "ai") for _, expr in queries()]
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(asked)]
    file = tmp_path / "panels.yaml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    for checked in (RULES_FILE, file):
        done = promtool("check", "rules", str(checked))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout


def test_alerts_fire_when_they_should_and_only_then(tmp_path):
    firing = ("MoonshardErrors", "MoonshardDoesNotWake", "MoonshardExpertShardGone")
    samples = [f"""{{labels: '{{alertname="{name}"}}', value: 1}}""" for name in firing]
    text = ALERT_TESTS.format(
        rules=RULES_FILE,
        errors='moonshard:gateway_errors:ratio5m{namespace="a"}',
        blocks='moonshard:kv_blocks_used:ratio{namespace="a", pod="d"}',
        firing=", ".join(samples),
    )
    # Namespace b has no failing request, so its ratio has no sample.
    file = tmp_path / "alerts.yaml"
    file.write_text(text)
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_say_what_to_do():
    for rule in RULES:
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"page", "ticket"}
            assert "{{ $labels.namespace }}" in rule["annotations"]["summary"], rule["alert"]
            assert len(rule["annotations"]["description"]) > 40, rule["alert"]


def test_panels_say_what_they_show():
    ids = [panel["id"] for dashboard in DASHBOARDS.values() for panel in dashboard["panels"]]
    assert len(ids) == sum(len(dashboard["panels"]) for dashboard in DASHBOARDS.values())
    for where, panel in panels():
        assert panel["description"], where
        assert panel["fieldConfig"]["defaults"]["unit"], where
        assert all('namespace="$namespace"' in target["expr"] for target in panel["targets"]), where
    assert set(DASHBOARDS) == {"on-call", "time-per-token"}


def test_the_chart_carries_them_where_they_are_wanted():
    for name, dashboard in DASHBOARDS.items():
        shown = find("ConfigMap", f"dashboard-{name}", EVERYTHING)
        assert json.loads(shown["data"][f"{name}.json"]) == dashboard
        assert shown["metadata"]["labels"]["grafana_dashboard"] == "1"
    carried = [r for group in find("PrometheusRule", "", EVERYTHING)["spec"]["groups"] for r in group["rules"]]
    assert carried == RULES
    monitor = find("PodMonitor", "", EVERYTHING)
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "metrics", "interval": "15s"}]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert not names("ConfigMap") | names("PrometheusRule") | names("PodMonitor")
