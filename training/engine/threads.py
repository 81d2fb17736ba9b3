# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""CPU threads: how many a training process has, and how they wait for each other.

A program imports this module before torch, whose OpenMP reads its settings once. GNU's OpenMP lets a thread that waits
spin, in the hope that the others come soon. Where another program holds a core they don't, and the spinning takes that
core from the very thread that is waited for: a run falls to a fraction of its share (`benchmarks/busy_machine.py`). So
a thread spins for as long as waiting takes on a machine that has nothing else to do, and then sleeps.
"""

import contextlib
import os
import time
from collections.abc import Iterator

# Turns of the spinning. What the user said stands; the values of a run don't depend on it
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "6000")


def launcher_chose() -> bool:
    """Whether this process has one thread because accelerate's launcher gives each process one where nobody says how
    many (by `OMP_NUM_THREADS`, or the launcher's `--num_cpu_threads_per_process`), whatever the number of cores."""
    if os.environ.get("OMP_NUM_THREADS") != "1" or "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return False
    import psutil

    try:
        launcher = psutil.Process().parent()
        if launcher is None:
            return True
        words = [word.partition("=")[0].replace("-", "_") for word in launcher.cmdline()]
        return "__num_cpu_threads_per_process" not in words and "OMP_NUM_THREADS" not in launcher.environ()
    except psutil.Error:  # the launcher is gone, or another user's
        return True


def settle(count: int | None) -> None:
    """Set the number of this process's threads: `count`; by default what the user said elsewhere, or this process's
    share of the cores that it may use."""
    import torch

    if count is None and launcher_chose():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if count is not None:
        torch.set_num_threads(count)


class Neighbours:
    """The other programs of this machine, from when this is made on."""

    def __init__(self):
        self._began = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds: of this clock, of all cores' work, of this process's."""
        import psutil

        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted twice
        return time.monotonic(), sum(times) - idle - guests, time.process_time()

    def cores(self) -> float:
        """How many cores they have kept busy."""
        passed, work, own = (now - then for now, then in zip(self._now(), self._began, strict=True))
        return max(0.0, (work - own) / max(passed, 1e-9))

    def lines(self) -> list[str]:
        """What is to be said where they take cores that this process's threads want: these then wait for each other,
        and lose more than what is taken."""
        import torch

        threads, others, cores = torch.get_num_threads(), self.cores(), os.cpu_count() or 1
        if threads < 2 or threads + others < cores + 0.5:
            return []
        fewer = max(1, int(cores - others))
        return [
            f"{'busy':<12} other programs keep {others:.1f} of {cores} cores busy, and {threads} threads wait for each "
            f"other: --num_cpu_threads_per_process {fewer} may be faster"
        ]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One thread for what is too small to be shared out: several would wait for each other longer than they work."""
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
