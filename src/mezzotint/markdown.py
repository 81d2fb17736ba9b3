# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Writes any text into a model card as itself: whatever a prompt or a folder's name holds, it is neither markup nor
code."""

import re


def plain(text: str) -> str:
    """Any text in one line of Markdown, where it stands for itself: nothing in it is markup or HTML, or reorders what
    is around it."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "\ufffd", " ".join(str(text).split()))
    # An underscore between letters or digits is none of markup
    return re.sub(r"([\\`*\[\]<>&|~$#]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)


def code(text: str) -> str:
    """Any text as a span of code in one line of Markdown."""
    text = " ".join(str(text).split())
    fence = "`" * (_longest_run(text) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text or ' '}{fence}"


def fenced(text: str, language: str) -> str:
    """Any text as a block of code in Markdown."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def literal(text: str) -> str:
    """Any text as a Python string literal in double quotes, in one line, with nothing in it that cannot be seen."""
    escapes = {'"': '\\"', "\\": "\\\\"}
    shown = (escapes.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)
    return f'"{"".join(shown)}"'


def _longest_run(text: str) -> int:
    """The length of the longest run of backticks in a text."""
    return max(map(len, re.findall("`+", text)), default=0)
