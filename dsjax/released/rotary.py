"""The rotary attributes of a config.json, in both directions.

Two spellings are read, `rope_theta` with `rope_scaling`, and transformers' newer `rope_parameters`;
they must agree where both are there. The older one is written, which every engine reads.
"""

from __future__ import annotations

from dsjax.config.model import RopeConfig, YarnConfig
from dsjax.errors import UserError
from dsjax.released.attributes import NONE, Json, Reader, Row

YARN = (
    Row("factor", "factor", float, float("-inf")),
    Row("original_max_position_embeddings", "original_length"),
    Row("beta_fast", "beta_fast", float, 0, v3=32.0),
    Row("beta_slow", "beta_slow", float, 0, v3=1.0),
)
"""Lines of the table for one scaling; its mscales depend on each other."""
MSCALES = ("mscale", "mscale_all_dim")


def read(r: Reader) -> RopeConfig:
    """Return the frequencies of either spelling; both must agree where both are there."""
    older, newer = r.nested("rope_scaling"), r.nested("rope_parameters")
    thetas = {
        place: reader.number("rope_theta")
        for place, reader in (("", r), ("rope_scaling", older), ("rope_parameters", newer))
        if reader.has("rope_theta")
    }
    if len(set(thetas.values())) > 1:
        said = " and ".join(f"{v:g}{f', in {k},' if k else ''}" for k, v in thetas.items())
        raise r.wrong(f"says rope_theta={said}; remove one of them")
    made = [_yarn(given) for given in (older, newer) if given.data.keys() - {"rope_theta"}]
    if len(set(made)) > 1:
        raise r.wrong("has rope_scaling and rope_parameters that differ; remove one of them")
    theta = next(iter(thetas.values()), r.defaults["rope_theta"])
    try:
        return RopeConfig(theta=theta, yarn=made[0] if made else None)
    except UserError:
        raise
    except ValueError as error:
        raise r.wrong(f"describes no frequencies ({error})") from None


def write(rope: RopeConfig) -> Json:
    """Return the attributes of these frequencies."""
    scaling = None
    if rope.yarn is not None:
        scaling = {"type": "yarn"} | {row.attribute: getattr(rope.yarn, row.field) for row in YARN}
        scaling |= {name: getattr(rope.yarn, name) for name in MSCALES}
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def refuse(rope: RopeConfig) -> str | None:
    """Return why released code cannot compute these frequencies; None where it can."""
    y = rope.yarn
    if y and (not y.mscale or (not y.mscale_all_dim and y.mscale != 1.0)):
        return (f"YaRN with mscale={y.mscale} and mscale_all_dim={y.mscale_all_dim} has no "
                "released form; transformers takes both for missing, which means 1 and 0")
    if y and not (y.beta_fast and y.beta_slow):
        return "a YaRN beta of 0 has no released form; transformers takes it for missing"
    return None


def _yarn(r: Reader) -> YarnConfig | None:
    """The numbers of one scaling; only YaRN and none are in released models."""
    r.data = {k: v for k, v in r.data.items() if v is not None and k != "rope_theta"}
    r.defaults = {"type": "default"} | {
        row.attribute: row.v3 for row in YARN if row.v3 is not NONE}
    kind = r.word("rope_type" if "rope_type" in r.data else "type")
    names = {k: v for k, v in r.data.items() if k not in ("rope_type", "type")}
    if r.data.get("type", kind) != kind:
        raise r.wrong(f"says type={str(r.data['type'])[:60]!r} and rope_type={kind!r}; "
                      "remove one of them")
    if names.pop("partial_rotary_factor", 1.0) != 1.0 or kind not in ("default", "yarn"):
        raise r.wrong(f"scales rotary frequencies by {kind[:60]!r}; dsjax has 'yarn' and 'default'")
    if kind == "default":
        if names:
            raise r.wrong(f"gives {str(sorted(names))[:100]} to rotary frequencies of the type "
                          "'default'; remove them")
        return None
    known = {row.attribute for row in YARN} | {*MSCALES, "truncate"}
    for name, value in names.items():
        if name not in known or (name == "truncate" and value is not True):
            raise r.wrong(f"has {name[:60]}={str(value)[:60]!r} for YaRN, which dsjax does not "
                          "compute; remove it if it does not change the model")
    mscale, all_dim = _mscales(r)
    fields = {row.field: r.take(row) for row in YARN}
    if not fields["beta_fast"] or not fields["beta_slow"]:
        raise r.wrong("has a YaRN beta of 0, which transformers reads as missing; remove it")
    return YarnConfig(**fields, mscale=mscale, mscale_all_dim=all_dim)


def _mscales(r: Reader) -> tuple[float, float]:
    """YaRN's mscale and mscale_all_dim, where DeepSeek's code and transformers mean the same."""
    mscale, all_dim = (r.number(name) if r.has(name) else None for name in MSCALES)
    if all_dim and not mscale:
        raise r.wrong(f"has YaRN's mscale_all_dim={all_dim:g} without mscale; give both")
    if not all_dim and mscale not in (None, 1.0):
        raise r.wrong(
            f"has YaRN's mscale={mscale:g} without mscale_all_dim, which DeepSeek's code and "
            "transformers read differently; give both"
        )
    return (1.0 if mscale is None else mscale), all_dim or 0.0
