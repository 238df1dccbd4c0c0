"""The table of settings is complete, up to date in the repository, and printed by `moonshard settings`."""

import json
from pathlib import Path

import pytest
from pydantic import Field, NonNegativeInt
from pydantic_settings import BaseSettings
from typer.testing import CliRunner

from services.local import settings_table
from services.local.__main__ import app
from services.local.settings_table import CLASSES, as_markdown, settings

DOCUMENT = Path(__file__).resolve().parents[3] / "services" / "runtime" / "SETTINGS.md"


@pytest.fixture(scope="module")
def table():
    return settings()


def test_the_document_is_not_stale(table):
    assert DOCUMENT.read_text() == as_markdown(table), "run: moonshard settings > services/runtime/SETTINGS.md"


def test_every_setting_has_a_description(table):
    bare = [setting.variable for setting in table if not setting.description.endswith(".")]
    assert bare == []


def test_every_process_has_its_rows(table):
    assert {process for setting in table for process in setting.processes} == set(CLASSES)
    (listen,) = [setting for setting in table if setting.variable == "MOONSHARD_LISTEN"]
    assert listen.processes == tuple(CLASSES)
    assert listen.default is None


def test_a_variable_with_two_meanings_has_two_rows(table):
    rows = {setting.processes: setting.default for setting in table if setting.variable == "MOONSHARD_STARTUP_S"}
    assert rows == {("attention",): "none", ("autoscaler",): "3600"}


def test_values_and_defaults_are_read_from_the_class(monkeypatch):
    class Sample(BaseSettings):
        places: tuple[str, ...] = Field(("a", "b"), description="Places.")
        count: NonNegativeInt | None = Field(None, description="Count.")
        on: bool = Field(False, description="Switch.")

    monkeypatch.setattr(settings_table, "CLASSES", {"sample": "sample"})
    monkeypatch.setattr(settings_table, "_class", lambda path: Sample)
    rows = {setting.variable: (setting.values, setting.default) for setting in settings()}
    assert rows == {
        "MOONSHARD_PLACES": ("list", "a,b"),
        "MOONSHARD_COUNT": ("integer ≥ 0", "none"),
        "MOONSHARD_ON": ("true, false", "false"),
    }


def test_the_command_prints_the_document():
    printed = CliRunner().invoke(app, ["settings"])
    assert (printed.exit_code, printed.stdout) == (0, DOCUMENT.read_text())


def test_the_command_prints_json():
    rows = json.loads(CliRunner().invoke(app, ["settings", "--json"]).stdout)
    assert {"variable", "processes", "values", "default", "description"} == set(rows[0])
    assert "MOONSHARD_LISTEN" in [row["variable"] for row in rows]


def test_the_command_names_a_library_that_is_missing(monkeypatch):
    monkeypatch.setattr(settings_table, "CLASSES", {"attention": "library_that_is_missing.Settings"})
    result = CliRunner().invoke(app, ["settings"])
    assert result.exit_code == 2
    assert "library_that_is_missing" in result.stderr
