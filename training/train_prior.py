# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Train a prior, which takes the embedding of a text to that of a picture by diffusion (unCLIP, arXiv 2204.06125,
section 2.2), and put it before a decoder.

    accelerate launch training/train_prior.py --recipe digits
    accelerate launch training/train_prior.py --decoder runs/unclip --train_data_dir pictures/ --plan

The loop of `train.py` with embeddings in the place of pictures, on `PriorTransformer` of diffusers as it is. The
embeddings are those of the two-tower encoder that the decoder carries. `output_dir` becomes a pipeline that draws from
text: the decoder's with a prior. Settings are in `config/prior.py`.

Exit codes, and what happens to a run that is stopped, are those of `train.py`.
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
from diffusers.configuration_utils import FrozenDict

from mezzotint import MezzotintPriorPipeline
from mezzotint.pipelines.embeddings_mezzotint import MezzotintPriorNetwork
from mezzotint_training.config.errors import UserError, exit_code
from mezzotint_training.config.flags import parse_args
from mezzotint_training.config.prior import PriorConfig
from mezzotint_training.config.rules import at_most, number
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
from mezzotint_training.engine.resume import CACHE, go_on, keep, previous_run, same_data, update_size, write_recipe
from mezzotint_training.engine.threads import Neighbours
from mezzotint_training.learning.held_out import Validation
from mezzotint_training.learning.learner import Learner
from mezzotint_training.learning.objective import training_loss
from mezzotint_training.networks.components import new_scheduler
from mezzotint_training.networks.saved import load_pipeline
from mezzotint_training.networks.towers import Embeddings, TextEmbedding, new_prior, set_scale, towers_of
from mezzotint_training.publishing.checks import foresee
from mezzotint_training.publishing.examples import Examples
from mezzotint_training.publishing.finish import draw_samples, figures, finish


def main(argv: list[str] | None = None) -> int:
    return exit_code(
        lambda: train(parse_args(argv, description=__doc__ or "", kind=PriorConfig)),
        disk_full_hint="; free some space and run the same command again",
    )


def train(config: PriorConfig) -> Path:
    """Run `config` to its end and return the folder of the finished pipeline. What it raises is as of `train.py`."""
    return under_way(config, _train, whole="a prior is")


def _train(config: PriorConfig, output_dir: Path, accelerator: Accelerator, began: float) -> Path:
    rank, world, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    config, stop_at_bad_rows = plan.listing_all(config)

    # 1. The decoder, and the data as its two towers embed them
    components = decoder_of(config)
    towers = towers_of(components)
    torch.manual_seed(config.seed)
    prior, scheduler = new_prior(config, towers.width()), new_scheduler(config)
    number("prior_num_inference_steps", int, config.prior_num_inference_steps, at_most(len(scheduler)))
    rows = open_rows(config)
    facts = look_at(rows, config, components)
    previous = previous_run(config, output_dir, world)
    source = Source(rows, config, facts, accelerator)
    embeddings = Embeddings(towers, config, accelerator)
    digests, place = fingerprint(rows, config), config.cache_dir or output_dir / CACHE
    digests["two towers"] = embeddings.fingerprint()
    if previous is not None:
        same_data(previous[1], digests, config.resume_from_checkpoint or output_dir, accelerator.print)
    local = accelerator.is_local_main_process
    if not config.plan:
        embeddings.prepare((source.known, source.held_out), digests, place, progress=local)
    source.take(embeddings)
    mean, std = embeddings.scale(source.known)
    source.normalise(FrozenDict(sample_mean=mean, sample_std=std))

    # 2. The prior, what trains it, and how it is looked at
    set_scale(prior, mean, std)
    components |= {"prior": prior, "prior_scheduler": scheduler}
    for name in ("unet", "two_towers"):
        components[name].requires_grad_(False).eval().to(accelerator.device)
    learner = Learner(config, {"prior": MezzotintPriorNetwork(prior).to(accelerator.device).train()}, accelerator)
    network, encode = learner.models["prior"], TextEmbedding(towers, accelerator)
    validation = Validation(source.validation_samples(), config.train_batch_size, accelerator)
    inputs = {name: getattr(config, name) for name in ("prior_num_inference_steps", "prior_guidance_scale")}
    shown = Examples(config.validation_prompts, inputs)

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
            seed_dropout(config.seed, position.step, micro, rank)  # the only randomness that is not in the batch
            batch = meter.waiting(batches)
            for line in source.new_bad_rows(batch):
                tell(f"skipped: {line}")
            with accelerator.accumulate(*learner.models.values()):
                loss = training_loss(config, network, scheduler, batch, encode, accelerator)  # (B,)
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
        training_loss(config, network, scheduler, batch, encode, accelerator).mean().backward()
        learner.optimizer.zero_grad()

    def tell_time(step: int) -> None:
        timed = zip(*meter.timed, strict=True)
        planned["time"] = plan.seconds(config, *timed, step, world, validation.passes)
        for line in (*plan.time_lines(planned["time"]), *neighbours.lines()):
            tell(line)

    planned = foresee(config, source.facts(towers.tokenizer), [], components, learner, try_batch)
    if config.plan:
        plan.rehearse(update, tell_time, position.step, planned, stop_at_bad_rows and bool(source.bad), accelerator)
        return output_dir
    if main:
        write_recipe(config, output_dir)
    encode.prepare(source.texts(), place, progress=local)
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
                line |= validation.look(position.step, learner, network, scheduler, encode)
                if shown.prompts and not position.finished and main:
                    with learner.averaged():
                        pipe = MezzotintPriorPipeline(**components).to(accelerator.device)
                        draw_samples(pipe, config, shown, output_dir, position.step, accelerator)
                        encode.release()
            if line:
                report.write(position.step, **line)
            # Once in a while: a checkpoint
            if position.due(config.checkpointing_steps) or stopped:
                about = {"config": asdict(config), "update_size": meter.pictures, "data": digests}
                keep(output_dir, position.step, learner, parts, about, config.checkpoints_total_limit, accelerator)
            if stopped and not position.finished:
                stop_at(position.step, report, accelerator)
    report.close()

    # 7. The finished pipeline
    bad_rows = source.bad_rows()
    with learner.averaged():
        if main:
            counts = {"pictures": len(source.known), "bad_rows": len(bad_rows), "held_out": validation.history.last}
            measured = figures(position, meter, learner, components, **counts, plan=planned)
            finish(MezzotintPriorPipeline(**components), config, output_dir, measured, accelerator, shown)
    end_together(accelerator)
    return output_dir


def decoder_of(config: PriorConfig) -> dict[str, Any]:
    """The components of the decoder's pipeline, without a prior that it may have.

    Raises:
        UserError: for a pipeline that cannot be loaded, or that draws no pictures of embeddings.
    """
    pipe: Any = load_pipeline(str(config.decoder), "decoder", revision=config.revision)
    if (task := pipe.trained_for["task"]) != "unclip":
        raise UserError(f"decoder must be trained for unclip (train.py --task unclip): got one for {task}")
    return dict(pipe.components)


if __name__ == "__main__":
    sys.exit(main())
