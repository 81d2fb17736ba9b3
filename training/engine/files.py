# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Writes files and folders whole or not at all, into a folder that one program at a time writes to.

What is not finished stands in the folder's `.mezzotint`, which is the programs' own: it is cleared by the next one, and
gone when none is at work.
"""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from mezzotint_training.config.errors import CannotGoOn, UserError, disk_is_full

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PRIVATE = ".mezzotint"
LOCK = "lock"
_held: set[int] = set()  # descriptors of this process's locks


def _let_go_in_child() -> None:
    """Close this process's locks in a forked child: a lock lasts until its last descriptor is closed, and a data worker
    may outlive a run that was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go_in_child)


@contextlib.contextmanager
def hold(folder: Path, name: str = "output_dir") -> Iterator[None]:
    """A context in which no other program that holds `folder` likewise writes to it. The folder is made if it is
    missing, and removed again if it stays empty. The lock is the system's (`flock`): it ends with the process, however
    that ends.

    Args:
        folder: to write to.
        name: of the argument that named it, for the messages.

    Raises:
        UserError: for a folder that cannot be made or written to, or is in use.
        CannotGoOn: for one that is removed meanwhile.
    """
    with contextlib.suppress(OSError):  # where nothing is; one look, as others may make it or remove it meanwhile
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise UserError(f"{name} must be a folder: {folder} is a file")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = None
    try:
        lock = _locked(folder, name)
        yield
    except (OSError, SafetensorError):
        if lock is None or folder.is_dir():
            raise
        raise CannotGoOn(f"{name} {folder} is gone: it was moved or removed while it was in use") from None
    finally:
        if lock is not None:
            path = folder / PRIVATE / LOCK
            if _is_in_place(lock, path):  # and not that of another, where the folder was moved and made anew
                path.unlink()
            _held.discard(lock)
            os.close(lock)
        with contextlib.suppress(OSError):  # not empty, or gone
            (folder / PRIVATE).rmdir()
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def _locked(folder: Path, name: str) -> int:
    """Take the folder's lock and return its descriptor; a line in the file says who holds it."""
    path = folder / PRIVATE / LOCK
    try:
        for last in [False] * 1000 + [True]:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except (FileNotFoundError, FileExistsError):  # its last holder may just be removing it
                if last or path.parent.is_file():
                    raise
                continue
            try:
                if _take(lock, path):
                    os.truncate(lock, 0)
                    os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                    _held.add(lock)
                    return lock
            except BlockingIOError:
                holder = os.read(lock, 1000).decode(errors="replace").strip() or "another process"
                raise UserError(f"{name} {folder} is in use by {holder}: wait for its end, or name another") from None
            finally:
                if lock not in _held:
                    os.close(lock)
        raise UserError(f"{name} {folder} is in use by programs that come and go: wait for their end, or name another")
    except OSError as error:
        if disk_is_full(error):
            raise
        raise UserError(f"{name} must be a folder to write to: {error}") from None


def _take(lock: int, path: Path) -> bool:
    """Lock the file; `False` for one that its last holder has just removed from its place.

    Raises:
        BlockingIOError: for one that another process holds.
    """
    try:
        if fcntl is None:
            raise OSError("this system has no flock")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:  # of a file system without locks
        print(f"warning: {path.parent.parent} cannot be locked ({error}): let no other program write to it", flush=True)
        return True
    return _is_in_place(lock, path)


def _is_in_place(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.stat(path))
    except OSError:
        return False


def aside(folder: Path, name: str) -> Path:
    """A new path at which to write what will become `name` in `folder`; its parent exists."""
    private = folder / PRIVATE
    private.mkdir(exist_ok=True)
    return private / f"{name}.{uuid.uuid4().hex}"


def clear(folder: Path) -> None:
    """Remove what is unfinished in `folder`. Only the program that holds the folder may call this."""
    private = folder / PRIVATE
    for path in private.iterdir() if private.is_dir() else ():
        if path.name != LOCK:
            remove(path)
    with contextlib.suppress(OSError):
        private.rmdir()  # where no program holds the folder


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(new: Path, folder: Path, index: str, kind: re.Pattern[str]) -> Iterator[None]:
    """A context that puts the files below `new` into `folder`, over those of the same names: all but the last of them
    are in place within it.

    Args:
        new: removed in the end.
        folder: to put them in; what else is there stays.
        index: the name of the file without which nothing loads the others: it goes first and comes last.
        kind: of names that may not stand beside a new one whose first group is the same.
    """
    names = [path.relative_to(new) for path in sorted(new.rglob("*")) if path.is_file()]
    for name in names:
        make_readable(new / name)
        sync(new / name)
    (folder / index).unlink(missing_ok=True)
    sync(folder)
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name != Path(index):
            shutil.move(new / name, place)  # which may be a link to another disk
        if match := kind.fullmatch(name.name):
            for other in place.parent.iterdir():
                beside = kind.fullmatch(other.name)
                if beside and beside[1] == match[1] and other.relative_to(folder) not in names:
                    other.unlink()
    for place in {folder, *((folder / name).parent for name in names)}:
        sync(place)
    yield
    (new / index).replace(folder / index)
    sync(folder)
    remove(new)


def write_text(path: Path, text: str) -> None:
    """Write a file in its folder's `.mezzotint`, sync it and put it in its place."""
    new = aside(path.parent, path.name)
    new.write_text(text, encoding="utf-8")
    sync(new)
    new.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make sure that a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_readable(path: Path) -> None:
    """Let everyone who may read the folder of a file read the file: safetensors writes it for its owner alone."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def digest(path: Path) -> str:
    """The SHA-256 of a file, read a part at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
