"""Programs and checks as HumanEval and MBPP compose them.

HumanEval (Chen et al. 2021; openai/human-eval, human_eval/execution.py; lm-evaluation-harness
0.4.13, lm_eval/tasks/humaneval): prompt + completion, then the test's `check` of the entry point.
MBPP (Austin et al. 2021; lm_eval/tasks/mbpp): the program, then its asserts, after imports where a
row has some (the sanitized set's `test_imports`).

Both run program and test as one text. Here the test runs apart (dsjax.evaluate.grade.sandbox), with
the same verdict on a program that does not look for its test, but for what cannot cross: a test
that gives functions or its own objects to the program, or looks at what it changed in place. No
test of either set does.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator, Sequence

from dsjax.evaluate.grade import sandbox
from dsjax.evaluate.grade.sandbox import Check, Limits, Program


def human_eval(prompt: str, completion: str, test: str, entry_point: str) -> Program:
    """Compose a program of HumanEval; the test has the prompt's imports and helpers."""
    check = Check(f"{test}\ncheck({entry_point})", (entry_point,), given=_whole(prompt))
    return Program(prompt + completion, check)


def mbpp(code: str, imports: Sequence[str], tests: Sequence[str]) -> Program:
    """Compose a program of MBPP; the tests' functions are those that nobody else defines."""
    text = "\n".join([*imports, *tests])
    modules, asked = _needs(text)
    return Program(code, Check(text, asked, given="".join(f"import {x}\n" for x in modules)))


def passed(program: Program, limits: Limits = sandbox.LIMITS) -> bool:
    """Run a program and its check.

    Raises:
        UserError: this machine has no walls to run it behind.
    """
    assert program.check is not None, "a verdict needs a check"
    return sandbox.run(program, limits).ending == "end"


def _whole(prompt: str) -> str:
    """A prompt that ends in the head of a function, with a body where its docstring is none."""
    try:
        compile(prompt, "<prompt>", "exec", dont_inherit=True)
    except SyntaxError:
        return f"{prompt.rstrip()}\n    pass\n"
    return prompt


def _needs(text: str) -> tuple[list[str], tuple[str, ...]]:
    """Names that tests read and do not define: modules of Python, and those that are the program's.

    A module is named as one and not called. A function named as one of Python's own (MBPP 126: sum)
    is the program's only where no other name is: else a program could bring its own `set` or
    `sorted` and compare nothing with nothing.
    """
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except SyntaxError:  # the check says so when it runs
        return [], ()
    called = {node.func.id for node in nodes
              if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    read = (node.id for node in nodes if isinstance(node, ast.Name))
    free = [name for name in dict.fromkeys(read) if name not in set(_bound(nodes))]
    modules = [name for name in free if name in sys.stdlib_module_names and name not in called]
    names = [name for name in free if name not in modules]
    own = [name for name in names if not hasattr(builtins, name)]
    return modules, tuple(own or names)


def _bound(nodes: list[ast.AST]) -> Iterator[str]:
    """Names that some statement gives a meaning to."""
    for node in nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler)):
            yield node.name or ""
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[0]
