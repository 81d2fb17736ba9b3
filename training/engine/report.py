# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What a run says of itself while it goes: `Meter` measures and divides, `Report` shows and writes down: progress on a
terminal or plain lines elsewhere, `metrics.jsonl`, trackers.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.engine.files import write_text
from mezzotint_training.engine.progress import peak_memory

T = TypeVar("T")
SHOWN = {
    "loss": "loss {:.4f}",
    "images_per_second": "{:.0f} images/s",
    "data_wait": "data wait {:.0%}",
    "skipped_steps": "{} skipped",
    "held_out_loss": "held out {:.4f}",
    "verdict": "{}",
    "copy_rate": "copies {:.0%}",
    "picked": "captions picked {:.1%}",
    "psnr": "PSNR {:.2f} dB",
    "ssim": "SSIM {:.4f}",
    "told_apart": "told apart {:.0%}",
}


class Losses:
    """The losses of the micro-steps since the last line of the log, also told apart by where in [0, 1) the noise level
    was drawn from, in quarters from little noise to much."""

    QUARTERS = 4

    def __init__(self, accelerator: Accelerator, entries: list | None = None):
        """`entries` are what `state` returned, of all processes: each takes its own, or the mean of another number."""
        self.accelerator, self.entries = accelerator, []
        if entries:
            per_process = torch.tensor(entries, device=accelerator.device)  # (processes, micro-steps, 1 + 2 * QUARTERS)
            alike = len(per_process) == accelerator.num_processes
            self.entries = list(per_process[accelerator.process_index] if alike else per_process.mean(0))

    def add(self, losses: torch.Tensor, uniform: torch.Tensor) -> None:
        """Of the samples of a micro-step, (B,), with the numbers in [0, 1) that their noise levels were drawn from."""
        quarter = F.one_hot((uniform * self.QUARTERS).long().clamp(max=self.QUARTERS - 1), self.QUARTERS).float()
        losses = losses.detach()
        self.entries.append(torch.cat([losses.mean()[None], losses @ quarter, quarter.sum(0)]))

    def take_back(self, count: int) -> None:
        """Forget the last `count` micro-steps."""
        del self.entries[-count:]

    def means(self) -> tuple[float | None, list[float | None]]:
        """The mean over micro-steps and processes, and that of each quarter; then forget them. `None` is of nothing."""
        if not self.entries:  # in all processes
            return None, [None] * self.QUARTERS
        stacked = torch.stack(self.entries)
        self.entries = []
        loss = self.accelerator.reduce(stacked[:, 0].mean(), "mean")
        sums, counts = self.accelerator.reduce(stacked[:, 1:].sum(0), "sum").chunk(2)
        return loss.item(), [x / n if n else None for x, n in zip(sums.tolist(), counts.tolist(), strict=True)]

    def state(self) -> list:
        """The entries of all processes as plain lists, exact. Every process must call it."""
        if not self.entries:
            return []
        entries = torch.stack(self.entries)
        return self.accelerator.gather(entries[None]).tolist()


