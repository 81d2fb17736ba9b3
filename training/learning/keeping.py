# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Keeps where a run is, and takes it up again: the learner's tensors, and each part's part of the state."""

from pathlib import Path
from typing import Any

from mezzotint_training.engine import checkpoint
from mezzotint_training.learning.learner import Learner


def go_on(previous: tuple[Any, dict[str, Any]], learner: Learner, parts: tuple[Any, ...]) -> None:
    """Take over what a checkpoint holds: the learner its tensors, and each part its part of the state."""
    tensors, state = previous
    with checkpoint.restoring(state):
        learner.restore(tensors, state)
    learner.accelerator.print(f"going on from step {state['step']}")
    for part in parts:
        part.restore(state)


def keep(
    folder: Path, step: int, learner: Learner, parts: tuple[Any, ...], about: dict[str, Any], limit: int | None
) -> None:
    """Write a checkpoint, which `go_on` takes over, and remove the oldest beyond `limit`. All processes call this."""
    tensors, state = learner.state()
    state |= about
    for part in parts:
        state |= part.state()
    checkpoint.save(folder, step, tensors, state)
    if learner.accelerator.is_main_process:
        checkpoint.prune(folder, limit, step)
    learner.accelerator.wait_for_everyone()
