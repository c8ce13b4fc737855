"""The house stays as drawn: imports go down, files stay small, and what is written down is true.

What is written: the commands in README and docs exist, config files say what they are, no text
names a place outside the project, and every generated table has its record.
"""

import ast
import collections
import contextlib
import functools
import io
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from dsjax.cli.main import available, main
from experiments.common import record

ROOT = Path(__file__).parents[1]
ROOMS = ("dsjax", "configs", "experiments", "tests")

FLOORS = {
    **dict.fromkeys(("cli", "experiments", "configs", "__main__"), 11),
    **dict.fromkeys(("rl", "plan", "interop"), 10),
    **dict.fromkeys(("train",), 9),
    **dict.fromkeys(("evaluate", "serve"), 8),
    **dict.fromkeys(("infer", "report", "weights"), 7),
    **dict.fromkeys(("runtime", "pipeline", "checkpoint", "released"), 6),
    **dict.fromkeys(("parallel", "data", "optim"), 5),
    **dict.fromkeys(("model",), 4),
    **dict.fromkeys(("layers",), 3),
    **dict.fromkeys(("ops",), 2),
    **dict.fromkeys(("numerics", "kernels"), 1),
    **dict.fromkeys(("config", "params", "disk", "errors", "terminal", "__init__"), 0),
}
# Neighbors on one floor keep apart but for these, each with its reason.
SIDEWAYS = {
    ("__main__", "cli"),  # `python -m dsjax` is the command
    ("experiments", "configs"),  # an arm is a difference from a config
    ("experiments", "cli"),  # a benchmark command's shapes, measured beside others
    ("evaluate", "serve"),  # an answer is cut at stop texts as one that is served
    ("infer", "weights"),  # a model that can be asked is read from a folder
    ("kernels", "numerics"),  # a kernel is the fast form of a plain function
    ("checkpoint", "runtime"),  # what does not fit the memory here is refused before it is read
    ("released", "checkpoint"),  # a conversion writes a run folder
    ("cli", "__init__"),
    ("config", "errors"), ("config", "disk"),
    ("disk", "errors"),
    ("terminal", "errors"),
}


