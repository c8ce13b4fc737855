"""Clients that err, leave, read slowly or come too many cost the others nothing and leak nothing.

`serving` looks at its end that the engine holds no request and no page.
"""

import http.client
import json
import random
import socket
import threading
import time

import openai
import pytest

from dsjax.serve import app, choice, server
from dsjax.serve.door import Limits, Served
from tests.serve import stand_in
from tests.serve.conftest import CONTEXT, END, Server, eventually, serving

GREEDY = {"model": "short", "temperature": 0}


def post(there, path, body, headers=None, method="POST"):
    """Status, headers and object of an answer to raw bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", there.port, timeout=30)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json",
                                                **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.headers, json.loads(answer.read() or b"null")
    finally:
        connection.close()


def raw(there, body, path="/v1/completions"):
    """A connection of our own with little room, with the request sent."""
    connection = socket.socket()
    connection.settimeout(30)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", there.port))
    data = json.dumps(body).encode()
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                       f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                       .encode() + data)
    return connection


LONG = {"model": "short", "prompt": "To be", "max_tokens": 50, "seed": 1}


@pytest.mark.parametrize(("path", "body", "status", "param"), [
    ("/v1/completions", b"{", 400, None),
    ("/v1/completions", b'{"model": "short", "prompt": "a", "temperature": NaN}', 400, None),
    ("/v1/completions", {"model": "short", "prompt": "a", "temperature": "hot"}, 400,
     "temperature"),
    ("/v1/completions", {"model": "short", "prompt": "a" * 500}, 400, "prompt"),
    ("/v1/completions", {"model": "short", "prompt": "a" * 10**6}, 400, "prompt"),
    ("/v1/completions", {"model": "short", "prompt": "a", "max_tokens": CONTEXT}, 400,
     "max_tokens"),
    ("/v1/completions", {"model": "short", "prompt": [300]}, 400, "prompt"),
    ("/v1/completions", {"model": "short", "prompt": [-1]}, 400, "prompt"),
    ("/v1/completions", {"model": "short", "prompt": "\ud800"}, 400, None),
    ("/v1/completions", {"model": "other", "prompt": "a"}, 404, "model"),
    ("/v1/completions", {"model": "short", "prompt": ["a"] * 100, "n": 2}, 400, "n"),
    ("/v1/chat/completions", {"model": "short", "messages": []}, 400, "messages"),
    ("/v1/chat/completions", {"model": "short", "messages": [
        {"role": "user", "content": "a" * 300}]}, 400, "prompt"),
    ("/v1/chat/completions", {"model": "short", "messages": [
        {"role": "user", "content": "\udfff"}]}, 400, None),
    ("/v1/nothing", {}, 404, None),
    ("/v1/completions/../models", {}, 404, None),
])
def test_bad_requests_get_openai_s_error(here, path, body, status, param):
    got, headers, said = post(here, path, body)
    assert got == status
    assert headers["Content-Type"] == "application/json"
    assert said["error"].keys() == {"message", "type", "param", "code"}
    assert said["error"]["param"] == param
    assert len(said["error"]["message"]) < 500


def test_the_client_s_own_exceptions_are_raised(here):
    create = here.client().completions.create
    with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
        create(model="other", prompt="a")
    with pytest.raises(openai.BadRequestError, match="maximum context length is 64") as refused:
        create(prompt="a" * 300, **GREEDY)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="Unknown parameter: 'nonsense'"):
        create(prompt="a", extra_body={"nonsense": 1}, **GREEDY)


def test_methods_types_and_sizes_are_held(model, chat_template):
    limits = Limits(body=1000, prompt_tokens=10, new_tokens=5)
    with serving(stand_in.Engine(model), model, template=chat_template, limits=limits) as there:
        ok = {"model": "short", "prompt": "a"}
        assert post(there, "/v1/completions", ok, method="GET")[0] == 405
        assert post(there, "/v1/completions", ok, {"Content-Type": "text/plain"})[0] == 415
        assert post(there, "/v1/completions", b"x" * 1001)[0] == 413
        assert post(there, "/v1/completions", b"", {"Content-Length": "1001"})[0] == 413
        chunked = iter([b"x" * 600, b"x" * 600])
        connection = http.client.HTTPConnection("127.0.0.1", there.port, timeout=30)
        connection.request("POST", "/v1/completions", chunked,
                           {"Content-Type": "application/json"}, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()
        long = post(there, "/v1/completions", {"model": "short", "prompt": [1] * 11})
        assert (long[0], long[2]["error"]["code"]) == (400, "context_length_exceeded")
        assert post(there, "/v1/completions", {**ok, "max_tokens": 6})[0] == 400
        status, _, said = post(there, "/v1/completions", {**ok, "ignore_eos": True})
        assert (status, said["usage"]["completion_tokens"]) == (200, 5)
        assert post(there, "/v1/completions", {**ok, "max_tokens": 2})[0] == 200


def test_keys_are_asked_for_under_v1_alone(model):
    with serving(stand_in.Engine(model), model, keys=("sesame", "other-key")) as there:
        for key in ("sesame", "other-key"):
            assert there.client(api_key=key).models.list().data
        for key in ("sesam", "sesame2", "Sesame", "x"):
            with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
                there.client(api_key=key).models.list()
        ok = {"model": "short", "prompt": "a"}
        for headers in ({}, {"Authorization": "sesame"}, {"Authorization": "Basic sesame"},
                        {"Authorization": "Bearer"}, {"Authorization": b"Bearer \xff"}):
            assert post(there, "/v1/completions", ok, headers)[0] == 401
        assert post(there, "/health", b"", method="GET")[0] == 200


def test_a_name_that_points_at_loopback_is_refused(here):
    assert post(here, "/v1/models", b"", {"Host": "evil.example:80"}, "GET")[0] == 403
    for host in ("localhost", "127.0.0.1:8000", "[::1]:80", "LOCALHOST"):
        assert post(here, "/v1/models", b"", {"Host": host}, "GET")[0] == 200


def test_noise_is_survived(here):
    rng = random.Random(5)
    whole = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json" \
            b'\r\nContent-Length: 31\r\n\r\n{"model": "short", "prompt": 3}'
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", here.port), timeout=30) as connection:
            noise = bytearray(whole)
            for _ in range(rng.randrange(1, 6)):
                noise[rng.randrange(len(noise))] = rng.randrange(256)
            connection.sendall(bytes(noise[: rng.randrange(len(noise))]))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass
    assert here.client().completions.create(prompt="To be", **GREEDY).choices


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_leaves_is_cancelled(model, is_streamed):
    engine = stand_in.Engine(model, delay=0.1)
    with serving(engine, model) as there:
        first, second = (raw(there, {**LONG, "stream": is_streamed, "n": 2}) for _ in range(2))
        eventually(lambda: engine.stats().running == 1 and engine.stats().waiting == 3)
        if is_streamed:
            assert first.recv(9)
        second.close()  # while it waits
        eventually(lambda: engine.stats().waiting == 1)
        first.close()
        eventually(lambda: engine.stats().running == 0)
        assert engine.stats().generated_tokens < 40
        eventually(lambda: not there.door.active)
        assert b"dsjax_requests_left_total 2.0" in there.door.metrics.text()


def test_a_full_queue_is_503_and_nothing_of_the_request_stays(model):
    engine = stand_in.Engine(model, max_queue=2, delay=0.1)
    with serving(engine, model) as there:
        first = raw(there, {**LONG, "stream": True})
        eventually(lambda: engine.stats().running == 1)
        status, headers, said = post(there, "/v1/completions", {**LONG, "n": 3})
        assert (status, said["error"]["code"]) == (503, "overloaded")
        assert int(headers["Retry-After"]) >= 1
        assert engine.stats().waiting == 0
        with pytest.raises(openai.InternalServerError, match="wait"):
            there.client().completions.create(**LONG, n=3)
        first.close()


def test_a_slow_reader_is_let_go_when_it_is_too_far_behind(model, monkeypatch):
    class Endless(stand_in.Engine):
        """Gives tokens until it is cancelled, fast."""

        def _generate(self, number, prompt, sampling, on_output, top):
            while number not in self._cancelled:
                on_output(stand_in.output([5] * 64, top))
                time.sleep(0.001)
            raise stand_in.LeftError

    monkeypatch.setattr(choice, "MOST_UNREAD", 500)
    engine = Endless(model)
    with serving(engine, model) as there:
        slow = raw(there, {**LONG, "stream": True, "logprobs": 1})
        eventually(lambda: there.door.active)
        (request,) = there.door.active
        eventually(lambda: request.choices[0].error is not None)
        assert "ahead of its reader" in request.choices[0].error
        eventually(lambda: engine.stats().running == 0)
        with slow.makefile("rb") as stream:  # what was made before is still there, and the error
            said = stream.read().decode()
        assert "ahead of its reader" in said
        assert "[DONE]" in said
        slow.close()


def test_a_reader_that_takes_nothing_loses_its_connection(model, monkeypatch):
    class Long(stand_in.Engine):
        """Gives more than every buffer of the way holds, and ends."""

        def _generate(self, number, prompt, sampling, on_output, top):
            for _ in range(400):
                on_output(stand_in.output([5] * 8, top))
                time.sleep(0.001)
            return "length"

    monkeypatch.setattr(app, "SEND_S", 0.3)
    with serving(Long(model), model) as there:
        stuck = raw(there, {**LONG, "stream": True, "logprobs": 5})
        eventually(lambda: there.door.active)
        eventually(lambda: not there.door.active)
        assert b"dsjax_requests_left_total 1.0" in there.door.metrics.text()
        stuck.close()


def test_logits_that_are_none_are_an_error_in_both_forms(model):
    class Broken(stand_in.Engine):
        """A model of NaN."""

        error = "the model's logits are not numbers"

        def _generate(self, number, prompt, sampling, on_output, top):
            return "error"

    with serving(Broken(model), model) as there:
        with pytest.raises(openai.InternalServerError, match="logits are not numbers"):
            there.client().completions.create(prompt="a", **GREEDY)
        with pytest.raises(openai.APIError, match="logits are not numbers"):
            list(there.client().completions.create(prompt="a", stream=True, **GREEDY))


def test_an_engine_that_stops_tells_everybody_and_the_process(model):
    class Dying(stand_in.Engine):
        """Stops at the second request."""

        def _generate(self, number, prompt, sampling, on_output, top):
            eventually(lambda: self._waiting)
            self._waiting.clear()
            raise ArithmeticError("a fault of the program")

    there = Server(Dying(model), Served(model, "short"))
    errors = []

    def ask():
        try:
            there.client().completions.create(prompt="a", **GREEDY)
        except openai.APIError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    there.stop()
    assert len(errors) == 2, errors
    for error in errors:
        assert isinstance(error, openai.InternalServerError), error
        assert "the engine stopped" in str(error)
    assert isinstance(there.failure, ArithmeticError)


def test_a_stop_string_frees_the_engine(model):
    engine = stand_in.Engine(model, delay=0.05)
    with serving(engine, model) as there:
        create, asked = there.client().completions.create, {**LONG, "temperature": 0}
        first = create(**asked | {"max_tokens": 3}).choices[0].text[0]
        before = engine.stats().generated_tokens
        assert create(**asked, stop=first).choices[0].text == ""
        eventually(lambda: engine.stats().running == 0)
        assert engine.stats().generated_tokens - before < 40  # of 50


def test_a_server_that_closes_finishes_what_runs_and_refuses_the_rest(model, monkeypatch):
    monkeypatch.setattr(server, "CLOSING_S", 0.3)  # for reading the ends, not for making them
    engine = stand_in.Engine(model, delay=0.05)
    with serving(engine, model) as there:
        running = raw(there, {**LONG, "stream": True, "ignore_eos": True, "max_tokens": 30})
        eventually(lambda: engine.stats().running == 1)
        there.door.is_closing = True
        status, headers, said = post(there, "/v1/completions", LONG)
        assert (status, "shutting down" in said["error"]["message"]) == (503, True)
        assert headers["Retry-After"]
        assert post(there, "/health", b"", method="GET")[0] == 503
        with running.makefile("rb") as stream:
            said = stream.read().decode()
        assert said.count('"text"') == 30 or '"finish_reason":"length"' in said
        assert "[DONE]" in said
        running.close()


def test_long_waits_give_signs_of_life(model, monkeypatch):
    monkeypatch.setattr(app, "KEEP_ALIVE_S", 0.05)
    engine = stand_in.Engine(model, delay=0.2)
    with serving(engine, model) as there:
        first = raw(there, {**LONG, "stream": True, "max_tokens": 3})
        second = raw(there, {**LONG, "stream": True, "max_tokens": 1})
        said = b""
        while b"[DONE]" not in said:
            said += second.recv(1 << 16)
        assert said.count(b": keep-alive") >= 2
        first.close()
        second.close()


def test_a_long_prompt_lets_other_threads_run(model, chat_template):
    words, ticks, until = model.tokenizer, [], threading.Event()

    def tick():
        while not until.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    text = "To be, or not to be " * 5000
    for make in (lambda: words.prompt(text),
                 lambda: chat_template.prompt([{"role": "user", "content": f"{text}{END}"}])):
        start = time.perf_counter()
        make()
        end = time.perf_counter()
        during = sum(start < at < end for at in ticks)
        assert during > 100 * (end - start)  # of 1000; one or two where the others are held up
    until.set()
    thread.join()
