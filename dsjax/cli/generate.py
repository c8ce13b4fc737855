"""`dsjax generate FOLDER`: let a model continue prompts, as text appears."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dsjax import disk
from dsjax.cli.process import context as contexts
from dsjax.cli.process import devices, models
from dsjax.cli.process.models import ModelFlags
from dsjax.cli.process.sampling import SamplingFlags, sampling
from dsjax.config.fields import seed_in_range
from dsjax.config.flags.flag_tree import Mark, Word
from dsjax.config.flags.refusal import typed_as
from dsjax.config.flags.typed import Text
from dsjax.disk import to_json
from dsjax.errors import UserError, printable
from dsjax.terminal import Console

if TYPE_CHECKING:  # jax costs a second to import
    from dsjax.data.tokenizers.tokenizer import Tokenizer
    from dsjax.infer import Completion, Counts, Generation, Model, Options, Report, Sampling

MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Generate:
    """Continue prompts with the newest checkpoint of a run, or a released one.

    In float32 the tokens are the same on every layout of devices.

      dsjax generate runs/tiny --prompt 'To be' --draft
      dsjax generate runs/tiny --prompt 'To be' --precision bf16
      dsjax generate runs/tiny --parallel.fsdp 2 --parallel.expert 4 --devices 8
      dsjax generate DeepSeek-V2-Lite --prompt 'To be' --parallel.expert 8
      dsjax generate DeepSeek-V2-Lite --prompt 'To be' --precision bf16 --experts-cache 4GB
    """

    folder: Annotated[str, Word("FOLDER")]
    """Folder that `dsjax train` or `dsjax demo` wrote, or a released checkpoint."""
    prompt: Annotated[tuple[Text, ...], Mark.REPEATED] = ()
    """Text to continue; give it again for more rows of a batch. None, or an empty one, starts a new
    text. Names of the tokenizer's added tokens in it, as <|fim_begin|>, are those tokens."""
    prompt_file: Path | None = None
    """A UTF-8 text file that is one prompt more, whole."""
    max_new_tokens: int | None = None
    """Tokens to add to each prompt at most; by default 128, or what the context has room for."""
    stop: Annotated[tuple[Text, ...], Mark.REPEATED] = ()
    """Text that ends a continuation, and is left out with all that follows; give it again for
    more. Where it stands in a prompt it ends nothing."""
    sampling: Annotated[SamplingFlags, Mark.INLINE] = field(default_factory=SamplingFlags)
    draft: bool = False
    """Speculate with the model's MTP modules: the same distribution in fewer passes."""
    bos: Literal["auto", "yes", "no"] = "auto"
    """The begin token before each prompt: as the files beside the tokenizer say (a released
    checkpoint's, as transformers reads them; none where they say nothing), surely, or none."""
    context: int | None = None
    """Positions a row may take; by default the row length of the training, or a released
    checkpoint's context."""
    model: Annotated[ModelFlags, Mark.INLINE] = field(default_factory=ModelFlags)
    coordinator: str | None = None
    """HOST:PORT of the first of several processes."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Number of this process, from 0."""
    json: bool = False
    """Print one JSON object at the end instead of text as it comes."""
    cache: bool = True
    """Keep compiled programs in a cache folder of yours, so that the next start is faster."""


def main(args: Generate) -> int:
    """Run the command; returns the exit status."""
    seed_in_range(args.sampling.seed, "--seed ")
    if args.context is not None and args.context < 2:
        raise UserError(f"--context {args.context} has no room for a prompt and a new token; it "
                        "must be at least 2")
    texts = _prompts(args)
    if "" in args.stop:
        raise UserError("--stop '' ends every text before it begins; give the text to stop at, or "
                        "leave it out")
    if args.model.devices is not None:
        devices.make(args.model.devices)
    devices.join(args.coordinator, args.processes, args.process)
    devices.require()
    with _console() as console:
        _generate(args, texts, console)
    return 0


@contextlib.contextmanager
def _console() -> Iterator[Console]:
    """The console of the first process; the others write nothing."""
    import jax

    if jax.process_index() == 0:
        yield Console(highlight=False)
        return
    with open(os.devnull, "w") as nowhere:
        yield Console(file=nowhere, highlight=False)


