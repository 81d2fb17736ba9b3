# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Train a text-to-image pipeline.

    accelerate launch training/train.py --recipe digits
    accelerate launch training/train.py --recipe emoji-32 --train_data_dir path/to/emoji-32 --plan
    accelerate launch training/train.py --pretrained_model_name_or_path runs/digits --train_data_dir pictures/

One plain loop, from a batch of pictures to a published pipeline. Settings are in `config/settings.py`, data in
`data/source.py`, models in `networks/`, the loss in `learning/objective.py`, the state on disk in
`engine/checkpoint.py`, what is printed and logged in `engine/report.py`.

Exit codes: 0 finished, 2 bad input, 3 the run cannot go on (no finite gradients, a full disk), 75 stopped by a signal
(SIGTERM, SIGINT) after writing a checkpoint, or by SIGTERM before the first step or after the last. In the last two
cases the same command goes on where it stopped.
"""

import mezzotint_training  # noqa: F401 (before torch: it decides how threads wait)

# isort: split
import contextlib
import copy
import itertools
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from mezzotint import MezzotintPipeline, MezzotintScheduler
from mezzotint_training.config.errors import CannotGoOn, Interrupted, UserError, exit_code, loading
from mezzotint_training.config.flags import parse_args
from mezzotint_training.config.rules import at_most, number
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.dataset import collate
from mezzotint_training.data.lint import lint
from mezzotint_training.data.source import Source, fixed_items, open_source
from mezzotint_training.engine import checkpoint, plan, sharding
from mezzotint_training.engine.process import ending_at_once, leave, make_accelerator, signals, sole_use
from mezzotint_training.engine.progress import peak_memory
from mezzotint_training.engine.report import Losses, Report
from mezzotint_training.engine.resume import previous_run, same_data, update_size, write_recipe
from mezzotint_training.learning.averages import PowerFunctionAverages, drop_snapshots_after, save_snapshot
from mezzotint_training.learning.held_out import Course, HeldOut
from mezzotint_training.learning.objective import denoising_loss, draw_timesteps
from mezzotint_training.learning.optimizers import evaluation_weights, make_optimizer
from mezzotint_training.networks.adapters import add_adapters
from mezzotint_training.networks.components import new_components
from mezzotint_training.networks.saved import check_finite, pretrained_components
from mezzotint_training.networks.text import TextEncoding, train_what_is_read
from mezzotint_training.publishing.checks import problems
from mezzotint_training.publishing.finish import draw_samples, finish


def main(argv: list[str] | None = None) -> int:
    return exit_code(
        lambda: train(parse_args(argv, description=__doc__)),
        disk_full_hint="; free some space and run the same command again",
    )


@dataclass
class Position:
    """Where a run is, but for its tensors: what a checkpoint keeps of it."""

    step: int = 0
    seconds: float = 0.0
    loss: float | None = None  # as last logged
    skipped_steps: int = 0  # updates without a finite gradient
    skipped_in_a_row: int = 0
    course: dict | None = None  # of the held-out loss
    losses: list = field(default_factory=list)  # of each process, since the last line of the log
    stream: list = field(default_factory=list)  # where each process stands in a streamed set
    bad: list = field(default_factory=list)  # a line for each bad row met so far


def train(config: TrainConfig) -> Path:
    """Run `config` to its end and return the folder of the finished pipeline.

    Raises:
        UserError: for bad input, an `output_dir` in use among it, before anything on disk is touched.
        CannotGoOn: for gradients that stay non-finite, a checkpoint that cannot be written, or an `output_dir` that is
            removed meanwhile.
        Interrupted: after SIGTERM or SIGINT, with a checkpoint written if there was a step.
    """
    started, output_dir = time.monotonic(), Path(config.output_dir)
    accelerator = make_accelerator(config, output_dir)
    if config.plan:
        return _train(config, output_dir, accelerator, started)
    with ending_at_once(), sole_use(output_dir, accelerator):
        return _train(config, output_dir, accelerator, started)


def _train(config: TrainConfig, output_dir: Path, accelerator: Accelerator, started: float) -> Path:
    stop_at_bad_rows = config.on_bad_row == "stop"
    if config.plan:  # which shows all of them
        config = copy.copy(config)
        config.on_bad_row = "skip"
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    say = accelerator.print

    # 1. The data
    components = pretrained_components(config) if config.pretrained_model_name_or_path else None
    source = open_source(config, components, accelerator)
    config, data = source.config, source.data  # with what `--size` derives
    resumed = previous_run(config, output_dir, world)
    source.read(progress=accelerator.is_local_main_process)
    fingerprint = source.fingerprint()
    if resumed is not None:
        same_data(resumed[1], fingerprint, config.resume_from_checkpoint or output_dir, say)

    # 2. The models
    torch.manual_seed(config.seed)
    components = components or new_components(config, data)
    unet, text_encoder, tokenizer = (components[name] for name in ("unet", "text_encoder", "tokenizer"))
    unet.register_to_config(sample_size=data.size[0] if data.size[0] == data.size[1] else data.size)
    source.normalise(unet.config.sample_mean, unet.config.sample_std)
    # The noise levels are ours to handle whatever sampler a saved pipeline came with (and keeps)
    scheduler = MezzotintScheduler.from_config(components["scheduler"].config)
    number("num_inference_steps", int, config.num_inference_steps, at_most(len(scheduler)))
    train_text = config.train_text_encoder
    if train_text is None:
        train_text = not (config.pretrained_model_name_or_path or config.text_encoder_name_or_path)
    trained = {"unet": unet} | ({"text_encoder": text_encoder} if train_text and text_encoder is not None else {})
    for name, model in (("unet", unet), ("text_encoder", text_encoder)):
        if model is not None:
            check_finite(name, model)
            model.to(device).requires_grad_(model in trained.values()).train(model in trained.values())
    if config.adapter is not None:
        add_adapters(config, unet, text_encoder, train_text)
    elif "text_encoder" in trained:
        train_what_is_read(text_encoder)
    if config.gradient_checkpointing:
        for name, model in trained.items():
            if name == "unet":
                model.enable_gradient_checkpointing()
            else:  # by the name of transformers from 5.23 on, or the one before
                getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    if config.channels_last:
        unet.to(memory_format=torch.channels_last)
    if config.compile:
        unet.compile()

    # 3. Models on all processes, which may replace their parameters; optimizer, learning rate, moving average
    sharded = sharding.sharded(accelerator)
    if sharded and config.optimizer not in ("adamw", "schedule_free"):
        raise UserError(f"optimizer {config.optimizer} needs whole matrices: got FSDP; possible is adamw")
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
    lengths = None
    if config.posthoc_ema_steps is not None:
        lengths = PowerFunctionAverages(dict(zip(named, sharding.local(named.values()), strict=True)))
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
        # a state of before has no digest, and may be anything
        with contextlib.nullcontext() if checkpoint.OWN_DIGEST in state else loading("the checkpoint to resume from"):
            checkpoint.restore(tensors, state, named, optimizer, lr_scheduler, ema, accelerator.scaler, lengths)
        now = Position(**{f.name: state[f.name] for f in fields(Position)})
        say(f"going on from step {now.step}")
        if config.streaming and (message := data.load_state_dict(now.stream[min(rank, len(now.stream) - 1)])):
            say(message)
    seconds_before, course, losses = now.seconds, Course(now.course), Losses(accelerator, now.losses)

    optimizer = accelerator.prepare_optimizer(optimizer)

    def losses_of(batch: dict[str, Any]) -> torch.Tensor:
        """The loss of each sample, (B,)."""
        tensors = {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, torch.Tensor)}
        with accelerator.autocast():
            text, mask = encode(batch["captions"])
            return denoising_loss(
                models["unet"],
                scheduler,
                tensors["sample"],
                tensors["noise"],
                draw_timesteps(config, scheduler, batch["uniform"]).to(device, torch.float32),
                encoder_hidden_states=text,
                encoder_attention_mask=mask,
                augment_labels=tensors.get("augment_labels"),
            )

    accumulation = config.gradient_accumulation_steps
    batches = source.batches(accelerator, now.step)
    clock: list[tuple[float, float]] = []  # seconds of each update since the last line of the log, and of them for data
    bad = {*now.bad, *source.known.bad}

    def update() -> float:
        """One update of the weights. Returns the norm of its gradient; where that is not finite, it was skipped."""
        began, waited, norm = time.perf_counter(), 0.0, math.nan
        for micro in range(accumulation):
            # Dropout inside the networks is the only randomness not in the batch
            key = [config.seed, now.step, micro, rank]
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
            waiting_since = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - waiting_since
            for message in set(batch["bad"]) - bad:
                say(f"skipped: {message}")
                bad.add(message)
            with accelerator.accumulate(*models.values()):
                loss = losses_of(batch)
                accelerator.backward(loss.mean())
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(named.values(), config.max_grad_norm)
                    norm = float(sharding.gather(norm, keep=True))
                    if math.isfinite(norm) or accelerator.scaler is not None:  # a scaler skips by itself
                        optimizer.step()
                optimizer.zero_grad()
            losses.add(loss, batch["uniform"].to(device))
        lr_scheduler.step()
        now.step += 1
        if math.isfinite(norm):  # the same in all processes, whose gradients are one
            now.skipped_in_a_row = 0
            if ema is not None:
                ema.step(sharding.local(named.values()))
        else:
            losses.take_back(accumulation)
            now.skipped_steps, now.skipped_in_a_row = now.skipped_steps + 1, now.skipped_in_a_row + 1
        if lengths is not None:
            lengths.update(dict(zip(named, sharding.local(named.values()), strict=True)), now.step)
        clock.append((time.perf_counter() - began, waited))
        return norm

    # 5. What the run will do and cost, before it does
    first_step, pictures_a_step = now.step, update_size(config, world)
    looks = 3 * held_out.passes if held_out is not None else 0
    planned = foresee(source, components, named, optimizer, losses_of, accelerator)
    for line in plan.lines(planned, every_row=config.plan):
        say(line)
    if config.plan:
        if bad and stop_at_bad_rows:
            say(f"{'warning':<12} the run will stop at the first of these rows; --on_bad_row skip goes on without them")
        for _ in range(plan.STEPS):
            update()
        planned["time"] = plan.seconds(config, *zip(*clock, strict=True), first_step, world, looks)
        for line in plan.time_lines(planned["time"]):
            say(line)
        say(json.dumps(planned))
        leave(accelerator)
        return output_dir
    if rank == 0:
        write_recipe(config, output_dir)
        drop_snapshots_after(output_dir, now.step)
    if not config.streaming:
        captions = itertools.chain.from_iterable(x.texts() for x in (source.known, source.held_out) if x is not None)
        place = config.cache_dir or output_dir / "cache"
        encode.prepare(captions, place, progress=accelerator.is_local_main_process)
    if accelerator.log_with:
        accelerator.init_trackers("logs", config={k: str(v) for k, v in asdict(config).items()})
    report = Report(output_dir, accelerator, config.max_train_steps, now.step)
    say = report.say

    # 6. The loop
    logged_step, busy_in_all, planned_over = now.step, 0.0, []
    finished = now.step >= config.max_train_steps
    with signals() as caught:
        while not finished:
            norm = update()
            now.seconds = seconds_before + time.monotonic() - started
            report.advance()
            if now.step - first_step <= plan.STEPS:
                planned_over.append(clock[-1])
                if len(planned_over) == plan.STEPS:
                    planned["time"] = plan.seconds(config, *zip(*planned_over, strict=True), now.step, world, looks)
                    for line in plan.time_lines(planned["time"]):
                        say(line)

            # All processes end at the same step
            late = config.max_train_minutes is not None and now.seconds >= 60 * config.max_train_minutes
            stopped = bool(caught)
            if world > 1:
                votes = torch.tensor([late, stopped], dtype=torch.float32, device=device)
                late, stopped = (accelerator.reduce(votes, "sum") > 0).tolist()
            finished = late or now.step == config.max_train_steps
            # a scaler starts at 2^16 and halves at each
            if now.skipped_in_a_row > config.max_nonfinite_steps + (16 if accelerator.scaler else 0):
                last = checkpoint.found(output_dir)
                leave(accelerator)
                raise CannotGoOn(
                    f"no finite gradient in the {now.skipped_in_a_row} updates up to step {now.step}; the last "
                    f"checkpoint is {last[-1] if last else 'not written yet'}; --resume_from_checkpoint takes it into "
                    "another output_dir with a lower learning_rate"
                )

            line: dict[str, Any] = {}
            if now.step % config.logging_steps == 0 or finished:
                now.loss, by_noise_level = losses.means()
                busy, waited = map(sum, zip(*clock, strict=True))
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
                logged_step, busy_in_all = now.step, busy_in_all + busy
                clock.clear()
            if now.step % config.validation_steps == 0 or finished:
                with evaluated(trained), evaluation_weights(optimizer):
                    if ema is not None and held_out is not None:
                        line["held_out_loss_raw"] = float(held_out.losses(models["unet"], scheduler, encode).mean())
                    with averaged(ema, named):
                        if held_out is not None:
                            pair = [probe.losses(models["unet"], scheduler, encode) for probe in (held_out, seen)]
                            line |= course.judge(now.step, *pair)
                        if config.validation_prompts and not finished and (sharded or rank == 0):
                            pipe = MezzotintPipeline(**components).to(device)
                            draw_samples(pipe, config, output_dir, now.step, accelerator)
                            encode.release()
            if line:
                report.write(now.step, **line)
            if lengths is not None and (now.step % config.posthoc_ema_steps == 0 or finished):
                tensors = {}
                for key, x in lengths.tensors().items():
                    x = sharding.gather(sharding.like(x, named[key.partition("/")[2]]), keep=rank == 0)
                    tensors |= {key: x} if rank == 0 else {}
                if rank == 0:
                    save_snapshot(output_dir, now.step, tensors)
            if now.step % config.checkpointing_steps == 0 or finished or stopped:
                now.course, now.losses = course.state, losses.state()
                now.stream = gather_object([data.state_dict()]) if config.streaming else []
                now.bad = sorted(set(gather_object(list(bad))))
                tensors, state = checkpoint.capture(named, optimizer, lr_scheduler, ema, accelerator.scaler, lengths)
                state |= {"config": asdict(config), "update_size": pictures_a_step, "data": fingerprint, **asdict(now)}
                checkpoint.save(output_dir, now.step, tensors, state)
                if rank == 0:
                    checkpoint.prune(output_dir, config.checkpoints_total_limit, now.step)
                accelerator.wait_for_everyone()
            if stopped and not finished:
                report.close()
                leave(accelerator)
                raise Interrupted(f"stopped at step {now.step}, with a checkpoint; the same command goes on from there")
    report.close()

    # 7. The finished pipeline
    now.bad = sorted(set(gather_object(list(bad))))
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
                "seconds": seconds_before + time.monotonic() - started,
                "images_per_second": updates * pictures_a_step / max(busy_in_all, 1e-9),
                "pictures": len(source.known),
                "bad_rows": len(now.bad),
                "skipped_steps": now.skipped_steps,
                "parameters": {
                    name: sum(p.numel() for p in model.parameters() if p.requires_grad or config.adapter is None)
                    for name, model in (("unet", unet), ("text_encoder", text_encoder))
                    if model is not None and (name in trained or config.adapter is None)
                },
                "peak_memory": peak_memory(device),
                "device": str(device),
                "processor": platform.processor() or platform.machine(),
                "processes": world,
                "threads": torch.get_num_threads(),
                "mixed_precision": accelerator.mixed_precision,
                "held_out": course.last,
                "plan": planned,
            }
            finish(MezzotintPipeline(**components | published), config, output_dir, figures, accelerator)
    leave(accelerator)
    return output_dir


# ------------------------------------------------------------------------------------------------ before the first step


def foresee(
    source: Source,
    components: dict[str, Any],
    named: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    losses_of: Callable[[dict[str, Any]], torch.Tensor],
    accelerator: Accelerator,
) -> dict[str, Any]:
    """The plan, but for its seconds: what the run will do, and the memory that it will take, measured on its data.

    Raises:
        UserError: for a publication that the Hub would refuse, unless this is only to be printed.
    """
    config, known, device, world = source.config, source.known, accelerator.device, accelerator.num_processes
    tokenizer = components["tokenizer"]
    limits = {} if tokenizer is None else {"count_tokens": lambda text: len(tokenizer(text).input_ids)}
    found = lint(known, min(getattr(tokenizer, "model_max_length", config.max_text_length), 2**31), **limits)
    name = config.hub_model_id or Path(config.output_dir).name
    publication: list[Any] = [problems(asdict(config), name) if accelerator.is_main_process else None]
    broadcast_object_list(publication)
    for text, fatal in publication[0]:
        if fatal and not config.plan:
            raise UserError(text)

    buckets = known.bucket[known.good]
    positions = np.flatnonzero(buckets == np.bincount(buckets).argmax())

    def passes(size: int) -> None:
        batch = collate([known[0, int(positions[i % len(positions)])] for i in range(size)])
        with torch.compiler.set_stance("force_eager"):  # one size is compiled for, that of the run
            losses_of(batch).mean().backward()
        optimizer.zero_grad()

    def agreed(vote: bool) -> bool:
        return bool(accelerator.reduce(torch.tensor(float(vote), device=device), "sum") > 0) if world > 1 else vote

    still_to_come = (
        0 if optimizer.state else plan.state_bytes(config, optimizer) // (world if sharding.sharded(accelerator) else 1)
    )
    return {
        "data": found.facts(len(known), known.size),
        "networks": plan.networks(components),
        "batches": plan.batches(config, None if config.streaming else len(known), world),
        "derived": [str(one) for one in source.derived],
        "memory": plan.memory(
            passes,
            lambda: peak_memory(device),
            config.train_batch_size,
            still_to_come,
            plan.available_memory(device, int(os.environ.get("LOCAL_WORLD_SIZE", 1))),
            beyond=config.plan,
            agreed=agreed,
        ),
        "disk": plan.disk(config, named, components, optimizer),
        "problems": [text for text, _ in publication[0]],
    }


# ------------------------------------------------------------------------------------------------------- in the loop


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
