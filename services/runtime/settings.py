"""Settings of a process: one field per MOONSHARD_* variable, read once, in `__main__`."""

import difflib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from services.runtime.blob_seal import open_sealer
from services.runtime.discovery import DNS
from services.runtime.redis_access import RedisAccess
from services.runtime.redis_sentinel import check_sentinel_url

PREFIX = "MOONSHARD_"
# The kernel keeps the path of a Unix socket in 108 bytes, the terminating zero included.
MAX_SOCKET_PATH_BYTES = 107


def check_address(text: str) -> str:
    """Return the address if it is "unix:/absolute/path" or "host:port" (IPv6 hosts in brackets); else ValueError."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError(f"{text!r} needs an absolute path after unix:")
        if len(path.encode()) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"the socket path has {len(path.encode())} bytes, at most {MAX_SOCKET_PATH_BYTES} fit")
        return text
    host, colon, port = text.rpartition(":")
    bare_v6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
    if not (host and colon and port.isascii() and port.isdigit() and int(port) <= 65535) or bare_v6 or "/" in host:
        raise ValueError(f"{text!r} is neither unix:/path nor host:port")
    return text


def check_place(text: str) -> str:
    """Return the text if it is an address or "dns:NAME:PORT", with an address in every record; else ValueError."""
    if not text.startswith(DNS):
        return check_address(text)
    name, colon, port = text.removeprefix(DNS).rpartition(":")
    if not (re.fullmatch(r"[A-Za-z0-9_.-]{1,253}", name) and colon and port.isascii() and port.isdigit()):
        raise ValueError(f"{text!r} is not dns:NAME:PORT")
    check_address(f"{name}:{port}")
    return text


def _check_store_url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme in {"redis+sentinel", "rediss+sentinel"}:
        check_sentinel_url(text)
        return text
    if url.scheme not in {"redis", "rediss", "unix"} or not (url.path if url.scheme == "unix" else url.hostname):
        # The URL may hold a password, so it is not repeated.
        raise ValueError("a store is redis://host:port/0, rediss://..., redis+sentinel://... or unix:///path")
    return text


def _check_url(text: str) -> str:
    url = urlsplit(text)
    if text and (url.scheme not in {"http", "https"} or not url.hostname):
        raise ValueError(f"{text!r} is no http:// or https:// URL")
    return text


def _split(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(part for part in (part.strip() for part in value.split(",")) if part)


Address = Annotated[str, AfterValidator(check_address)]
"""Where a process listens or is found."""

OptionalAddress = Annotated[str, AfterValidator(lambda text: text and check_address(text))]
"""An address, or empty for none."""

OptionalUrl = Annotated[str, AfterValidator(_check_url)]
"""An http or https URL, or empty for none."""

Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""A comma list of words; empty for none."""

Addresses = Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_split)]
"""A comma list of addresses; empty for none."""

Places = Annotated[tuple[Annotated[str, AfterValidator(check_place)], ...], NoDecode, BeforeValidator(_split)]
"""A comma list of addresses, and of names whose every record is one (discovery.py); empty for none."""

StoreUrls = Annotated[
    tuple[Annotated[str, AfterValidator(_check_store_url)], ...], NoDecode, BeforeValidator(_split), Field(repr=False)
]
"""A comma list of Redis URLs, which may hold passwords and are therefore never shown; empty for no store."""


