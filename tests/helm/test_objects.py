"""Every variant of the chart passes lint, and every object fits the schemas of two versions of Kubernetes."""

import functools

import helm_python
import jsonschema
import pytest
import yaml
from kubernetes_validate.utils import major_minor, schema_contents
from referencing import Registry, Resource

from tests.helm.rendering import CHART, VARIANTS, chart, environment, objects, pods, templates

# The oldest version that Chart.yaml admits, and the newest that has schemas.
VERSIONS = {"1.28": "v1.28.0", "1.37": "v1.37.0"}
# Objects of operators, which have no schema in Kubernetes; test_design.py checks them.
CUSTOM = {"PodMonitor", "PrometheusRule", "HTTPRoute", "ScaledObject", "TriggerAuthentication"}


@functools.cache
def validator(version: str, kind: str, api_version: str) -> jsonschema.Draft202012Validator:
    """Return a validator by the strict schemas, which refuse unknown fields."""
    folder = f"kubernetes-json-schema/{VERSIONS[version]}-local-strict"
    group, _, api = api_version.rpartition("/")
    name = f"{kind.lower()}-{group.split('.')[0]}-{api}" if group else f"{kind.lower()}-{api}"
    schema = schema_contents(f"{folder}/{name}.json", version)
    return jsonschema.Draft202012Validator(schema, registry=Resource.from_contents(schema) @ definitions(version))


@functools.cache
def definitions(version: str) -> Registry:
    contents = schema_contents(f"kubernetes-json-schema/{VERSIONS[version]}-local-strict/_definitions.json", version)
    return Resource.from_contents(contents) @ Registry()


@pytest.mark.parametrize("variant", VARIANTS)
def test_lint_has_nothing_to_say(variant):
    report = helm_python.lint(CHART, VARIANTS[variant], strict=True)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_objects_fit_kubernetes(variant, version):
    wrong = []
    for one in objects(variant):
        if one["kind"] not in CUSTOM:
            errors = validator(version, one["kind"], one["apiVersion"]).iter_errors(one)
            wrong += [
                f"{one['kind']} {one['metadata']['name']}: {error.json_path}: {error.message}" for error in errors
            ]
    assert wrong == []


def test_the_schemas_are_those_of_the_versions():
    assert [major_minor(folder.removeprefix("v")) for folder in VERSIONS.values()] == list(VERSIONS)
    assert chart().metadata["kubeVersion"] == f">={next(iter(VERSIONS))}.0-0"


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_name_is_given_twice(variant):
    given = [(one["kind"], one["metadata"]["name"]) for one in objects(variant)]
    assert len(given) == len(set(given))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_volume_is_mounted_and_every_mount_has_one(variant):
    for component, pod in pods(variant).items():
        volumes = {volume["name"] for volume in pod["volumes"]}
        containers = [*pod.get("initContainers", []), *pod["containers"]]
        assert volumes == {mount["name"] for one in containers for mount in one["volumeMounts"]}, component


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_variable_is_set_twice(variant):
    for component, pod in pods(variant).items():
        for container in pod["containers"]:
            if "env" in container:
                assert len(environment(container)) == len(container["env"]), component


@pytest.mark.parametrize("variant", VARIANTS)
def test_selectors_find_pods(variant):
    labels = {
        component: {"app.kubernetes.io/component": component, "app.kubernetes.io/name": "moonshard"}
        for component in pods(variant)
    }
    for one in objects(variant):
        spec = one.get("spec", {})
        selector = {
            "Service": lambda spec: spec["selector"],
            "Deployment": lambda spec: spec["selector"]["matchLabels"],
            "StatefulSet": lambda spec: spec["selector"]["matchLabels"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        }.get(one["kind"])
        if selector is not None:
            assert selector(spec)["app.kubernetes.io/component"] in labels, one["metadata"]["name"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_named_ports_exist(variant):
    by_component = {
        component: {
            port.get("name"): port["containerPort"] for one in pod["containers"] for port in one.get("ports", [])
        }
        for component, pod in pods(variant).items()
    }
    for one in objects(variant):
        if one["kind"] == "Service":
            component = one["spec"]["selector"]["app.kubernetes.io/component"]
            for port in one["spec"]["ports"]:
                assert port["targetPort"] in by_component[component], one["metadata"]["name"]


def test_text_is_plain_yaml_and_notes_name_the_release():
    for path, text in templates(VARIANTS["everything"]).items():
        if path.endswith(".yaml"):
            assert list(yaml.load_all(text, yaml.CSafeLoader)) is not None
    notes = templates({})["NOTES.txt"]
    assert "helm -n ai test moonshard" in notes
    assert "gateway.keysSecret" in notes
    assert "https://api.example.com" in templates(VARIANTS["everything"])["NOTES.txt"]
