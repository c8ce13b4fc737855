"""`dsjax show CONFIG`: a model's sizes part by part; `--loads`: how evenly experts are used."""

from __future__ import annotations

import dataclasses

from rich import box
from rich.table import Table

from dsjax.cli.shown import bytes
from dsjax.config import flags, load
from dsjax.disk import to_json
from dsjax.model.count import Count, count
from dsjax.terminal import Console

USAGE = """usage: dsjax show CONFIG [--length N] [--json] [--FIELD VALUE ...]
       dsjax show --loads RUN_OR_JSON [--replicas N] [--nodes N] [--devices N]   (--loads --help)

Print total and active parameters, training FLOPs a token and cache bytes a token, part by part;
then the bytes of training as the config would (its batch, length and remat), and of serving.
CONFIG is a name (tiny, small, deepseek_v3, ...), a file with one config() or the folder of a run;
any field of it can be overridden, as in: dsjax show tiny --model.layers 8

  --length N   tokens a row, for the FLOPs of attention and the cache of serving (default 4096)
  --json       one JSON object with params_total, params_mtp, params_active, flops_per_token,
               kv_bytes_per_token, the list of parts, training_bytes and serving_bytes
"""


def run(argv: list[str]) -> int:
    """Print the table; returns the exit status."""
    if argv[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if any(word == "--loads" or word.startswith("--loads=") for word in argv):
        from dsjax.cli.shown import loads

        return loads.run(argv)
    is_json, argv = flags.take_switch(argv, "--json")
    length, argv = flags.take_number(argv, "--length", 4096)
    run_config = load.override(load.load(load.first(argv, "dsjax show")), argv[1:],
                               "dsjax show CONFIG", ("--length", "--json", "--loads"))
    sizes = count(run_config.model, length)
    if is_json:
        print(to_json({"config": run_config.name, **dataclasses.asdict(sizes),
                          "training_bytes": bytes.training(run_config),
                          "serving_bytes": bytes.serving(run_config, length)}))
    else:
        Console().print_whole(table(run_config.name, sizes), *bytes.tables(run_config, length))
    return 0


def table(name: str, sizes: Count) -> Table:
    """Draw the sizes."""
    title = f"{name}: training FLOPs and cache bytes are a token's, in rows of {sizes.length:,}"
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
                  show_footer=True)
    columns = [
        ("part", "main model", "left"),
        ("parameters", f"{sizes.params_total:,}", "right"),
        ("active", f"{sizes.params_active:,}", "right"),
        ("MFLOP", f"{sizes.flops_per_token / 1e6:,.2f}", "right"),
        ("cache B", f"{sizes.kv_bytes_per_token:,}", "right"),
    ]
    for head, foot, justify in columns:
        drawn.add_column(head, foot, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for part in sizes.parts:
        drawn.add_row(
            part.name,
            f"{part.params:,}",
            f"{part.params_active:,}",
            f"{part.flops_per_token / 1e6:,.2f}",
            f"{part.kv_bytes_per_token:,}" if part.kv_bytes_per_token else "",
        )
    if sizes.params_mtp:
        drawn.caption = f"and {sizes.params_mtp:,} parameters in the MTP modules, counted apart"
        drawn.caption_justify = "left"
    return drawn
