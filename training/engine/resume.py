# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Decides before the first step whether an output_dir may be used (new, empty, or the same run of the same data) and
from which checkpoint the run goes on; takes one over, and writes one and the settings."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mezzotint import hub
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.recipe import read_recipe, recipe_yaml
from mezzotint_training.config.settings import TrainConfig, checked, default
from mezzotint_training.engine import checkpoint
from mezzotint_training.engine.files import PRIVATE, write_text

# The folder of what is computed once, which may be there before the first step
CACHE = "cache"
# Settings that may differ between a run and its continuation, and where it branches off into a new folder
FREE = {f.name for f in fields(TrainConfig) if f.metadata["on_resume"] == "free"}
BRANCH = FREE | {f.name for f in fields(TrainConfig) if f.metadata["on_resume"] == "branch"}
# What a checkpoint's state must be, but for what `checkpoint.restore` takes
STATE = {
    "seconds": (int, float), "loss": (int, float, type(None)), "skipped_steps": int, "skipped_in_a_row": int,
    "course": (dict, type(None)), "losses": list, "stream": list, "bad": list, "config": dict, "update_size": int,
    "optimizer": (dict, list), "lr_scheduler": dict, "data": dict,
}  # fmt: skip


def previous_run(config: TrainConfig, output_dir: Path, processes: int):
    """The state to go on from: that of `resume_from_checkpoint`, or of a run with the same settings in `output_dir`.
    How the pictures of an update are dealt out to processes and micro-steps may change; their number may not.

    Raises:
        UserError: for a folder that is no checkpoint or one of another run, or an `output_dir` that holds another run
            or other files.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"output_dir must be a folder: {output_dir} is a file")
    recipe, source = output_dir / "recipe.yaml", config.resume_from_checkpoint
    if recipe.is_file():
        same_run(config, read_recipe(output_dir), output_dir, "choose another output_dir, or remove that one")
    elif (
        source != "latest" and output_dir.exists() and any(x.name not in (PRIVATE, CACHE) for x in output_dir.iterdir())
    ):
        raise UserError(f"output_dir must be empty, new, or hold this run: {output_dir} holds other files")
    named = Path(source) if source not in (None, "latest") else None
    inside = named is not None and named.resolve().parent == output_dir.resolve()
    if named is not None and (inside or not checkpoint.found(output_dir)):
        found = checkpoint.load(named, valid=check_state)
        free = FREE if inside else BRANCH
        advice = f"what may change is what is shown and {', '.join(sorted(BRANCH - FREE))}, in another output_dir"
    else:  # a branch that has checkpoints of its own goes on from those
        found, free = checkpoint.latest(output_dir, check_state), FREE
        advice = "a run goes on with the settings that it began with"
    if found is not None:
        place, now = source or output_dir, update_size(config, processes)
        # of the data of a checkpoint of before, the place is all that is known
        same_run(config, found[1]["config"], place, advice, free if "data" in found[1] else free - {"train_data_dir"})
        if free is FREE and found[1]["update_size"] != now:
            raise UserError(
                f"{place} holds another run (updates of {found[1]['update_size']} pictures, now of {now}): "
                "train_batch_size x gradient_accumulation_steps x processes must stay the same"
            )
    elif source is not None:
        raise UserError(f"resume_from_checkpoint is {source!r}, but {output_dir} has no whole checkpoint")
    return found


def update_size(config: TrainConfig, processes: int) -> int:
    """Pictures of an update."""
    return config.train_batch_size * config.gradient_accumulation_steps * processes


def same_run(config: TrainConfig, before: dict, place: Path | str, advice: str, free: set[str] = FREE) -> None:
    now_public = hub.public(asdict(config))  # as `recipe.yaml` has it; a checkpoint has the places themselves
    for name, now in asdict(config).items():
        was = before.get(name, default(name, type(config)))  # of a setting that came later, what it was without it
        with contextlib.suppress(UserError):  # one that is not possible any more is another
            was = checked(name, was, type(config))  # a text alone may be a list of one by now
        if name not in free and was not in (now, now_public[name]):
            raise UserError(f"{place} holds another run ({name} was {was!r}, now {now!r}): {advice}")


def write_recipe(config: TrainConfig, output_dir: Path) -> None:
    """Write `recipe.yaml`, every setting in force with the versions of what ran them, and `.gitignore`, by which git
    and an upload by hand (`hf upload`) leave out what a run keeps for itself. As the folder is published, the recipe
    says no more of where things are on this machine than the last part of each path."""
    write_text(output_dir / "recipe.yaml", recipe_yaml(config))
    ignored = output_dir / ".gitignore"
    if not ignored.exists():
        write_text(ignored, "".join(f"/{pattern}\n" for pattern in hub.OF_THE_RUN))


def go_on(
    previous: tuple[Any, dict[str, Any]], learner: Any, parts: tuple[Any, ...], say: Callable[[str], object]
) -> None:
    """Take over what a checkpoint holds: the learner its tensors, and each part its part of the state."""
    tensors, state = previous
    with checkpoint.restoring(state):
        learner.restore(tensors, state)
    say(f"going on from step {state['step']}")
    for part in parts:
        part.restore(state)


def keep(
    folder: Path,
    step: int,
    learner: Any,
    parts: tuple[Any, ...],
    about: dict[str, Any],
    limit: int | None,
    accelerator: Accelerator,
) -> None:
    """Write a checkpoint, which `go_on` takes over, and remove the oldest beyond `limit`. All processes call this."""
    tensors, state = learner.state()
    state |= about
    for part in parts:
        state |= part.state()
    checkpoint.save(folder, step, tensors, state)
    if accelerator.is_main_process:
        checkpoint.prune(folder, limit, step)
    accelerator.wait_for_everyone()


def check_state(state: dict[str, Any]) -> None:
    """Raises:
    ValueError, KeyError: for a checkpoint's state that no run wrote.
    """
    for name, kind in STATE.items():
        value = state[name] if name != "data" else state.get(name, {})  # which those of before have not
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(name)


def same_data(state: dict[str, Any], now: dict[str, Any], place: Path | str, say: Callable[[str], object]) -> None:
    """Compare the data of a checkpoint's run with those of now, by `source.fingerprint`.

    Raises:
        UserError: for other data. What a checkpoint of an earlier version did not note is taken for the same.
    """
    before = state.get("data")
    if before is None:
        say("the checkpoint is of a version that did not note what the data were: it is not known if they are the same")
        return
    for name, value in now.items():
        if name in before and before[name] != value:
            was = f"{name} were {before.get(name)}, now {value}" if isinstance(value, int) else f"other {name}"
            raise UserError(
                f"{place} holds a run on other data ({was}): a run goes on with the data that it began with; "
                "pretrained_model_name_or_path goes on from its finished pipeline with others, in another output_dir"
            )
