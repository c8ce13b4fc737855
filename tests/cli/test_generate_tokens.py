"""`dsjax generate` gives a model the ids that its checkpoint's own tokenizer gives, and stops where
the checkpoint says."""

import json
import re

import pytest
from tokenizers import Tokenizer as Library

from dsjax.cli import generate as command
from dsjax.cli.main import main
from dsjax.cli.process.models import ModelFlags
from dsjax.config.model import MLAConfig, ModelConfig
from dsjax.infer import Sampling, generate, load
from dsjax.model import transformer
from dsjax.released import hf
from tests import agreement
from tests.data.descriptions import renamed, written

NAMES = ("[GO]", "[STOP]", "[PAUSE]", "[ROLE]")
PROMPT = "to be[ROLE] that"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder made of a released checkpoint whose files ask for a begin token."""
    folder = tmp_path_factory.mktemp("released")
    cfg = ModelConfig(310, 16, 1, 1, 24, MLAConfig(1, 8, 8, 4, 8))
    hf.save(folder / "src", cfg, agreement.draw(transformer.specs(cfg), 3))
    beside = {"tokenizer_config": {"bos_token": "[GO]", "eos_token": "[STOP]",
                                   "add_bos_token": True},
              "generation_config": {"eos_token_id": [1, 2]}}
    written(folder / "src", renamed(*NAMES), **beside)
    assert main(["convert", "hf-to-dsjax", str(folder / "src"), str(folder / "run")]) == 0
    return folder / "run"


def said(capsys, run, *flags):
    capsys.readouterr()
    argv = ["generate", str(run), "--prompt", PROMPT, "--temperature", "0", "--max-new-tokens", "8"]
    assert main([*argv, "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)["completions"][0]


def test_a_prompt_begins_as_the_checkpoints_own_tokenizer_begins_it(run, capsys):
    model = load(run)
    own = Library.from_file(str(run / "tokenizer.json")).encode(PROMPT).ids
    sampling = Sampling(temperature=0, max_new_tokens=8, stop_ids=(1, 2),
                        vocab=model.tokenizer.vocab)
    texts = {}
    for flags, ids in [((), [0, *own]), (("--bos", "yes"), [0, *own]), (("--bos", "no"), own)]:
        tokens = generate(model.params, model.cfg, [ids], sampling).completions[0].tokens
        texts[flags] = model.tokenizer.decode([t for t in tokens if t not in (1, 2)])
        assert said(capsys, run, *flags)["text"] == texts[flags]
    assert texts["--bos", "no"] != texts[()]


def test_a_released_folder_is_read_as_the_run_made_of_it(run, capsys):
    assert said(capsys, run.parent / "src") == said(capsys, run)


def test_every_end_of_the_checkpoint_ends_a_text(run, capsys, monkeypatch):
    model = load(run)
    assert model.tokenizer.end_ids == (1, 2)
    seen = []
    monkeypatch.setattr(command, "write", lambda model, request, *rest: seen.append(
        request.sampling.stop_ids) or (_ for _ in ()).throw(KeyboardInterrupt))
    for flags in ([], ["--end-token", "[PAUSE]"]):
        with pytest.raises(KeyboardInterrupt):
            command.main(command.Generate(
                str(run), model=ModelFlags(end_token=flags[1] if flags else None)))
    assert seen == [(1, 2), (2, 1)]


def test_an_end_token_that_no_file_names_is_asked_for_by_a_flag_there_is(run, tmp_path, capsys):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.json", "checkpoints"):
        (copy / name).symlink_to(run / name)
    written(copy, renamed(*NAMES))
    assert main(["generate", str(copy), "--prompt", "to"]) == 2
    assert "--end-token NAME" in capsys.readouterr().err
    assert said(capsys, copy, "--end-token", "[STOP]")["tokens"] > 0
    assert main(["generate", str(copy), "--end-token", "[STOP]", "--bos", "yes"]) == 2
    assert "--bos no" in capsys.readouterr().err


def test_a_tokenizer_that_the_weights_do_not_belong_to_is_refused(run, tmp_path, capsys):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.json", "checkpoints"):
        (copy / name).symlink_to(run / name)
    other = renamed(*NAMES)
    words = other["model"]["vocab"]
    words.update({f"w{i}": i for i in range(300, 311)})
    written(copy, other, tokenizer_config={"eos_token": "[STOP]"})
    assert main(["generate", str(copy), "--prompt", "to"]) == 2
    assert re.search(r"not the tokenizer that the weights|has 311 ids.*knows 310",
                     capsys.readouterr().err)


def test_the_precision_is_a_flag_of_generate(tmp_path, capsys):
    """`--precision` is short for a run's field elsewhere; here it is one of its own."""
    from dsjax.cli import main as command

    assert command.main(["generate", str(tmp_path / "nowhere"), "--precision", "bf16"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert command.main(["generate", str(tmp_path), "--precision", "bogus"]) == 2
    assert "--precision is 'bogus'" in capsys.readouterr().err
