"""Secure by default: certificates, Redis' password and the key of the MACs are generated, and pods wait for them."""

import pytest

from services.autoscaler.secret_maker import SecretMakerSettings
from tests.helm.rendering import EVERYTHING, environment, find, names, objects, pods

PLAIN = {"tls": {"enabled": False}, "store": {"generateSecrets": False}}


def job(values="defaults"):
    (found,) = [name for name in names("Job", values) if name.startswith("secrets-")]
    return find("Job", found, values)


def test_every_process_has_tls_and_the_stores_secrets_by_default():
    for component in ("gateway", "vision", "prefill", "decode"):
        given = environment(pods()[component]["containers"][0])
        for name in ("TLS_CERT", "STORE_PASSWORD_FILE", "STORE_MAC_FILE"):
            assert f"MOONSHARD_{name}" in given, component
    assert "requirepass" in pods()["redis-0"]["containers"][0]["args"][0]


def test_secrets_are_rendered_empty_and_the_job_may_fill_only_them():
    assert names("Secret") == {"authority", "tls", "store"}
    assert not [one for one in objects() if one["kind"] == "Secret" and ("data" in one or "stringData" in one)]
    (rule,) = find("Role", "secrets")["rules"]
    assert set(rule["resourceNames"]) == {f"moonshard-{name}" for name in names("Secret")}
    assert set(rule["verbs"]) == {"get", "patch"}
    pod = job()["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "moonshard-secrets"
    assert pod["automountServiceAccountToken"] is True


def test_pods_wait_until_the_keys_are_there():
    """A named key that is missing keeps the pod from starting; without names it would start and find no file."""
    for component, pod in pods().items():
        for volume in pod["volumes"]:
            if volume["name"] in {"tls", "store", "store-mac"}:
                assert volume["secret"]["items"], component
                assert not volume["secret"].get("optional"), component


def test_the_job_reads_what_it_is_given(monkeypatch):
    given = environment(job()["spec"]["template"]["spec"]["containers"][0])
    assert {name.removeprefix("MOONSHARD_").lower() for name in given} <= set(SecretMakerSettings.model_fields)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = SecretMakerSettings()
    found = (settings.authority_secret, settings.tls_secret, settings.store_secret)
    assert found == ("moonshard-authority", "moonshard-tls", "moonshard-store")
    cron = find("CronJob", "secrets")["spec"]
    assert cron["jobTemplate"]["spec"] == job()["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"


def test_the_authority_is_mounted_nowhere():
    mounted = {v["secret"]["secretName"] for pod in pods().values() for v in pod["volumes"] if "secret" in v}
    assert mounted == {"moonshard-tls", "moonshard-store"}


@pytest.mark.parametrize("values", [EVERYTHING, PLAIN], ids=["the-users-own", "none"])
def test_nothing_is_generated_where_all_is_named_or_refused(values):
    assert not names("Secret", values)
    assert not names("CronJob", values)
    assert not [name for name in names("Job", values) if name.startswith("secrets")]
    assert "secrets" not in names("NetworkPolicy", values)


def test_without_security_nothing_of_it_is_left():
    for component, pod in pods(PLAIN).items():
        variables = environment(pod["containers"][0]) if "env" in pod["containers"][0] else {}
        assert not [name for name in variables if "TLS" in name or "PASSWORD" in name or "MAC" in name], component


def test_a_redis_of_the_user_gets_no_password_of_ours():
    values = {"store": {"urls": ["rediss://redis.example.com:6380/0"]}}
    given = environment(pods(values)["decode"]["containers"][0])
    assert "MOONSHARD_STORE_PASSWORD_FILE" not in given
    assert "MOONSHARD_STORE_MAC_FILE" in given
