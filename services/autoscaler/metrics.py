"""What the autoscaler counts."""

from prometheus_client import Counter, Gauge

REPLICAS = Gauge(
    "moonshard_autoscaler_replicas",
    "Whole replicas of a role: as decided last (desired), and as many as were ready then (ready).",
    ["role", "kind"],
)
DECISIONS = Counter(
    "moonshard_autoscaler_decisions_total",
    "Decisions that changed a number of replicas: up, down, or failed, where the cluster did not take the number.",
    ["role", "outcome"],
)
HEARD = Gauge("moonshard_autoscaler_demand_known", "1 while every gateway can be heard; without, nothing gets smaller.")
LEADER = Gauge("moonshard_autoscaler_leader", "1 while this process holds the Lease.")
API_SECONDS = Gauge("moonshard_autoscaler_api_seconds", "The last answer of the Kubernetes API took so long.", ["call"])
