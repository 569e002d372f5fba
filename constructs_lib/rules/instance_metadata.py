"""The metadata service of EC2 nodes."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, properties in resources(template, "AWS::EC2::LaunchTemplate"):
        options = properties["LaunchTemplateData"].get("MetadataOptions", {})
        if options.get("HttpTokens") != "required" or options.get("HttpPutResponseHopLimit") != 1:
            yield Breach(logical_id, "Properties.LaunchTemplateData.MetadataOptions")


RULE = Rule(
    id="InstanceMetadata",
    says="A launch template must require IMDSv2 with one hop, or a server that can be made to "
    "fetch a URL gives its role away.",
    fix="require_imdsv2=True, http_put_response_hop_limit=1",
    check=_check,
)
