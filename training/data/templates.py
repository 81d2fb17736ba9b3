# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Writes captions from several columns: a template is text with columns of its row in braces, "{subgroup}: {text}"."""

import operator
import string
from collections.abc import Callable, Mapping
from typing import Any

import datasets

from mezzotint_training.config.errors import UserError


def is_template(entry: str) -> bool:
    """Whether an entry of `caption_column` is a template; any other is the name of a column."""
    return "{" in entry or "}" in entry


def columns_of(entry: str) -> list[str]:
    """The columns that an entry of `caption_column` reads.

    Raises:
        UserError: for a template that cannot be read.
    """
    return [name for _, name in _parts(entry) if name is not None] if is_template(entry) else [entry]


def reader(entry: str, features: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
    """What an entry of `caption_column` makes of a row: a column's cell, or the text of a template, `None` where one of
    its fields is empty or missing.

    Args:
        features: of the row's columns, which `check_fields` has passed.
    """
    if not is_template(entry):
        return operator.itemgetter(entry)
    parts = _parts(entry)

    def caption(row: Mapping[str, Any]) -> str | None:
        text = ""
        for literal, name in parts:
            text += literal
            if name is not None:
                cell = written(row[name], features[name])
                if not cell.strip():
                    return None
                text += cell
        return text

    return caption


def check_fields(entry: str, features: Mapping[str, Any]) -> None:
    """Check that each field of a template can be written as text.

    Raises:
        UserError: for one that cannot.
    """
    for name in columns_of(entry):
        inner = getattr(features[name], "feature", features[name])  # of a list
        text = isinstance(inner, datasets.Value) and "binary" not in inner.dtype
        if not text and not isinstance(inner, datasets.ClassLabel):
            raise UserError(
                f"caption_column {entry!r} must be of text, numbers, classes and lists of these: "
                f"{name!r} holds {features[name]}"
            )


def written(cell: Any, feature: Any) -> str:
    """A cell as it stands in a caption: a class by its name, a list joined by commas; empty where there is nothing."""
    if isinstance(cell, (list, tuple)):
        texts = (written(item, feature.feature) for item in cell)
        return ", ".join(text for text in texts if text.strip())
    if cell is None or cell != cell:  # NaN
        return ""
    if isinstance(feature, datasets.ClassLabel):
        return feature.names[cell] if 0 <= cell < len(feature.names) else ""
    return f"{cell:g}" if isinstance(cell, float) else str(cell)


def _parts(template: str) -> list[tuple[str, str | None]]:
    """Pairs of text and the column that follows it, if any does."""
    rule = (
        f"caption_column {template!r} must have columns in braces, as '{{text}}' (a brace itself is '{{{{' or '}}}}')"
    )
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{rule}: {error}") from None
    for _, name, spec, conversion in parts:
        if name is not None and (not name or spec or conversion):
            got = f"{{{name}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}}}"
            raise UserError(f"{rule}: got {got!r}")
    if all(name is None for _, name, *_ in parts):
        raise UserError(f"{rule}: got none")
    return [(literal, name) for literal, name, *_ in parts]
