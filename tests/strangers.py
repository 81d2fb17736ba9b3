"""A stranger's process in a fork of this one, in which mezzotint is neither imported nor found: what a fresh
interpreter takes ten seconds for. `load_back.in_a_process` itself is tested once."""

import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from mezzotint_training.publishing import load_back, stranger


def without_mezzotint(modules: Path) -> None:
    """In a fork: make this process one where mezzotint is not installed, and whose cache of checkpoints' code is the
    folder `modules`."""
    for name in [name for name in sys.modules if name.partition(".")[0] in stranger.OURS]:
        del sys.modules[name]
    sys.modules.update(dict.fromkeys(stranger.OURS))  # importing one of these raises ModuleNotFoundError
    loader = importlib.import_module("diffusers.utils.dynamic_modules_utils")
    loader.HF_MODULES_CACHE = str(modules)


def called(function: Callable, folder: Path):
    """What a function returns in a fork of this process where mezzotint is not installed; it writes below `folder`."""

    def call(end) -> None:
        without_mezzotint(folder / "modules")
        end.send(function())
        os._exit(0)

    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=call, args=(there,))
    process.start()
    there.close()
    try:
        return here.recv()  # EOFError where the function failed, whose traceback is on stderr
    finally:
        process.join()


def in_a_fork(folder: Path) -> tuple[int, str]:
    """In the place of `load_back.in_a_process`."""
    child = os.fork()
    if child == 0:
        try:
            without_mezzotint(folder / "modules")
            why = stranger.run(folder)
            if why is not None:
                (folder / "why").write_text(why)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    why = (folder / "why").read_text() if (folder / "why").is_file() else ""
    return int(bool(why)), why


def forked():
    """A context, and a patch, in which every stranger's process is such a fork."""
    return mock.patch.object(load_back, "in_a_process", in_a_fork)
