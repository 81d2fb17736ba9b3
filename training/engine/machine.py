# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The machine that a program runs on: its processor or GPU by name, and the energy that a run took of it."""

import contextlib
import logging
import os
import platform
from pathlib import Path
from typing import Any

import torch


def processor() -> str:
    """The CPU by the name that the system has for it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def hardware(device: torch.device) -> str:
    """What computes on `device`, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"GPU of {processor()}"
    return f"{torch.get_num_threads()} of {os.cpu_count()} CPU threads ({processor()})"


class Energy:
    """The energy that this machine takes for a run, where codecarbon is installed: an estimate by its sensors or, where
    there are none, by its tables. Part of a checkpoint's state, so that it counts all sessions of a run.

    Attributes:
        kwh: so far; `None` where it is not counted, or was not in an earlier session.
    """

    def __init__(self, main: bool):
        """Begin to count, in the main process."""
        self.before: float | None = 0.0
        self.tracker: Any = None
        with contextlib.suppress(ImportError):
            from codecarbon import OfflineEmissionsTracker

            if main:
                # The country is for the emissions, which are not told; the energy is the same in each
                self.tracker = OfflineEmissionsTracker(
                    country_iso_code="USA", save_to_file=False, log_level="critical", allow_multiple_runs=True
                )
                logging.getLogger("codecarbon").disabled = True
                self.tracker.start()

    @property
    def kwh(self) -> float | None:
        if self.tracker is None or self.before is None:
            return None
        try:
            self.tracker.flush()
            return self.before + float(self.tracker._total_energy.kWh)
        except Exception:  # whatever its sensors raise: a run does not end for them
            return None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"energy": self.kwh}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`: of a session that was not counted, the sum is not known."""
        self.before = state.get("energy")

    def stop(self) -> float | None:
        """The energy of the whole run, after its end."""
        found = self.kwh
        if self.tracker is not None:
            with contextlib.suppress(Exception):
                self.tracker.stop()
            self.tracker = None
        return found
