"""A function with all that a stack of the project gives one."""

from tests.local_aws.templates import Template, assumed_by, attribute, policy, ref, resource

HANDLER = """
import os, time
def handle(event, context):
    if "sleep" in event:
        time.sleep(event["sleep"])
    if "eat" in event:
        eaten = bytearray(event["eat"] * 2**20)
        time.sleep(2)
    if "fail" in event:
        raise ValueError(event["fail"])
    print("said", event.get("say"))
    left = context.get_remaining_time_in_millis()
    return {"got": event, "left": left, "pid": os.getpid(), "given": os.environ["GIVEN"]}
"""

FUNCTIONS: Template = {
    "FunctionRole": resource("IAM::Role", AssumeRolePolicyDocument=assumed_by("lambda")),
    "Letters": resource("SQS::Queue", SqsManagedSseEnabled=True, MessageRetentionPeriod=1209600),
    "LettersPolicy": resource(
        "SQS::QueuePolicy",
        Queues=[ref("Letters")],
        PolicyDocument=policy("sqs:SendMessage", attribute("Letters", "Arn"), Principal="*"),
    ),
    "FunctionLogs": resource("Logs::LogGroup", LogGroupName="/contract/function"),
    "Function": resource(
        "Lambda::Function",
        Code={"ZipFile": HANDLER},
        Runtime="python3.11",
        Handler="index.handle",
        Role=attribute("FunctionRole", "Arn"),
        MemorySize=256,
        Timeout=5,
        EphemeralStorage={"Size": 1024},
        Environment={"Variables": {"GIVEN": "this"}},
        DeadLetterConfig={"TargetArn": attribute("Letters", "Arn")},
        LoggingConfig={"LogGroup": ref("FunctionLogs")},
        VpcConfig={"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]},
        ReservedConcurrentExecutions=2,
    ),
    "FunctionUrl": resource(
        "Lambda::Url",
        TargetFunctionArn=attribute("Function", "Arn"),
        AuthType="AWS_IAM",
        InvokeMode="RESPONSE_STREAM",
    ),
}
