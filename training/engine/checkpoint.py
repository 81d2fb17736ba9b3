# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The state of an unfinished run on disk: safetensors for tensors, JSON for the rest, nothing pickled. What is in it is
the business of the learner and the loop; how tensors lie on several processes is `sharding.py`'s.

A checkpoint is one format whatever the sharding: whole tensors, gathered one by one, so that a run goes on with another
number of processes. It is written aside, synced and renamed, so that a folder named `checkpoint-N` is whole; each
file's SHA-256 stands in `state.json`, and so does that of `state.json` itself, so that one damaged later is recognised.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mezzotint_training.config.errors import CannotGoOn, UserError, loading
from mezzotint_training.engine import sharding
from mezzotint_training.engine.files import PRIVATE, aside, clear, digest, make_readable, sync

STATE = "state.json"
OWN_DIGEST = "sha256 of the rest"
NAME = re.compile(r"checkpoint-(0|[1-9][0-9]*)")


class Tensors(Mapping[str, torch.Tensor]):
    """A file of safetensors, of which each tensor is read when it is asked for."""

    def __init__(self, path: Path):
        self.file = safe_open(path, framework="pt")

    def __getitem__(self, name: str) -> torch.Tensor:
        try:
            return self.file.get_tensor(name)
        except SafetensorError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.keys())

    def __len__(self) -> int:
        return len(self.file.keys())

    def shapes(self) -> dict[str, list[int]]:
        return {name: self.file.get_slice(name).get_shape() for name in self}


# ------------------------------------------------------------------------------------------------------------- writing


def save(
    output_dir: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: dict[str, Any],
) -> Path:
    """Write `checkpoint-{step}`: each entry of `tensors` as `{name}.safetensors`, `state` as `state.json`.

    All processes call it, with tensors of the same names; the first one writes. It holds one file's tensors in memory,
    where they are sharded.

    Raises:
        CannotGoOn: in all processes, where the first cannot write; what was there before is left whole.
    """
    final = output_dir / f"checkpoint-{step}"
    groups, failure = _gathered(tensors), None
    if _rank() == 0:
        try:
            new = aside(output_dir, final.name)
            _write(new, groups, {**state, "step": step})
            _put(new, final)
        except (OSError, SafetensorError) as error:
            whole = _newest_whole(output_dir)
            failure = (
                f"checkpoint-{step} cannot be written to {output_dir} ({' '.join(str(error).split())}); "
                f"the last whole checkpoint is {whole or 'none'}"
            )
        finally:
            with contextlib.suppress(OSError):
                clear(output_dir)
    for _ in groups:  # to the end in all processes, since they gather together
        pass
    if failure := _broadcast(failure):
        raise CannotGoOn(failure)
    return final


def prune(output_dir: Path, limit: int | None, step: int) -> None:
    """Keep `limit` checkpoints: that of `step`, which was just written, and the newest others that are whole; remove
    the rest, damaged ones too. Called by the first process."""
    if limit is None:
        return
    kept = 1
    for folder in reversed(found(output_dir)):
        if folder.name == f"checkpoint-{step}":
            continue
        try:
            if kept < limit and _still_whole(folder, (folder / STATE).stat().st_mtime_ns):
                kept += 1
            else:
                _discard(folder)
        except OSError as error:
            print(f"{folder} cannot be removed and stays ({error})", flush=True)


def recover(output_dir: Path) -> None:
    """Put back a checkpoint that a killed process was about to replace, and remove what is unfinished. Only the process
    that holds the folder may call this."""
    for path in (output_dir / PRIVATE).glob("checkpoint-*"):
        final = output_dir / path.stem
        if not os.path.lexists(final):
            with contextlib.suppress(UserError):
                load(path)
                path.rename(final)
    clear(output_dir)