def python_files(*rooms: str) -> list[Path]:
    return sorted(p for room in rooms for p in (ROOT / room).rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> tuple[str, ...]:
    """Dotted name, in parts; a package is named by its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def is_module(name: tuple[str, ...]) -> bool:
    path = ROOT.joinpath(*name)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """Modules of the project that a file imports anywhere, also inside functions."""
    package = module_of(path) if path.stem == "__init__" else module_of(path)[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = start + tuple((node.module or "").split(".") if node.module else ())
            inner = [(*base, alias.name) for alias in node.names]
            names = [name if is_module(name) else base for name in inner]
        else:
            continue
        yield from (name for name in names if name and name[0] in ROOMS)


def room_of(module: tuple[str, ...]) -> str:
    """The room a module stands in: its folder in dsjax, or configs, experiments, tests."""
    if module[0] != "dsjax":
        return module[0]
    return module[1] if len(module) > 1 else "__init__"


def test_imports_go_down_the_floors() -> None:
    wrong = []
    for path in python_files("dsjax", "configs", "experiments"):
        here = room_of(module_of(path))
        for there in map(room_of, imports(path)):
            is_down = FLOORS[here] > FLOORS[there]
            if here != there and not is_down and (here, there) not in SIDEWAYS:
                wrong.append(f"{relative(path)}: {here} imports {there}")
    assert not wrong, "\n".join(wrong)


def test_every_room_stands_on_a_floor() -> None:
    rooms = {room_of(module_of(path)) for path in python_files("dsjax", "configs", "experiments")}
    assert rooms <= FLOORS.keys()


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {}
    for path in python_files("dsjax"):
        module = module_of(path)
        graph[".".join(module)] = {".".join(m) for m in imports(path) if m != module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as cycle:
        pytest.fail(" <- ".join(cycle.args[1]))


def test_every_room_says_what_it_is_for() -> None:
    folders = {path.parent for path in python_files("dsjax")}
    silent = [
        relative(folder) for folder in folders
        if not (folder / "__init__.py").is_file()
        or not ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    ]
    assert not silent, f"no __init__.py with a docstring in {sorted(silent)}"


def test_files_stay_within_350_lines() -> None:
    lengths = {relative(p): len(p.read_text().splitlines()) for p in python_files(*ROOMS)}
    long = {name: n for name, n in lengths.items() if n > 350}
    assert not long, long


def test_a_package_has_at_most_twelve_files() -> None:
    commands = {ROOT / "dsjax/cli" / f"{name}.py" for name in available()}  # a list, not a room
    parts = {p for p in python_files("dsjax") if p.stem != "__init__"} - commands
    counts = collections.Counter(p.parent for p in parts)
    assert not {name: n for name, n in counts.items() if n > 12}


WIDE = {
    "dsjax/infer/offload/layers.py: _enter",  # what one program reads, most of it arrays
    "dsjax/params.py: spec", "dsjax/optim/adamw.py: adamw",  # fields of a Spec, of optax's rule
    "dsjax/ops/attention.py: _backward_unrolled",  # residuals of attention, one form
    "dsjax/ops/attention.py: _backward_scanned",  # and the other
    "dsjax/parallel/mesh_backend.py: _dispatch",  # the six of a Dispatch, and where it is
    "dsjax/parallel/mesh_backend.py: dispatch_here",  # the same
    "dsjax/kernels/hopper.py: _promote",  # references of a kernel
}
"""Functions of more than seven parameters, each with its reason."""


def test_functions_have_at_most_seven_parameters() -> None:
    wide = set()
    for path in python_files("dsjax"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                given = node.args
                names = {a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
                if len(names - {"self", "cls"}) > 7:
                    wide.add(f"{relative(path)}: {node.name}")
    assert wide == WIDE


def test_public_functions_have_types_on_every_parameter_and_the_result() -> None:
    bare = []
    for path in python_files("dsjax", "configs"):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            given = node.args
            every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            hints = [node.returns, *(a.annotation for a in every if a is not None)]
            if None in hints:
                bare.append(f"{relative(path)}: {node.name}")
    assert not bare, "\n".join(bare)


CONFIGS = [p for p in python_files("configs") if p.stem != "__init__"]
CONFIG_NAMES = {p.stem for p in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_config_is_one_function_and_a_page_of_science(path: Path) -> None:
    tree = ast.parse(path.read_text())
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [name for name in functions if not name.startswith("_")] == ["config"]
    page = ast.get_docstring(tree) or ""
    labels = re.findall(r"^(Source|Machine|Expect|Command): \S", page, re.MULTILINE)
    assert labels == ["Source", "Machine", "Expect", "Command"]
    assert re.search(rf"^Command: dsjax \w+ {path.stem}\b", page, re.MULTILINE)


def test_the_promised_configs_are_there() -> None:
    models = {"deepseek_v2_lite", "deepseek_v2", "deepseek_v3", "moonlight_16b_a3b", "kimi_k2"}
    assert {"tiny", "small"} | models <= {path.stem for path in CONFIGS}


def pages() -> list[Path]:
    """README and every other page of prose."""
    inside = (p for room in ("docs", "experiments", "launch", "tests")
              for p in (ROOT / room).rglob("*.md"))
    return sorted([*ROOT.glob("*.md"), *inside])


def commands() -> Iterator[tuple[str, str]]:
    """(where, command) of every command line in a page's fenced blocks or a config's docstring."""
    for path in pages():
        for block in re.findall(r"^```\w*\n(.*?)^```", path.read_text(), re.M | re.S):
            for line in block.splitlines():
                for command in re.split(r"&&|;|\|", line.removeprefix("$ ").split(" #")[0]):
                    yield relative(path), command.strip()
    for path in CONFIGS:
        page = ast.get_docstring(ast.parse(path.read_text())) or ""
        for command in re.findall(r"^Command: (.*)", page, re.MULTILINE):
            yield relative(path), command.strip()


def test_readme_gives_its_two_commands() -> None:
    given = [command for where, command in commands() if where == "README.md"]
    assert {"make demo", "make test"} <= set(given)


def test_every_command_that_is_written_down_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong = []
    for where, command in commands():
        if found := re.match(r"(?:\w+=\S+ )*make (\w[\w-]*)", command):
            is_known = found[1] in targets
        elif found := re.match(r"(?:\w+=\S+ )*(?:\S*python\S* -m |\S*/)?dsjax ([a-z]\w*)", command):
            is_known = found[1] in available()
        elif found := re.match(r"(?:\w+=\S+ )*\S*python\S* (?:-m )?(experiments\S+)", command):
            module = found[1].removesuffix(".py").replace("/", ".")
            is_known = is_module(tuple(module.split(".")))
        else:
            continue
        if not is_known:
            wrong.append(f"{where}: {command}")
    assert not wrong, "\n".join(wrong)


OF_EXPERIMENTS = {"--quick", "--dirty", "--background", "--peer-python"}


@functools.cache
def flags_of(command: str, first: str) -> set[str]:
    """Flags that the help of a subcommand names, alone and after the word that follows it."""
    told = io.StringIO()
    is_config, usual = command in ("train", "show", "compile", "rl"), "r1_zero_tiny"
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        assert main([command, "--help"]) == 0
        if first or is_config:
            main([command, first if first in CONFIG_NAMES or not is_config else usual, "--help"])
    return set(re.findall(r"--[a-z][\w.-]*", told.getvalue()))


def test_every_flag_that_is_written_down_is_known() -> None:
    wrong = []
    for where, command in commands():
        found = re.match(r"(?:\w+=\S+ )*(?:\S*python\S* -m |\S*/)?dsjax ([a-z]\w*) ?(.*)", command)
        if not found or found[1] not in available():
            continue
        first = re.match(r"[^-\s]\S*|", found[2])
        assert first is not None
        known = flags_of(found[1], first[0])
        given = re.findall(r"(?:^|\s)(--[a-z][\w.-]*)", found[2])
        wrong += [f"{where}: {flag} in: {command}" for flag in given if flag not in known]
    helps = [(name, "") for name in available()]
    helps += [("convert", way) for way in ("hf-to-dsjax", "dsjax-to-hf")]
    helps += [("bench", way) for way in ("train", "decode", "gemm", "layouts", "links")]
    every = set().union(*(flags_of(*one) for one in helps), OF_EXPERIMENTS)
    for path in pages():
        mentioned = re.findall(r"`(--[a-z][\w.-]*\w)[ `]", path.read_text())
        wrong += [f"{relative(path)}: {flag}" for flag in mentioned if flag not in every]
    assert not wrong, "\n".join(wrong)


def test_every_link_between_pages_leads_somewhere() -> None:
    broken = [
        f"{relative(page)}: {target}"
        for page in pages()
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken, "\n".join(broken)


def test_every_path_that_a_page_or_a_docstring_names_is_there() -> None:
    named = re.compile(r"`((?:dsjax|tests|experiments|configs|launch)/[\w./]+)`")
    gone = [
        f"{relative(path)}: {name}"
        for path in [*pages(), *python_files(*ROOMS)]
        for name in named.findall(path.read_text())
        if "NAME" not in name and not ((ROOT / name).exists() or (path.parent / name).exists())
    ]
    assert not gone, "\n".join(gone)


TEXT = {".py", ".md", ".toml", ".lock", ".json", ".jsonl", ".svg", ".txt", ".cfg", ".yml", ".sh"}
ELSEWHERE = re.compile(
    r"\.\./shared|(?<![\w./-])/(?:work|root|opt|home/\w+|Users|tmp)/"
    r"|pypi\.org|pythonhosted|/site-packages/"
)


def texts() -> list[Path]:
    """Every text of the project but this one, which has to name what it forbids."""
    inside = [p for room in (*ROOMS, "docs", ".ci") for p in (ROOT / room).rglob("*")]
    found = [p for p in [*ROOT.iterdir(), *inside] if p.is_file()]
    plain = [p for p in found if p.suffix in TEXT or p.name in ("Makefile", "run", ".gitignore")]
    return sorted(p for p in plain if p != Path(__file__) and "__pycache__" not in p.parts)


def test_nothing_names_a_place_outside_the_project() -> None:
    wrong = [
        f"{relative(path)}: {found[0]}"
        for path in texts()
        if (found := ELSEWHERE.search(path.read_text(errors="replace")))
    ]
    assert not wrong, "\n".join(wrong)


def test_every_generated_table_is_what_its_record_says() -> None:
    for page in pages():
        text = page.read_text()
        assert record.fill(text) == text, (
            f"{relative(page)} differs from its records: python -m experiments.common.record "
            f"{relative(page)}"
        )
        assert not re.search(r"^\s*<!-- cell", text, re.M), (
            f"{relative(page)}: Markdown takes a line that begins with a comment for HTML"
        )


def test_the_lock_pins_every_dependency_to_one_version() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("#")[0].strip() for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; .+)?", pin) for pin in pins), pins
    pinned = [pin.split("==")[0] for pin in pins]
    assert len(pinned) == len(set(pinned))
    project = (ROOT / "pyproject.toml").read_text()
    asked = re.findall(r'^  "([A-Za-z0-9_-]+)>=', project.split("[project.optional")[0], re.M)
    assert {name.lower().replace("_", "-") for name in asked} <= set(pinned)
