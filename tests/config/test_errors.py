"""What a program could not do becomes one line and the code that its process ends with."""

import errno
import logging
import os
import warnings

import pytest
import torch
from safetensors import SafetensorError

from mezzotint_training.config.errors import CannotGoOn, Interrupted, UserError, exit_code, loading, out_of_memory

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def raising(error: Exception):
    def program():
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("rank must be 1"), 2, "rank must be 1"),
        (
            UserError(
                "Caught UserError in DataLoader worker process 0.\n  ...\n"
                "mezzotint_training.config.errors.UserError: row 3"
            ),
            2,
            "row 3",
        ),
        (UserError("no folder a\nb\x1b[2J\udcff c"), 2, "no folder a b [2J c"),  # a name, which a screen would obey
        (UserError("x" * 10**6), 2, f"{'x' * 800} ... {'x' * 190}"),
        (CannotGoOn("no finite gradient"), 3, "no finite gradient"),
        (Interrupted("stopped at step 2"), 75, "stopped at step 2"),
        (FULL, 3, f"the disk is full ({FULL}); it goes on"),
        (FileNotFoundError(errno.ENOENT, "gone", "runs/x"), 3, "[Errno 2] gone: 'runs/x'"),
        (MemoryError(), 3, "the memory is full: MemoryError"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SafetensorError(FULL.strerror), 3, f"the disk is full ({FULL.strerror}); it goes on"),
    ],
)
def test_what_could_not_be_done_is_one_line_and_a_code(capsys, error, code, line):
    assert exit_code(raising(error), disk_full_hint="; it goes on") == code
    assert capsys.readouterr().err == f"mezzotint: {line}\n"


def test_what_is_done_is_0_and_a_mistake_of_ours_is_raised(capsys):
    assert exit_code(lambda: "a folder") == 0 and exit_code(lambda: 1) == 1
    for error in (SafetensorError("damaged"), ValueError("ours"), KeyError("ours"), RuntimeError("ours")):
        with pytest.raises(type(error)):
            exit_code(raising(error))
    assert capsys.readouterr().err == ""


def test_whatever_a_library_raises_while_it_loads_is_one_line():
    class Panic(BaseException):  # as Rust's are in Python
        pass

    for error in (ValueError("two\nlines"), Panic("deep\n inside"), RecursionError("deep"), KeyError("x")):
        with pytest.raises(UserError) as caught, loading("checkpoint x"):
            raise error
        assert str(caught.value).startswith("checkpoint x cannot be loaded: ") and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="^the rule$"), loading("checkpoint x"):
        raise UserError("the rule")
    for error in (KeyboardInterrupt(), SystemExit(1)):
        with pytest.raises(type(error)), loading("checkpoint x"):
            raise error
    assert logging.root.manager.disable == logging.NOTSET


def test_loading_says_what_is_at_the_bottom_of_the_causes():
    with pytest.raises(UserError, match="cannot be loaded: the cause$"), loading("a set"):
        try:
            raise ValueError("the cause")
        except ValueError as error:
            raise RuntimeError("wrapped") from error


def test_memory_that_is_full_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value) and out_of_memory(MemoryError()) and not out_of_memory(RuntimeError("shape"))


def test_a_library_that_warns_while_it_fails_is_one_line(recwarn):
    with pytest.raises(UserError, match="^it cannot be loaded: it is broken$"), loading("it"):
        warnings.warn("it may be broken", stacklevel=1)
        raise ValueError("it is broken")
    assert not recwarn