def _gathered(tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    keep = _rank() == 0
    for name, group in tensors.items():
        whole = {key: sharding.gather(tensor, keep) for key, tensor in group.items()}
        yield name, {key: tensor.contiguous() for key, tensor in whole.items() if tensor is not None}


def _write(folder: Path, groups: Iterator[tuple[str, dict[str, torch.Tensor]]], state: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    digests = {}
    for name, group in groups:
        path = folder / f"{name}.safetensors"
        save_file(group, path)
        digests[path.name] = digest(path)
    state = json.loads(json.dumps({**state, "sha256": digests}))  # as it will be read
    (folder / STATE).write_text(json.dumps({**state, OWN_DIGEST: _digest_of(state)}, indent=1), encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        if path.suffix == ".safetensors":
            make_readable(path)
        sync(path)


def _put(new: Path, final: Path) -> None:
    """Rename a checkpoint into its place, so that a whole one is there whenever this is interrupted: the new one, or
    the old one where `recover` finds it."""
    old = None
    if os.path.lexists(final):
        old = aside(final.parent, final.name)
        if not final.is_symlink() and not _holds_nothing_else(final):
            old = final.with_name(f"{final.name}.kept.{uuid.uuid4().hex[:8]}")
            print(f"{final} holds other files than a checkpoint's: it is {old.name} now", flush=True)
        final.rename(old)
    try:
        new.rename(final)
    except OSError:
        if old is not None:
            old.rename(final)
        raise
    sync(final.parent)


def _discard(folder: Path) -> None:
    """Remove a checkpoint: of a link the link, of a folder that holds other files too what `save` wrote."""
    if folder.is_symlink():
        folder.unlink()
    elif _holds_nothing_else(folder):
        folder.rename(aside(folder.parent, folder.name))
        clear(folder.parent)
    else:
        for path in folder.iterdir():
            if _is_ours(path):
                path.unlink()


def _holds_nothing_else(folder: Path) -> bool:
    return folder.is_dir() and all(_is_ours(path) for path in folder.iterdir())


def _is_ours(path: Path) -> bool:
    return path.name == STATE or path.suffix == ".safetensors"


# ------------------------------------------------------------------------------------------------------------- reading


def load(
    folder: Path, check: bool = True, valid: Callable[[dict[str, Any]], object] = bool
) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """What `save` wrote; tensors are read from the files as they are asked for.

    Args:
        check: compare the files with their checksums, unless another process just has.
        valid: called with the state; a ValueError, KeyError or TypeError of it says that this is none of the run's.

    Raises:
        UserError: for a folder that is no checkpoint, or one with a missing or damaged file.
    """
    if not (folder / STATE).is_file():
        raise UserError(f"resume_from_checkpoint must be a checkpoint folder with a {STATE}: got {folder}")
    name = STATE
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        rest = {key: value for key, value in state.items() if key != OWN_DIGEST}
        if OWN_DIGEST in state and state[OWN_DIGEST] != _digest_of(rest):  # those of before have none
            raise ValueError
        step, files = state["step"], state["sha256"]
        named = NAME.fullmatch(folder.name)
        if type(step) is not int or step < 0 or named and int(named[1]) != step:
            raise ValueError
        if not isinstance(files, dict) or any(Path(x).name != x for x in files):
            raise ValueError
        valid(state)
        for name, expected in files.items():
            if not (folder / name).is_file() or check and digest(folder / name) != expected:
                raise ValueError
        return {Path(name).stem: Tensors(folder / name) for name in files}, state
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"checkpoint {folder} is damaged: {name} is not what was written") from None


def restoring(state: dict[str, Any]) -> contextlib.AbstractContextManager:
    """Within it a run takes over what `load` read. Of a state without a digest of its own, which an earlier version
    wrote, anything may be wrong: what is raised is then the checkpoint's fault, and a `UserError`."""
    return contextlib.nullcontext() if OWN_DIGEST in state else loading("the checkpoint to resume from")


def found(output_dir: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    folders = [path for path in output_dir.glob("checkpoint-*") if NAME.fullmatch(path.name)]
    return sorted((path for path in folders if (path / STATE).is_file()), key=lambda path: int(path.name[11:]))


def latest(
    output_dir: Path, valid: Callable[[dict[str, Any]], object] = bool
) -> tuple[dict[str, Tensors], dict[str, Any]] | None:
    """The newest whole checkpoint, or `None` if there is none; damaged ones that are passed over are named on the
    terminal. Where there are several processes, the first one chooses. `valid` is as in `load`."""
    folder = _broadcast(_newest_whole(output_dir, valid, say=True) if _rank() == 0 else None)
    return None if folder is None else load(folder, check=False, valid=valid)


def _newest_whole(output_dir: Path, valid: Callable[[dict[str, Any]], object] = bool, say: bool = False) -> Path | None:
    for folder in reversed(found(output_dir)):
        try:
            load(folder, valid=valid)
            return folder
        except UserError as error:
            if say:
                print(f"{error}; trying the one before", flush=True)
    return None


@functools.cache
def _still_whole(folder: Path, written: int) -> bool:
    """Whether a checkpoint that was written at that time is whole. It is read once in a process, not at each save."""
    try:
        load(folder)
        return True
    except UserError:
        return False


# ------------------------------------------------------------------------------------------------------------ the rest


def _digest_of(state: dict[str, Any]) -> str:
    """The digest of plain data as JSON gives it back, whatever the order of names."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _broadcast(value: Any) -> Any:
    """Broadcast the first process's `value` to all processes."""
    values = [value]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(values)
    return values[0]
