"""A wrong command line is answered in one sentence, and its advice can be typed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsjax.cli.main import main
from dsjax.cli.process import arguments
from dsjax.errors import UserError

ROOT = Path(__file__).parents[3]

REFUSED = {
    "data --vocab many": "--vocab takes INT, not 'many'; see --help",
    "data --fiield x": "there is no flag --fiield, did you mean --field; --help lists them all",
    "data --out": "--out needs a value; see --help",
    "data a.txt --wrong": "there is no flag --wrong; --help lists them all",
    "pipeline": "give SCHEDULE, --ranks and --microbatches; see --help",
    "pipeline dualpipe --ranks 8": "give --microbatches; see --help",
    "pipeline dualpipe --ranks 8 --microbatches 2 more": "these words belong to no flag: more; a "
    "switch takes no value (--NAME or --no-NAME); see --help",
    "train tiny --parallel.schedule dualpipe": "--parallel.schedule dualpipe orders the ranks of a "
    "pipeline, and --parallel.pipe is 1; give --parallel.pipe too, or leave both out",
    "bench": "give train or decode or prefill or serve or gemm or layouts or links; see --help",
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_wrong_command_line_is_one_sentence_and_status_2(line, capsys):
    assert main(line.split()) == 2
    assert capsys.readouterr() == ("", f"dsjax: {REFUSED[line]}\n")


EMPTY = {
    "data": ["", "--tokenizer=", "--out=", "--field=", "--end-token=", "a.txt  b.txt"],
    "convert hf-to-dsjax": [" run", "given "],
    "convert dsjax-to-hf": [" given", "run ", "run given --like="],
    "generate": ["", "run --prompt-file=", "run --end-token="],
    "pipeline": [" --ranks 2 --microbatches 2", "1f1b --ranks 2 --microbatches 2 --svg="],
    "compile tiny": ["--text=", "--on="],
    "loads": ["", "run --out="],
    "train tiny": ["--output.folder=", "--init-from="],
}


@pytest.mark.parametrize("command", EMPTY)
def test_an_empty_name_is_refused_and_never_the_current_folder(command, tmp_path, monkeypatch,
                                                               capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some words\n" * 500)
    for line in EMPTY[command]:
        for words in [line.split(" "), line.replace("=", " ").split(" ")]:
            assert main([*command.split(), *words]) == 2, line
            out, said = capsys.readouterr()
            named = line.split(" ")[-1].rstrip("=") if line.endswith("=") else "is empty"
            assert named in said
            assert "is empty; " in said
            assert "name one" in said
            assert not out
            assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_empty_prompt_is_one():
    from dsjax.cli.generate import Generate

    line = ["run", "--prompt", "", "--prompt=", "--prompt", "a"]
    assert arguments.parse(Generate, line, "dsjax generate").prompt == ("", "", "a")


def test_commands_in_one_of_several_forms_are_parsed_alike():
    from dsjax.cli.convert import Convert

    def refusal(line):
        with pytest.raises(UserError) as caught:
            arguments.parse(Convert, line.split(), "dsjax convert")
        return str(caught.value)

    assert refusal("") == "give hf-to-dsjax or dsjax-to-hf; see --help"
    assert refusal("hf") == ("there is no command hf, did you mean hf-to-dsjax; choose from "
                             "hf-to-dsjax, dsjax-to-hf")
    assert refusal("hf-to-dsjax a") == "give DST; see --help"
    assert refusal("hf-to-dsjax a b --dtype fp9").startswith("--dtype is 'fp9'; choose from")
    assert "did you mean --dtype;" in refusal("hf-to-dsjax a b --dtyp fp8")


def test_a_command_names_itself_as_it_can_be_typed(monkeypatch, tmp_path):
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("dsjax", "python"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    for path, started, expected in [
        ("/nowhere", "venv/bin/dsjax", "venv/bin/dsjax"),
        (str(programs), str(programs / "dsjax"), "dsjax"),
        ("/nowhere", "/somewhere else/dsjax", "'/somewhere else/dsjax'"),
        ("/nowhere", str(ROOT / "dsjax/__main__.py"), "venv/bin/python -m dsjax"),
        (str(programs), str(ROOT / "dsjax/__main__.py"), "python -m dsjax"),
    ]:
        monkeypatch.setenv("PATH", path)
        monkeypatch.setattr(sys, "argv", [started, "demo"])
        assert arguments.myself() == expected


def test_the_name_of_a_real_process_runs_again():
    code = "from dsjax.cli.process.arguments import myself; print(myself())"
    environment = os.environ | {"PATH": "/usr/bin:/bin"}
    fake = f"import sys; sys.argv[0] = 'dsjax/__main__.py'; {code}"
    found = subprocess.run([sys.executable, "-c", fake], cwd=ROOT, env=environment, text=True,
                           capture_output=True, timeout=60)
    again = subprocess.run(f"{found.stdout.strip()} --help", shell=True, cwd=ROOT, text=True,
                           env=environment, capture_output=True, timeout=60)
    assert again.stdout.startswith("usage: dsjax COMMAND")