def _generate(args: Generate, texts: Sequence[str], console: Console) -> None:
    """Load the model, and continue its prompts in the form that was asked for."""
    from dsjax import infer
    from dsjax.infer.generate import ready

    experts = args.model.experts
    if experts.expert_loads is not None and experts.experts_cache is None:
        raise UserError(f"--expert-loads {experts.expert_loads} is about a cache of experts, and "
                        "there is none; give --experts-cache, as 2GB")
    model = models.load(args.folder, args.model)
    if model.experts is None and model.mesh is None:
        held, _ = ready(model.params, model.cfg, model.backend, is_consumed=True)
        model = dataclasses.replace(model, params=held)
    contexts.say_if_beyond(model, args.context)
    prompts = _ids(model.tokenizer, texts, {"auto": None, "yes": True, "no": False}[args.bos])
    context = model.context if args.context is None else args.context
    longest = max(map(len, prompts))
    new_tokens = args.max_new_tokens
    asked = sampling(
        args.sampling, _new_tokens(context, longest) if new_tokens is None else new_tokens,
        stop_ids=model.tokenizer.end_ids, vocab=model.tokenizer.vocab)
    with typed_as("max_new_tokens"):
        options = infer.Options(model.backend, model.mesh, args.draft, context,
                                experts=model.experts)
        request = Request(texts, prompts, asked, args.stop)
        made = write(model, request, options, None if args.json else console)
    if args.json:
        console.out(to_json(_summary(model.tokenizer, request, made)))


def speak(run: str | Path, prompt: str, console: Console, is_drafting: bool = False) -> Report:
    """Continue one prompt by a run's newest checkpoint, in full view."""
    from dsjax import infer

    model = infer.load(run)
    prompts = _ids(model.tokenizer, [prompt], None)
    asked = sampling(SamplingFlags(), _new_tokens(model.context, len(prompts[0])),
                     stop_ids=model.tokenizer.end_ids, vocab=model.tokenizer.vocab)
    options = infer.Options(model.backend, model.mesh, is_drafting, model.context)
    return write(model, Request([prompt], prompts, asked), options, console).report


@dataclass(frozen=True)
class Request:
    """Prompts as text and as ids, how they are continued, and texts that end them."""

    texts: Sequence[str]
    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    stops: Sequence[str] = ()


class Continuation:
    """The text of a row as its tokens come, up to a text that ends it."""

    def __init__(self, words: Tokenizer, request: Request) -> None:
        from dsjax.data.tokenizers.tokenizer import StreamDecoder
        from dsjax.serve.text import StopFinder

        self._decoder, self._stops = StreamDecoder(words), StopFinder(request.stops)
        self._stop_ids, self._text = request.sampling.stop_ids, ""
        self.is_stopped = False
        """True once a text that ends it has come."""

    def push(self, token: int) -> None:
        """Add a token; stop ids have no text."""
        if token not in self._stop_ids:
            self._add(self._decoder.push(token))

    def end(self) -> None:
        """Release what was held back, as no more tokens come."""
        if not self.is_stopped:
            self._add(self._decoder.finish())
        if not self.is_stopped:
            self._text += self._stops.rest()

    def take(self) -> str:
        """Return what came since the last call and is no part of a text that ends it."""
        taken, self._text = self._text, ""
        return taken

    def _add(self, text: str) -> None:
        safe, self.is_stopped = self._stops.push(text)
        self._text += safe


def write(model: Model, request: Request, options: Options, console: Console | None) -> Generation:
    """Continue prompts; to a console, the first as it is decoded, the others after it."""
    from dsjax.infer import check, generate

    texts, prompts, asked = request.texts, request.prompts, request.sampling
    check(model.cfg, prompts, [asked] * len(prompts), options)
    growing = [Continuation(model.tokenizer, request) for _ in texts]
    page = None if console is None else Page(console)

    def is_end(row: int, token: int) -> bool:
        growing[row].push(token)
        return growing[row].is_stopped

    def show(row: int, _: list[int]) -> None:
        if row == 0 and page is not None:
            page.write(growing[row].take())

    if page is not None:
        page.write(texts[0], style="bold")
    made = generate(model.params, model.cfg, prompts, asked, options, show, is_end)
    if page is not None:
        for row, text in enumerate(growing):
            if row:
                page.write("\n\n")
                page.write(texts[row], style="bold")
            text.end()
            page.write(text.take())
        page.write("\n\n")
        page.write(line(made.report) + "\n", style="dim")
    return made


