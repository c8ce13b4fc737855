"""`dsjax serve` as a process: it ends as signals say, and refuses what cannot be served."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import openai
import pytest

from dsjax.cli.main import main
from tests.serve.conftest import make_run

# The stand-in in place of the engine, until that is here.
PROGRAM = """
import sys
from dsjax.cli import main
from dsjax.cli.process import engines
from tests.serve.stand_in import Engine

engines.make = lambda model, flags, *_, **more: Engine(
    model, flags.context, flags.queue, float({delay!r}))
sys.argv = ["dsjax", *sys.argv[1:]]
sys.exit(main.main())
"""


@contextlib.contextmanager
def process(run, *flags, delay=0.0, env=None):
    """A server of its own process, its address, and what it wrote in the end."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM.format(delay=delay), "serve", str(run),
                           "--port", "0", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, env=os.environ | (env or {})) as server:
        try:
            line = server.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:(\d+)$", line)
            assert found, line + (server.stderr.read() if server.poll() is not None else "")
            yield server, found[0]
        finally:
            server.kill()


def asked(url, **settings):
    client = openai.OpenAI(base_url=f"{url}/v1", max_retries=0, timeout=60,
                           **{"api_key": "none"} | settings)
    return lambda **more: client.completions.create(
        **{"model": "short", "prompt": "To be", "seed": 1, "max_tokens": 40,
           "extra_body": {"ignore_eos": True}} | more)


def test_sigterm_finishes_what_runs_refuses_what_comes_and_exits_0(run, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("first\n\nsecond\n")
    with process(run, "--api-key-file", str(keys), delay=0.1) as (server, url):
        create = asked(url, api_key="second")
        with pytest.raises(openai.AuthenticationError):
            asked(url)()
        stream = iter(create(stream=True, stream_options={"include_usage": True}))
        next(stream)
        whole = []
        waiting = threading.Thread(target=lambda: whole.append(create(max_tokens=3)))
        waiting.start()
        numbers = ""
        while "dsjax_waiting 1.0" not in numbers:
            with urllib.request.urlopen(f"{url}/metrics") as answer:
                numbers = answer.read().decode()
        server.send_signal(signal.SIGTERM)
        while True:  # the signal is taken between two steps of the loop
            with contextlib.suppress(urllib.error.HTTPError), \
                    urllib.request.urlopen(f"{url}/health"):
                continue
            break
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            create()
        assert list(stream)[-1].usage.completion_tokens == 40
        waiting.join(30)
        assert whole[0].usage.completion_tokens == 3
        assert server.wait(30) == 0
        assert "finishing 2 requests" in server.stderr.read()


@pytest.mark.exhaustive
@pytest.mark.parametrize(("first", "second"), [
    (signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_a_second_signal_ends_at_once(run, first, second):
    with process(run, delay=5, env={"DSJAX_API_KEY": "hidden"}) as (server, url):
        with pytest.raises(openai.AuthenticationError):
            asked(url)()
        stream = iter(asked(url, api_key="hidden")(stream=True))
        next(stream)
        server.send_signal(first)
        assert "its address is said when it is ready" in server.stderr.readline()
        assert "finishing 1 request" in server.stderr.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(0.5)
        server.send_signal(second)
        assert server.wait(5) == 128 + second


def test_what_cannot_be_served_is_refused_in_a_sentence(run, tmp_path, capsys, monkeypatch):
    empty = tmp_path / "keys.txt"
    empty.write_text("\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for flags, sentence in [
            (["--port", str(taken.getsockname()[1])], "cannot be listened on"),
            (["--port", "70000"], "--port 70000 is not a port"),
            (["--host", "nowhere.invalid"], "choose another --host or --port"),
            (["--api-key-file", str(empty)], "holds no key"),
            (["--api-key-file", str(tmp_path / "none")], "is missing; give a file with a key"),
            (["--api-key", "a b"], "printable ASCII without blanks"),
            (["--max-body", "0"], "--max-body 0 lets nothing through"),
            (["--slots", "0"], "--slots 0 must be at least 1"),
            (["--context", "1"], "--context 1 has no room"),
        ]:
            assert main(["serve", str(run), *flags]) == 2
            assert sentence in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert "has no config.json" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert main(["serve", str(run)]) == 2
    assert "install dsjax[serve]" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_a_name_limits_and_a_context_of_ones_own(tmp_path):
    run = make_run(tmp_path / "plain", chats=False)
    with process(run, "--name", "other/name", "--context", "32", "--max-new-tokens", "4",
                 "--max-prompt-tokens", "9") as (server, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert client.models.retrieve("other/name").max_model_len == 32
        assert client.completions.create(model="other/name", prompt=[1] * 9).usage
        with pytest.raises(openai.BadRequestError, match="takes 9"):
            client.completions.create(model="other/name", prompt=[1] * 10)
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("POST", "/v1/chat/completions", json.dumps(
            {"model": "other/name", "messages": [{"role": "user", "content": "a"}]}),
            {"Content-Type": "application/json"})
        assert connection.getresponse().status == 400
        connection.close()  # an idle connection holds no server up
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
