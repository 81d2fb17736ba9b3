# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Train an autoencoder of pictures, in whose latents a pipeline can be trained (arXiv 2112.10752).

    accelerate launch training/train_autoencoder.py --recipe digits
    accelerate launch training/train_autoencoder.py --recipe emoji-64 --train_data_dir path/to/emoji-64 --plan
    accelerate launch training/train.py --vae runs/autoencoder --train_data_dir pictures/

The loop of `train.py` with another loss (`learning/autoencoding.py`), on one of diffusers' autoencoders as it is: the
result loads with diffusers alone. Pictures are all that is read of a set. Settings are in `config/autoencoder.py`.

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

from mezzotint.pipelines.latents_mezzotint import vae_factor
from mezzotint_training.config.autoencoder import AutoencoderConfig
from mezzotint_training.config.errors import exit_code
from mezzotint_training.config.flags import parse_args
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
from mezzotint_training.learning.adversary import Adversary
from mezzotint_training.learning.autoencoding import (
    HeldOutReconstruction,
    Reconstruction,
    autoencoding_loss,
    quality,
    reconstructed,
)
from mezzotint_training.learning.held_out import Validation
from mezzotint_training.learning.learner import Learner
from mezzotint_training.modalities.images import as_picture
from mezzotint_training.networks.latents import check_size, load_autoencoder, new_autoencoder, set_scale
from mezzotint_training.publishing.checks import foresee
from mezzotint_training.publishing.finish import figures, finish_network, save_grid

# Pictures that are drawn again to be looked at
SHOWN = 8


def main(argv: list[str] | None = None) -> int:
    return exit_code(
        lambda: train(parse_args(argv, description=__doc__ or "", kind=AutoencoderConfig)),
        disk_full_hint="; free some space and run the same command again",
    )


def train(config: AutoencoderConfig) -> Path:
    """Run `config` to its end and return the folder of the finished autoencoder. What it raises is as of `train.py`."""
    return under_way(config, _train, whole="an autoencoder is")


