# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How well the network denoises pictures that it is not trained on: the held-out loss, and what it says of the run.

The pictures, the noise levels and the noise are always the same, whatever the run's seed, so that two figures differ
by what the network learned and by nothing else; and since they are paired picture by picture, small differences count.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator

from mezzotint_training.learning.learner import Learner
from mezzotint_training.learning.objective import denoising_loss

# Where in the schedule, as a share of its timesteps: the middles of four quarters, in the order of the noise
LEVELS = (0.125, 0.375, 0.625, 0.875)
# Differences below so many standard errors are no differences
Z = 2.0
Verdict = Literal["improving", "flat", "overfitting", "worse"]


class HeldOutLoss:
    """Pictures with fixed noise at each of `LEVELS`, shared out to the processes. What else is looked at in the same
    way is a subclass with its own `levels` and `of_batch`.

    Args:
        items: a dict with `sample` (channels, height, width), `caption` and perhaps `condition` and `attributes` for
            each picture, the same in all processes.
        batch_size: of the forward passes.
        accelerator: of the run.
    """

    levels = len(LEVELS)  # losses of each picture

    def __init__(self, items: list[dict[str, Any]], batch_size: int, accelerator: Accelerator):
        self.accelerator, self.count = accelerator, len(items)
        rank, world = accelerator.process_index, accelerator.num_processes
        shapes = [tuple(item["sample"].shape) for item in items]
        self.dealt: list[list[tuple[int, int]]] = [[] for _ in range(world)]  # (picture, level) of each process
        self.batches: list[Any] = []  # lists of (picture, level, item)
        for shape in sorted(set(shapes)):
            pairs = [(i, level) for i in range(len(items)) if shapes[i] == shape for level in range(self.levels)]
            # as many for each process, since a sharded network must be called equally often everywhere
            pairs += [pairs[-1]] * (-len(pairs) % world)
            for process in range(world):
                self.dealt[process] += pairs[process::world]
            mine: list[Any] = [(*pair, items[pair[0]]) for pair in self.dealt[rank][-(len(pairs) // world) :]]
            self.batches += [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]

    @property
    def passes(self) -> int:
        """Pictures that this process passes through the network for one look."""
        return sum(map(len, self.batches))

    @torch.no_grad()
    def losses(self, *network: Any) -> np.ndarray:
        """The loss of each picture at each level, by what `of_batch` takes.

        Returns:
            `np.ndarray` of shape `(pictures, levels)`, the same in all processes.
        """
        mine = [self.of_batch(batch, *network) for batch in self.batches]
        gathered = self.accelerator.gather(torch.cat(mine)).double().cpu().numpy()  # one process after the other
        losses = np.empty((self.count, self.levels))
        for pair, loss in zip((pair for dealt in self.dealt for pair in dealt), gathered, strict=True):
            losses[pair] = loss
        return losses

    def of_batch(self, batch: list[Any], unet: torch.nn.Module, scheduler, encode: Callable) -> torch.Tensor:
        """The losses of some (picture, level, item).

        Args:
            unet: in evaluation mode.
            scheduler (`MezzotintScheduler`): owns the noise levels and the target.
            encode: captions to `(encoder_hidden_states, encoder_attention_mask)`.
        """
        samples = torch.stack([item["sample"] for _, _, item in batch])
        noise = torch.stack(
            [
                torch.randn(item["sample"].shape, generator=torch.Generator().manual_seed(number * len(LEVELS) + i))
                for number, i, item in batch
            ]
        )
        timesteps = torch.tensor([LEVELS[i] for _, i, _ in batch]) * (scheduler.config.num_train_timesteps - 1)
        more = {
            name: torch.stack([item[name] for _, _, item in batch]).to(self.accelerator.device)
            for name in ("condition", "attributes", "embeds")
            if name in batch[0][2]
        }
        tensors = (x.to(self.accelerator.device) for x in (samples, noise, timesteps))
        with self.accelerator.autocast():
            text = encode([item["caption"] for _, _, item in batch])
            return denoising_loss(unet, scheduler, *tensors, *text, **more)


class LossHistory:
    """The held-out losses of a run so far, boiled down to what the next verdict needs.

    `last` are the figures of the last verdict; `state` is what a checkpoint keeps of it all, plain lists and numbers.
    """

    def __init__(self, state: dict[str, Any] | None = None):
        self.best: dict[str, Any] | None = state["best"] if state else None
        self.last: dict[str, Any] | None = state["last"] if state else None

    @property
    def state(self) -> dict[str, Any]:
        return {"best": self.best, "last": self.last}

    def verdict(self, step: int, held_out: np.ndarray, trained_on: np.ndarray) -> dict[str, Any]:
        """What these losses say against the best before, by paired differences over pictures.

        Args:
            step: the update they were taken at.
            held_out (`np.ndarray` of shape `(pictures, levels)`): of pictures that are not trained on.
            trained_on (`np.ndarray` of shape `(pictures, levels)`): of pictures that are.

        Returns:
            figures for the log, and a `verdict`: `improving` (the held-out loss is lower), `flat` (no different),
            `overfitting` (higher, while that of pictures that are trained on is lower) or `worse` (higher, while that
            is not lower); the first time `None`.
        """
        now = {"step": step, "held_out": held_out.mean(1).tolist(), "seen": trained_on.mean(1).tolist()}
        verdict: Verdict | None = None
        if self.best is not None:
            change = _difference(now["held_out"], self.best["held_out"])
            learned = _difference(now["seen"], self.best["seen"]) < 0
            rises: Verdict = "overfitting" if learned else "worse"
            verdict = rises if change > 0 else "improving" if change < 0 else "flat"
        if verdict in (None, "improving"):
            self.best = now
        self.last = {
            "held_out_loss": float(held_out.mean()),
            "held_out_loss_by_noise_level": held_out.mean(0).tolist(),
            "seen_loss": float(trained_on.mean()),
            "verdict": verdict,
        }
        return self.last


class Validation:
    """A run's looks at how well it does on held-out pictures, and beside them on as many that it trains on.

    Args:
        samples: what `HeldOutLoss` takes: the held-out pictures, and those that are trained on. `None` where no
            pictures are held out: `look` then finds nothing.
        batch_size, accelerator: as of `HeldOutLoss`.
        kind: the class of the loss.
    """

    def __init__(
        self,
        samples: tuple[list, list] | None,
        batch_size: int,
        accelerator: Accelerator,
        kind: type[HeldOutLoss] = HeldOutLoss,
    ):
        self.losses = [kind(items, batch_size, accelerator) for items in samples or ()]
        self.history = LossHistory()

    @property
    def passes(self) -> int:
        """Pictures that this process passes through the network, forward only, for one look at the most."""
        return 3 * self.losses[0].passes if self.losses else 0

    def look(self, step: int, learner: Learner, *network: Any) -> dict[str, Any]:
        """What the log says of the network after update `step`: the losses of the weights that are published, with a
        verdict, and where these are an average also the loss of the last ones. All processes call this.

        Args:
            learner: that holds these weights.
            network: what `of_batch` of the loss takes.
        """
        if not self.losses:
            return {}
        held_out, trained_on = self.losses
        raw = {}
        if learner.ema is not None:
            with learner.evaluated():
                raw["held_out_loss_raw"] = float(held_out.losses(*network).mean())
        with learner.averaged():
            both = [part.losses(*network) for part in (held_out, trained_on)]
        return raw | self.history.verdict(step, *both)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"course": self.history.state}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.history = LossHistory(state["course"])


def _difference(after: list[float], before: list[float]) -> int:
    """-1, 0 or 1: lower, no different, higher, by the mean of paired differences against its standard error."""
    difference = np.asarray(after) - np.asarray(before)
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    mean = difference.mean()
    if not np.isfinite(mean):
        return 1
    return 0 if abs(mean) <= Z * error else int(np.sign(mean))
