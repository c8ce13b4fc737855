"""The package that pip installs is one at the top level, with the configs inside it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUP = "import setuptools; setuptools.setup()"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder that pip would copy into site-packages."""
    folder = tmp_path_factory.mktemp("built")
    build = ["egg_info", "--egg-base", str(folder), "build_py", "--build-lib", str(folder / "lib")]
    subprocess.run([sys.executable, "-c", SETUP, "--quiet", *build], cwd=ROOT, check=True,
                   capture_output=True, timeout=60)
    return folder / "lib"


def test_only_dsjax_is_at_the_top(built):
    assert [path.name for path in built.iterdir()] == ["dsjax"]


def test_every_module_config_and_corpus_file_is_there(built):
    kept = {p.relative_to(ROOT) for p in (ROOT / "dsjax").rglob("*.py")}
    kept |= {Path("dsjax/py.typed"), Path("dsjax/data/corpus/shakespeare.txt.xz"),
             Path("dsjax/serve/page.html")}
    kept |= {Path("dsjax") / p.relative_to(ROOT) for p in (ROOT / "configs").glob("*.py")}
    assert kept <= {p.relative_to(built) for p in built.rglob("*")}


def test_configs_are_found_by_name_from_anywhere(built, tmp_path):
    code = "from dsjax.config import load; print(load.FOLDER, *(load.load(name).name for name in " \
        "load.names()))"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, check=True,
                           env=os.environ | {"PYTHONPATH": str(built)}, capture_output=True,
                           timeout=60)
    names = sorted(path.stem for path in (ROOT / "configs").glob("[!_]*.py"))
    assert found.stdout.split() == [str(built / "dsjax" / "configs"), *names]
