"""The design rules of the chart, one test each: how each process runs, scales, starts and stops."""

import pytest

from tests.helm.rendering import (
    EVERYTHING,
    FIXED,
    VARIANTS,
    environment,
    find,
    merged,
    names,
    objects,
    pods,
    processes,
    templates,
)

ROLES = ("tokenizer", "vision", "prefill", "decode", "expert")
GRPC = ("tokenizer", "vision", "prefill", "decode", "expert")
SHARDED = ("prefill", "decode", "expert")
GRPC_PROBE = {"grpc": {"port": 9001}, "periodSeconds": 5, "timeoutSeconds": 3}
KEDA = {"autoscaling": {"mode": "keda"}, "tls": {"enabled": False}}

each_variant = pytest.mark.parametrize("variant", VARIANTS)


def container(component, values="defaults"):
    return processes(values)[component]


def service(name, values="defaults"):
    return find("Service", name, values)["spec"]


class TestGateway:
    def test_is_a_deployment_behind_a_cluster_ip_and_an_ingress_or_route(self):
        assert find("Deployment", "gateway")["spec"]["template"]["spec"]["containers"][0]["args"] == ["gateway"]
        assert service("gateway")["type"] == "ClusterIP"
        assert "clusterIP" not in service("gateway")
        assert not names("Ingress") | names("HTTPRoute")
        (rule,) = find("Ingress", "", EVERYTHING)["spec"]["rules"]
        backend = {"service": {"name": "moonshard-gateway", "port": {"name": "http"}}}
        assert rule["http"]["paths"] == [{"path": "/v1", "pathType": "Prefix", "backend": backend}]
        (rule,) = find("HTTPRoute", "", EVERYTHING)["spec"]["rules"]
        assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/v1"}}]
        assert rule["backendRefs"] == [{"name": "moonshard-gateway", "port": 80}]
        assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}

    def test_is_ready_while_it_can_serve_or_hold(self):
        assert container("gateway")["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
        # With a wake time /health is 200 also while every role is at zero, so that requests can wake the roles.
        assert float(environment(container("gateway"))["MOONSHARD_WAKE_S"]) > 0
        assert "MOONSHARD_WAKE_S" not in environment(container("gateway", FIXED))

    def test_is_scaled_by_cpu_and_open_streams(self):
        (cpu,) = find("HorizontalPodAutoscaler", "gateway")["spec"]["metrics"]
        assert cpu["resource"]["name"] == "cpu"
        metrics = find("HorizontalPodAutoscaler", "gateway", EVERYTHING)["spec"]["metrics"]
        assert [m["pods"]["metric"]["name"] for m in metrics[1:]] == ["moonshard_gateway_open_streams"]

    def test_drains_its_streams(self):
        pod = pods()["gateway"]
        drain_s = int(environment(pod["containers"][0])["MOONSHARD_DRAIN_S"])
        assert drain_s >= 600
        pre_stop_s = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
        assert pod["terminationGracePeriodSeconds"] > drain_s + pre_stop_s


class TestStateless:
    @pytest.mark.parametrize("role", ["tokenizer", "vision"])
    def test_is_a_deployment_with_a_headless_service_and_grpc_probes(self, role):
        assert find("Deployment", role)
        assert service(role)["clusterIP"] == "None"
        assert container(role)["readinessProbe"] == GRPC_PROBE

    def test_is_scaled_by_an_hpa_and_vision_also_to_zero(self):
        assert names("HorizontalPodAutoscaler") == {"gateway", "tokenizer"}
        assert names("HorizontalPodAutoscaler", EVERYTHING) == {"gateway", "tokenizer", "vision"}
        assert '"vision":{"max":2,"min":0' in environment(container("autoscaler"))["MOONSHARD_ROLES"]
        assert "vision" not in environment(container("autoscaler", EVERYTHING))["MOONSHARD_ROLES"]


class TestSharded:
    @pytest.mark.parametrize("role", SHARDED)
    def test_is_a_stateful_set_whose_ordinal_says_the_shard(self, role):
        assert find("StatefulSet", role)["spec"]["serviceName"] == f"moonshard-{role}"
        given = environment(container(role, EVERYTHING))
        assert given["MOONSHARD_ORDINAL"] == "metadata.labels['apps.kubernetes.io/pod-index']"
        assert int(given["MOONSHARD_NUM_SHARDS"]) == {"prefill": 2, "decode": 3, "expert": 4}[role]
        assert "MOONSHARD_SHARD" not in given

    @pytest.mark.parametrize("role", SHARDED)
    def test_pods_are_whole_replicas(self, role):
        fixed = merged(FIXED, {role: {"shards": 3, "minReplicas": 2}})
        assert find("StatefulSet", role, fixed)["spec"]["replicas"] == 6

    @pytest.mark.parametrize("role", SHARDED)
    def test_a_start_has_no_time_limit_as_long_as_it_gets_further(self, role):
        """The metrics port answers from before the first byte is loaded, so no probe asks for all of it."""
        one = container(role)
        for probe in ("startupProbe", "livenessProbe"):
            assert one[probe]["httpGet"] == {"path": "/live", "port": "metrics"}
        # Nobody gives up because another process still loads.
        assert "MOONSHARD_STARTUP_S" not in environment(one)

    @pytest.mark.parametrize("role", SHARDED)
    def test_not_ready_while_draining_then_exits_inside_its_grace(self, role):
        pod = pods()[role]
        assert pod["containers"][0]["readinessProbe"] == GRPC_PROBE
        assert pod["terminationGracePeriodSeconds"] > int(environment(pod["containers"][0])["MOONSHARD_DRAIN_S"])

    @pytest.mark.parametrize("role", SHARDED)
    def test_is_scaled_by_the_autoscaler(self, role):
        assert f"statefulset/moonshard-{role}" in environment(container("autoscaler"))["MOONSHARD_ROLES"]
        # An upgrade must not reset the number that the autoscaler has set.
        assert "replicas" not in find("StatefulSet", role)["spec"]

    def test_prefill_and_decode_cannot_drift(self):
        def shape(role):
            one = container(role)
            return [name for name in environment(one) if name != "MOONSHARD_ROLE"], list(one), one["ports"]

        assert shape("prefill") == shape("decode")


class TestAutoscaler:
    def test_is_one_deployment_with_a_lease_and_no_service(self):
        assert find("Deployment", "autoscaler")["spec"]["replicas"] == 1
        assert environment(container("autoscaler"))["MOONSHARD_LEASE"] == "moonshard-leader"
        assert "autoscaler" not in names("Service")
        assert container("autoscaler")["readinessProbe"]["httpGet"]["path"] == "/health"

    def test_asks_the_gateways_and_not_prometheus(self):
        assert environment(container("autoscaler"))["MOONSHARD_GATEWAYS"] == "dns:moonshard-gateway-peers.ai.svc:50052"
        assert service("gateway-peers")["clusterIP"] == "None"

    def test_off_leaves_nothing_of_it(self):
        assert "autoscaler" not in pods(FIXED)
        assert "autoscaler" not in names("Role", FIXED)
        assert "gateway-peers" not in names("Service", FIXED)

    def test_keda_asks_it_for_every_role(self):
        scaled = {one["metadata"]["name"]: one["spec"] for one in objects(KEDA) if one["kind"] == "ScaledObject"}
        assert set(scaled) == {f"moonshard-{role}" for role in ("vision", *SHARDED)}
        expert = scaled["moonshard-expert"]
        assert (expert["minReplicaCount"], expert["maxReplicaCount"]) == (4, 8)
        assert expert["triggers"] == [
            {
                "type": "external-push",
                "metadata": {"scalerAddress": "moonshard-autoscaler.ai.svc:50051", "role": "expert"},
            }
        ]
        assert not names("ScaledObject") | names("TriggerAuthentication", KEDA)
        (authentication,) = names("TriggerAuthentication", EVERYTHING)
        decode = find("ScaledObject", "decode", EVERYTHING)["spec"]
        assert decode["triggers"][0]["authenticationRef"] == {"name": f"moonshard-{authentication}"}


class TestRedis:
    def test_is_a_stateful_set_behind_a_cluster_ip_or_none_with_urls(self):
        assert names("StatefulSet") == {"redis-0", *SHARDED}
        assert "clusterIP" not in service("redis-0")
        assert names("StatefulSet", EVERYTHING) == {"redis-0", "redis-1", "redis-limits", *SHARDED}
        assert not any("redis" in name for name in names("StatefulSet", FIXED) | names("Service", FIXED))
        assert environment(container("decode", FIXED))["MOONSHARD_STORE"] == "rediss://redis.example.com:6380/0"

    def test_blocks_are_evicted_and_limits_are_not(self):
        def policy(name):
            arguments = pods(EVERYTHING)[name]["containers"][0]["args"]
            return arguments[arguments.index("--maxmemory-policy") + 1]

        assert (policy("redis-0"), policy("redis-1"), policy("redis-limits")) == (
            *("allkeys-lru", "allkeys-lru"),
            "noeviction",
        )
        given = environment(container("gateway", EVERYTHING))
        assert given["MOONSHARD_LIMITS_STORE"] == "redis://moonshard-redis-limits.ai.svc:6379/0"
        assert given["MOONSHARD_STORE"].count(",") == 1

    def test_its_probe_needs_no_password(self):
        assert pods(EVERYTHING)["redis-0"]["containers"][0]["readinessProbe"]["tcpSocket"] == {"port": "redis"}


@each_variant
def test_grpc_is_never_behind_a_plain_cluster_ip(variant):
    for one in objects(variant):
        if one["kind"] == "Service" and any(port["port"] == 50051 for port in one["spec"]["ports"]):
            name = one["metadata"]["name"]
            assert one["spec"].get("clusterIP") == "None" or name.endswith("-autoscaler"), name
            # DNS lists every pod; callers ask each pod whether it is ready.
            assert one["spec"].get("publishNotReadyAddresses") or name.endswith("-autoscaler"), name


@each_variant
def test_no_readiness_depends_on_a_role_at_zero(variant):
    """Each probe asks the process itself, and the gateway knows that an autoscaler wakes the roles."""
    for component, one in processes(variant).items():
        probe = one["readinessProbe"]
        assert ("grpc" in probe) == (component in GRPC)
        assert "exec" not in probe
    is_scaled = VARIANTS[variant].get("autoscaling", {}).get("mode") != "off"
    assert ("MOONSHARD_WAKE_S" in environment(processes(variant)["gateway"])) == is_scaled


@each_variant
def test_loading_is_given_time_by_startup_probes(variant):
    text = "".join(templates(VARIANTS[variant]).values())
    assert "initialDelaySeconds" not in text
    for component, one in processes(variant).items():
        assert "startupProbe" in one, component
        # Liveness differs from readiness, so that a process that loads or drains is not killed.
        ways = [{key: one[probe][key] for key in one[probe] if key in {"grpc", "httpGet"}} for probe in PROBES]
        assert ways[0] != ways[1], component


PROBES = ("readinessProbe", "livenessProbe")


@each_variant
def test_shards_start_in_parallel_and_gpus_have_no_surge(variant):
    for one in objects(variant):
        if one["kind"] == "StatefulSet" and "redis" not in one["metadata"]["name"]:
            assert one["spec"]["podManagementPolicy"] == "Parallel"
        if one["kind"] == "Deployment":
            limits = one["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
            if "nvidia.com/gpu" in limits:
                assert one["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    surge = find("Deployment", "vision", EVERYTHING)["spec"]["strategy"]["rollingUpdate"]
    assert surge == {"maxSurge": 0, "maxUnavailable": 1}


@each_variant
def test_memory_is_sized_and_the_model_read_only(variant):
    for component, pod in pods(variant).items():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        if component in {"vision", *SHARDED}:
            assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
            assert volumes["shm"]["emptyDir"]["sizeLimit"]
        for one in [*pod.get("initContainers", []), *pod["containers"]]:
            mounts = {mount["name"]: mount for mount in one["volumeMounts"]}
            assert ("shm" in mounts) == (one["name"] in {"vision", "attention", "expert"})
            if component != "preload" and "model" in mounts:
                assert mounts["model"]["readOnly"] is True


@each_variant
def test_containers_may_do_nothing_that_they_need_not(variant):
    for component, pod in pods(variant).items():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in [*pod.get("initContainers", []), *pod["containers"]]:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, component
            assert one["resources"]["requests"], component
            assert one["resources"]["limits"]["memory"], component


@each_variant
def test_only_what_calls_the_api_server_has_a_token(variant):
    mode = VARIANTS[variant].get("autoscaling", {}).get("mode", "builtin")
    for component, pod in pods(variant).items():
        may = component == "secrets" or (component == "autoscaler" and mode == "builtin")
        assert pod["automountServiceAccountToken"] is may, component
        assert pod["serviceAccountName"] == (f"moonshard-{component}" if may else "moonshard")
    assert all(
        one["automountServiceAccountToken"] is False for one in objects(variant) if one["kind"] == "ServiceAccount"
    )
    generates = {"secrets"} if names("Secret", variant) else set()
    assert names("Role", variant) == generates | ({"autoscaler"} if mode == "builtin" else set())


def test_the_autoscalers_role_names_its_own_workloads_only():
    rules = {(rule["resources"][0], *rule["verbs"]): rule.get("resourceNames") for rule in role_rules()}
    assert rules == {
        ("deployments", "get", "list", "watch"): ["moonshard-vision"],
        ("deployments/scale", "get", "update"): ["moonshard-vision"],
        ("statefulsets", "get", "list", "watch"): [f"moonshard-{role}" for role in ("decode", "expert", "prefill")],
        ("statefulsets/scale", "get", "update"): [f"moonshard-{role}" for role in ("decode", "expert", "prefill")],
        ("leases", "get", "update"): ["moonshard-leader"],
        ("leases", "create"): None,  # rules for `create` cannot name the object
    }
    (subject,) = find("RoleBinding", "autoscaler")["subjects"]
    assert (subject["kind"], subject["name"]) == ("ServiceAccount", "moonshard-autoscaler")
    assert not names("ClusterRole") | names("ClusterRoleBinding")


def role_rules():
    return find("Role", "autoscaler")["rules"]
