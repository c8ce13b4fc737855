"""An engine that fails, waits or refuses as a test wants it to, over `generate`.

Tokens are the model's. Log-probabilities are not: they are numbers of the token alone.
"""

import threading
import time
from collections import deque
from types import SimpleNamespace

from dsjax.errors import QueueFullError, UserError
from dsjax.infer import Options, generate


class LeftError(Exception):
    """A request was cancelled while it ran."""


def output(tokens=(), top=0, finish=None, error=""):
    return SimpleNamespace(
        tokens=tuple(tokens), logprobs=tuple(logprob(t) for t in tokens),
        top=tuple(tuple((t + k, logprob(t) - k) for k in range(top)) for t in tokens),
        finish_reason=finish, error=error)


def logprob(token):
    return -(token + 1) / 64


class Engine:
    """The interface of dsjax.infer.engine.engine.Engine."""

    error = ""

    def __init__(self, model, max_len=None, max_queue=64, delay=0.0):
        self.model, self.max_len = model, max_len or model.context
        self.max_queue, self.delay = max_queue, delay
        self._waiting, self._cancelled = deque(), set()
        self._lock, self._news = threading.Lock(), threading.Event()
        self._running, self._count = None, 0
        self._numbers = dict.fromkeys(
            ("pages_cached", "prompt_tokens", "cached_tokens", "generated_tokens", "passes",
             "drafted", "accepted", "steps", "host_s", "total_s", "experts_busiest",
             "experts_busiest_in_order"), 0)

    def add(self, prompt, sampling, on_output, top_logprobs=0):
        if len(prompt) + sampling.max_new_tokens > self.max_len:
            raise UserError(f"the request needs {len(prompt) + sampling.max_new_tokens} positions")
        with self._lock:
            if len(self._waiting) >= self.max_queue:
                raise QueueFullError(f"{len(self._waiting)} requests wait; ask again later")
            self._count += 1
            self._waiting.append((self._count, list(prompt), sampling, on_output, top_logprobs))
        self._news.set()
        return self._count

    def cancel(self, request):
        with self._lock:
            waiting = [one for one in self._waiting if one[0] != request]
            if len(waiting) < len(self._waiting):
                self._waiting = deque(waiting)
            elif self._running == request:
                self._cancelled.add(request)

    def step(self):
        with self._lock:
            if not self._waiting:
                self._news.clear()
                return False
            number, prompt, sampling, on_output, top = self._waiting.popleft()
            self._running = number
        finish = "cancelled"
        try:
            finish = self._generate(number, prompt, sampling, on_output, top)
        except LeftError:
            pass
        finally:
            self._running = None
            self._cancelled.discard(number)
        on_output(output(finish=finish, error=self.error))
        return True

    def _generate(self, number, prompt, sampling, on_output, top):
        self._numbers["prompt_tokens"] += len(prompt)

        def show(row, tokens):
            for token in tokens:
                if number in self._cancelled:
                    raise LeftError
                self._numbers["generated_tokens"] += 1
                self._numbers["steps"] += 1
                on_output(output([token], top))
                time.sleep(self.delay)

        options = Options(self.model.backend, self.model.mesh, context=self.max_len)
        made = generate(self.model.params, self.model.cfg, [prompt], sampling, options, show)
        return made.completions[0].finish_reason

    def run(self, until):
        while not until.is_set():
            if not self.step():
                self._news.wait(0.05)

    def stats(self):
        with self._lock:
            running = int(self._running is not None)
            return SimpleNamespace(running=running, waiting=len(self._waiting), pages_owned=running,
                                   pages_free=1 - running, **self._numbers)