class Meter:
    """The losses and the speed of a run since the last line of its log, and its speed in all.

    Args:
        accelerator: of the run.
        pictures: of an update.
        timed: how many updates from the first on are kept in `timed`.
    """

    def __init__(self, accelerator: Accelerator, pictures: int, timed: int = 0):
        self.accelerator, self.pictures = accelerator, pictures
        self.losses = Losses(accelerator)
        self.updates, self.busy = 0, 0.0  # in all, and their seconds
        self.timed: list[tuple[float, float]] = []  # seconds of each of the first updates, and of them for data
        self._most_timed = timed
        self._recent: list[tuple[float, float]] = []  # the same of the updates since the last line of the log
        self._began: float | None = None  # the update that is going on
        self._waited, self._added = 0.0, 0

    def waiting(self, batches: Iterator[T]) -> T:
        """The next batch. The time that it takes is the wait for data; an update begins with its first batch."""
        asked = time.perf_counter()
        if self._began is None:
            self._began = asked
        batch = next(batches)
        self._waited += time.perf_counter() - asked
        return batch

    def add(self, losses: torch.Tensor, uniform: torch.Tensor) -> None:
        """Take in a micro-step; see `Losses.add`."""
        self.losses.add(losses, uniform.to(losses.device))
        self._added += 1

    def advance(self, norm: float) -> None:
        """End an update whose gradient had this norm. Where that is not finite, its losses are forgotten."""
        now = time.perf_counter()
        if not math.isfinite(norm):
            self.losses.take_back(self._added)
        spent = now - (now if self._began is None else self._began)
        self._recent.append((spent, self._waited))
        if self.updates < self._most_timed:
            self.timed.append(self._recent[-1])
        self.updates, self.busy = self.updates + 1, self.busy + spent
        self._began, self._waited, self._added = None, 0.0, 0

    def figures(self, norm: float, learning_rate: float, skipped_steps: int) -> dict[str, Any]:
        """What the log says of the updates since it was last called, of the last one among them its `norm` (where it is
        finite) and `learning_rate`, of the run `skipped_steps`. Every process must call it."""
        loss, by_noise_level = self.losses.means()
        busy, waited = map(sum, zip(*self._recent, strict=True))
        rate = len(self._recent) * self.pictures / busy
        self._recent.clear()
        return {
            "loss": loss,
            "loss_by_noise_level": by_noise_level,
            "gradient_norm": norm if math.isfinite(norm) else None,
            "learning_rate": learning_rate,
            "images_per_second": rate,
            "data_wait": waited / busy,
            "peak_memory": peak_memory(self.accelerator.device),
            "skipped_steps": skipped_steps,
        }

    @property
    def images_per_second(self) -> float:
        """Over all updates so far."""
        return self.updates * self.pictures / max(self.busy, 1e-9)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it. Every process must call it."""
        return {"losses": self.losses.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.losses = Losses(self.accelerator, state["losses"])


class Report:
    """Shows and records the progress of one run: on the terminal, in metrics.jsonl, in trackers. Only the main process
    shows and writes anything.

    Args:
        output_dir: where `metrics.jsonl` is; what an interrupted run wrote there after update `step` is taken out,
            since it comes again.
        accelerator: of the run, whose trackers are written to.
        total, step: the last update, and the one to go on from.
    """

    def __init__(self, output_dir: Path, accelerator: Accelerator, total: int, step: int):
        self.path, self.accelerator, self.total = output_dir / "metrics.jsonl", accelerator, total
        console = Console(stderr=True)
        self.bar = None
        if accelerator.is_main_process:
            if self.path.exists() and not self.path.is_file():
                raise UserError(f"output_dir must hold a file where its log is written: {self.path} is not one")
            if self.path.is_file():
                lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
                kept = [line for line in lines if _step_of(line) <= step]
                if kept != lines:
                    write_text(self.path, "".join(kept))
            if console.is_terminal:
                columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
                self.bar = Progress(*columns, console=console)
                self.task = self.bar.add_task("", total=total, completed=step)
                self.bar.start()

    @classmethod
    def of(cls, config: TrainConfig, accelerator: Accelerator, step: int) -> "Report":
        """The report of a run that goes on from `step`, whose trackers begin with its settings."""
        if accelerator.log_with:
            accelerator.init_trackers("logs", config={k: str(v) for k, v in asdict(config).items()})
        return cls(Path(config.output_dir), accelerator, config.max_train_steps, step)

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.advance(self.task)

    def say(self, message: str) -> None:
        """A line for whoever watches."""
        if self.bar is not None:
            self.bar.console.print(message, markup=False, highlight=False)
        elif self.accelerator.is_main_process:
            print(message, flush=True)

    def write(self, step: int, **values: Any) -> None:
        """One line of `metrics.jsonl` and one point of every tracker; what is not finite is written as `null`."""
        values = {name: finite(value) for name, value in values.items()}
        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float))}
        for name, value in values.items():
            if isinstance(value, list):
                numbers |= {f"{name}/{i}": v for i, v in enumerate(value) if v is not None}
        self.accelerator.log(numbers, step=step)
        if not self.accelerator.is_main_process:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        shown = ", ".join(text.format(values[k]) for k, text in SHOWN.items() if values.get(k) not in (None, 0))
        if self.bar is not None:
            self.bar.update(self.task, description=shown)
        else:
            print(f"step {step:,} of {self.total:,}: {shown}", flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def _step_of(line: str) -> float:
    """The update that a line of `metrics.jsonl` is of; infinity for a line that is none."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("}\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def finite(value: Any) -> Any:
    """Plain data as other programs' JSON can hold them: with `None` in the place of what is not finite."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