class ServiceSettings(BaseSettings):
    """Settings of every process. Variables of other processes in the shared environment are ignored."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    listen: Address = Field(description="Address of the server: host:port or unix:/path.")
    metrics_listen: OptionalAddress = Field("", description="Address of GET /metrics. Empty: none.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    drain_s: PositiveFloat = Field(30.0, description="Longest time from SIGTERM to the end of the last call.")
    instance: str = Field("", description="Name of this process in logs and traces, normally the pod's.")
    tls_cert: Path | None = Field(
        None,
        description="PEM certificate of this process; needs TLS_KEY and TLS_CA. All three: calls use mutual TLS.",
    )
    tls_key: Path | None = Field(None, description="PEM key of that certificate.")
    tls_ca: Path | None = Field(None, description="PEM authorities that sign the certificates of all processes.")
    tls_name: str = Field("", description="DNS name in the certificate of every peer. Empty: the host of its address.")
    trace_endpoint: OptionalUrl = Field(
        "", description="OTLP over HTTP, such as http://collector:4318/v1/traces. Empty: no traces."
    )
    health_listen: OptionalAddress = Field(
        "",
        description="Second address of the health service, without TLS, for probes. Empty: none.",
    )

    @model_validator(mode="after")
    def _tls_is_complete(self) -> Self:
        files = {"TLS_CERT": self.tls_cert, "TLS_KEY": self.tls_key, "TLS_CA": self.tls_ca}
        missing = [f"MOONSHARD_{name}" for name, path in files.items() if path is None]
        if 0 < len(missing) < len(files):
            raise ValueError(f"TLS needs MOONSHARD_TLS_CERT, _KEY and _CA, not set: {', '.join(missing)}")
        return self


class StoreSettings(ServiceSettings):
    """Redis URLs and credentials."""

    store_password_file: Path | None = Field(
        None,
        description="File with the password of every Redis; wins over passwords in URLs.",
    )
    store_ca: Path | None = Field(
        None, description="PEM authorities that are trusted for rediss://. None: those of the system."
    )
    store_mac_file: Path | None = Field(
        None,
        description="File with the key (16 bytes or more) that authenticates values in Redis, the same for all "
        "processes. None: values have checksums, which a writer of Redis can forge.",
    )
    store_cert: Path | None = Field(None, description="PEM certificate that is presented to Redis.")
    store_key: Path | None = Field(None, description="PEM key of that certificate.")

    @model_validator(mode="after")
    def _store_pair_is_complete(self) -> Self:
        if (self.store_cert is None) != (self.store_key is None):
            raise ValueError("MOONSHARD_STORE_CERT and MOONSHARD_STORE_KEY need each other")
        return self

    @model_validator(mode="after")
    def _mac_file_holds_a_key(self) -> Self:
        try:
            open_sealer(self.store_mac_file)
        except (OSError, ValueError) as error:
            raise ValueError(f"MOONSHARD_STORE_MAC_FILE: {error}") from error
        return self

    @property
    def store_access(self) -> RedisAccess:
        files = (self.store_password_file, self.store_ca, self.store_cert, self.store_key, self.store_mac_file)
        return RedisAccess(*files)


Settings = TypeVar("Settings", bound=BaseSettings)


def load(kind: type[Settings]) -> Settings:
    """Read the settings from the environment. A bad value stops the process with a line that names its variable."""
    for warning in _misspelt(kind):
        sys.stderr.write(f"{warning}\n")
    try:
        return kind()
    except ValidationError as error:
        for line in _complaints(kind, error):
            sys.stderr.write(f"{line}\n")
        raise SystemExit(2) from None


def _complaints(kind: type[BaseSettings], error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        reason = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:  # a rule for several fields; its message names them
            yield reason
            continue
        name = str(problem["loc"][0])
        variable = f"{PREFIX}{name.upper()}"
        field = kind.model_fields.get(name)
        value = os.environ.get(variable)
        secret = field is None or not field.repr or SecretStr in _parts(field.annotation)
        if value is None:
            yield f"{variable} is not set: {reason}" if problem["type"] == "missing" else f"{variable}: {reason}"
        elif secret or repr(value) in reason:
            yield f"{variable}: {reason}"
        else:
            yield f"{variable}={value[:100]}: {reason}"


def _parts(annotation: Any) -> set[Any]:
    parts = {annotation}
    for argument in getattr(annotation, "__args__", ()):
        parts |= _parts(argument)
    return parts


def _misspelt(kind: type[BaseSettings]) -> Iterator[str]:
    """Return variables that resemble one of ours. Others belong to other processes."""
    ours = {name.upper() for name in kind.model_fields}
    given = {name.removeprefix(PREFIX) for name in os.environ if name.startswith(PREFIX)}
    for name in sorted(given - ours):
        for close in difflib.get_close_matches(name, ours - given, n=1, cutoff=0.88):
            yield f"{PREFIX}{name} is not known here: was {PREFIX}{close} meant?"