def line(report: Report) -> str:
    """Sum up a generation in one line."""
    parts = [
        f"{report.new_tokens} tokens",
        f"{report.tokens_per_s:,.0f} tokens/s",
        f"prefill of {report.prompt_tokens} in {report.prefill_s * 1e3:,.1f} ms",
        f"cache of {report.cache_bytes_per_token:,} bytes a token",
        f"compiled in {report.compile_s:.1f} s",
    ]
    if report.acceptance:
        shares = ", ".join(f"{share:.0%}" for share in report.acceptance)
        parts.append(f"drafts accepted {shares}")
        parts.append(f"{report.tokens_per_pass:.2f} tokens a pass")
    if used := report.decode_experts:
        parts.append(f"experts in slots {used.hit_rate:.0%}, fetched ahead {used.ahead_rate:.0%}, "
                     f"predicted {used.accuracy:.0%}")
    return "; ".join(parts)


def _summary(words: Tokenizer, request: Request, made: Generation) -> dict:
    report = made.report
    rows = [
        {
            "prompt": text,
            "text": _text(words, request, done),
            "tokens": len(done.tokens),
            "finish_reason": done.finish_reason,
        }
        for text, done in zip(request.texts, made.completions, strict=True)
    ]
    return {
        "completions": rows,
        "new_tokens": report.new_tokens,
        "tok_s": report.tokens_per_s,
        "prefill_ms": report.prefill_s * 1e3,
        "compile_s": report.compile_s,
        "cache_bytes_per_token": report.cache_bytes_per_token,
        "acceptance": list(report.acceptance),
        "tokens_per_pass": report.tokens_per_pass,
        "experts": {"prefill": _experts(report.prefill_experts),
                    "decode": _experts(report.decode_experts)},
    }


def _text(words: Tokenizer, request: Request, done: Completion) -> str:
    """A continuation's text, up to what it was to stop at."""
    growing = Continuation(words, request)
    for token in done.tokens:
        growing.push(token)
    growing.end()
    return growing.take()


def _experts(used: Counts | None) -> dict | None:
    """Use of the cache of experts, with its rates."""
    return None if used is None else asdict(used) | {
        "hit_rate": used.hit_rate, "ahead_rate": used.ahead_rate, "accuracy": used.accuracy}


def _prompts(args: Generate) -> list[str]:
    """The prompts of the command line; one empty prompt when there is none."""
    texts: list[str] = list(args.prompt)
    for text in texts:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError(f"--prompt {text[:40]!r} is not UTF-8; write it in a terminal of "
                            "UTF-8, or into a file for --prompt-file")
    if args.prompt_file is not None:
        remedy = "give a UTF-8 text file as --prompt-file"
        try:
            texts.append(disk.read_bytes(args.prompt_file, remedy).decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UserError(f"{args.prompt_file} is not UTF-8 ({error.reason} at byte "
                            f"{error.start:,}); {remedy}") from None
    return texts or [""]


def _ids(words: Tokenizer, texts: Sequence[str], is_begun: bool | None) -> list[list[int]]:
    """Ids of prompts; an empty one is the end of the text before. is_begun: as in `prompt`."""
    return [words.prompt(text, is_begun=is_begun) or [words.end_id] for text in texts]


def _new_tokens(context: int, longest: int) -> int:
    """New tokens when none are asked for; at least one, so that a full context is refused."""
    return max(1, min(MAX_NEW_TOKENS, context - longest))


class Page:
    """A console that text appears on piece by piece, as it is meant to be read.

    Ends of lines of every kind (LF, CR LF, CR) are new lines, also where one is cut in two; control
    codes that a model may have made up are written out.
    """

    def __init__(self, console: Console) -> None:
        self.console, self._is_after_return = console, False

    def write(self, text: str, style: str | None = None) -> None:
        """Print a piece without wrapping or markup."""
        if not text:
            return
        rest = text.removeprefix("\n") if self._is_after_return else text
        self._is_after_return = text.endswith("\r")
        shown = printable(rest.replace("\r\n", "\n").replace("\r", "\n"))
        self.console.out(shown, style=style, highlight=False, end="")
