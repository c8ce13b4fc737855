"""`dsjax generate RUN`: let a trained model continue prompts, as text appears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dsjax import disk
from dsjax.cli.process import devices
from dsjax.config.commandline import Mark, Word
from dsjax.config.fields import seed_in_range
from dsjax.config.refusal import typed_as
from dsjax.config.typed import Text
from dsjax.disk import to_json
from dsjax.errors import UserError, printable, say
from dsjax.terminal import Console

if TYPE_CHECKING:  # jax costs a second to import
    from dsjax.config.run import RunConfig
    from dsjax.data.tokenizers.tokenizer import Tokenizer
    from dsjax.infer import Completion, Report, Sampling
    from dsjax.model.transformer import TransformerParams

MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Generate:
    """Continue prompts with the newest checkpoint of a run, decoding from the latent cache."""

    run: Annotated[str, Word("RUN")]
    """Folder that `dsjax train` or `dsjax demo` wrote."""
    prompt: Annotated[tuple[Text, ...], Mark.REPEATED] = ()
    """Text to continue; give it again for more rows of a batch. None, or an empty one, starts a new
    text. Names of the tokenizer's added tokens in it, as <|fim_begin|>, are those tokens."""
    prompt_file: Path | None = None
    """A UTF-8 text file that is one prompt more, whole."""
    max_new_tokens: int | None = None
    """Tokens to add to each prompt at most; by default 128, or what the context has room for."""
    temperature: float = 0.8
    """Logits are divided by it; 0 is greedy."""
    top_p: float = 1.0
    """Choose among the smallest set of likeliest tokens that has this much of the mass."""
    seed: int = 0
    """Seed of the choices."""
    draft: bool = False
    """Speculate with the model's MTP modules: the same distribution in fewer passes."""
    bos: Literal["auto", "yes", "no"] = "auto"
    """The begin token before each prompt: as the files of the run's tokenizer say (a converted
    checkpoint's, as transformers reads them; none where they say nothing), surely, or none."""
    end_token: str | None = None
    """Name of the token that ends a text, where no file beside the tokenizer names it."""
    context: int | None = None
    """Positions a row may take; by default the row length of the training."""
    json: bool = False
    """Print one JSON object at the end instead of text as it comes."""
    cache: bool = True
    """Keep compiled programs in a cache folder of yours, so that the next start is faster."""


@dataclass(frozen=True)
class Model:
    """What a run folder holds for generation."""

    run: RunConfig
    params: TransformerParams
    words: Tokenizer
    is_begun: bool | None = None
    """Whether a begin token stands before prompts; None is as the tokenizer's files say."""


def main(args: Generate) -> int:
    """Run the command; returns the exit status."""
    from dsjax.infer import Sampling

    seed_in_range(args.seed, "--seed ")
    if args.context is not None and args.context < 2:
        raise UserError(f"--context {args.context} has no room for a prompt and a new token; it "
                        "must be at least 2")
    texts = _prompts(args)
    devices.require()
    model = load(args.run, args.end_token, {"auto": None, "yes": True, "no": False}[args.bos])
    context = model.run.train.seq_len if args.context is None else args.context
    longest = max(len(_ids(model, text)) for text in texts)
    console = None if args.json else Console(highlight=False)
    with typed_as("temperature", "top_p", "max_new_tokens"):
        sampling = Sampling(
            temperature=args.temperature,
            top_p=args.top_p,
            max_new_tokens=(_new_tokens(context, longest) if args.max_new_tokens is None
                            else args.max_new_tokens),
            stop_ids=model.words.end_ids,
            seed=args.seed,
            vocab=model.words.vocab,
        )
        completions, report = write(model, texts, sampling, console, context, args.draft)
    if args.json:
        print(to_json(_summary(model.words, texts, completions, report)))
    return 0


