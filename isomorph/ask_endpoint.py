"""One request to a SageMaker endpoint, through its runtime."""

import json
import time

from isomorph.ask import Answer, answer_of, body_of, said
from isomorph.environments import Environment
from isomorph.errors import UserError

OUTPUT = "SageMakerEndpoint"


def ask_endpoint(
    environment: Environment, stack: str, prompt: str, *, max_tokens: int, chat: bool = False
) -> Answer:
    """Send `prompt` to a deployed endpoint and return its answer, decoded greedily.

    Raises:
        UserError: there is no endpoint, it has no weights, or it refuses or does not answer.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    outputs = environment.outputs(stack)
    name = outputs.get(OUTPUT)  # put out only while there are weights
    if name is None and outputs.get("Weights", "").startswith("none"):
        raise UserError(f"{environment.stack(stack)} has no weights: {outputs['Weights']}")
    if name is None:
        raise UserError(f"{environment.stack(stack)} has no endpoint; `--on pools` asks its pools")
    client = environment.client("sagemaker-runtime")
    start = time.monotonic()
    try:
        answer = client.invoke_endpoint(
            EndpointName=name,
            ContentType="application/json",
            Accept="application/json",
            Body=body_of(prompt, max_tokens=max_tokens, chat=chat, experts=True),
        )
        content = json.load(answer["Body"])
    except ClientError as error:
        told = error.response.get("OriginalMessage")  # what the container said, if it was asked
        code = error.response.get("OriginalStatusCode", error.response["Error"]["Code"])
        message = said(str(told).encode()) if told else error.response["Error"]["Message"]
        raise UserError(f"the endpoint {name} answered {code}: {message}") from None
    except (BotoCoreError, ValueError) as error:
        raise UserError(f"the endpoint {name} does not answer: {error}") from None
    seconds = time.monotonic() - start
    return answer_of(content, engine=outputs.get("Engine", ""), chat=chat, seconds=seconds)
