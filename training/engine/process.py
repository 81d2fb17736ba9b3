# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The process of a run: accelerate's view of it, its threads, and the signals that end it. What it does in between is
the business of `train.py`."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import datasets
import diffusers
import numpy as np
import torch
import transformers
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list

from mezzotint_training.config.errors import Interrupted, UserError, one_line
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.engine import sharding, threads
from mezzotint_training.engine.checkpoint import recover
from mezzotint_training.engine.files import hold


def make_accelerator(config: TrainConfig, output_dir: Path) -> Accelerator:
    """An `Accelerator` as accelerate is configured, in a process with as many threads as were asked for."""
    available = sorted(str(name) for name in get_available_trackers())
    if config.report_to not in (*available, "auto", "all", "none"):
        raise UserError(
            f"report_to must be 'auto', 'none', 'all' or a tracker that is installed ({', '.join(available)}): "
            f"got {config.report_to!r}"
        )
    tracker = {"auto": "tensorboard" if "tensorboard" in available else None, "none": None}
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    try:
        accelerator = Accelerator(
            # where torchrun starts several processes on CPUs, each takes itself for the only one if it is not told
            cpu=several and not getattr(torch, "accelerator", torch.cuda).is_available(),
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=tracker.get(config.report_to, config.report_to),
            project_dir=output_dir,
            step_scheduler_with_optimizer=False,
            # nothing here waits longer but for the main process to upload, or to write to a slow disk
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
        )
    except (ValueError, RuntimeError) as error:  # a precision that the device lacks, a device that is not there
        raise UserError(one_line(error)) from None
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":  # accelerate passes over it there
        raise UserError("mixed_precision fp16 needs a GPU: got a CPU; possible are bf16 and no")
    if accelerator.mixed_precision == "bf16" and accelerator.device.type == "cpu" and not has_bf16():
        accelerator.print(
            f"{'warning':<12} mixed_precision bf16 is slower than float32 on this CPU, which has no instructions for "
            "it: --mixed_precision no is faster"
        )
    if config.num_cpu_threads_per_process is not None or accelerator.device.type == "cpu":
        threads.settle(config.num_cpu_threads_per_process)
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return accelerator


def under_way(
    config: TrainConfig, body: Callable[[Any, Path, Accelerator, float], Path], whole: str | None = None
) -> Path:
    """Call `body` with the settings of a run, its `output_dir`, its accelerator and the time at which it began, and
    return what it does: the folder of what is finished. Nobody else may use the folder meanwhile, which a plan alone
    does not touch.

    Args:
        whole: what is trained, with its verb, if that is whole on each process.

    Raises:
        UserError: for a configuration of accelerate that the run cannot have, or a folder in use.
    """
    began, output_dir = time.monotonic(), Path(config.output_dir)
    accelerator = make_accelerator(config, output_dir)
    if whole is not None and sharding.sharded(accelerator):
        raise UserError(f"{whole} trained whole on each process: got FSDP; possible is DDP")
    if config.plan:
        return body(config, output_dir, accelerator, began)
    with ending_at_once(), sole_use(output_dir, accelerator):
        return body(config, output_dir, accelerator, began)


def has_bf16() -> bool:
    """Whether the CPU has instructions that multiply in bf16 (AVX-512 or AMX, NEON or SVE); true where torch cannot
    tell."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    found = ask() if ask is not None else {}
    return not found or any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


@contextlib.contextmanager
def sole_use(output_dir: Path, accelerator: Accelerator) -> Iterator[None]:
    """A context in which no other run writes to `output_dir`. The first process holds the folder; every process must
    call this.

    Raises:
        UserError: in all processes, as `files.hold` does.
        CannotGoOn: as `files.hold` does.
    """
    with contextlib.ExitStack() as held:
        refusal: list[str | None] = [None]
        if accelerator.is_main_process:
            try:
                held.enter_context(hold(output_dir))
                recover(output_dir)
            except UserError as error:
                refusal = [str(error)]
        broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise UserError(refusal[0])
        yield


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """A context in which SIGTERM raises `Interrupted`, for what comes before the steps and after them and is simply
    done again."""

    def end(number: int, _) -> None:
        raise Interrupted("stopped before the first step or after the last; the same command goes on")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_together(accelerator: Accelerator) -> None:
    """End together with the other processes; no collective may follow.

    Works around a deadlock in gloo (seen with torch 2.13). Its worker thread frees the last tensor shortly after the
    collective and needs the GIL for that, while the destructor of the process group holds the GIL and waits for the
    thread. A short pause lets the thread finish first.
    """
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1 and torch.distributed.get_backend() == "gloo":
        time.sleep(0.3)
    accelerator.end_training()


def stop_at(step: int, report: Any, accelerator: Accelerator) -> NoReturn:
    """End a run that was asked to stop, after its checkpoint is written. All processes call this.

    Args:
        step: of the checkpoint.
        report: of the run, which is closed.

    Raises:
        Interrupted: always.
    """
    report.close()
    end_together(accelerator)
    raise Interrupted(f"stopped at step {step}, with a checkpoint; the same command goes on from there")


def agreed(accelerator: Accelerator, *votes: bool) -> tuple[bool, ...]:
    """For each vote, whether any process gives it: the same in all processes, which must all call this."""
    if accelerator.num_processes == 1:
        return votes
    given = torch.tensor(votes, dtype=torch.float32, device=accelerator.device)
    return tuple((accelerator.reduce(given, "sum") > 0).tolist())


def seed_dropout(*key: int) -> None:
    """Seed torch with a hash of `key`: of the run's seed, the update, the micro-step and the process."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """A context that notes SIGTERM and SIGINT (Ctrl-C) in the list it gives, so that the loop can stop at the end of
    its step.

    A signal within three seconds of the first is the same request, passed on by a launcher; a later Ctrl-C interrupts
    at once.
    """
    caught: list[int] = []
    first = [0.0]

    def note(number: int, _) -> None:
        if number == signal.SIGINT and caught and time.monotonic() > first[0] + 3:
            raise KeyboardInterrupt
        first[0] = first[0] if caught else time.monotonic()
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():  # where Python handles no signals
        yield caught
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
