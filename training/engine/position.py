# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Where a run is: the updates that it has taken and skipped, and its time. The tensors are the learner's."""

import math
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mezzotint_training.config.errors import CannotGoOn
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.engine import checkpoint
from mezzotint_training.engine.process import end_together


class Position:
    """The place of a run between its first update and its last.

    Attributes:
        step: updates taken, skipped ones included.
        skipped_steps: updates without a finite gradient.
        skipped_in_a_row: those of them since the last finite gradient.
        loss: as last logged; `None` where no finite loss was.
        late: whether the time that the run may take is over.

    Args:
        config: the run's settings.
        began: when the program began, by `time.monotonic`.
    """

    def __init__(self, config: TrainConfig, began: float):
        self.config, self.began = config, began
        self.step = self.skipped_steps = self.skipped_in_a_row = 0
        self.loss: float | None = None
        self.late = False

    @property
    def seconds(self) -> float:
        """The time that the run has taken so far, in all its sessions."""
        return time.monotonic() - self.began

    @property
    def finished(self) -> bool:
        return self.late or self.step >= self.config.max_train_steps

    def due(self, every: int) -> bool:
        """Whether something is to be done now that is done every so many updates, and after the last."""
        return self.finished or self.step % every == 0

    def out_of_time(self) -> bool:
        """Whether this process finds that `max_train_minutes` are over."""
        limit = self.config.max_train_minutes
        return limit is not None and self.seconds >= 60 * limit

    def advance(self, norm: float) -> None:
        """Count an update whose gradient had this norm; where that is not finite, it was skipped."""
        self.step += 1
        if math.isfinite(norm):
            self.skipped_in_a_row = 0
        else:
            self.skipped_steps, self.skipped_in_a_row = self.skipped_steps + 1, self.skipped_in_a_row + 1

    def check(self, output_dir: Path, accelerator: Accelerator) -> None:
        """See that gradients are finite now and then. All processes call this.

        Raises:
            CannotGoOn: in all of them, after more than `max_nonfinite_steps` skipped updates in a row.
        """
        # a scaler starts at 2^16 and halves at each
        if self.skipped_in_a_row > self.config.max_nonfinite_steps + (16 if accelerator.scaler else 0):
            last = checkpoint.found(output_dir)
            end_together(accelerator)
            raise CannotGoOn(
                f"no finite gradient in the {self.skipped_in_a_row} updates up to step {self.step}; the last "
                f"checkpoint is {last[-1] if last else 'not written yet'}; --resume_from_checkpoint takes it into "
                "another output_dir with a lower learning_rate"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, beside its step."""
        names = ("seconds", "loss", "skipped_steps", "skipped_in_a_row")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, where a checkpoint was written."""
        self.step = state["step"]
        self.began -= state["seconds"]
        self.loss, self.skipped_steps = state["loss"], state["skipped_steps"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