def speak(run: str | Path, prompt: str, console: Console, is_drafting: bool = False) -> Report:
    """Continue one prompt by a run's newest checkpoint, in full view."""
    from dsjax.infer import Sampling

    model = load(run)
    context = model.run.train.seq_len
    sampling = Sampling(
        temperature=0.8,
        max_new_tokens=_new_tokens(context, len(_ids(model, prompt))),
        stop_ids=model.words.end_ids,
        vocab=model.words.vocab,
    )
    return write(model, [prompt], sampling, console, context, is_drafting)[1]


def load(run: str | Path, end: str | None = None, is_begun: bool | None = None) -> Model:
    """Read a run folder: its config, its tokenizer and its newest readable checkpoint.

    end: the name of its end token, where its files do not say it. is_begun: as in `Model`.
    """
    from dsjax import weights
    from dsjax.config.stored import run_from_json
    from dsjax.data.tokenizers import tokenizer

    folder = Path(run)
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is not a folder"
        raise UserError(f"{run} {what}; give the folder that `dsjax train` wrote, as runs/tiny")
    config = run_from_json(folder / "config.json")
    words = tokenizer.load(folder / "tokenizer.json", end=end)
    _hold(words, folder, config.model.vocab)
    params = weights.load(folder, "dequantized", say=say)
    return Model(config, params, words, is_begun)


def _hold(words: Tokenizer, folder: Path, vocab: int) -> None:
    """Refuse a tokenizer that the weights of a run do not belong to."""
    from dsjax.checkpoint import store

    kept = store.tokenizer_of(folder)
    if kept is not None and not words.has_fingerprint(kept):
        raise UserError(
            f"{folder / 'tokenizer.json'} is not the tokenizer that the weights of {folder} belong "
            f"to (fingerprint {words.fingerprint}, not {kept}), so its ids mean other words; put "
            "that one back")
    if words.vocab > vocab:
        raise UserError(
            f"{folder / 'tokenizer.json'} has {words.vocab:,} ids, but the model knows {vocab:,}; "
            "put back the tokenizer it was trained with")


def write(model: Model, texts: Sequence[str], sampling: Sampling, console: Console | None,
          context: int, is_drafting: bool) -> tuple[list[Completion], Report]:
    """Continue `texts`; to a console, the first as it is decoded, the others after it."""
    from dsjax.data.tokenizers.tokenizer import StreamDecoder
    from dsjax.infer import Options, check, generate

    prompts = [_ids(model, text) for text in texts]
    options = Options(draft=is_drafting, context=context)
    check(model.run.model, prompts, [sampling] * len(prompts), options)
    decoders = [StreamDecoder(model.words) for _ in texts]
    later = ["" for _ in texts]
    page = None if console is None else Page(console)

    def show(row: int, tokens: list[int]) -> None:
        text = "".join(decoders[row].push(t) for t in tokens if t not in sampling.stop_ids)
        if row == 0 and page is not None:
            page.write(text)
        else:
            later[row] += text

    if page is not None:
        page.write(texts[0], style="bold")
    completions, report = generate(model.params, model.run.model, prompts, sampling, options, show)
    if page is not None:
        for row, decoder in enumerate(decoders):
            if row:
                page.write("\n\n")
                page.write(texts[row], style="bold")
            page.write(later[row] + decoder.finish())
        page.write("\n\n")
        page.write(line(report) + "\n", style="dim")
    return completions, report


def line(report: Report) -> str:
    """How a generation went, in one line."""
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
    return "; ".join(parts)


def _summary(words: Tokenizer, texts: Sequence[str], completions: Sequence[Completion],
             report: Report) -> dict:
    rows = [
        {
            "prompt": text,
            "text": words.decode([t for t in done.tokens if t not in words.end_ids]),
            "tokens": len(done.tokens),
            "finish_reason": done.finish_reason,
        }
        for text, done in zip(texts, completions, strict=True)
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
    }


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


def _ids(model: Model, text: str) -> list[int]:
    """Ids of a prompt; an empty one is the end of the text before."""
    return model.words.prompt(text, is_begun=model.is_begun) or [model.words.end_id]


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
