"""`dsjax serve FOLDER`: answer OpenAI's interface over HTTP with a model."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dsjax import disk
from dsjax.cli.process import context, engines, models
from dsjax.cli.process.engines import EngineFlags
from dsjax.cli.process.models import ModelFlags
from dsjax.config.flags.flag_tree import Mark, Word
from dsjax.errors import UserError, say

if TYPE_CHECKING:
    from dsjax.infer import Model
    from dsjax.serve.door import Served

KEY = "DSJAX_API_KEY"
LOOPBACK = ("127.0.0.1", "::1")


@dataclass(frozen=True)
class Serve:
    """Serve the newest checkpoint of a run, or a released one, as OpenAI's API.

      dsjax serve runs/tiny
      dsjax serve runs/tiny --port 9000 --api-key-file keys.txt --host 0.0.0.0
      dsjax serve DeepSeek-V2-Lite --slots 32 --page-dtype fp8
      dsjax serve runs/tiny --parallel.data 2 --parallel.expert 4 --devices 8

    A page to talk to the model is at the address itself. SIGTERM or ctrl-C finishes what runs; a
    second one ends at once.
    """

    folder: Annotated[str, Word("FOLDER")]
    """Folder that `dsjax train` or `dsjax demo` wrote, or a released checkpoint."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every one of this machine."""
    port: int = 8000
    """Port to listen on; 0 is any that is free."""
    name: str | None = None
    """The model as clients name it; by default the folder's name."""
    api_key: Annotated[tuple[str, ...], Mark.REPEATED] = ()
    """A key that clients must send; give it again for more. Others of this machine can read it in
    the list of processes: --api-key-file and the variable DSJAX_API_KEY are hidden."""
    api_key_file: Path | None = None
    """A file of keys, one a line."""
    max_body: int = 4 << 20
    """Bytes of a request at most."""
    max_prompt_tokens: int | None = None
    """Tokens of a prompt at most; by default what the context has room for."""
    max_new_tokens: int | None = None
    """Tokens of an answer at most; by default what the context has room for."""
    engine: Annotated[EngineFlags, Mark.INLINE] = field(default_factory=EngineFlags)
    model: Annotated[ModelFlags, Mark.INLINE] = field(default_factory=ModelFlags)
    cache: bool = True
    """Keep compiled programs in a cache folder of yours, so that the next start is faster."""


def main(args: Serve) -> int:
    """Run the command; returns the exit status."""
    require()
    from dsjax.serve import server

    keys = _keys(args)
    _within(args)
    with server.listen(args.host, args.port) as at:
        models.find_devices(args.model)
        say(f"dsjax: reading {args.folder} and compiling what serves it; its address is said when "
            "it is ready")
        model = models.load(args.folder, args.model)
        context.say_if_beyond(model, args.engine.context)
        served = _served(args, model, keys)
        engine = engines.make(model, args.engine, args.model.experts.expert_loads, is_consumed=True)

        def announce(address: str, _: object) -> None:
            print(f"{served.name} is served at {address}/v1; talk to it at {address}", flush=True)
            if not keys and at.getsockname()[0] not in LOOPBACK:
                say("dsjax: everyone who reaches this address can use the model; --api-key-file "
                    "asks for a key")

        server.serve(engine, served, at, announce)
        engines.save_loads(engine, args.engine)
    return 0


def require() -> None:
    """Refuse an installation without the libraries of the door."""
    try:
        import jinja2  # noqa: F401
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"serving needs {error.name}, which is not installed; install "
                        "dsjax[serve]") from None


def _served(args: Serve, model: Model, keys: tuple[str, ...]) -> Served:
    """Describe the model as the server tells of it, with its limits."""
    from dsjax.serve import template
    from dsjax.serve.door import Limits, Served

    limits = Limits(args.max_body, args.max_prompt_tokens, args.max_new_tokens)
    name = args.name or Path(args.folder).resolve().name or "model"
    return Served(model, name, template.load(args.folder, model.tokenizer), limits, keys)


def _within(args: Serve) -> None:
    """Refuse limits that let nothing through."""
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port {args.port} is not a port; use 0 to 65535")
    for name in ("max_body", "max_prompt_tokens", "max_new_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} lets nothing through; use at "
                            "least 1")


def _keys(args: Serve) -> tuple[str, ...]:
    """Keys of the flags, the file and the environment."""
    keys = [*args.api_key]
    if args.api_key_file is not None:
        remedy = "give a file with a key a line as --api-key-file"
        text = disk.read_bytes(args.api_key_file, remedy, limit=1 << 20)
        lines = [line.strip() for line in text.decode(errors="replace").splitlines()]
        found = [line for line in lines if line]
        if not found:
            raise UserError(f"{args.api_key_file} holds no key; {remedy}")
        keys += found
    if os.environ.get(KEY):
        keys.append(os.environ[KEY].strip())
    if any(not key.isprintable() or not key.isascii() or " " in key or not key for key in keys):
        raise UserError("a key holds a blank or a letter that no header can hold; use printable "
                        "ASCII without blanks")
    return tuple(keys)
