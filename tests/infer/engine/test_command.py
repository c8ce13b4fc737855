"""`dsjax serve` and `dsjax chat` on a layout: the flags of training, and one device's answers."""

import json
import re
import subprocess
import sys
import urllib.request

import pytest

from dsjax.cli.main import main
from dsjax.infer import Choice, Options, Sampling, generate, load
from tests.serve.conftest import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "short", chats=False)


@pytest.mark.slow
def test_a_server_on_two_devices_answers_as_one_device_does(run):
    flags = ["--port", "0", "--slots", "2", "--parallel.data", "2", "--devices", "2"]
    with subprocess.Popen([sys.executable, "-m", "dsjax", "serve", str(run), *flags],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found, line + server.stderr.read()
            asked = {"model": "short", "prompt": "To be", "max_tokens": 9, "temperature": 0,
                     "ignore_eos": True}
            request = urllib.request.Request(
                f"{found[0]}/v1/completions", json.dumps(asked).encode(),
                {"Content-Type": "application/json"})
            text = json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["text"]
        finally:
            server.terminate()
            server.wait(30)
    model = load(run, Choice())
    words = model.tokenizer
    sampling = Sampling(0.0, max_new_tokens=9, vocab=words.vocab)
    made = generate(model.params, model.cfg, [words.prompt("To be")], sampling,
                    Options(model.backend))
    assert text == words.decode(made.completions[0].tokens)


@pytest.mark.parametrize("command", ["serve", "chat"])
def test_pipelines_and_devices_that_are_not_there_are_refused(command, run, capsys):
    for flags, word in (["--parallel.pipe", "2"], "decoding"), (["--parallel.data", "16"], "there"):
        assert main([command, str(run), *flags]) == 2
        assert word in capsys.readouterr().err
