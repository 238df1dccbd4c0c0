"""`python -m services.autoscaler.secret_maker`: fill the secrets of a release, and renew its certificate.

The chart renders the secrets without data, so that they go with the release; pods wait until the keys that they mount
are there. Run again, this changes only what is missing or due, so a Job and a CronJob run the same.
"""

import asyncio
import base64
import datetime
import logging
import secrets

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.autoscaler.certificates import authority_fits, fits, make_authority, make_certificate
from services.autoscaler.kubernetes_api import KubernetesApi
from services.runtime.errors import MoonshardError
from services.runtime.logs import setup_logging
from services.runtime.settings import PREFIX, load

NAME = "secrets"
PASSWORD_BYTES = 24
MAC_BYTES = 32

log = logging.getLogger(NAME)


class SecretMakerSettings(BaseSettings):
    """What to fill; the name of a secret that the release does not have is empty."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    namespace: str = Field(description="Namespace of the secrets.")
    api_server: str = Field("", description="URL of the Kubernetes API. Empty: the cluster that this pod runs in.")
    api_s: float = Field(10.0, gt=0, description="Timeout of one API call.")
    authority_secret: str = Field("", description="Secret for the authority that signs the certificate.")
    tls_secret: str = Field("", description="Secret for ca.crt, tls.crt and tls.key.")
    tls_name: str = Field("moonshard", description="DNS name in the certificate.")
    store_secret: str = Field("", description="Secret for Redis' password and the key of the MACs.")


async def fill(api: KubernetesApi, settings: SecretMakerSettings, now: datetime.datetime) -> None:
    """Fill what is missing, and renew a certificate that is due."""
    if settings.tls_secret:
        authority = await _read(api, settings.authority_secret)
        if not authority_fits(authority, now):
            authority = make_authority(settings.tls_name, now)
            await _write(api, settings.authority_secret, authority)
        if not fits(await _read(api, settings.tls_secret), authority, settings.tls_name, now):
            await _write(api, settings.tls_secret, make_certificate(authority, settings.tls_name, now))
    if settings.store_secret:
        present = await _read(api, settings.store_secret)
        fresh = {"password": secrets.token_hex(PASSWORD_BYTES).encode(), "mac": secrets.token_hex(MAC_BYTES).encode()}
        missing = {key: value for key, value in fresh.items() if not present.get(key)}
        if missing:
            await _write(api, settings.store_secret, missing)


async def _read(api: KubernetesApi, name: str) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in (await api.read_secret(name)).items()}


async def _write(api: KubernetesApi, name: str, data: dict[str, bytes]) -> None:
    await api.patch_secret(name, {key: base64.b64encode(value).decode() for key, value in data.items()})
    log.info("filled", extra={"secret": name, "keys": sorted(data)})


async def main(settings: SecretMakerSettings) -> None:
    """Fill the secrets once."""
    api = KubernetesApi(settings.namespace, settings.api_server, settings.api_s)
    try:
        await fill(api, settings, datetime.datetime.now(datetime.UTC))
    finally:
        await api.close()


if __name__ == "__main__":
    arguments = load(SecretMakerSettings)
    setup_logging("info", NAME, "")
    try:
        asyncio.run(main(arguments))
    except MoonshardError as error:
        log.critical(error.message)
        raise SystemExit(1) from None
