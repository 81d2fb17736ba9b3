# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The rules that numbers, names, files and folders keep, and the lines that say so. Nothing heavy is imported here."""

import contextlib
import difflib
import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mezzotint_training.config.errors import UserError


@dataclass(frozen=True)
class Rule:
    """What a number must be: `words` complete the sentence "seed must be ...", and `holds` tests it. No rule holds for
    NaN."""

    words: str
    holds: Callable[[float], bool]


def at_least(least: float) -> Rule:
    return Rule(f"at least {least:,}", lambda x: x >= least)


def at_most(most: float) -> Rule:
    return Rule(f"at most {most:,}", lambda x: x <= most)


FINITE = Rule("a finite number", math.isfinite)
ABOVE_0 = Rule("a number above 0", lambda x: 0 < x < math.inf)
FROM_0 = Rule("a number from 0", lambda x: 0 <= x < math.inf)
# Beyond it, where no network can follow, products of it overflow
GUIDANCE = (FROM_0, at_most(1000))
SHARE = Rule("in [0, 1]", lambda x: 0 <= x <= 1)
BELOW_1 = Rule("in [0, 1)", lambda x: 0 <= x < 1)
# Counts that nothing else bounds: beyond it arithmetic on dates and machine words ends
COUNT = (at_least(1), at_most(10**9))
# torch takes 64 bits, and pictures are numbered from the seed on
SEED = (at_least(0), Rule("below 2^63", lambda x: x < 2**63))
# Length of a power-function average whose gamma is 0: a plain mean of all steps (EDM2, appendix C.4)
LONGEST = 12**-0.5
# Groups of the jackknife by which figures get their intervals
GROUPS = 20
# Rounds of a zero-shot classification before a caption may drop out
LEAST_ROUNDS = 6
# Positions of a U-Net's patch along an axis
PATCH = (at_least(1), at_most(1024))
# A picture of 8192x8192 pixels is still below Pillow's limit
SIDE = (at_least(1), at_most(8192))


def shown(value: Any) -> str:
    """The value as it stands in a message, however long it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits than Python writes, or lists in lists without end
        return f"a very long {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text):,} characters)"


def number(name: str, kind: type, value: Any, *rules: Rule) -> Any:
    """The value as an `int` or a `float` that keeps the rules.

    Raises:
        UserError: for a value that is not such a number, or breaks a rule.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        found = float(value) if kind is float else value if isinstance(value, int) else _whole(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name} must be of type {kind.__name__}: got {shown(value)}") from None
    for rule in rules:
        if not rule.holds(found):
            raise UserError(f"{name} must be {rule.words}: got {shown(found)}")
    return found


def _whole(value: Any) -> int:
    """A whole number as people write it; 1e4 is one."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return int(value)  # a float has 53 bits
    found = float(value)
    if not found.is_integer():
        raise ValueError
    return int(found)


def nearest(name: str, known: list[str]) -> str:
    """The end of an error's line: "; did you mean ...?" with the known name most like `name`, or nothing if none is."""
    match = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else ""


def writable_file(name: str, path: Path) -> Path:
    """The path of a file, after a check that it can be written: before the work whose result it will hold.

    Raises:
        UserError: for a folder, or a file in a folder that is not there or may not be written to.
    """
    if path.is_dir():
        raise UserError(f"{name} must be a file: got the folder {path}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{name} must be in a folder that is there: got {path}")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise UserError(f"{name} must be a file that may be written: got {path}")
    return path


def writable_folder(name: str, path: Path) -> Path:
    """The path of a folder, after a check that files can be written in it.

    Raises:
        UserError: for one that is read-only.
    """
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{name} must be a folder that may be written to: got {path}")
    return path


def new_folder(name: str, path: Path) -> Path:
    """The path of a folder, after a check that it is new or empty, so that nothing is lost.

    Raises:
        UserError: for one with something in it, or a place where none can be made.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{name} must be a new or an empty folder: got {path}")
    place = path.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{name} must be a folder to write to: got {path}")
    return path


def known_arguments(arguments: dict[str, Any], cls: type) -> dict[str, Any]:
    """Return `arguments` if `cls` takes all of them; a UserError names the first that it does not take."""
    known = [name for name in inspect.signature(cls).parameters if name not in ("args", "kwargs")]
    for name in arguments:
        if name not in known:
            raise UserError(f"{cls.__name__} has no argument {shown(name)}{nearest(str(name), known)}")
    return arguments
