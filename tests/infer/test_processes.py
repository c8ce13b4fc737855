"""Two processes that share a model say together what one says alone, released folder or run."""

import dataclasses
import json
import os
import socket
import sys

import pytest

from dsjax.checkpoint.store import Store
from dsjax.cli.main import main
from dsjax.config.run import RunConfig, TrainConfig
from dsjax.config.stored import run_to_json
from dsjax.data.tokenizers import tokenizer
from dsjax.model import transformer
from tests import agreement
from tests.train import crew

TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind. " * 3
FLAGS = ["--prompt", "To be", "--prompt", "nobler in the", "--prompt", "", "--temperature", "0.9",
         "--top-p", "0.95", "--max-new-tokens", "9", "--draft", "--json"]


@pytest.fixture
def run(tmp_path):
    """A run folder of an untrained mixture with one MTP module."""
    words = tokenizer.train_bpe([TEXT], 280)
    cfg = dataclasses.replace(agreement.TINY, vocab=280, layers=1, dense_layers=0,
                              mtp_depth=1)
    store = Store(tmp_path / "checkpoints", keep=1)
    store.save(3, {"params": agreement.draw(transformer.specs(cfg), 3)}, {})
    store.close()
    run_to_json(RunConfig("short", cfg, train=TrainConfig(seq_len=40)), tmp_path / "config.json")
    words.save(tmp_path / "tokenizer.json")
    return tmp_path


def test_two_processes_write_once_what_one_writes_alone(run, capsys):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "dsjax", "generate", str(run), *FLAGS, "--parallel.fsdp", "2",
               "--parallel.expert", "2", "--coordinator", address, "--processes", "2"]
    env = os.environ | {
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(crew.ROOT),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"}
    with open(run / "said.txt", "w") as said:  # what Gloo tells goes there, too
        first, second = crew.finish([crew.open_process([*command, "--process", str(i)], env,
                                                       stderr=said) for i in range(2)])
    assert main(["generate", str(run), *FLAGS]) == 0
    alone = json.loads(capsys.readouterr().out)
    together = json.loads(first)
    assert together["completions"] == alone["completions"]
    assert second == ""
