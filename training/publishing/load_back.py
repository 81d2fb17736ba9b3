# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Loads back what was saved or uploaded, and compares a picture that it draws with the one that it must draw. It rules
out that a model trains well and its saved pipeline draws garbage."""

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mezzotint.drawing import arguments_of
from mezzotint_training.config.errors import CannotGoOn
from mezzotint_training.config.tasks import picture_channels
from mezzotint_training.publishing import stranger

STEPS = 2  # of a drawing for which nothing else was asked: both ends of the noise levels
GREY_LEVEL = 1 / 255
FEW = 0.01  # share of a picture's values that rounding may move by more than half a grey level


class NotTried(CannotGoOn):
    """The machine did not let a stranger's process come to its end: a signal, or a full disk. It says nothing of the
    pipeline."""


class Source(NamedTuple):
    """Where a pipeline is.

    Attributes:
        pipeline: a folder, or a name on the Hub.
        revision: branch, tag or commit of that name.
        adapters: the folder, or the name on the Hub, of adapters to load into it.
        adapters_revision: branch, tag or commit of those.
    """

    pipeline: str
    revision: str | None = None
    adapters: str | None = None
    adapters_revision: str | None = None


class Drawing(NamedTuple):
    """One drawing that all the components of a pipeline take part in.

    Attributes:
        arguments: of the pipeline's call, plain data.
        inputs: of the call too, pictures and masks as arrays.
        seed: of the starting noise.
    """

    arguments: dict[str, Any]
    inputs: dict[str, np.ndarray]
    seed: int = 0

    def by(self, pipe: Any) -> np.ndarray:
        """The picture that a pipeline draws."""
        return stranger.draw(pipe, *self)


class Verdict(NamedTuple):
    """How far two pictures of one drawing are apart.

    Attributes:
        largest: difference of two values, which are in [0, 1]; infinity for pictures of different sizes, or for one
            that is not finite.
        moved: share of the values that differ by more than half a grey level.
        seconds: that loading and drawing took.
    """

    largest: float
    moved: float
    seconds: float = 0.0

    @property
    def same(self) -> bool:
        return self.moved <= FEW

    def __str__(self) -> str:
        if self.largest == 0:
            return "the same picture, to the bit"
        if self.same:
            return f"the same picture but for rounding, at most {self.largest:.1g} of 1"
        apart = f"up to {self.largest:.2g} of 1" if np.isfinite(self.largest) else "not of its size, or not finite"
        return f"another picture: {self.moved:.0%} of its values differ, {apart}"


def drawing(pipe: Any, prompt: str = "", seed: int = 0, **arguments: Any) -> Drawing:
    """The drawing by which two pipelines like `pipe` are compared, of whatever task.

    Args:
        pipe: of the package, which tells what its call takes.
        prompt: left out where the pipeline reads no text.
        seed: of the starting noise.
        arguments: more of the call's; by default a few steps.
    """
    takes, inputs = arguments_of(type(pipe)), {}
    arguments = {"num_inference_steps": STEPS} | arguments
    if pipe.reads_prompts:
        arguments["prompt"] = prompt
    if "audio_length_in_s" in takes:  # or the last bit of rounding could tell how long it is
        arguments.setdefault("audio_length_in_s", pipe.default_size[0] / pipe.sampling_rate)
    side, task = max(pipe.padded([8])), pipe.trained_for
    ramp = np.linspace(0, 1, picture_channels(pipe.unet.config) * side * side, dtype=np.float32)
    if "image" in takes:
        inputs["image"] = ramp.reshape(1, -1, side, side)
    if "mask_image" in takes:  # the right half of a picture, or a stripe of each class
        halves = np.zeros((1, side, side), np.float32)
        halves[..., side // 2 :] = 1
        classes = np.arange(side * side).reshape(1, side, side) % task.get("num_classes", 2)
        inputs["mask_image"] = halves if "image" in takes else classes.astype(np.uint8)
    if "ensemble_size" in takes:
        arguments["ensemble_size"] = 1
    return Drawing(arguments, inputs, seed)


def compare(there: np.ndarray, here: np.ndarray, seconds: float = 0.0) -> Verdict:
    """How far the picture `there` is from the one `here`, which it must be."""
    if there.shape != here.shape or not (np.isfinite(there).all() and np.isfinite(here).all()):
        return Verdict(float("inf"), 1.0, seconds)
    apart = np.abs(there.astype(np.float64) - here.astype(np.float64))
    return Verdict(float(apart.max()), float((apart > GREY_LEVEL / 2).mean()), seconds)


def as_a_stranger(source: Source, drawing: Drawing, here: np.ndarray) -> Verdict:
    """Load a pipeline in a fresh process, in which mezzotint cannot be imported, by plain diffusers with
    `trust_remote_code=True`; have it draw, on the CPU, and compare. The code in `source` runs there.

    Args:
        source: of the pipeline.
        drawing: to be made.
        here: the picture that it must come to.

    Raises:
        CannotGoOn: in one line, for a pipeline that does not load or draw there; `NotTried` for a machine that is in
            the way.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        asked = source._asdict() | {"arguments": drawing.arguments, "seed": drawing.seed}
        asked |= {"threads": torch.get_num_threads()}
        (folder / stranger.CALL).write_text(json.dumps(asked), encoding="utf-8")
        np.savez(folder / stranger.INPUTS, **drawing.inputs)
        code, said = in_a_process(folder)
        if code != 0:
            why = (
                f"its process was ended by signal {-code}"
                if code < 0
                else (said.strip().splitlines() or ["it wrote nothing"])[-1]
            )
            of_the_machine = code < 0 or os.strerror(errno.ENOSPC) in why or os.strerror(errno.EFBIG) in why
            kind = NotTried if of_the_machine else CannotGoOn
            raise kind(f"it cannot be loaded back where mezzotint is not installed: {why[:400]}")
        there = np.load(folder / stranger.PICTURE, allow_pickle=False)
    return compare(there, here, time.monotonic() - began)


def in_a_process(folder: Path) -> tuple[int, str]:
    """Run `stranger.py` on a folder, with modules of its own. Returns the exit code, negative for a signal, and what it
    wrote to the standard error."""
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules")}
    found = subprocess.run(
        [sys.executable, "-P", stranger.__file__, str(folder)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    return found.returncode, found.stderr
