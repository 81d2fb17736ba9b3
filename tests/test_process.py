"""What a program could not do becomes one line and the code that its process ends with."""

import errno
import os

import pytest
from safetensors import SafetensorError

from mezzotint_training.config import UserError
from mezzotint_training.process import CannotGoOn, Interrupted, exit_code

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def raising(error: Exception):
    def program():
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("rank must be 1"), 2, "rank must be 1"),
        (UserError("Traceback ...\nmezzotint_training.config.UserError: row 3 is bad"), 2, "row 3 is bad"),
        (CannotGoOn("no finite gradient"), 3, "no finite gradient"),
        (Interrupted("stopped at step 2"), 75, "stopped at step 2"),
        (FULL, 3, f"the disk is full ({FULL}); it goes on"),
        (SafetensorError(FULL.strerror), 3, f"the disk is full ({FULL.strerror}); it goes on"),
    ],
)
def test_what_could_not_be_done_is_one_line_and_a_code(capsys, error, code, line):
    assert exit_code(raising(error), with_room="; it goes on") == code
    assert capsys.readouterr().err == f"mezzotint: {line}\n"


def test_what_is_done_is_0_and_what_is_unknown_is_raised(capsys):
    assert exit_code(lambda: "a folder") == 0
    for error in (OSError(errno.EACCES, "no"), SafetensorError("damaged"), ValueError("ours")):
        with pytest.raises(type(error)):
            exit_code(raising(error))
    assert capsys.readouterr().err == ""
