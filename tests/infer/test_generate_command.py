"""`dsjax generate` writes what the model of a run says, and answers bad input with a sentence."""

import dataclasses
import io
import json

import pytest

from dsjax.checkpoint.store import Store
from dsjax.cli import generate as command
from dsjax.cli.main import main
from dsjax.config.run import RunConfig, TrainConfig
from dsjax.config.stored import run_to_json
from dsjax.data.tokenizers import tokenizer
from dsjax.errors import printable
from dsjax.infer import Options, Sampling, generate, load
from dsjax.model import transformer
from dsjax.terminal import Console
from tests import agreement

TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind. " * 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of an untrained dense model with one MTP module and spare ids in its head."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    words = tokenizer.train_bpe([TEXT], 280)
    cfg = dataclasses.replace(agreement.TINY, vocab=300, layers=1, dense_layers=1, moe=None,
                              mtp_depth=1)
    store = Store(folder / "checkpoints", keep=1)
    store.save(3, {"params": agreement.draw(transformer.specs(cfg), 3)}, {})
    store.close()
    config = RunConfig("short", cfg, train=TrainConfig(seq_len=40))
    run_to_json(config, folder / "config.json")
    words.save(folder / "tokenizer.json")
    return folder


def test_it_prints_the_prompt_its_continuation_and_one_line(run, capsys):
    flags = ["--prompt", "To be", "--max-new-tokens", "9", "--draft"]
    assert main(["generate", str(run), *flags]) == 0
    out = capsys.readouterr().out
    assert out.startswith("To be")
    last = out.rstrip("\n").splitlines()[-1]
    assert last.startswith("9 tokens; ")
    assert "cache of 96 bytes a token" in last
    assert last.endswith(" tokens a pass")


def test_a_context_that_it_was_not_trained_for_is_said_and_taken(run, capsys):
    flags = ["--prompt", "To be", "--max-new-tokens", "3", "--temperature", "0"]
    assert main(["generate", str(run), *flags, "--context", "40"]) == 0
    within = capsys.readouterr()
    assert main(["generate", str(run), *flags, "--context", "41"]) == 0
    beyond = capsys.readouterr()
    assert "--context" not in within.err
    assert "--context 41 is past what this model was trained for" in beyond.err
    assert beyond.out.splitlines()[0] == within.out.splitlines()[0]


