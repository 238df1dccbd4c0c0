"""Settings come only from MOONSHARD_* variables; a bad one stops the process with its name."""

import os
from typing import Literal, Self

import pytest
from pydantic import PositiveInt, SecretStr, ValidationError, model_validator

from services.runtime.settings import Addresses, Names, ServiceSettings, StoreUrls, check_address, load


class EngineSettings(ServiceSettings):
    """All types of fields that services use."""

    model: str
    role: Literal["prefill", "decode"] = "decode"
    shard: int = 0
    num_shards: PositiveInt = 1
    experts: Addresses = ()
    aliases: Names = ()
    store: StoreUrls = ()
    api_key: SecretStr = SecretStr("")

    @model_validator(mode="after")
    def _shard_exists(self) -> Self:
        if self.shard >= self.num_shards:
            raise ValueError(f"MOONSHARD_SHARD={self.shard} is outside 0..{self.num_shards - 1}")
        return self


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in os.environ:
        if name.startswith("MOONSHARD_"):
            monkeypatch.delenv(name)

    def set_variables(**variables):
        for name, value in ({"LISTEN": "unix:/run/a.sock", "MODEL": "/model"} | variables).items():
            monkeypatch.setenv(f"MOONSHARD_{name}", value)

    return set_variables


def test_values_arrive_typed(environment):
    environment(
        SHARD="1",
        NUM_SHARDS="2",
        EXPERTS="unix:/a, 10.0.0.1:50051,[::1]:1",
        ALIASES="",
        STORE="redis://:pw@h:1/0,unix:///r.sock",
    )
    settings = load(EngineSettings)
    assert (settings.shard, settings.num_shards, settings.aliases) == (1, 2, ())
    assert settings.experts == ("unix:/a", "10.0.0.1:50051", "[::1]:1")
    assert settings.store == ("redis://:pw@h:1/0", "unix:///r.sock")


def test_settings_do_not_change(environment):
    environment()
    with pytest.raises(ValidationError):
        load(EngineSettings).shard = 3


def test_secrets_are_not_shown(environment):
    environment(STORE="redis://:hunter2@h:1/0", API_KEY="hunter2")
    assert "hunter2" not in repr(load(EngineSettings))


@pytest.mark.parametrize(
    "variables, line",
    [
        pytest.param({"LISTEN": "8000"}, "MOONSHARD_LISTEN: '8000' is neither unix:/path nor host:port", id="address"),
        pytest.param({"SHARD": "one"}, "MOONSHARD_SHARD=one: Input should be a valid integer", id="number"),
        pytest.param({"NUM_SHARDS": "0"}, "MOONSHARD_NUM_SHARDS=0: Input should be greater than 0", id="bound"),
        pytest.param({"ROLE": "both"}, "MOONSHARD_ROLE=both: Input should be 'prefill' or 'decode'", id="choice"),
        pytest.param({"EXPERTS": "unix:/a,b"}, "MOONSHARD_EXPERTS=unix:/a,b: 'b' is neither", id="one-of-a-list"),
        pytest.param({"SHARD": "3"}, "MOONSHARD_SHARD=3 is outside 0..0", id="rule-over-fields"),
        pytest.param({"STORE": "http://hunter2@h"}, "MOONSHARD_STORE: a store is redis://", id="store"),
        pytest.param({"DRAIN_S": "-1"}, "MOONSHARD_DRAIN_S=-1: Input should be greater than 0", id="common-field"),
    ],
)
def test_a_bad_value_stops_the_process_and_names_the_variable(environment, capsys, variables, line):
    environment(**variables)
    with pytest.raises(SystemExit) as stopped:
        load(EngineSettings)
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert printed.startswith(line)
    assert printed.count("\n") == 1
    assert "hunter2" not in printed


def test_each_bad_variable_has_a_line(environment, capsys, monkeypatch):
    environment(SHARD="x", ROLE="y")
    monkeypatch.delenv("MOONSHARD_MODEL")
    with pytest.raises(SystemExit):
        load(EngineSettings)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0].split("=")[0].rstrip(":") for line in lines] == [
        "MOONSHARD_MODEL",
        "MOONSHARD_ROLE",
        "MOONSHARD_SHARD",
    ]
    assert "MOONSHARD_MODEL is not set" in lines[0]


def test_variables_of_other_processes_are_ignored_but_slips_are_told(environment, capsys):
    environment(DECODES="a:1", NEXT_SHARDS="", METRICS_LISTN="127.0.0.1:0")
    load(EngineSettings)
    assert capsys.readouterr().err == "MOONSHARD_METRICS_LISTN is not known here: was MOONSHARD_METRICS_LISTEN meant?\n"


@pytest.mark.parametrize(
    "address", ["unix:/a", "127.0.0.1:0", "localhost:65535", "[::1]:50051", "decode-0.decode.ns.svc:80"]
)
def test_addresses(address):
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        *("", "unix:", "unix:a", "host", ":80", "host:", "host:65536", "host:-1", "host:x", "::1:80"),
        *("http://h:80", "h:\N{SUPERSCRIPT TWO}", f"unix:/{'a' * 107}"),
    ],
)
def test_not_addresses(address):
    with pytest.raises(ValueError, match=r"neither|absolute|bytes"):
        check_address(address)
