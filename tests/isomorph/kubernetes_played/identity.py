"""Who may speak with the played API: its certificates, and tokens checked as EKS has STS do it."""

import base64
import datetime
import hashlib
import hmac
import ipaddress
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificates(folder: Path) -> tuple[str, Path]:
    """Return the PEM of an authority, and a file with a server's certificate and key by it."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in ("ca", "api")]
    made = []
    for key, name, is_authority in zip(keys, names, (True, False), strict=True):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        )
        if is_authority:
            uses = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment",
                                  "data_encipherment", "key_agreement", "encipher_only",
                                  "decipher_only"), False)  # fmt: skip
            usage = x509.KeyUsage(key_cert_sign=True, crl_sign=True, **uses)
            builder = builder.add_extension(usage, critical=True)
        else:
            local = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([local]), critical=False)
        made.append(builder.sign(keys[0], hashes.SHA256()))
    pem = [each.public_bytes(serialization.Encoding.PEM) for each in made]
    secret = keys[1].private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = folder / "api.pem"
    file.write_bytes(pem[1] + secret)
    return pem[0].decode(), file


def caller(token: str, cluster: str, secrets: dict[str, str]) -> str:
    """Return the access key that signed a token; an AssertionError says what is wrong with it."""
    assert token.startswith("k8s-aws-v1."), "no token of EKS"
    encoded = token.removeprefix("k8s-aws-v1.")
    assert "=" not in encoded, "padded"
    url = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    parts = urlsplit(url)
    assert (parts.scheme, parts.path) == ("https", "/"), url
    assert parts.hostname == "sts.us-east-1.amazonaws.com", url
    query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True))
    given = query.pop("X-Amz-Signature")
    assert query["Action"] == "GetCallerIdentity"
    assert query["Version"] == "2011-06-15"
    assert query["X-Amz-Expires"] == "60"
    assert query["X-Amz-SignedHeaders"] == "host;x-k8s-aws-id"
    key, day, region, service, end = query["X-Amz-Credential"].split("/")
    assert (region, service, end) == ("us-east-1", "sts", "aws4_request")
    at = datetime.datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%S%z")
    assert abs(datetime.datetime.now(datetime.UTC) - at) < datetime.timedelta(minutes=15)
    assert key in secrets, "nobody knows the access key"
    words = "&".join(
        f"{quote(k, safe='')}={quote(v, safe='-_.~')}" for k, v in sorted(query.items())
    )
    canonical = "\n".join(["GET", "/", words, f"host:{parts.hostname}", f"x-k8s-aws-id:{cluster}",
                           "", "host;x-k8s-aws-id", hashlib.sha256(b"").hexdigest()])  # fmt: skip
    scope = f"{day}/{region}/{service}/{end}"
    signed = "\n".join(["AWS4-HMAC-SHA256", query["X-Amz-Date"], scope,
                        hashlib.sha256(canonical.encode()).hexdigest()])  # fmt: skip
    made = f"AWS4{secrets[key]}".encode()
    for part in (day, region, service, end, signed):
        made = hmac.new(made, part.encode(), hashlib.sha256).digest()
    assert hmac.compare_digest(made.hex(), given), "the signature is not over this cluster"
    return key
