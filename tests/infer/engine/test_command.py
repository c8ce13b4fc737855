"""`dsjax serve` and `dsjax chat` on a layout: the flags of training, and one device's answers."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from dsjax.checkpoint.store import Store
from dsjax.cli.main import main
from dsjax.config.run import RunConfig, TrainConfig
from dsjax.config.stored import run_to_json
from dsjax.data.tokenizers import tokenizer
from dsjax.infer import Options, Sampling, generate, load
from dsjax.model import transformer
from tests import agreement
from tests.infer.engine.test_layouts import CFG
from tests.serve.conftest import TEXT


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of a drawn model with one layer of 8 experts."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    words = tokenizer.train_bpe([TEXT], 290)
    cfg = dataclasses.replace(CFG, vocab=300, layers=1, dense_layers=0, mtp_depth=0)
    store = Store(folder / "checkpoints", keep=1)
    store.save(3, {"params": agreement.draw(transformer.specs(cfg), 3)}, {})
    store.close()
    run_to_json(RunConfig("short", cfg, train=TrainConfig(seq_len=64)), folder / "config.json")
    words.save(folder / "tokenizer.json")
    return folder


@pytest.mark.slow
@pytest.mark.exhaustive  # test_layouts.py and test_replicas.py hold each of both
def test_a_server_on_a_layout_with_copies_of_experts_answers_as_one_device_does(
        run, tmp_path, capsys):
    known, measured = tmp_path / "known.json", tmp_path / "measured.json"
    known.write_text(json.dumps({"loads": [[9, 1, 1, 1, 2, 1, 1, 1]]}))
    flags = ["--port", "0", "--slots", "2", "--devices", "4", "--parallel.data", "2",
             "--parallel.expert", "2", "--redundant-experts", "2", "--expert-loads", str(known),
             "--save-expert-loads", str(measured), "--deterministic"]
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
            numbers = urllib.request.urlopen(f"{found[0]}/metrics", timeout=60).read().decode()
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()
    assert "dsjax_experts_busiest " in numbers
    model = load(run)
    words = model.tokenizer
    prompt, sampling = words.prompt("To be"), Sampling(0.0, max_new_tokens=9, vocab=words.vocab)
    made = generate(model.params, model.cfg, [prompt], sampling, Options(model.backend))
    assert text == words.decode(made.completions[0].tokens)
    loads = np.asarray(json.loads(measured.read_text())["loads"])
    tokens = len(prompt) + 9 - 1
    assert loads.shape == (1, 8)
    assert tokens <= loads.sum() / 3 <= tokens + 1  # the next pass was prepared already
    assert main(["loads", str(measured), "--devices", "2"]) == 0
    assert "most copies" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["serve", "chat"])
def test_what_no_layout_can_serve_is_refused(command, run, capsys):
    for flags, word in [(["--parallel.pipe", "2"], "decoding"),
                        (["--parallel.data", "16"], "there are 8"),
                        (["--redundant-experts", "2"], "--expert-loads"),
                        (["--save-expert-loads", "x.json"], "--parallel.expert")]:
        assert main([command, str(run), *flags]) == 2
        assert word in capsys.readouterr().err
