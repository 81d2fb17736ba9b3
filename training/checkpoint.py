# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The state of an unfinished run on disk: safetensors for tensors, JSON for the rest, nothing pickled.

A checkpoint is written aside, synced and renamed, so that a folder named `checkpoint-N` is whole; each file's SHA-256
stands in `state.json`, so that one damaged later is recognised.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mezzotint_training.config import UserError

STATE = "state.json"


def save(output_dir: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> Path:
    """Write `checkpoint-{step}`: each entry of `tensors` as `{name}.safetensors`, `state` as `state.json`."""
    final, aside = output_dir / f"checkpoint-{step}", output_dir / f".checkpoint-{step}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    digests = {}
    for name, group in tensors.items():
        path = aside / f"{name}.safetensors"
        save_file({k: v.detach().cpu().contiguous() for k, v in group.items()}, path)
        digests[path.name] = _digest(path)
    (aside / STATE).write_text(json.dumps({**state, "step": step, "sha256": digests}, indent=1), encoding="utf-8")
    for path in (*aside.iterdir(), aside):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    return final


def load(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """What `save` wrote.

    Raises:
        UserError: for a folder that is no checkpoint, or one with a missing or damaged file.
    """
    if not (folder / STATE).is_file():
        raise UserError(f"resume_from_checkpoint must be a checkpoint folder with a {STATE}: got {folder}")
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        for name, digest in state["sha256"].items():
            if not (folder / name).is_file() or _digest(folder / name) != digest:
                raise UserError(f"checkpoint {folder} is damaged: {name} is not what was written")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"checkpoint {folder} is damaged: {STATE} is not what was written") from None
    return {Path(name).stem: load_file(folder / name) for name in state["sha256"]}, state


def found(output_dir: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    folders = [p for p in output_dir.glob("checkpoint-*") if p.name[11:].isdecimal() and (p / STATE).is_file()]
    return sorted(folders, key=lambda p: int(p.name[11:]))


def latest(output_dir: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]] | None:
    """The newest whole checkpoint, with a word about any damaged one passed over; `None` where there is none."""
    for folder in reversed(found(output_dir)):
        try:
            return load(folder)
        except UserError as error:
            print(f"{error}; trying the one before", flush=True)
    return None


def prune(output_dir: Path, limit: int | None) -> None:
    """Remove the oldest checkpoints beyond `limit`."""
    for folder in found(output_dir)[: -limit if limit else None] if limit else []:
        shutil.rmtree(folder)


def capture(named, optimizer, lr_scheduler, ema, scaler) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """What a run has learned, for `save`.

    Args:
        named: the trained parameters by name.
        optimizer, lr_scheduler: as torch's.
        ema (`diffusers.training_utils.EMAModel`, or `None`): of the parameters in the order of `named`.
        scaler (`torch.amp.GradScaler`, or `None`): of float16 training.
    """
    tensors = {"weights": named, "optimizer": optimizer_tensors(optimizer)}
    state = {"lr_scheduler": lr_scheduler.state_dict(), "scaler": scaler.state_dict() if scaler is not None else None}
    if ema is not None:
        tensors["ema"] = dict(zip(named, ema.shadow_params, strict=True))
        state["ema"] = {k: v for k, v in ema.state_dict().items() if k != "shadow_params"}
    return tensors, state


def restore(tensors, state, named, optimizer, lr_scheduler, ema, scaler) -> None:
    """The inverse of `capture`, into objects made alike.

    Raises:
        UserError: for the weights of another model.
    """
    if {k: v.shape for k, v in tensors["weights"].items()} != {k: v.shape for k, v in named.items()}:
        raise UserError("the checkpoint to resume from holds other weights than this run trains")
    with torch.no_grad():
        for key, parameter in named.items():
            parameter.copy_(tensors["weights"][key])
    load_optimizer(optimizer, tensors["optimizer"])
    lr_scheduler.load_state_dict(state["lr_scheduler"])
    for group, rate in zip(optimizer.param_groups, lr_scheduler.get_last_lr(), strict=True):
        group["lr"] = rate  # torch sets it in the next step of the schedule only
    if ema is not None:
        ema.load_state_dict({**state["ema"], "shadow_params": [tensors["ema"][key] for key in named]})
        ema.to(next(iter(named.values())).device)
    if scaler is not None and state["scaler"]:
        scaler.load_state_dict(state["scaler"])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's moments as a flat dict, by parameter number and name: `3.exp_avg`."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(value) for i, entry in state.items() for name, value in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `optimizer_tensors`; learning rates and the like stay as the optimizer was made."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
