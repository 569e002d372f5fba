"""The certificate authority of the caches: made at start, trusted by the machines."""

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from local_aws.settings import HOST

NAME = "localhost"
_LIFE = datetime.timedelta(days=30)
# From Python 3.13 on, a client wants all that RFC 5280 asks of certificates.
_SIGNS = x509.KeyUsage(
    key_cert_sign=True, crl_sign=True, digital_signature=False, content_commitment=False,
    key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
    decipher_only=False,
)  # fmt: skip
_signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key


class Authority:
    """Signs the one certificate that every cache shows.

    Args:
        folder: Where its files are written, readable by this user alone.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.trusted = folder / "trusted.pem"  # for SSL_CERT_FILE: the system's, and ours
        self._chain, self._key = folder / "server.pem", folder / "server.key"
        key, signer = (
            ec.generate_private_key(ec.SECP256R1()),
            ec.generate_private_key(ec.SECP256R1()),
        )
        issuer = _name("Isomorph embedded AWS")
        authority = (
            _certificate(issuer, issuer, signer.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_SIGNS, critical=True)
            .sign(signer, hashes.SHA256())
        )
        names = [x509.DNSName(NAME), x509.IPAddress(ipaddress.ip_address(HOST))]
        server = (
            _certificate(_name(NAME), issuer, key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(_signed_by(signer.public_key()), critical=False)
            .sign(signer, hashes.SHA256())
        )
        system = ssl.get_default_verify_paths().cafile
        known = Path(system).read_bytes() if system else b""
        self.trusted.write_bytes(known + authority.public_bytes(serialization.Encoding.PEM))
        self._chain.write_bytes(server.public_bytes(serialization.Encoding.PEM))
        self._key.touch(mode=0o600)
        self._key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def context(self) -> ssl.SSLContext:
        """Return what a server speaks TLS with: 1.2 and later, as ElastiCache does."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._chain, self._key)
        return context


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
