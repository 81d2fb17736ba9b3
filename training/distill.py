# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Distil a trained pipeline into one that draws in one to four steps: few steps, learned.

    mezzotint distill runs/digits --steps 1 2 4
    accelerate launch training/distill.py runs/mine --train_data_dir pictures/ --output_dir runs/mine-distilled

The student begins with the teacher's weights and learns where the teacher's guided flow ends, for captions and pictures
of the set (`learning/distillation.py`). `output_dir` becomes a pipeline of the same classes that draws in 2 steps by
default, without guidance, which is in its weights. What is not said is as in the teacher's recipe; by default the run
costs a fifth of the teacher's training.

The same command again goes on where it stopped; exit codes are those of `mezzotint train`.
"""

import mezzotint_training  # noqa: F401 (before torch: it decides how threads wait)

# isort: split
import copy
import json
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
from mezzotint_training.config.arguments import parser_of
from mezzotint_training.config.distillation import COURSE, DATA, DistillConfig
from mezzotint_training.config.errors import UserError, exit_code, loading
from mezzotint_training.config.flags import flags_as_values, settled
from mezzotint_training.config.recipe import PLACES, data_of, read_recipe
from mezzotint_training.config.settings import checked, default
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
from mezzotint_training.learning.distillation import Distillation, evaluations, times_of
from mezzotint_training.learning.learner import Learner
from mezzotint_training.networks.components import make_trainable, weights_of
from mezzotint_training.networks.saved import check_denoises, load_pipeline, sample_size
from mezzotint_training.networks.text import TextEncoding
from mezzotint_training.publishing.checks import foresee
from mezzotint_training.publishing.examples import Examples
from mezzotint_training.publishing.finish import draw_samples, figures, finish

SHARE = 0.2  # of the cost of the teacher's training
# Of the learning rate of a network of one channel, from one sample at one time in an update
RATE = 0.02
# Side of the square picture whose second of two steps is at as much noise as signal: under it larger ones show more
UNSHIFTED = 16


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: distill(settings(argv)), disk_full_hint="; free some space and run the same command again")


def settings(argv: list[str] | None) -> DistillConfig:
    """The settings of a run: defaults, over them what the teacher's recipe says, over them flags.

    Raises:
        UserError: for a teacher without data that are named, or a value that breaks its rule.
    """
    parser = parser_of("distill")
    flags = vars(parser.parse_args(argv))
    checkpoint = flags.pop("checkpoint")
    given, recipe = flags_as_values(flags, DistillConfig), read_recipe(checkpoint)
    taught = {name: checked(name, recipe[name]) for name in COURSE if name in recipe}
    if "guidance_scale" in recipe:
        taught["teacher_guidance_scale"] = checked("guidance_scale", recipe["guidance_scale"])
    named = {name: value for name, value in given.items() if name in (*PLACES, *DATA)}
    where = data_of(checkpoint, named, DATA, "distill")
    fixed = {"pretrained_model_name_or_path": checkpoint, "num_copy_samples": 0, "train_text_encoder": False}
    fixed |= {"output_dir": f"{checkpoint.rstrip('/')}-distilled"} if Path(checkpoint).is_dir() else {}
    config = settled(DistillConfig, [taught, fixed | where, given])
    if "train_batch_size" not in given:  # as many samples in a pass as the teacher's training had
        config.train_batch_size = max(1, config.train_batch_size // len(times_of(config.steps)))
    if "learning_rate" not in given:  # which then depends on the network
        config.given.pop("learning_rate", None)
    # as its pipeline draws
    config.num_inference_steps = 2 if 2 in config.steps else max(config.steps)
    config.guidance_scale = 1.0
    if "max_train_steps" not in given and (cost := cost_of_teacher(config)) is not None:
        config.max_train_steps = max(1, round(SHARE * cost / (evaluations(config) * update_size(config, 1))))
    return config


def cost_of_teacher(config: DistillConfig) -> int | None:
    """Passes of a network over a picture in the teacher's training, three for each, by what its folder says; `None`
    where that says nothing."""
    folder = Path(str(config.pretrained_model_name_or_path))
    if not (folder / "metrics.json").is_file():
        return None
    recipe, size = read_recipe(folder), ("train_batch_size", "gradient_accumulation_steps")
    with loading(f"metrics.json of {folder}"):
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        updates, processes = int(metrics["steps"]), int(metrics["processes"])
    return 3 * updates * processes * math.prod(checked(name, recipe.get(name, default(name))) for name in size)


def teacher_of(config: DistillConfig) -> dict[str, Any]:
    """The components of the teacher.

    Raises:
        UserError: for a pipeline that cannot be loaded, or whose flow a student cannot learn here.
    """
    pipe: Any = load_pipeline(str(config.pretrained_model_name_or_path))
    if (task := pipe.trained_for["task"]) != "text_to_image":
        raise UserError(f"checkpoint must be trained for text_to_image: got one for {task}, which is not distilled yet")
    if pipe.vae is not None:
        raise UserError("checkpoint must draw pixels: got one that draws latents (vae), which is not distilled yet")
    check_denoises(pipe)
    if (target := pipe.scheduler.config.get("prediction_type")) != "v_prediction":
        raise UserError(
            f"checkpoint must predict velocities (v_prediction), which the student begins with: got {target}"
        )
    for name in ("guider", "guidance_unet"):
        if getattr(pipe, name) is not None:
            raise UserError(f"checkpoint must be guided by classifier-free guidance: got one with a {name}")
    if pipe.unet.config.cross_attention_dim is None and not pipe.unet.config.attributes:
        config.teacher_guidance_scale = 1.0  # there is nothing to guide by
    if config.consistency_shift is None:
        config.consistency_shift = round(max(1.0, math.sqrt(math.prod(sample_size(pipe, "checkpoint"))) / UNSHIFTED), 2)
    if "learning_rate" not in config.given:
        samples = config.train_batch_size * config.gradient_accumulation_steps * len(times_of(config.steps))
        most = RATE * math.sqrt(samples) / max(pipe.unet.config.block_out_channels)
        config.learning_rate = min(config.learning_rate, float(f"{most:.1e}"))
    return dict(pipe.components)


def distill(config: DistillConfig) -> Path:
    """Run `config` to its end and return the folder of the finished pipeline.

    Raises:
        UserError, CannotGoOn, Interrupted: as `train.train` does.
    """
    return under_way(config, _distill)


def _distill(config: DistillConfig, output_dir: Path, accelerator: Accelerator, began: float) -> Path:
    rank, world, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    config, stop_at_bad_rows = plan.listing_all(config)

    # 1. The teacher and the data
    components = teacher_of(config)
    rows = open_rows(config)
    facts = look_at(rows, config, components)
    previous = previous_run(config, output_dir, world)
    source = Source(rows, config, facts, accelerator)
    digests = fingerprint(rows, config) | weights_of(components, ["unet", "text_encoder"])  # of the teacher
    if previous is not None:
        same_data(previous[1], digests, config.resume_from_checkpoint or output_dir, accelerator.print)
    source.normalise(components["unet"].config)

    # 2. The student, which begins as its teacher
    torch.manual_seed(config.seed)
    teacher = copy.deepcopy(components["unet"]).requires_grad_(False).eval().to(accelerator.device)
    components["scheduler"] = MezzotintScheduler.from_config(
        components["scheduler"].config, variance_type=None, fitted_schedules=None,
        consistency_steps=sorted(config.steps, key=lambda n: (n != config.num_inference_steps, n)),
        consistency_shift=config.consistency_shift,
    )  # fmt: skip
    for module in components["unet"].modules():  # every noise is new: there is nothing to learn by heart
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    learner = Learner(config, make_trainable(config, components, accelerator), accelerator)
    encode = TextEncoding(components["text_encoder"], components["tokenizer"], accelerator, trained=False)
    target = Distillation(config, teacher, components["scheduler"], encode, accelerator)
    shown, pipeline = Examples(config.validation_prompts), getattr(mezzotint, tasks.of(vars(config)).pipeline)

    # 3. Go on where an earlier session of the run stopped
    position = Position(config, began)
    meter = Meter(accelerator, update_size(config, world), timed=plan.STEPS)
    parts = (position, meter, source)
    if previous is not None:
        go_on(previous, learner, parts, accelerator.print)
    batches, tell = source.batches(position.step), accelerator.print

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
                loss = target.loss(learner.models["unet"], batch)  # (B,)
                accelerator.backward(loss.mean())
                norm = learner.step(position.step + 1)
            meter.add(loss, batch["uniform"])
        position.advance(norm)
        meter.advance(norm)
        return norm

    # ------------------------------------------------------------------------------------------------------------------

    # 5. What the run will do and cost, before it does
    def try_batch(size: int) -> None:
        target.loss(learner.models["unet"], source.usual_batch(size)).mean().backward()
        learner.optimizer.zero_grad()

    def tell_time(step: int) -> None:
        planned["time"] = plan.seconds(config, *zip(*meter.timed, strict=True), step, world, evaluations=cost)
        for line in plan.time_lines(planned["time"]):
            tell(line)

    cost = evaluations(config)
    planned = foresee(config, source.facts(components["tokenizer"]), [], components, learner, try_batch)
    tell(f"{config.max_train_steps:,} updates of {meter.pictures} pictures, {cost} passes of a network for each")
    if config.plan:
        plan.rehearse(update, tell_time, position.step, planned, stop_at_bad_rows and bool(source.bad), accelerator)
        return output_dir
    if main:
        write_recipe(config, output_dir)
    if not config.streaming:
        place = config.cache_dir or output_dir / CACHE
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
                line = meter.figures(norm, learner.learning_rate, position.skipped_steps)
                del line["loss_by_noise_level"]  # all levels are in every loss
                position.loss = line["loss"]
            # Once in a while: drawings
            if position.due(config.validation_steps) and shown.prompts and not position.finished:
                with learner.averaged():
                    if learner.sharded or main:
                        pipe = pipeline(**components).to(accelerator.device)
                        draw_samples(pipe, config, shown, output_dir, position.step, accelerator)
                        encode.release()
            if line:
                report.write(position.step, **line)
            # Once in a while: a checkpoint
            if position.due(config.checkpointing_steps) or stopped:
                about = {"config": asdict(config), "update_size": meter.pictures, "data": digests, "course": None}
                keep(output_dir, position.step, learner, parts, about, config.checkpoints_total_limit, accelerator)
            if stopped and not position.finished:
                stop_at(position.step, report, accelerator)
    report.close()

    # 7. The finished pipeline
    bad_rows = source.bad_rows()
    with learner.averaged():
        published = learner.whole_models()
        if main:
            counts = {"pictures": len(source.known), "bad_rows": len(bad_rows), "held_out": None}
            measured = figures(position, meter, learner, components, **counts, plan=planned)
            measured["evaluations"] = cost
            if (of_teacher := cost_of_teacher(config)) is not None:
                measured["share_of_teacher"] = cost * meter.pictures * position.step / of_teacher
            pipe = pipeline(**components | published)
            finish(pipe, config, output_dir, measured, accelerator, shown)
    end_together(accelerator)
    return output_dir


if __name__ == "__main__":
    sys.exit(main())
