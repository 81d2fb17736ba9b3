# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How programs fail: errors of one line, and exit codes. Nothing heavy is imported here.

Bad input is a `UserError`, found before any work is done. What comes from outside (a checkpoint, an encoder, a set) is
read within `loading`, whatever its library raises. An error of any other kind is a mistake of this package, and keeps
its traceback.
"""

import contextlib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator

from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: try again
CANNOT_GO_ON = 3
BAD_INPUT = 2


class UserError(Exception):
    """Bad input, as one line: the rule, what was got, what is possible."""


class CannotGoOn(Exception):
    """A program has to end in the middle of its work: one line that says why, and what is left of the work."""


class Interrupted(Exception):
    """A run was asked to end and has written a checkpoint."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """The text of the error at the bottom of a chain of causes, which says more than those that wrap it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:limit] or type(error).__name__


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Within it no library logs or warns: what is wrong is said once, by the program."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """Silences the libraries and raises whatever they raise as one `UserError`, "`what` cannot be loaded: ...".

    diffusers, transformers, tokenizers and safetensors raise their own and plain errors, and Rust's panics, which are
    no `Exception`.
    """
    try:
        with silenced():
            yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise UserError(f"{what} cannot be loaded: {one_line(error)}") from None


def exit_code(program: Callable[[], object], disk_full_hint: str = "") -> int:
    """Run `program` and return the exit code of its process. A failure is printed as one line.

    Args:
        program: with its arguments in it; an `int` that it returns is the code.
        disk_full_hint: appended to the message when the disk is full.

    Returns:
        0, or 2 for bad input, 3 for what the machine or the network refuses in the middle of the work (a full disk, a
        folder that is gone, memory), 75 for a run that was asked to end, 130 for Ctrl-C.
    """
    try:
        code = program()
        return code if isinstance(code, int) and not isinstance(code, bool) else 0
    except UserError as error:
        line = str(error)
        if line.startswith("Caught UserError in "):  # a data worker, whose traceback comes along
            line = line.splitlines()[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
        return _ended(line, BAD_INPUT)
    except CannotGoOn as error:
        return _ended(str(error), CANNOT_GO_ON)
    except Interrupted as message:
        return _ended(str(message), INTERRUPTED)
    except KeyboardInterrupt:
        return _ended("interrupted", 130)
    except (OSError, SafetensorError, HTTPError) as error:
        if disk_is_full(error):
            return _ended(f"the disk is full ({error}){disk_full_hint}", CANNOT_GO_ON)
        if isinstance(error, SafetensorError):  # of a file of ours, where none is expected to be damaged
            raise
        return _ended(one_line(error), CANNOT_GO_ON)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return _ended(f"the memory is full: {one_line(error)}", CANNOT_GO_ON)


def disk_is_full(error: BaseException) -> bool:
    """Whether writing failed because the disk or the quota is full; safetensors says so in words only."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or os.strerror(
        errno.ENOSPC
    ) in str(error)


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had too little memory; torch's CPU allocator says so in words only."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator: can't allocate memory" in str(error)
        or "not enough memory" in str(error)
    )


def _ended(line: str, code: int) -> int:
    """One line that a screen can show, whatever names and values of others are in it."""
    line = " ".join("".join(c if c.isprintable() else " " for c in line).split())
    print(f"mezzotint: {line if len(line) <= 1000 else f'{line[:800]} ... {line[-190:]}'}", file=sys.stderr)
    return code