def _train(config: AutoencoderConfig, output_dir: Path, accelerator: Accelerator, began: float) -> Path:
    rank, world, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    config, stop_at_bad_rows = plan.listing_all(config)

    # 1. The data, and the autoencoder for them
    base = config.pretrained_model_name_or_path
    vae = load_autoencoder(base, "pretrained_model_name_or_path") if base is not None else None
    rows = open_rows(config)
    facts = look_at(rows, config, {"vae": vae})
    size = facts.size
    torch.manual_seed(config.seed)
    if vae is None:
        vae = new_autoencoder(config, facts.channels, size)
    factor = vae_factor(vae)
    check_size(size, factor)
    facts = replace(facts, block_out_channels=(1,), latent_factor=factor)  # there is no other network that halves
    previous = previous_run(config, output_dir, world)
    source = Source(rows, config, facts, accelerator)
    digests = fingerprint(rows, config)
    if previous is not None:
        same_data(previous[1], digests, config.resume_from_checkpoint or output_dir, accelerator.print)

    # 2. What trains it, and how it is looked at
    model = Reconstruction(vae.requires_grad_(True)).to(accelerator.device).train()
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    trained: dict[str, torch.nn.Module] = {"vae": model}
    if config.adversary_weight > 0:
        trained["adversary"] = Adversary(facts.channels, vae.config.latent_channels, factor).to(accelerator.device)
    learner = Learner(config, trained, accelerator)
    called, adversary = learner.models["vae"], learner.models.get("adversary")
    samples = source.validation_samples()
    validation = Validation(samples, config.train_batch_size, accelerator, HeldOutReconstruction)
    unseen = [item["sample"] for item in samples[0]] if samples is not None else []

    # 3. Go on where an earlier session of the run stopped
    position = Position(config, began)
    meter = Meter(accelerator, update_size(config, world), timed=plan.STEPS)
    # Each has its part of a checkpoint's state, beside the learner's
    parts = (position, meter, validation, source)
    if previous is not None:
        go_on(previous, learner, parts, accelerator.print)
    batches, tell, neighbours = source.batches(position.step), accelerator.print, Neighbours()

    # -------------------------------------------------------------------------------------------------- 4. one update
    def losses(batch: dict[str, Any]) -> torch.Tensor:
        """The loss of each picture, (B,)."""
        late = position.step >= config.adversary_from * config.max_train_steps
        return autoencoding_loss(config, called, batch["sample"], batch["uniform"], accelerator, adversary, late)

    def update() -> float:
        """One update of the weights. Returns the norm of its gradient; where that is not finite, it was skipped."""
        norm = math.nan
        for micro in range(config.gradient_accumulation_steps):
            seed_dropout(config.seed, position.step, micro, rank)  # the noise in the latents too
            batch = meter.waiting(batches)
            for line in source.new_bad_rows(batch):
                tell(f"skipped: {line}")
            with accelerator.accumulate(*learner.models.values()):
                loss = losses(batch)
                accelerator.backward(loss.mean())
                norm = learner.step(position.step + 1)
            meter.add(loss, batch["uniform"])
        position.advance(norm)
        meter.advance(norm)
        return norm

    # ------------------------------------------------------------------------------------------------------------------

    # 5. What the run will do and cost, before it does
    def try_batch(size: int) -> None:
        losses(source.usual_batch(size)).mean().backward()
        learner.optimizer.zero_grad()

    def tell_time(step: int) -> None:
        timed = zip(*meter.timed, strict=True)
        planned["time"] = plan.seconds(config, *timed, step, world, validation.passes + len(unseen))
        for line in (*plan.time_lines(planned["time"]), *neighbours.lines()):
            tell(line)

    planned = foresee(config, source.facts(None), [], trained | {"vae": vae}, learner, try_batch)
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
                position.loss = line["loss"]
            # Once in a while: the loss and the quality of pictures that are not trained on, and some of them drawn
            if position.due(config.validation_steps):
                line |= validation.look(position.step, learner, config, called)
                if main:
                    with learner.averaged():
                        line |= quality(vae, unseen, config.train_batch_size, adversary) if unseen else {}
                        draw(vae, source, output_dir, position.step, accelerator)
            if line:
                report.write(position.step, **line)
            # Once in a while: a checkpoint
            if position.due(config.checkpointing_steps) or stopped:
                about = {"config": asdict(config), "update_size": meter.pictures, "data": digests}
                keep(output_dir, position.step, learner, parts, about, config.checkpoints_total_limit, accelerator)
            if stopped and not position.finished:
                stop_at(position.step, report, accelerator)
    report.close()

    # 7. The finished autoencoder
    bad_rows = source.bad_rows()
    with learner.averaged():
        if main:
            counts = {"pictures": len(source.known), "bad_rows": len(bad_rows), "held_out": validation.history.last}
            measured = figures(position, meter, learner, {"vae": vae}, **counts, plan=planned)
            measured |= {
                "autoencoder": type(vae).__name__,
                "vae_scale_factor": factor,
                "latent_channels": vae.config.latent_channels,
                "quality": quality(vae, unseen, config.train_batch_size, adversary) if unseen else None,
                "latents": set_scale(vae, [item["sample"] for item in samples[1]] if samples else []),
            }
            grid = draw(vae, source, output_dir, position.step, accelerator)
            finish_network(vae.save_pretrained, config, output_dir, measured, accelerator, "autoencoder", grid)
    end_together(accelerator)
    return output_dir


def draw(vae: Any, source: Source, output_dir: Path, step: int, accelerator: Accelerator) -> str:
    """Write a grid of pictures that are always the same, held out where there are any: as they are above, as they come
    out of the autoencoder below. Returns the file's path, relative to `output_dir`."""
    images = source.held_out or source.known
    some = [pixels for row in images.spread(SHOWN).tolist() if (pixels := images.content(row)) is not None]
    some = [pixels for pixels in some if pixels.shape == some[0].shape]
    made = [reconstructed(vae, pixels[None].float() / 127.5 - 1)[0] for pixels in some]
    rows = [*some, *(((pixels + 1) * 127.5).round().byte() for pixels in made)]
    name = f"samples/step-{step:06d}.png"
    save_grid([as_picture(pixels) for pixels in rows], 2, output_dir / name, step, accelerator)
    return name


if __name__ == "__main__":
    sys.exit(main())
