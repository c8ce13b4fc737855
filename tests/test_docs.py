"""Python on a page runs as it stands, and the tests that tests/README.md names are there."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dsjax.model import transformer
from dsjax.released import hf
from tests.agreement import TINY, draw

ROOT = Path(__file__).parents[1]


def run_snippet(page):
    """Names that a page's Python leaves behind, and its text."""
    (snippet,) = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    names: dict = {}
    exec(snippet, names)
    return names, snippet


@pytest.mark.slow
def test_the_snippet_of_training_makes_logits_of_tokens():
    names, snippet = run_snippet("docs/training.md")
    cfg = names["cfg"]
    assert names["logits"].shape == (*names["tokens"].shape, cfg.vocab)
    assert "[B, T, V] float32" in snippet
    assert names["logits"].dtype == "float32"


def test_the_snippet_of_weights_reads_a_checkpoint_and_writes_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attention = dataclasses.replace(TINY.attention, latent_norm_eps=1e-6)  # as released
    cfg = dataclasses.replace(TINY, attention=attention)
    params = draw(transformer.specs(cfg), 0, "bfloat16")
    hf.save("DeepSeek-V2-Lite", cfg, params)
    names, snippet = run_snippet("docs/weights.md")
    assert 'dtype="bfloat16"' in snippet
    jax.tree.map(np.testing.assert_array_equal, names["params"], params)
    assert hf.load("exported")[0] == names["cfg"]


def test_the_snippet_of_numerics_quantizes_in_tiles():
    names, _ = run_snippet("docs/numerics.md")
    assert 0 < names["largest_error"] <= 3 / 2**4, "E4M3 keeps 4 significant bits"
    assert names["q"].codes.dtype == "float8_e4m3fn"
    assert names["q"].scales.shape == (2, 1)


def test_the_readme_ends_the_demo_as_its_record_does():
    (shown,) = re.findall(r"^```text\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    made = json.loads((ROOT / "experiments/demo/records/demo.json").read_text())["summary"]
    assert f"held out: {made['bits_per_byte']:.2f} bits per byte" in shown
    assert f"{made['five_gram']:.2f} bits per byte on the same blocks" in shown


@pytest.mark.exhaustive
@pytest.mark.skipif(importlib.util.find_spec("autoapi") is None, reason="needs the docs extra")
def test_the_site_builds_with_every_link_of_every_page(tmp_path):
    """A link or heading that is not there is a warning, and so an error."""
    made = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "-c", "docs", "-d",
         tmp_path / "trees", ".", tmp_path / "site"], cwd=ROOT, capture_output=True, text=True,
        timeout=900)
    assert made.returncode == 0, made.stderr
    first = (tmp_path / "site/README.html").read_text()
    for page in sorted((ROOT / "docs").glob("*.md")):
        listed = f'toctree-l1"><a class="reference internal" href="docs/{page.stem}.html"'
        assert listed in first, page
    tour = (tmp_path / "site/docs/tour.html").read_text()
    assert 'href="../api/dsjax/layers/mla/index.html"' in tour, "code leads to the reference"
    reference = (tmp_path / "site/api/dsjax/layers/mla/index.html").read_text()
    assert "mla_absorbed" in reference
    assert "The absorbed form, for decoding." in reference
    assert "absorb" in (tmp_path / "site/searchindex.js").read_text()


def test_the_tests_that_hold_each_kind_of_fault_are_there():
    tests = Path(__file__).parent
    lines = (tests / "README.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    named = [name for row in rows for name in re.findall(r"`(\S+\.py)`", row)]
    assert len(named) > 30
    assert [name for name in named if not (tests / name).is_file()] == []
