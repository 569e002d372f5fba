import pytest

from tests.cdk_app import ENV, new_app

import aws_cdk as cdk  # isort: skip
from aws_cdk import aws_logs as logs  # isort: skip

from constructs_lib.rules import RULES, RulesPlugin


def app_with_an_open_log_group(acknowledged: str | None = None) -> cdk.App:
    app = new_app()
    stack = cdk.Stack(cdk.Stage(app, "stage", env=ENV), "stack")
    group = logs.CfnLogGroup(stack, "Group", retention_in_days=30)
    if acknowledged:
        cdk.Validations.of(group).acknowledge(
            cdk.Acknowledgment(id=acknowledged, reason="an example without secrets")
        )
    cdk.Validations.of(app).add_plugins(RulesPlugin(RULES))
    return app


def test_a_breach_fails_the_synthesis_and_says_where():
    with pytest.raises(RuntimeError, match="ValidationFailed") as caught:
        app_with_an_open_log_group().synth()
    assert "A log group must be encrypted with a key of ours" in str(caught.value)
    assert "stage/stack/Group" in str(caught.value)


def test_a_breach_can_be_acknowledged_on_its_resource():
    assert app_with_an_open_log_group("Isomorph::LogGroups").synth()


def test_acknowledging_another_rule_does_not_help():
    with pytest.raises(RuntimeError, match="ValidationFailed"):
        app_with_an_open_log_group("Isomorph::OpenEgress").synth()
