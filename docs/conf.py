"""The site of these pages (`make docs`): Sphinx over the Markdown as it stands in the repository.

A page keeps its place, so that its links are the repository's. Links to files of `dsjax/` and
`configs/` lead to the reference, which is made from docstrings without importing anything.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    "Begin": "docs/tour docs/training docs/data docs/weights docs/generation docs/serving",
    "Measure": "docs/evaluation docs/long-context docs/contamination docs/experiments docs/claims",
    "Teach": "docs/sft docs/rl",
    "Scale": "docs/layouts docs/pipelines docs/fp8 docs/gpus docs/numerics docs/planning "
             "launch/README",
    "Experiments": "experiments/*/README",
    "Code": "docs/contributing tests/README dsjax/data/corpus/ATTRIBUTION",
}
"""The list beside every page, without the reference: it would be 300 lines on each of 350."""
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+)[^)]*\)")

project, root_doc = "dsjax", "README"
release = re.findall(r'__version__ = "(.+)"', (ROOT / "dsjax/__init__.py").read_text())[0]
extensions = ["myst_parser", "autoapi.extension"]
include_patterns = ["README.md", "docs/*.md", "experiments/*/README.md",
                    "launch/README.md", "tests/README.md", "dsjax/data/corpus/*.md", "api/**"]
default_role = "code"
myst_heading_anchors = 3
autoapi_dirs = [str(ROOT / "dsjax"), str(ROOT / "configs")]
autoapi_root, autoapi_add_toctree_entry = "api", False
autoapi_options = ["members", "show-module-summary", "undoc-members"]
autoapi_own_page_level = "module"
suppress_warnings = [
    "autoapi.python_import_resolution",  # names of `A, B = ...`
    "ref.python",  # types of one name in several modules: the first is taken
    "toc.not_included",  # the reference is reached by links
]
html_theme, html_title = "furo", f"dsjax {release}"
html_show_copyright = html_copy_source = False
pygments_style, highlight_language = "friendly", "text"
html_theme_options = {"light_css_variables": {"code-font-size": "75%"}}


def place_links(app: Any, name: str, source: list[str]) -> None:
    """Lead links of a Markdown page to pages of the site, and list all pages on the first."""
    page = Path(app.env.doc2path(name))
    if page.suffix != ".md":
        return

    def place(link: re.Match[str]) -> str:
        target = (page.parent / link[2]).resolve()
        inside = target.relative_to(ROOT)
        if target.is_dir() and (target / "README.md").is_file():
            return f"[{link[1]}](/{inside}/README.md)"
        if inside.parts[0] not in ("dsjax", "configs"):
            return link[1] if target.is_dir() else link[0]  # the site has no such page
        if target.suffix == ".py" or (target / "__init__.py").is_file():
            module = inside.parent if inside.name == "__init__.py" else inside.with_suffix("")
            return f"[{link[1]}](/api/{module}/index.rst)"
        return link[0]

    source[0] = LINK.sub(place, source[0])
    if name == root_doc:
        source[0] += "".join(
            f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {part}\n" + "\n".join(
                "/" + one for one in pages.split()) + "\n```\n" for part, pages in PARTS.items())


def as_restructured(app: Any, what: str, name: str, of: Any, options: Any,
                    lines: list[str]) -> None:
    """Make a docstring reStructuredText: what it indents stands as it is, and so do marks."""
    made: list[str] = []
    is_code, is_shown = False, False
    for before, line in zip(["", *lines], lines):
        if line.startswith("  ") and not before.strip() and not is_shown:
            made += ["::", ""]
            is_shown = True
        is_shown = is_shown and (not line or line.startswith(" "))
        if not is_shown:
            parts = line.split("`")  # every other part is code, which may go on on the next line
            line = "`".join(part if is_code ^ bool(i % 2) else re.sub(r"([*|])", r"\\\1", part)
                            for i, part in enumerate(parts))
            is_code ^= len(parts) % 2 == 0
        made.append(line)
    lines[:] = made


def setup(app: Any) -> None:
    """Register what happens to pages and docstrings."""
    app.connect("source-read", place_links)
    app.connect("autodoc-process-docstring", as_restructured)
