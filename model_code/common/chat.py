"""Turns the messages of a chat into the one prompt that the model was trained on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model_code.common.errors import WeightsError

# What most small instruct models use, for weights that bring no template of their own.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatError(Exception):
    """The model's template refuses these messages."""


class ChatTemplate:
    """A model's Jinja template, run in a sandbox: it came with the weights, not from us.

    Args:
        source: None takes ChatML.
    """

    def __init__(self, source: str | None = None) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source or CHATML)
        except TemplateError as error:
            raise WeightsError(f"the weights' chat template is no valid Jinja: {error}") from error

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return the prompt that asks for the assistant's next turn."""
        try:
            return self._template.render(
                messages=[asdict(message) for message in messages],
                add_generation_prompt=True,
                bos_token="",
                eos_token="",
            )
        except Exception as error:  # a template is a program: it may raise anything
            words = " ".join(str(error).split())
            raise ChatError(f"the model's chat template refuses these messages: {words}") from error


def _refuse(message: str) -> None:
    raise TemplateError(message)