def test_json_holds_the_text_that_the_library_makes(run, capsys):
    flags = ["--prompt", "that is", "--prompt", "", "--temperature", "0", "--draft", "--json",
             "--repetition-penalty", "1.3", "--presence-penalty", "0.2", "--top-k", "5"]
    assert main(["generate", str(run), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    model = load(run)
    ids = [model.tokenizer.encode("that is"), [model.tokenizer.end_id]]
    # The longest prompt leaves so much of the context of 40.
    sampling = Sampling(temperature=0, max_new_tokens=40 - max(map(len, ids)), top_k=5,
                        repetition_penalty=1.3, presence_penalty=0.2,
                        vocab=model.tokenizer.vocab, stop_ids=(model.tokenizer.end_id,))
    expected = generate(model.params, model.cfg, ids, sampling,
                        Options(draft=True)).completions
    for row, done in zip(found["completions"], expected, strict=True):
        kept = [t for t in done.tokens if t != model.tokenizer.end_id]
        assert row["text"] == model.tokenizer.decode(kept)
        assert row["tokens"] == len(done.tokens)
        assert row["finish_reason"] == done.finish_reason
    assert len(found["acceptance"]) == 1
    assert found["tokens_per_pass"] >= 1
    assert found["cache_bytes_per_token"] == 96


@pytest.mark.exhaustive
@pytest.mark.parametrize("draft", [[], ["--draft"]])
def test_a_stop_ends_a_text_before_it_and_costs_no_token_more(run, capsys, draft):
    flags = ["--prompt", "that is", "--temperature", "0", *draft]
    assert main(["generate", str(run), *flags, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)["completions"][0]["text"]
    at = len(whole) // 2
    stop = whole[at : at + 2]
    assert main(["generate", str(run), *flags, "--json", "--stop", "nowhere", "--stop", stop]) == 0
    row = json.loads(capsys.readouterr().out)["completions"][0]
    assert row["text"] == whole[: whole.index(stop)]
    assert row["finish_reason"] == "stop"
    model = load(run)
    ids = model.tokenizer.encode("that is")
    sampling = Sampling(temperature=0, max_new_tokens=row["tokens"], vocab=model.tokenizer.vocab)
    done = generate(model.params, model.cfg, [ids], sampling).completions[0]
    assert stop in model.tokenizer.decode(list(done.tokens))
    assert stop not in model.tokenizer.decode(list(done.tokens[:-1]))
    assert main(["generate", str(run), *flags, "--stop", stop]) == 0
    shown = printable(whole[: whole.index(stop)].replace("\r", "\n"))
    assert capsys.readouterr().out.startswith(f"that is{shown}\n\n")


def test_a_text_ends_with_the_token_that_completes_a_stop(run):
    words = tokenizer.load(run / "tokenizer.json")
    asked = Sampling(stop_ids=(words.end_id,))
    text = command.Continuation(words, command.Request([], [], asked, ("or not", "mind")))
    ids, shown = words.encode("To be, or no more, or not to be"), ""
    at = next(n for n in range(len(ids) + 1) if "or not" in words.decode(ids[:n]))
    for token in [words.end_id, *ids[: at - 1]]:
        text.push(token)
        assert not text.is_stopped
        shown += text.take()
    assert shown == "To be, or no more, "
    text.push(ids[at - 1])
    assert text.is_stopped
    text.end()
    assert not text.take()


def test_what_streams_is_the_whole_text_and_no_control_code_passes(run):
    written = io.StringIO()
    report = command.speak(run, "the mind", Console(file=written, width=20), is_drafting=True)
    model = load(run)
    ids = model.tokenizer.encode("the mind")
    sampling = Sampling(temperature=0.8, max_new_tokens=40 - len(ids), vocab=model.tokenizer.vocab,
                        stop_ids=(model.tokenizer.end_id,))
    options = Options(draft=True)
    done = generate(model.params, model.cfg, [ids], sampling, options).completions[0]
    kept = [t for t in done.tokens if t != model.tokenizer.end_id]
    text = printable(model.tokenizer.decode(ids + kept).replace("\r", "\n"))
    assert written.getvalue().startswith(text)
    assert command.line(report) in written.getvalue()
    assert "\x1b" not in written.getvalue()


def test_bad_requests_leave_with_a_sentence_and_status_2(run, tmp_path, capsys):
    binary = tmp_path / "prompt.txt"
    binary.write_bytes(b"\xff\xfe")
    for argv, sentence in [
        ([str(tmp_path / "nowhere")], "is not a folder; give the folder of a released checkpoint"),
        ([str(tmp_path)], "has no config.json"),
        ([str(run), "--prompt-file", str(binary)], "give a UTF-8 text file"),
        ([str(run), "--max-new-tokens", "0"], "--max-new-tokens 0 generates nothing"),
        ([str(run), "--max-new-tokens", "50"], "lower --max-new-tokens or raise --context"),
        ([str(run), "--max-new", "9"], "--max-new has another name now; use --max-new-tokens"),
        ([str(run), "--parallel.pipe", "2"], "--parallel.pipe 2 orders the work of a training"),
        ([str(run), "--parallel.interleave"], "use --parallel.data"),
        ([str(run), "--parallel.schedule", "dualpipe"], "--parallel.schedule dualpipe orders"),
        ([str(run), "--parallel.fsdp", "3"], "does not divide over --parallel.fsdp 3"),
        ([str(run), "--parallel.expert", "2"], "no experts to share"),
        ([str(run), "--parallel.data", "99"], "needs 99 devices"),
        ([str(run), "--context", "0"], "--context 0 has no room"),
        ([str(run), "--stop", ""], "--stop '' ends every text"),
        ([str(run), "--context", "1"], "at least 2"),
        ([str(run), "--temperature", "nan"], "--temperature nan is not a number from 0 on; use 0"),
        ([str(run), "--temperature", "-1"], "--temperature -1.0 is not a number from 0 on; use 0"),
        ([str(run), "--temperature", "hot"], "--temperature takes FLOAT, not 'hot'; see --help"),
        ([str(run), "--tempera", "1"], "there is no flag --tempera, did you mean --temperature;"),
        ([], "give FOLDER; see --help"),
        ([str(run), "--top-p", "0"], "--top-p 0.0"),
        ([str(run), "--top-k", "0"], "--top-k 0 leaves no token"),
        ([str(run), "--min-p", "2"], "--min-p 2.0"),
        ([str(run), "--repetition-penalty", "0"], "--repetition-penalty 0.0"),
    ]:
        assert main(["generate", *argv]) == 2
        said, error = capsys.readouterr()
        assert not said  # not even the prompt
        assert sentence in error
        assert error.startswith("dsjax: ")
        assert error.count("\n") == 1


def test_ends_of_lines_are_shown_as_they_are_meant_also_where_one_is_cut_in_two():
    written = io.StringIO()
    page = command.Page(Console(file=written))
    for piece in ("river\r\nstone\rcloud\r", "", "\n", "\nlamp\r", "x\x1b[2J\u202e"):
        page.write(piece)
    assert written.getvalue() == "river\nstone\ncloud\n\nlamp\nx\\x1b[2J\\u202e"


def test_a_prompt_that_is_no_text_is_refused_and_a_file_is_read_as_training_reads_it(
        run, tmp_path, capsys):
    assert main(["generate", str(run), "--prompt", "caf\udce9"]) == 2
    assert "is not UTF-8" in capsys.readouterr().err
    text = tmp_path / "prompt.txt"
    text.write_bytes(b"\xef\xbb\xbfriver\r\nstone")
    args = command.Generate(folder=str(run), prompt=("a",), prompt_file=text)
    assert command._prompts(args) == ["a", "river\r\nstone"]
    for wrong, words in ((tmp_path, "is a folder"), (tmp_path / "none", "is missing")):
        assert main(["generate", str(run), "--prompt-file", str(wrong)]) == 2
        assert words in capsys.readouterr().err
