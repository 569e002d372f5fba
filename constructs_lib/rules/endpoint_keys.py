"""Disks of SageMaker endpoints."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources

_OWN_DISKS = ("ml.trn1.", "ml.trn1n.", "ml.trn2.", "ml.p4", "ml.p5", "ml.p6", "ml.g4", "ml.g5",
              "ml.g6")  # fmt: skip


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, config in resources(template, "AWS::SageMaker::EndpointConfig"):
        types = [each.get("InstanceType", "") for each in config.get("ProductionVariants", [])]
        # SageMaker refuses a key for types with NVMe of their own, which the hardware encrypts.
        own = bool(types) and all(name.startswith(_OWN_DISKS) for name in types)
        if "KmsKeyId" not in config and not own:
            yield Breach(logical_id, "Properties.KmsKeyId")


RULE = Rule(
    id="EndpointKeys",
    says="An endpoint must encrypt its volumes with a key of ours; left out, nothing says which.",
    fix="give the endpoint configuration a kms_key_id",
    check=_check,
)
