"""Chats to prompts."""

from pathlib import Path

import pytest

from model_code.common.chat import ChatError, ChatTemplate, Message
from model_code.common.errors import WeightsError
from model_code.common.gguf_header import read_header
from model_code.common.gguf_model import find_gguf

HELLO = [Message("user", "Hello")]


def test_smollm2_s_own_template_adds_its_system_message(weights: Path) -> None:
    template = ChatTemplate(read_header(find_gguf(weights)).chat_template)
    assert template.prompt(HELLO) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    own = [Message("system", "Be brief"), *HELLO]
    assert template.prompt(own).startswith("<|im_start|>system\nBe brief<|im_end|>\n")


def test_fails_when_the_template_is_no_jinja() -> None:
    with pytest.raises(WeightsError, match="the weights' chat template is no valid Jinja"):
        ChatTemplate("{% for %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.__class__.__mro__ }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ 1 + 'a' }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content.nothing.nowhere }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(9999) recursive %}{{ loop(range(9999)) }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 10**10 }}",
        "{{ [0] * 10000000 }}",
        "{{ 10 ** 10 ** 10 }}",
    ],
)
def test_fails_when_the_template_refuses_errs_or_reaches_out(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_code.common.chat._RENDER_SECONDS", 0.3)
    with pytest.raises(ChatError, match="the model's chat template refuses these messages"):
        ChatTemplate(source).prompt(HELLO)
