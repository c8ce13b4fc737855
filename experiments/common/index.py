"""The index of all experiments: claim, source, cost, state, verdict and command of each."""

from __future__ import annotations

import textwrap
from typing import Any

from experiments.common.study import State, Study, state, verdict

WIDTH = 100


def said(found: State) -> str:
    """A state in words."""
    if found.commit is None:
        return found.state
    mark = "" if found.is_clean else ", with changes that were not committed"
    return f"{found.state} {found.date}, commit {found.commit}{mark}"


def lines(study: Study) -> list[str]:
    """An experiment for people: its claim, then its parts."""
    made = textwrap.wrap(f"{study.name}: {study.claim} ({study.source})", WIDTH)
    for part in study.parts:
        found = state(study, part)
        made += ["", f"  {part.command}"]
        for name, text in (("asks", part.asks), ("cost", part.cost), ("state", said(found)),
                           ("verdict", verdict(study, part)),
                           ("running", "; ".join(found.running))):
            if text:
                made += textwrap.wrap(text, WIDTH, initial_indent=f"    {name:<8} ",
                                      subsequent_indent=" " * 13)
    return made


def plain(study: Study) -> dict[str, Any]:
    """An experiment for programs."""
    parts = []
    for part in study.parts:
        found = state(study, part)
        parts.append({
            "name": part.name, "asks": part.asks, "command": part.command, "cost": part.cost,
            "quick": part.quick, "verdict": verdict(study, part), "state": found.state,
            "commit": found.commit, "date": found.date, "is_clean": found.is_clean,
            "running": list(found.running),
        })
    return {"name": study.name, "claim": study.claim, "source": study.source,
            "page": f"experiments/{study.name}/README.md", "parts": parts,
            "claims": [one.says for one in study.claims]}
