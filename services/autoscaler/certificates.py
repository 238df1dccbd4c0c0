"""A certificate authority of one release, and the certificate that all of its processes show each other."""

import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 365
# Renewed this long before its end: a renewal that fails for weeks is still noticed in time.
RENEW_DAYS: Final = 120
# Nodes whose clocks differ a little.
SKEW: Final = datetime.timedelta(minutes=5)


def make_authority(name: str, now: datetime.datetime) -> dict[str, bytes]:
    """Return tls.crt and tls.key of a new authority, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority of {name}")])
    certificate = (
        _builder(subject, subject, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return {"tls.crt": _pem(certificate), "tls.key": _key_pem(key)}


def make_certificate(authority: dict[str, bytes], name: str, now: datetime.datetime) -> dict[str, bytes]:
    """Return ca.crt, tls.crt and tls.key of a certificate for servers and clients with this DNS name."""
    issuer = x509.load_pem_x509_certificate(authority["tls.crt"])
    issuer_key = serialization.load_pem_private_key(authority["tls.key"], None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(subject, issuer.subject, key.public_key(), now, CERTIFICATE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return {"ca.crt": authority["tls.crt"], "tls.crt": _pem(certificate), "tls.key": _key_pem(key)}


def fits(data: dict[str, bytes], authority: dict[str, bytes], name: str, now: datetime.datetime) -> bool:
    """Whether a certificate is of this authority, has this name, and is not due for renewal."""
    if data.get("ca.crt") != authority["tls.crt"] or not data.get("tls.key"):
        return False
    try:
        certificate = x509.load_pem_x509_certificate(data.get("tls.crt", b""))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    return name in names.get_values_for_type(x509.DNSName) and not _is_due(certificate, now)


def authority_fits(data: dict[str, bytes], now: datetime.datetime) -> bool:
    """Whether an authority is complete and outlives the certificates that it signs."""
    try:
        certificate = x509.load_pem_x509_certificate(data.get("tls.crt", b""))
    except ValueError:
        return False
    outlives = certificate.not_valid_after_utc - now > datetime.timedelta(days=CERTIFICATE_DAYS)
    return bool(data.get("tls.key")) and outlives


def _is_due(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    return certificate.not_valid_after_utc - now < datetime.timedelta(days=RENEW_DAYS)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - SKEW)
    return builder.not_valid_after(now + datetime.timedelta(days=days))


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
