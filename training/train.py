# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Train a text-to-image pipeline.

    accelerate launch training/train.py --recipe digits
    accelerate launch training/train.py --recipe emoji-32 --train_data_dir path/to/emoji-32 --plan
    accelerate launch training/train.py --pretrained_model_name_or_path runs/digits --train_data_dir pictures/

One plain loop, from a batch of pictures to a published pipeline. Settings are in `config/settings.py`, data in
`data/source.py`, models in `networks/`, the loss in `learning/objective.py`, what the loss changes in
`learning/learner.py`, the state on disk in `engine/checkpoint.py`, what is printed and logged in `engine/report.py`.

Exit codes: 0 finished, 2 bad input, 3 the run cannot go on (no finite gradients, a full disk), 75 stopped by a signal
(SIGTERM, SIGINT) after writing a checkpoint, or by SIGTERM before the first step or after the last. In the last two
cases the same command goes on where it stopped.
"""

import mezzotint_training  # noqa: F401 (before torch: it decides how threads wait)

# isort: split
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import mezzotint
from mezzotint import MezzotintScheduler
from mezzotint_training.config import tasks
from mezzotint_training.config.errors import exit_code
from mezzotint_training.config.flags import parse_args
from mezzotint_training.config.rules import at_most, number
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.source import Source, fingerprint, look_at, open_rows, sized
from mezzotint_training.engine import plan
from mezzotint_training.engine.machine import Energy
from mezzotint_training.engine.position import Position
from mezzotint_training.engine.process import (
    agreed,
    end_together,
    seed_dropout,
    signals,
    stop_at,
    under_way,
)
from mezzotint_training.engine.report import Meter, Report
from mezzotint_training.engine.resume import CACHE, go_on, keep, previous_run, same_data, update_size, write_recipe
from mezzotint_training.engine.threads import Neighbours
from mezzotint_training.learning.averages import drop_snapshots_after
from mezzotint_training.learning.held_out import Validation
from mezzotint_training.learning.learner import Learner
from mezzotint_training.learning.objective import training_loss
from mezzotint_training.metrics.onset import CopyWatch
from mezzotint_training.networks.components import left_as_they_are, make_trainable, new_components
from mezzotint_training.networks.frozen import Frozen
from mezzotint_training.networks.latents import load_autoencoder
from mezzotint_training.networks.saved import pretrained_components
from mezzotint_training.networks.text import TextEncoding
from mezzotint_training.publishing.checks import foresee
from mezzotint_training.publishing.examples import examples
from mezzotint_training.publishing.finish import draw_samples, figures, finish


def main(argv: list[str] | None = None) -> int:
    return exit_code(
        lambda: train(parse_args(argv, description=__doc__)),
        disk_full_hint="; free some space and run the same command again",
    )


def train(config: TrainConfig) -> Path:
    """Run `config` to its end and return the folder of the finished pipeline.

    Raises:
        UserError: for bad input, an `output_dir` in use among it, before anything on disk is touched.
        CannotGoOn: for gradients that stay non-finite, a checkpoint that cannot be written, or an `output_dir` that is
            removed meanwhile.
        Interrupted: after SIGTERM or SIGINT, with a checkpoint written if there was a step.
    """
    return under_way(config, _train)


def _train(config: TrainConfig, output_dir: Path, accelerator: Accelerator, began: float) -> Path:
    rank, world, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    config, stop_at_bad_rows = plan.listing_all(config)

    # 1. The data, and the settings that follow from them
    components = pretrained_components(config) if config.pretrained_model_name_or_path else None
    vae = load_autoencoder(config.vae) if config.vae is not None else (components or {}).get("vae")
    rows = open_rows(config)
    facts = look_at(rows, config, components or {"vae": vae})
    config, derived = sized(config, facts)
    previous = previous_run(config, output_dir, world)
    source = Source(rows, config, facts, accelerator)
    frozen = Frozen(config, components, vae, accelerator)
    digests = fingerprint(rows, config) | frozen.fingerprints()
    if previous is not None:
        same_data(previous[1], digests, config.resume_from_checkpoint or output_dir, accelerator.print)

    # 2. The models, what trains them, and how they are looked at
    place = config.cache_dir or output_dir / CACHE
    frozen.prepare(source, digests, place)
    torch.manual_seed(config.seed)
    components = components or new_components(config, source.data, source.attributes, vae, frozen.embeddings)
    size = tuple(side // facts.latent_factor for side in source.data.size)
    components["unet"].register_to_config(sample_size=size[0] if len(set(size)) == 1 else size)
    source.normalise(components["unet"].config)
    frozen.embed(source, components["unet"].config)
    # The noise levels are ours to handle whatever sampler a saved pipeline came with (and keeps)
    scheduler = MezzotintScheduler.from_config(components["scheduler"].config)
    number("num_inference_steps", int, config.num_inference_steps, at_most(len(scheduler)))
    fixed = left_as_they_are(config, components)
    if previous is not None:
        same_data(previous[1], fixed, config.resume_from_checkpoint or output_dir, accelerator.print)
    digests |= fixed
    learner = Learner(config, make_trainable(config, components, accelerator), accelerator)
    unet, text_encoder = (learner.models.get(name, components[name]) for name in ("unet", "text_encoder"))
    encode = TextEncoding(text_encoder, components["tokenizer"], accelerator, trained="text_encoder" in learner.models)
    validation = Validation(source.validation_samples(), config.train_batch_size, accelerator)
    shown = examples(config, source.held_out or source.known)
    # A drawing for a picture that is trained on is to be near it
    task = tasks.of(vars(config))
    copying = CopyWatch(source.known, source.held_out, 0 if task.given else config.num_copy_samples)
    pipeline = getattr(mezzotint, task.pipeline)

    # 3. Go on where an earlier session of the run stopped
    position = Position(config, began)
    meter = Meter(accelerator, update_size(config, world), timed=plan.STEPS)
    # Each has its part of a checkpoint's state, beside the learner's
    energy = Energy(main and not config.plan)
    parts = (position, meter, validation, copying, source, energy)
    if previous is not None:
        go_on(previous, learner, parts, accelerator.print)
    batches, tell, neighbours = source.batches(position.step), accelerator.print, Neighbours()

    # -------------------------------------------------------------------------------------------------- 4. one update
    def update() -> float:
        """One update of the weights. Returns the norm of its gradient; where that is not finite, it was skipped."""
        norm = math.nan
        for micro in range(config.gradient_accumulation_steps):
            seed_dropout(config.seed, position.step, micro, rank)  # the only randomness that is not in the batch
            batch = meter.waiting(batches)
            for line in source.new_bad_rows(batch):
                tell(f"skipped: {line}")
            with accelerator.accumulate(*learner.models.values()):
                loss = training_loss(config, unet, scheduler, batch, encode, accelerator)  # (B,)
                accelerator.backward(loss.mean())
                norm = learner.step(position.step + 1)
            meter.add(loss, batch["uniform"])
        position.advance(norm)
        meter.advance(norm)
        return norm

    # ------------------------------------------------------------------------------------------------------------------

    # 5. What the run will do and cost, before it does
    def try_batch(size: int) -> None:
        with torch.compiler.set_stance("force_eager"):  # one size is compiled for, that of the run
            training_loss(config, unet, scheduler, source.usual_batch(size), encode, accelerator).mean().backward()
        learner.optimizer.zero_grad()

    def tell_time(step: int) -> None:
        timed = zip(*meter.timed, strict=True)
        planned["time"] = plan.seconds(config, *timed, step, world, validation.passes + copying.passes)
        for line in (*plan.time_lines(planned["time"]), *neighbours.lines()):
            tell(line)

    found = source.facts(components["tokenizer"])
    planned = foresee(config, found, derived, components, learner, try_batch)
    if config.plan:
        for line in frozen.foretell(len(source.known), source.data.size):
            tell(line)
        plan.rehearse(update, tell_time, position.step, planned, stop_at_bad_rows and bool(source.bad), accelerator)
        return output_dir
    if main:
        write_recipe(config, output_dir)
        drop_snapshots_after(output_dir, position.step)
    if not config.streaming:
        encode.prepare(source.texts(), place, progress=accelerator.is_local_main_process)
    report = Report.of(config, accelerator, position.step)
    tell = report.say

    # 6. The loop
    with signals() as caught:
        while not position.finished:
            norm = update()
            report.advance()
            if meter.updates == plan.STEPS:
                tell_time(position.step)
            # All processes end at the same step
            position.late, stopped = agreed(accelerator, position.out_of_time(), bool(caught))
            position.check(output_dir, accelerator)

            line: dict[str, Any] = {}
            # Once in a while: what the log says
            if position.due(config.logging_steps):
                line |= meter.figures(norm, learner.learning_rate, position.skipped_steps)
                position.loss = line["loss"]
            # Once in a while: the loss on samples that are not trained on, and drawings
            if position.due(config.validation_steps):
                line |= validation.look(position.step, learner, unet, scheduler, encode)
                prompts = bool(shown.prompts) and not position.finished
                if (prompts or copying.passes) and (learner.sharded or main):
                    with learner.averaged():
                        pipe = pipeline(**components).to(accelerator.device)
                        if prompts:
                            draw_samples(pipe, config, shown, output_dir, position.step, accelerator)
                        line |= copying.look(position.step, pipe, tell)
                        encode.release()
            if line:
                report.write(position.step, **line)
            # Once in a while: a snapshot of the power-function averages, and a checkpoint
            if config.posthoc_ema_steps is not None and position.due(config.posthoc_ema_steps):
                learner.save_snapshot(output_dir, position.step)
            if position.due(config.checkpointing_steps) or stopped:
                about = {"config": asdict(config), "update_size": meter.pictures, "data": digests}
                keep(output_dir, position.step, learner, parts, about, config.checkpoints_total_limit, accelerator)
            if stopped and not position.finished:
                stop_at(position.step, report, accelerator)
    report.close()

    # 7. The finished pipeline
    bad_rows = source.bad_rows()
    with learner.averaged():
        published = learner.whole_models()
        if main:
            counts = {"pictures": len(source.known), "bad_rows": len(bad_rows), "held_out": validation.history.last}
            measured = figures(position, meter, learner, components, **counts, plan=planned, energy=energy.stop())
            finish(pipeline(**components | published), config, output_dir, measured, accelerator, shown)
    end_together(accelerator)
    return output_dir


if __name__ == "__main__":
    sys.exit(main())
