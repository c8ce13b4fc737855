"""A docstring's first word says a thing or an act: it opens with a noun or a verb."""

import ast

from tests.test_architecture import python_files, relative

QUESTIONS = {"What", "Whether", "How", "Where", "Which", "Why"}


def test_no_docstring_opens_with_a_question() -> None:
    found = []
    for path in python_files("dsjax", "configs", "experiments"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                text = node.value.value
                if isinstance(text, str) and text.split(maxsplit=1)[:1] and (
                        text.split(maxsplit=1)[0] in QUESTIONS):
                    found.append(f"{relative(path)}:{node.lineno}: {text[:40]}")
    assert not found, found
