"""`dsjax chat` answers in the template's turns or goes on with a text, and obeys its reader."""

import builtins
import io

import pytest

from dsjax.cli import chat
from dsjax.cli.main import main
from dsjax.cli.process import engines
from dsjax.errors import printable
from dsjax.serve import text
from tests.serve.conftest import ASSISTANT, END, USER, make_run
from tests.serve.stand_in import Engine


class Spy(Engine):
    """Keeps the prompts that it gets."""

    prompts: list = []  # noqa: RUF012

    def add(self, prompt, *rest):
        self.prompts.append(list(prompt))
        return super().add(prompt, *rest)


@pytest.fixture
def prompts(monkeypatch):
    monkeypatch.setattr(engines, "make", lambda model, flags, *_, **more: Spy(model, flags.context))
    monkeypatch.setattr(Spy, "prompts", [])
    return Spy.prompts


def say(monkeypatch, *lines):
    """Type lines, and then ctrl-D; a line may be an exception."""
    left = iter(lines)

    def typed(prompt=""):
        line = next(left, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(builtins, "input", typed)


def test_turns_go_through_the_template_with_all_that_was_said(run, model, prompts, monkeypatch,
                                                              capsys):
    say(monkeypatch, "To be", "", "mind", KeyboardInterrupt(), "/reset", "that")
    flags = ["--max-new-tokens", "5", "--temperature", "0", "--system", "Be."]
    assert main(["chat", str(run), *flags]) == 0
    shown = capsys.readouterr().out
    words, vocabulary = model.tokenizer, text.Vocabulary(model.tokenizer)
    first, second, third = map(words.decode, prompts)
    assert first == f"{END}Be.{USER}To be{ASSISTANT}"
    assert second.startswith(f"{first}")
    assert second.endswith(f"{END}{USER}mind{ASSISTANT}")
    assert third == f"{END}Be.{USER}that{ASSISTANT}"
    answer = second.removeprefix(first).removesuffix(f"{END}{USER}mind{ASSISTANT}")
    assert printable(answer.replace("\r", "\n")).strip() in shown
    assert "\x1b" not in shown
    assert shown.count("5 tokens; ") >= 2
    assert "forgotten" in shown
    assert vocabulary.hidden


def test_a_text_without_a_template_goes_on(tmp_path, model, prompts, monkeypatch, capsys):
    run = make_run(tmp_path / "plain", chats=False)
    say(monkeypatch, "To be", " or not", "that " * 30)
    assert main(["chat", str(run), "--max-new-tokens", "4", "--temperature", "0"]) == 0
    shown = capsys.readouterr().out
    words = model.tokenizer
    assert prompts[0] == words.prompt("To be")
    assert prompts[1][: len(prompts[0])] == prompts[0]
    assert prompts[1][-len(words.encode(" or not")):] == words.encode(" or not")
    assert len(prompts[2]) == 60
    assert "oldest" in shown


def test_the_oldest_turns_are_left_out_and_a_message_that_is_too_long_refused(
        run, model, prompts, monkeypatch, capsys):
    say(monkeypatch, "To be", "or not to be", "question", "a" * 90, "mind")
    assert main(["chat", str(run), "--max-new-tokens", "16", "--temperature", "0",
                 "--context", "48"]) == 0
    shown = capsys.readouterr().out
    assert "left out" in shown
    assert "write a shorter one" in shown
    assert len(prompts) == 4
    assert max(map(len, prompts)) < 48
    assert f"{USER}mind{ASSISTANT}" in model.tokenizer.decode(prompts[-1])


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(run, model, prompts, monkeypatch, capsys):
    left = [3]

    class Page(chat.Page):
        """Gets ctrl-C in the midst of the first answer."""

        def write(self, shown, style=None):
            super().write(shown, style)
            if shown and style is None:
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt

    monkeypatch.setattr(chat, "Page", Page)
    say(monkeypatch, "To be", "mind")
    assert main(["chat", str(run), "--temperature", "0"]) == 0
    assert "; stopped" in capsys.readouterr().out
    assert model.tokenizer.decode(prompts[1]).startswith(model.tokenizer.decode(prompts[0]))


def test_bad_flags_and_an_engine_that_fails_are_told(run, tmp_path, monkeypatch, capsys):
    plain = make_run(tmp_path / "plain", chats=False)
    for folder, flags, sentence in [
        (run, ["--temperature", "-1"], "--temperature -1.0"),
        (run, ["--max-new-tokens", "0"], "--max-new-tokens 0"), (run, ["--top-p", "0"], "--top-p"),
        (plain, ["--system", "Be."], "needs a chat template"),
    ]:
        assert main(["chat", str(folder), *flags]) == 2
        assert sentence in capsys.readouterr().err

    class Dying(Engine):
        """Stops at the first request."""

        def _generate(self, *_):
            raise ArithmeticError("a fault of the program")

    monkeypatch.setattr(engines, "make", lambda model, flags, *_, **more: Dying(model))
    monkeypatch.setattr("sys.stdin", io.StringIO("To be\n"))
    with pytest.raises(ArithmeticError):
        main(["chat", str(run)])
