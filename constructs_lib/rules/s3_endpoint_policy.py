"""What the S3 gateway endpoint lets through."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, as_list, resources, statements, text


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, endpoint in resources(template, "AWS::EC2::VPCEndpoint"):
        if not text(endpoint["ServiceName"]).endswith(".s3"):
            continue
        allowed = [each for each in statements(endpoint) if each["Effect"] == "Allow"]
        if not allowed or any("*" in as_list(each.get("Resource")) for each in allowed):
            yield Breach(logical_id, "Properties.PolicyDocument")


RULE = Rule(
    id="S3EndpointPolicy",
    says="An S3 endpoint without a policy takes weights and prompts to any bucket of anyone.",
    fix="add a policy that names the buckets",
    check=_check,
)
