"""Docstrings of classes that list the fields, made from what is written beside each field.

A field's words stand once in the source: in a string below it or in a comment at its side.
"""

from __future__ import annotations

import functools
from typing import TypeVar

T = TypeVar("T")


def documented(cls: type[T]) -> type[T]:
    """Makes `help` of a class list its fields."""
    # A descriptor in place of the text.
    setattr(cls, "__doc__", FieldList(cls.__doc__ or ""))  # noqa: B010
    return cls


class FieldList:
    """A class's docstring; the source is read only when somebody asks."""

    def __init__(self, summary: str):
        """Keeps what the class itself says."""
        self.summary = summary

    def __get__(self, instance: object, cls: type) -> str:
        """The whole docstring."""
        return "\n".join([self.summary, *_attributes(cls)])


@functools.cache
def _attributes(cls: type) -> list[str]:
    """The section `Attributes`, or nothing where there is no source."""
    import textwrap

    lines = [
        textwrap.fill(f"{name}: {words}", 92, initial_indent="  ", subsequent_indent="    ")
        for name, words in field_words(cls).items()
    ]
    return ["", "Attributes:", *lines] if lines else []


def field_words(cls: type) -> dict[str, str]:
    """What stands beside each field of a class, or else what its type is."""
    import ast
    import inspect
    import sys
    import textwrap

    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    body = definition.body
    lines = source.splitlines()
    found = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        assert node.end_lineno is not None
        words = lines[node.end_lineno - 1][node.end_col_offset :].strip().lstrip("# ")
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            words = str(after.value.value)
        if not words:
            words = ast.unparse(node.annotation)
            kind = getattr(sys.modules[cls.__module__], words, None)
            words = ((kind and kind.__doc__) or words).split("\n\n")[0]
        found[node.target.id] = " ".join(words.split())
    return found
