"""What an engine is asked for: a checked request, as a server and a function both read it."""

from model_code.common.chat import ChatTemplate
from model_code.common.engine import Generation
from model_code.common.server.requests import Ask, InvalidRequestError


def generation(
    ask: Ask, *, model: str, template: ChatTemplate, place: str, has_experts: bool
) -> Generation:
    """Return what the engine is asked for.

    Args:
        ask: The request.
        model: Name of the model that is here.
        template: Makes a prompt of a conversation.
        place: What the model is in, in an error's words: server or function.
        has_experts: Whether the engine can say which experts worked.

    Raises:
        InvalidRequestError: it asks for another model, or for experts where there are none.
    """
    if ask.model not in (None, model):
        raise InvalidRequestError(
            f"the model {ask.model[:100]!r} is not here; this {place} has {model!r}",
            param="model",
            status=404,
        )
    if ask.experts and not has_experts:
        raise InvalidRequestError(
            f"'experts' is true, and {model!r} has no routed experts here; leave it out",
            param="experts",
        )
    return Generation(
        prompt=template.prompt(ask.messages) if ask.prompt is None else ask.prompt,
        max_tokens=ask.max_tokens,
        temperature=ask.temperature,
        top_p=ask.top_p,
        top_k=ask.top_k,
        min_p=ask.min_p,
        repetition_penalty=ask.repetition_penalty,
        seed=ask.seed,
        experts=ask.experts,
    )
