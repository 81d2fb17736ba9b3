# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Train a text-to-image pipeline.

    accelerate launch training/train.py --recipe digits
    accelerate launch training/train.py --recipe emoji-32 --train_data_dir path/to/emoji-32 --plan
    accelerate launch training/train.py --pretrained_model_name_or_path runs/digits --train_data_dir pictures/

One plain loop, from a batch of pictures to a published pipeline. Settings are in `config.py`, data in `data.py`, models
in `components.py` and `text.py`, the loss in `objective.py`, the state on disk in `checkpoint.py`, what is printed and
logged in `report.py`.

Exit codes: 0 finished, 2 bad input, 3 the run cannot go on (no finite gradients, a full disk), 75 stopped by a signal
(SIGTERM, SIGINT) after writing a checkpoint. In the last two cases the same command goes on where it stopped.
"""

import contextlib
import copy
import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import datasets
import diffusers
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from mezzotint import MezzotintPipeline, MezzotintScheduler
from mezzotint_training import checkpoint, sharding
from mezzotint_training.components import new_components, pretrained_components
from mezzotint_training.config import TrainConfig, UserError, parse_args
from mezzotint_training.finish import draw_samples, finish
from mezzotint_training.folder import previous_run, recipe_yaml
from mezzotint_training.held_out import Course, HeldOut
from mezzotint_training.objective import denoising_loss
from mezzotint_training.optimizers import evaluation_weights, make_optimizer
from mezzotint_training.report import Losses, Report, peak_memory
from mezzotint_training.sources import fixed_items, open_source
from mezzotint_training.text import TextEncoding

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: try again
CANNOT_GO_ON = 3
# Updates that a plan is measured over, of which the first few only warm up
PLANNED_STEPS, WARM_UP_STEPS = 20, 3


class CannotGoOn(Exception):
    """A run that has to end, said in one line with the checkpoint to go on from."""


class Interrupted(Exception):
    """A run that was asked to end, and has written a checkpoint."""


def main(argv: list[str] | None = None) -> int:
    try:
        train(parse_args(argv, description=__doc__))
    except UserError as error:
        # One raised in a data worker comes with that worker's traceback above it
        line = str(error).splitlines()[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
        print(f"mezzotint: {line}", file=sys.stderr)
        return 2
    except CannotGoOn as error:
        print(f"mezzotint: {error}", file=sys.stderr)
        return CANNOT_GO_ON
    except Interrupted as message:
        print(f"mezzotint: {message}", file=sys.stderr)
        return INTERRUPTED
    return 0


@dataclass
class Position:
    """Where a run is, but for its tensors: what a checkpoint keeps of it."""

    step: int = 0
    seconds: float = 0.0
    loss: float | None = None  # as last logged
    skipped_steps: int = 0  # updates without a finite gradient
    skipped_in_a_row: int = 0
    course: dict | None = None  # of the held-out loss
    losses: list = field(default_factory=list)  # since the last line of the log


def train(config: TrainConfig) -> Path:
    """Run `config` to its end and return the folder of the finished pipeline.

    Raises:
        UserError: for bad input, before anything on disk is touched.
        CannotGoOn: for gradients that stay non-finite, or a checkpoint that cannot be written.
        Interrupted: after SIGTERM or SIGINT, with a checkpoint written.
    """
    started = time.time()
    output_dir = Path(config.output_dir)
    accelerator = make_accelerator(config, output_dir)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes

    # 1. The data
    components = pretrained_components(config) if config.pretrained_model_name_or_path else None
    source = open_source(config, components, accelerator)
    config, data = source.config, source.data  # with what `--size` derives
    resumed = previous_run(config, output_dir)
    source.read(progress=accelerator.is_local_main_process)

    # 2. The models
    torch.manual_seed(config.seed)
    components = components or new_components(config, data)
    unet, text_encoder, tokenizer = (components[name] for name in ("unet", "text_encoder", "tokenizer"))
    unet.register_to_config(sample_size=data.size[0] if data.size[0] == data.size[1] else data.size)
    source.normalise(unet.config.sample_mean, unet.config.sample_std)
    # The noise levels are ours to handle whatever sampler a saved pipeline came with (and keeps)
    scheduler = MezzotintScheduler.from_config(components["scheduler"].config)
    train_text = config.train_text_encoder
    if train_text is None:
        train_text = not (config.pretrained_model_name_or_path or config.text_encoder_name_or_path)
    trained = {"unet": unet} | ({"text_encoder": text_encoder} if train_text and text_encoder is not None else {})
    for model in (unet, text_encoder):
        if model is not None:
            model.to(device).requires_grad_(model in trained.values()).train(model in trained.values())
            if config.gradient_checkpointing and model in trained.values():
                model.enable_gradient_checkpointing() if model is unet else model.gradient_checkpointing_enable()
    if config.channels_last:
        unet.to(memory_format=torch.channels_last)
    if config.compile:
        unet.compile()

    # 3. Models on all processes, which may replace their parameters; optimizer, learning rate, moving average
    sharded = sharding.sharded(accelerator)
    published = copy.deepcopy(trained) if sharded and rank == 0 else trained
    models = {name: sharding.prepare(accelerator, model) for name, model in trained.items()}
    named = {f"{name}.{key}": p for name, m in trained.items() for key, p in m.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(config, named, device)
    lr_scheduler = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=min(config.lr_warmup_steps, config.max_train_steps),
        num_training_steps=config.max_train_steps,
    )
    ema = EMAModel(sharding.local(named.values()), decay=config.ema_decay, foreach=True) if config.use_ema else None
    encode = TextEncoding(models.get("text_encoder", text_encoder), tokenizer, accelerator, trained=train_text)
    held_out = seen = None
    if source.held_out is not None:
        images = source.held_out, source.known
        items = [fixed_items(x, min(config.num_validation_samples, len(source.held_out))) for x in images]
        held_out, seen = (HeldOut(x, config.train_batch_size, accelerator) for x in items)

    # 4. Go on where an earlier run of the same command stopped
    now = Position()
    if resumed is not None:
        tensors, state = resumed
        checkpoint.restore(tensors, state, named, optimizer, lr_scheduler, ema, accelerator.scaler)
        now = Position(**{f.name: state[f.name] for f in fields(Position)})
        accelerator.print(f"going on from step {now.step}")
    seconds_before, course, losses = now.seconds, Course(now.course), Losses(accelerator, now.losses)

    accumulation = config.gradient_accumulation_steps
    pictures_a_step = config.train_batch_size * accumulation * world
    optimizer = accelerator.prepare_optimizer(optimizer)
    accelerator.print(
        f"{len(source.known):,} pictures of {data.size[0]}x{data.size[1]}"
        + (f" ({len(source.known.bad)} bad ones skipped)" if source.known.bad else "")
        + f", {sum(p.numel() for p in named.values()):,} trained parameters, updates of {pictures_a_step} pictures, "
        f"{device}, precision {accelerator.mixed_precision}"
    )
    if accelerator.is_main_process:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            (output_dir / "recipe.yaml").write_text(recipe_yaml(config), encoding="utf-8")
        except OSError as error:
            raise UserError(f"output_dir must be a folder to write to: {error}") from None
    if accelerator.log_with:
        accelerator.init_trackers("logs", config={k: str(v) for k, v in asdict(config).items()})
    report = Report(output_dir, accelerator, config.max_train_steps, now.step)
    bad = set(source.known.bad)
    for message in source.known.bad:
        report.say(f"skipped: {message}")

    # 5. The loop
    batches = source.batches(accelerator, now.step)
    first_step = logged_step = now.step
    busy = waited = busy_in_all = 0.0  # seconds in updates and of them for data since the last line of the log; in all
    finished = now.step >= config.max_train_steps
    with signals() as caught:
        while not finished:
            update_started, norm = time.perf_counter(), float("nan")
            for micro in range(accumulation):
                # Dropout inside the networks is the only randomness not in the batch
                torch.manual_seed(
                    int(np.random.SeedSequence([config.seed, now.step, micro, rank]).generate_state(1)[0])
                )
                waiting_since = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - waiting_since
                for message in batch["bad"]:
                    if message not in bad:
                        report.say(f"skipped: {message}")
                        bad.add(message)
                batch |= {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, torch.Tensor)}
                with accelerator.accumulate(*models.values()):
                    with accelerator.autocast():
                        text, mask = encode(batch["captions"])
                        loss = denoising_loss(
                            models["unet"],
                            scheduler,
                            batch["sample"],
                            batch["noise"],
                            batch["uniform"],
                            encoder_hidden_states=text,
                            encoder_attention_mask=mask,
                            augment_labels=batch.get("augment_labels"),
                        )
                    accelerator.backward(loss.mean())
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(named.values(), config.max_grad_norm)
                        norm = float(sharding.gather(norm, keep=True))
                        if math.isfinite(norm) or accelerator.scaler is not None:  # a scaler skips by itself
                            optimizer.step()
                    optimizer.zero_grad()
                losses.add(loss, batch["uniform"])
            lr_scheduler.step()
            now.step += 1
            if math.isfinite(norm):  # the same in all processes, whose gradients are one
                now.skipped_in_a_row = 0
                if ema is not None:
                    ema.step(sharding.local(named.values()))
            else:
                losses.take_back(accumulation)
                now.skipped_steps, now.skipped_in_a_row = now.skipped_steps + 1, now.skipped_in_a_row + 1
            busy += time.perf_counter() - update_started
            now.seconds = seconds_before + time.time() - started
            report.advance()

            # All processes end at the same step
            late = config.max_train_minutes is not None and now.seconds >= 60 * config.max_train_minutes
            votes = torch.tensor([late, bool(caught)], dtype=torch.float32, device=device)
            late, stopped = ((accelerator.reduce(votes, "sum") if world > 1 else votes) > 0).tolist()
            finished = late or now.step == config.max_train_steps
            # a scaler starts at 2^16 and halves at each
            if now.skipped_in_a_row > config.max_nonfinite_steps + (16 if accelerator.scaler else 0):
                last = checkpoint.found(output_dir)
                raise CannotGoOn(
                    f"no finite gradient in the {now.skipped_in_a_row} updates up to step {now.step}; the last "
                    f"checkpoint is {last[-1] if last else 'not written yet'}; --resume_from_checkpoint takes it into "
                    "another output_dir with a lower learning_rate"
                )

            line: dict[str, Any] = {}
            if now.step % config.logging_steps == 0 or finished:
                now.loss, by_noise_level = losses.means()
                line = {
                    "loss": now.loss,
                    "loss_by_noise_level": by_noise_level,
                    "gradient_norm": norm if math.isfinite(norm) else None,
                    "learning_rate": lr_scheduler.get_last_lr()[0],
                    "images_per_second": (now.step - logged_step) * pictures_a_step / busy,
                    "data_wait": waited / busy,
                    "peak_memory": peak_memory(device),
                    "skipped_steps": now.skipped_steps,
                }
                logged_step, busy_in_all, busy, waited = now.step, busy_in_all + busy, 0.0, 0.0
            if now.step % config.validation_steps == 0 or finished:
                with evaluated(trained), evaluation_weights(optimizer):
                    if ema is not None and held_out is not None:
                        line["held_out_loss_raw"] = float(held_out.losses(models["unet"], scheduler, encode).mean())
                    with averaged(ema, named):
                        if held_out is not None:
                            pair = [probe.losses(models["unet"], scheduler, encode) for probe in (held_out, seen)]
                            line |= course.judge(now.step, *pair)
                        if config.validation_prompts and not finished and (sharded or rank == 0):
                            draw_samples(MezzotintPipeline(**components), config, output_dir, now.step, accelerator)
            if line:
                report.write(now.step, **line)
            if now.step % config.checkpointing_steps == 0 or finished or stopped:
                now.course, now.losses = course.state, losses.state()
                if accelerator.is_main_process:
                    tensors, state = checkpoint.capture(named, optimizer, lr_scheduler, ema, accelerator.scaler)
                    state |= {"config": asdict(config), **asdict(now)}
                    checkpoint.save(output_dir, now.step, tensors, state)
                    checkpoint.prune(output_dir, config.checkpoints_total_limit)
                accelerator.wait_for_everyone()
            if stopped and not finished:
                report.close()
                raise Interrupted(f"stopped at step {now.step}, with a checkpoint; the same command goes on from there")
    report.close()

    # 6. The finished pipeline
    with evaluation_weights(optimizer), averaged(ema, named):
        if sharded:
            for name, model in trained.items():
                weights = {key: sharding.gather(x, keep=rank == 0) for key, x in model.state_dict().items()}
                if rank == 0:
                    published[name].load_state_dict(weights)
        if rank == 0:
            updates = now.step - first_step
            figures = {
                "updates": updates,
                "steps": now.step,
                "loss": now.loss,
                "seconds": seconds_before + time.time() - started,
                "images_per_second": updates * pictures_a_step / max(busy_in_all, 1e-9),
                "pictures": len(source.known),
                "bad_pictures": len(bad),
                "skipped_steps": now.skipped_steps,
                "parameters": {
                    name: sum(p.numel() for p in model.parameters())
                    for name, model in (("unet", unet), ("text_encoder", text_encoder))
                    if model is not None
                },
                "peak_memory": peak_memory(device),
                "device": str(device),
                "processor": platform.processor() or platform.machine(),
                "processes": world,
                "threads": torch.get_num_threads(),
                "mixed_precision": accelerator.mixed_precision,
            }
            finish(MezzotintPipeline(**components | published), config, output_dir, figures, accelerator)
    accelerator.wait_for_everyone()  # gloo must not have a collective under way when the process ends
    accelerator.end_training()
    return output_dir


# ------------------------------------------------------------------------------------------------ before the first step


def make_accelerator(config: TrainConfig, output_dir: Path) -> Accelerator:
    """As accelerate is configured, with all the cores of a CPU."""
    available = sorted(str(name) for name in get_available_trackers())
    if config.report_to not in (*available, "auto", "all", "none"):
        raise UserError(
            f"report_to must be 'auto', 'none', 'all' or a tracker that is installed ({', '.join(available)}): "
            f"got {config.report_to!r}"
        )
    tracker = {"auto": "tensorboard" if "tensorboard" in available else None, "none": None}
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=tracker.get(config.report_to, config.report_to),
            project_dir=output_dir,
            step_scheduler_with_optimizer=False,
        )
    except ValueError as error:  # a precision that the device lacks
        raise UserError(" ".join(str(error).split())) from None
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":  # accelerate passes over it there
        raise UserError("mixed_precision fp16 needs a GPU: got a CPU; possible are bf16 and no")
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if launched and accelerator.device.type == "cpu":
        # accelerate's launcher gives a process one thread unless it is told otherwise, and leaves the other cores idle
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return accelerator


# ------------------------------------------------------------------------------------------------------- in the loop


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Within it SIGTERM and SIGINT (Ctrl-C) are noted in the list, for the loop to stop at the end of its step.

    What comes within seconds of the first is the same request, from a launcher that passes it on; a later Ctrl-C
    interrupts at once.
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


@contextlib.contextmanager
def evaluated(models: dict[str, torch.nn.Module]) -> Iterator[None]:
    """Within it the models are in evaluation mode."""
    for model in models.values():
        model.eval()
    try:
        yield
    finally:
        for model in models.values():
            model.train()


@contextlib.contextmanager
def averaged(ema: EMAModel | None, named: dict[str, torch.nn.Parameter]) -> Iterator[None]:
    """Within it the parameters hold their moving average."""
    if ema is not None:
        ema.store(sharding.local(named.values()))
        ema.copy_to(sharding.local(named.values()))
    try:
        yield
    finally:
        if ema is not None:
            ema.restore(sharding.local(named.values()))


if __name__ == "__main__":
    sys.exit(main())
