"""Where an EKS cluster's Kubernetes API answers, and the token that it takes.

The token is what `aws eks get-token` prints: a presigned URL of STS's GetCallerIdentity, signed
over the cluster's name, so that it is good for no other cluster. It is made of the environment's
own credentials and kept in memory only. Neither a kubeconfig nor its current context is read: a run
must not land on another cluster.
"""

import base64
import binascii
import time
from dataclasses import dataclass, field
from typing import Any

from isomorph.environments import Environment
from isomorph.errors import UserError

_PREFIX, _HEADER = "k8s-aws-v1.", "x-k8s-aws-id"
_SIGNED_FOR_S = 60  # of the URL; EKS takes the token for 15 minutes from its signing
_RENEWED_AFTER_S = 600.0


@dataclass(frozen=True)
class Endpoint:
    """Where a cluster's API answers.

    Args:
        cluster: Name of the EKS cluster.
        url: `https://...`, without a path.
        authority: PEM of the certificate authority that signed the API's certificate.
    """

    cluster: str
    url: str
    authority: str


def endpoint(environment: Environment, cluster: str) -> Endpoint:
    """Return where a cluster answers, as eks:DescribeCluster says.

    Raises:
        UserError: no such cluster, one that is not ready, or an answer without an endpoint.
    """
    with environment.aws_errors():
        found: dict[str, Any] = environment.client("eks").describe_cluster(name=cluster)["cluster"]
    if found.get("status") != "ACTIVE":
        raise UserError(f"the EKS cluster {cluster} is {found.get('status')}; it must be ACTIVE")
    url = str(found.get("endpoint", "")).rstrip("/")
    try:
        authority = base64.b64decode(found["certificateAuthority"]["data"], validate=True).decode()
    except (KeyError, TypeError, ValueError, binascii.Error):
        authority = ""
    if not url.startswith("https://") or "BEGIN CERTIFICATE" not in authority:
        raise UserError(f"EKS names no endpoint with a certificate for {cluster}")
    return Endpoint(cluster, url, authority)


@dataclass
class Token:
    """The bearer token for one cluster; it is signed anew before it ends."""

    environment: Environment
    cluster: str
    _value: str = field(default="", repr=False)
    _until: float = 0.0

    def __call__(self) -> str:
        """Return a token that is good for some minutes."""
        if time.monotonic() >= self._until:
            self._value = self._signed()
            self._until = time.monotonic() + _RENEWED_AFTER_S
        return self._value

    def forget(self) -> None:
        """Sign anew when it is wanted next."""
        self._until = 0.0

    def _signed(self) -> str:
        """Return a presigned URL, as EKS reads it out of a token."""
        from botocore.exceptions import NoCredentialsError
        from botocore.signers import RequestSigner

        session = self.environment.session
        with self.environment.aws_errors():
            credentials = session.get_credentials()
            if credentials is None:
                raise NoCredentialsError
            sts = session.client("sts")
            signer = RequestSigner(
                sts.meta.service_model.service_id,
                sts.meta.region_name,
                "sts",
                "v4",
                credentials,
                session.events,
            )
            request = {
                "method": "GET",
                "url": f"{sts.meta.endpoint_url}/?Action=GetCallerIdentity&Version=2011-06-15",
                "body": {},
                "headers": {_HEADER: self.cluster},
                "context": {},
            }
            url = signer.generate_presigned_url(
                request, operation_name="GetCallerIdentity", expires_in=_SIGNED_FOR_S
            )
        return _PREFIX + base64.urlsafe_b64encode(url.encode()).decode().rstrip("=")
