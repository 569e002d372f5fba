"""CloudFront in front of a function URL: answers from the nearest edge, inference in the region.

Not Lambda@Edge: that runs in us-east-1's replicas with 128 MB and 5 s on viewer events, streams
nothing and has no /tmp of this size (CloudFront's developer guide, "Quotas on Lambda@Edge").
"""

from dataclasses import dataclass

from aws_cdk import Acknowledgment, Validations
from aws_cdk import aws_cloudfront as cloudfront
from aws_cdk import aws_cloudfront_origins as origins
from aws_cdk import aws_lambda as lambda_
from constructs import Construct


@dataclass(frozen=True, kw_only=True)
class Viewers:
    """Who may call through CloudFront.

    CloudFront signs each request to the function for whoever passes it, so it must ask viewers
    for a signature of their own.

    Args:
        key_group_id: CloudFront key group; URLs and cookies signed with its keys are let through.
        web_acl_arn: Web ACL of AWS WAF in us-east-1, if there is one.
    """

    key_group_id: str
    web_acl_arn: str | None = None


class FunctionEdge(Construct):
    """A distribution with origin access control: the function URL stays shut to everyone else.

    A viewer that sends a body must send its SHA-256 in x-amz-content-sha256 too: CloudFront signs
    that header and never reads the body (CloudFront's developer guide, "Restrict access to an
    AWS Lambda function URL origin").

    Args:
        url: The function URL, with AWS_IAM authorization.
        viewers: Who may call.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        url: lambda_.FunctionUrl,
        viewers: Viewers,
    ) -> None:
        super().__init__(scope, construct_id)
        group = cloudfront.KeyGroup.from_key_group_id(self, "Viewers", viewers.key_group_id)
        self.distribution = cloudfront.Distribution(
            self,
            "Distribution",
            default_behavior=cloudfront.BehaviorOptions(
                origin=origins.FunctionUrlOrigin.with_origin_access_control(url),
                allowed_methods=cloudfront.AllowedMethods.ALLOW_ALL,
                cache_policy=cloudfront.CachePolicy.CACHING_DISABLED,
                origin_request_policy=cloudfront.OriginRequestPolicy.ALL_VIEWER_EXCEPT_HOST_HEADER,
                viewer_protocol_policy=cloudfront.ViewerProtocolPolicy.HTTPS_ONLY,
                response_headers_policy=cloudfront.ResponseHeadersPolicy.SECURITY_HEADERS,
                trusted_key_groups=[group],
            ),
            http_version=cloudfront.HttpVersion.HTTP2_AND_3,
            web_acl_id=viewers.web_acl_arn,
        )
        reasons = {
            "CFR1": "who may call is decided by signed URLs and cookies, not by country",
            "CFR3": "each request is in the function's own log group; the ACL-enabled bucket that "
            "standard logging needs would be the only one of the account",
            "CFR4": "there is no domain name of its own, so CloudFront's certificate stands, whose "
            "oldest protocol cannot be chosen; viewers negotiate TLS 1.2 or 1.3",
        }
        if viewers.web_acl_arn is None:
            reasons["CFR2"] = "only signed requests pass; cloudfront_web_acl_arn adds AWS WAF"
        for rule, reason in reasons.items():
            Validations.of(self.distribution).acknowledge(
                Acknowledgment(id=f"AwsSolutions-{rule}", reason=reason)
            )
