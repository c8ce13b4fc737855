"""A server over a tiny model, on a real port, and clients that see only that."""

import contextlib
import dataclasses
import json
import socket
import threading
import time

import jax
import openai
import pytest

from dsjax.checkpoint.store import Store
from dsjax.config.run import RunConfig, TrainConfig
from dsjax.config.stored import run_to_json
from dsjax.data.tokenizers import tokenizer
from dsjax.infer import load
from dsjax.infer.engine.device import Device, Setting
from dsjax.infer.engine.engine import Engine
from dsjax.model import transformer
from dsjax.serve import server, template
from dsjax.serve.door import Served
from tests import agreement

TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind. " * 3
USER, ASSISTANT, END = "<|fim_begin|>", "<|fim_hole|>", "<|end_of_text|>"
# DeepSeek's own template, shortened: turns between marks, thoughts of earlier answers cut off.
TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
    "{% endif %}{{ bos_token }}{% for message in messages %}"
    "{%- if message['role'] == 'system' %}{{ message['content'] }}{% endif %}"
    "{%- if message['role'] == 'user' %}{{ '" + USER + "' + message['content'] }}{% endif %}"
    "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '" + ASSISTANT + "' + content + '" + END + "' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}"
    "{% if thinking %}{{ '<think>' }}{% endif %}{% endif %}"
)
CONTEXT = 64


def make_run(folder, chats=True):
    """A run folder of a drawn dense model of one layer."""
    words = tokenizer.train_bpe([TEXT], 290)
    cfg = dataclasses.replace(agreement.TINY, vocab=300, layers=1, dense_layers=1, moe=None,
                              mtp_depth=1)
    store = Store(folder / "checkpoints", keep=1)
    store.save(3, {"params": agreement.draw(transformer.specs(cfg), 3)}, {})
    store.close()
    config = RunConfig("short", cfg, train=TrainConfig(seq_len=CONTEXT))
    run_to_json(config, folder / "config.json")
    words.save(folder / "tokenizer.json")
    if chats:
        settings = {"chat_template": TEMPLATE, "bos_token": {"content": END}, "eos_token": END}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "short")


@pytest.fixture(scope="session")
def model(run):
    return load(run)


@pytest.fixture(scope="session")
def chat_template(run, model):
    return template.load(run, model.tokenizer)


class Server:
    """A server on a port of its own."""

    def __init__(self, engine, served):
        self.engine, self._ready = engine, threading.Event()
        self.failure = None
        self._thread = threading.Thread(target=self._serve, args=(engine, served), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    def _serve(self, engine, served):
        # What a test sets of jax in its own thread is not set in the engine's.
        with server.listen("127.0.0.1", 0) as at:
            self.port = at.getsockname()[1]
            at.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)  # a slow reader shows soon
            try:
                server.serve(engine, served, at, self._start)
            except BaseException as failure:
                self.failure = failure

    def _start(self, url, door):
        self.url, self.door = url, door
        self._ready.set()

    def client(self, **settings):
        settings = {"api_key": "none", "max_retries": 0, "timeout": 60} | settings
        return openai.OpenAI(base_url=f"{self.url}/v1", **settings)

    def stop(self):
        self.door.is_closing = True
        self._thread.join(30)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def serving(engine, model, **served):
    """A server that stops at the end, with nothing left in the engine."""
    there = Server(engine, Served(model, "short", **served))
    try:
        yield there
    finally:
        there.stop()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.pages_owned) == (0, 0, 0)


@pytest.fixture(scope="session")
def device(model):
    return Device(model, Setting(slots=4, chunk=16, budget=64))


@pytest.fixture(scope="module")
def here(model, device, chat_template):
    """A server that tests of a file share; its engine is compiled once for all files."""
    with serving(Engine(device), model, template=chat_template) as there:
        yield there


@pytest.fixture(autouse=True)
def quick_compilation():
    """Programs of these tests are compiled without expensive optimizations, as those of infer."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def eventually(condition):
    """Wait until something holds, a quarter of a minute at most."""
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
