"""Turns the messages of a chat into the one prompt that the model was trained on."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Template, TemplateError, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model_code.common.config_fields import ModelError, load_json
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


_RENDER_SECONDS = 2.0
_LARGEST = 1 << 20  # of what `*` repeats and `**` raises
_deadline: ContextVar[float] = ContextVar("deadline")


class _Sandbox(ImmutableSandboxedEnvironment):
    """A sandbox that also ends: loops have a deadline, and products a largest size."""

    intercepted_binops = frozenset(["*", "**"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True)
        self.globals["raise_exception"] = _refuse
        self.filters["within_deadline"] = _within_deadline

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what may become large only if it stays small."""
        if operator == "**":
            small = abs(left) <= _LARGEST and 0 <= right <= 16
        else:
            sizes = [len(x) if hasattr(x, "__len__") else abs(x) for x in (left, right)]
            small = sizes[0] * sizes[1] <= _LARGEST or not any(
                hasattr(x, "__len__") for x in (left, right)
            )
        if not small:
            raise TemplateError(f"{operator} makes something too large")
        return super().call_binop(context, operator, left, right)

    def from_source(self, source: str) -> Template:
        """Compile a template in which each loop looks at the clock."""
        tree = self.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "within_deadline", [], [], None, None)
            loop.iter.set_environment(self)
            loop.iter.set_lineno(loop.lineno)
        return Template.from_code(self, self.compile(tree), self.make_globals(None))


def _within_deadline(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        if time.monotonic() > _deadline.get():
            raise TemplateError(f"it loops for more than {_RENDER_SECONDS:g} seconds")
        yield item


class ChatTemplate:
    """A model's Jinja template, run in a sandbox: it came with the weights, not from us.

    Args:
        source: None takes ChatML.
    """

    def __init__(self, source: str | None = None) -> None:
        try:
            self._template = _Sandbox().from_source(source or CHATML)
        except (TemplateError, RecursionError) as error:
            raise WeightsError(f"the weights' chat template is no valid Jinja: {error}") from error

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return the prompt that asks for the assistant's next turn."""
        _deadline.set(time.monotonic() + _RENDER_SECONDS)
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


def folder_template(folder: Path) -> str | None:
    """Return chat_template.jinja, or what tokenizer_config.json says."""
    if (folder / "chat_template.jinja").is_file():
        try:
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise WeightsError(f"{folder / 'chat_template.jinja'}: is not UTF-8 text") from error
    path = folder / "tokenizer_config.json"
    try:
        given = load_json(path).get("chat_template") if path.is_file() else None
    except ModelError as error:
        raise WeightsError(str(error)) from error
    if isinstance(given, list):  # several, by name
        named = {each.get("name"): each.get("template") for each in given if isinstance(each, dict)}
        given = named.get("default")
    return given if isinstance(given, str) and given.strip() else None
