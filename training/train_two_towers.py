# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Train a two-tower encoder, which embeds pictures and texts in one space (CLIP, arXiv 2103.00020).

    accelerate launch training/train_two_towers.py --recipe digits
    accelerate launch training/train_two_towers.py --recipe emoji-64 --train_data_dir path/to/emoji-64 --plan
    accelerate launch training/train.py --task unclip --two_towers runs/two-towers --train_data_dir pictures/

The loop of `train.py` with another loss (`learning/contrastive.py`), on `CLIPModel` of transformers as it is: the
result loads with transformers alone. A picture's negatives are those of its own micro-step and process. Settings are in
`config/towers.py`.

Exit codes, and what happens to a run that is stopped, are those of `train.py`.
"""

import mezzotint_training  # noqa: F401 (before torch: it decides how threads wait)

# isort: split
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mezzotint_training.config.errors import exit_code
from mezzotint_training.config.flags import parse_args
from mezzotint_training.config.towers import TwoTowersConfig
from mezzotint_training.data.source import Source, fingerprint, look_at, open_rows
from mezzotint_training.engine import plan
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
from mezzotint_training.engine.resume import go_on, keep, previous_run, same_data, update_size, write_recipe
from mezzotint_training.engine.threads import Neighbours
from mezzotint_training.learning.contrastive import HeldOutPairing, Pairing, pairing_loss
from mezzotint_training.learning.held_out import Validation
from mezzotint_training.learning.learner import Learner
from mezzotint_training.metrics.pairs import picked
from mezzotint_training.networks.components import weights_of
from mezzotint_training.networks.towers import CHANNELS, keeps_text, new_towers, train_towers
from mezzotint_training.publishing.checks import foresee
from mezzotint_training.publishing.finish import figures, finish_network


def main(argv: list[str] | None = None) -> int:
    return exit_code(
        lambda: train(parse_args(argv, description=__doc__ or "", kind=TwoTowersConfig)),
        disk_full_hint="; free some space and run the same command again",
    )


def train(config: TwoTowersConfig) -> Path:
    """Run `config` to its end and return the folder of the finished encoder. What it raises is as of `train.py`."""
    return under_way(config, _train, whole="two towers are")


def _train(config: TwoTowersConfig, output_dir: Path, accelerator: Accelerator, began: float) -> Path:
    rank, world, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    config, stop_at_bad_rows = plan.listing_all(config)

    # 1. The data, and the towers for them
    rows = open_rows(config)
    facts = replace(look_at(rows, config, None), channels=CHANNELS, block_out_channels=(1,))  # no network that halves
    size = facts.size
    torch.manual_seed(config.seed)
    towers = new_towers(config, size)
    previous = previous_run(config, output_dir, world)
    source = Source(rows, config, facts, accelerator)
    digests = fingerprint(rows, config)
    if keeps_text(config):
        digests |= weights_of({"text_encoder": towers.model.text_model}, ["text_encoder"])
    if previous is not None:
        same_data(previous[1], digests, config.resume_from_checkpoint or output_dir, accelerator.print)

    # 2. What trains them, and how they are looked at
    train_towers(config, towers)
    model = Pairing(towers.model, towers.image_mean, towers.image_std).to(accelerator.device).train()
    learner = Learner(config, {"two_towers": model}, accelerator)
    loss_of = pairing_loss(learner.models["two_towers"], towers.tokenizer, towers.limit, accelerator, config.shift)
    samples = source.validation_samples()
    validation = Validation(samples, config.train_batch_size, accelerator, HeldOutPairing)
    unseen = samples[0] if samples is not None else []

    # 3. Go on where an earlier session of the run stopped
    position = Position(config, began)
    meter = Meter(accelerator, update_size(config, world), timed=plan.STEPS)
    # Each has its part of a checkpoint's state, beside the learner's
    parts = (position, meter, validation, source)
    if previous is not None:
        go_on(previous, learner, parts, accelerator.print)
    batches, tell, neighbours = source.batches(position.step), accelerator.print, Neighbours()

    # -------------------------------------------------------------------------------------------------- 4. one update
    def update() -> float:
        """One update of the weights. Returns the norm of its gradient; where that is not finite, it was skipped."""
        norm = math.nan
        for micro in range(config.gradient_accumulation_steps):
            seed_dropout(config.seed, position.step, micro, rank)  # the shift of the pictures too
            batch = meter.waiting(batches)
            for line in source.new_bad_rows(batch):
                tell(f"skipped: {line}")
            with accelerator.accumulate(*learner.models.values()):
                loss = loss_of(batch["sample"], batch["captions"])  # (B,)
                accelerator.backward(loss.mean())
                norm = learner.step(position.step + 1)
            meter.add(loss, batch["uniform"])
        position.advance(norm)
        meter.advance(norm)
        return norm

    # ------------------------------------------------------------------------------------------------------------------

    # 5. What the run will do and cost, before it does
    def try_batch(size: int) -> None:
        batch = source.usual_batch(size)
        loss_of(batch["sample"], batch["captions"]).mean().backward()
        learner.optimizer.zero_grad()

    def tell_time(step: int) -> None:
        timed = zip(*meter.timed, strict=True)
        planned["time"] = plan.seconds(config, *timed, step, world, validation.passes + len(unseen))
        for line in (*plan.time_lines(planned["time"]), *neighbours.lines()):
            tell(line)

    planned = foresee(config, source.facts(towers.tokenizer), [], {"two_towers": towers.model}, learner, try_batch)
    if config.plan:
        plan.rehearse(update, tell_time, position.step, planned, stop_at_bad_rows and bool(source.bad), accelerator)
        return output_dir
    if main:
        write_recipe(config, output_dir)
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
                del line["loss_by_noise_level"]  # there is no noise
                position.loss = line["loss"]
            # Once in a while: the loss of pairs that are not trained on, and how many captions are picked
            if position.due(config.validation_steps):
                line |= validation.look(position.step, learner, loss_of)
                with learner.averaged():
                    line |= picked(towers, unseen, config.train_batch_size)
            if line:
                report.write(position.step, **line)
            # Once in a while: a checkpoint
            if position.due(config.checkpointing_steps) or stopped:
                about = {"config": asdict(config), "update_size": meter.pictures, "data": digests}
                keep(output_dir, position.step, learner, parts, about, config.checkpoints_total_limit, accelerator)
            if stopped and not position.finished:
                stop_at(position.step, report, accelerator)
    report.close()

    # 7. The finished encoder
    bad_rows = source.bad_rows()
    with learner.averaged():
        if main:
            counts = {"pictures": len(source.known), "bad_rows": len(bad_rows), "held_out": validation.history.last}
            measured = figures(position, meter, learner, {"two_towers": towers.model}, **counts, plan=planned)
            measured |= {
                "encoder": type(towers.model).__name__,
                "width": towers.width(),
                "image_size": towers.model.config.vision_config.image_size,
                "quality": picked(towers, unseen, config.train_batch_size),
            }
            finish_network(towers.save, config, output_dir, measured, accelerator, "two-towers")
    end_together(accelerator)
    return output_dir


if __name__ == "__main__":
    sys.exit(main())
