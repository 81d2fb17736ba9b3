# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How good a distilled pipeline is beside its teacher, beside latent consistency distillation at the same cost, and
beside fitted steps at as many evaluations of the network.

    python training/benchmarks/distillation.py runs/digits --out runs/distillation
    python training/benchmarks/distillation.py model_cards/emoji-64 --train_data_dir path/to/emoji-64 --out runs/emoji
    python training/benchmarks/distillation.py runs/digits --out runs/distillation --fitted runs/digits-fitted

Both students begin as the teacher and go through `mezzotint distill`, with its data, optimizer and average, until they
have cost a fifth of the teacher's training: its passes of a network over a picture, a backward pass counted as two.
Latent consistency distillation (<https://huggingface.co/papers/2310.04378>) is diffusers' script: a guided DDIM step of
the teacher from one of 50 timesteps to the one before, from noised pictures; there the student as it is predicts the
target, under the same metric. Students that are in --out are taken as they are, and measured again.

Every picture is drawn for a caption that was trained on, from a noise that is the same in all rows, by
`metrics/pictures.py`; kernel distance (KID), precision and recall are against held-out pictures, in the features of a
network with random weights and of what is trained to judge, as in `mezzotint evaluate`. An evaluation is a pass of the
network over one picture: guidance takes two for each step.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState

from mezzotint_training import distill
from mezzotint_training.benchmarks.checkpoint_judge import CheckpointJudge
from mezzotint_training.config.flags import Help
from mezzotint_training.learning.distillation import Distillation, pseudo_huber, times_of
from mezzotint_training.metrics.accuracy import distances
from mezzotint_training.networks.saved import load_pipeline

PASSES = 6  # of latent consistency distillation: two of the teacher, one of the target, three of the student


class LatentConsistencyDistillation(Distillation):
    """The loss of diffusers' `train_lcm_distill` scripts, at one guidance scale, with the student itself as target."""

    GRID = 50

    def loss(self, unet: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        scheduler, device = self.scheduler, self.accelerator.device
        sample, noise = (batch[name].to(device) for name in ("sample", "noise"))
        stride = len(scheduler) // self.GRID
        index = (batch["uniform"].to(device) * self.GRID).long()
        timesteps, before = stride * (index + 1.0) - 1, (stride * index.float() - 1).clamp(min=0)
        with self.accelerator.autocast():
            said = self.said(batch)
            x_t = scheduler.add_noise(sample, noise, timesteps)
            # DDIM of the guided teacher
            v = self.teacher.predict(x_t, timesteps, said)
            x_0, eps = (how(v, timesteps, x_t) for how in (scheduler.predict_original_sample, scheduler.predict_noise))
            x_s = scheduler.add_noise(x_0, eps, before)
            said = {name: value[len(sample) :] for name, value in said.items()}
            with torch.no_grad():
                target = unet(x_s, before, **said, return_dict=False)[0].float()
                target = scheduler.predict_original_sample(target, before, x_s)
            output = unet(x_t, timesteps, **said, return_dict=False)[0].float()
        return pseudo_huber(scheduler.predict_original_sample(output, timesteps, x_t) - target)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("checkpoint", help="the teacher: the folder of a finished run")
    parser.add_argument("--train_data_dir", help="its set; digits need none")
    parser.add_argument("--out", required=True, help="folder for both students and results.json")
    parser.add_argument("--fitted", help="a copy of the teacher whose scheduler is fitted (mezzotint fit-scheduler)")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4], help="steps to distil to and to draw in")
    parser.add_argument("--share", type=float, default=distill.SHARE, help="cost, as a share of the teacher's training")
    parser.add_argument("--count", type=int, default=1000, help="pictures to draw for each row")
    parser.add_argument("--judge_steps", type=int, default=600, help="updates of what is trained to judge")
    parser.add_argument("--lcm_learning_rate", type=float, default=2e-4, help="peak learning rate of the peer, which "
                        "chases itself and diverges at the teacher's own")  # fmt: skip
    parser.add_argument("--rows", nargs="+", default=["distilled", "lcm"], help="students to train and measure")
    args = parser.parse_args(argv)
    out, data = Path(args.out), ["--train_data_dir", args.train_data_dir] if args.train_data_dir else []

    # 1. Both students, at one cost
    students = {name: out / name for name in args.rows}
    words = [args.checkpoint, *data, "--steps", *map(str, args.steps)]
    config = distill.settings(words)
    budget = args.share / distill.SHARE * config.max_train_steps * config.train_batch_size * distill.evaluations(config)
    for name, folder in students.items():
        if not (folder / "model_index.json").is_file():
            rate = ["--learning_rate", str(args.lcm_learning_rate)] if name == "lcm" else []
            train(name, folder, [*words, *rate], budget)

    # 2. Judges, and pictures for the same captions from the same noises
    judge = CheckpointJudge(args.checkpoint, args.train_data_dir, args.count, args.judge_steps)
    kinds, teacher = list(judge.features), judge.pipe

    # 3. The rows
    scale, results = config.teacher_guidance_scale, []
    plans = [("teacher", teacher, 20, scale)]
    if args.fitted:
        fitted: Any = load_pipeline(args.fitted)
        counts = sorted({table["num_inference_steps"] for table in fitted.scheduler.fitted_schedules or ()})
        plans += [("fitted", fitted, n, scale) for n in counts]
    plans += [("teacher", teacher, n, scale) for n in args.steps]
    plans += [(name, load_pipeline(folder), n, 1.0) for name, folder in students.items() for n in args.steps]
    for name, pipe, n, w in plans:
        pixels = judge.draw(pipe, n, w)
        row: dict[str, Any] = {"row": name, "steps": n, "evaluations": n * (2 if w != 1 else 1)}
        for kind, look in judge.features.items():
            found = distances(look(pixels), judge.references[kind])
            row[kind] = {key: (x.value, *x.interval) for key, x in found.items()}
        if read := judge.accuracy(pixels):
            row["accuracy"] = (read.value, *read.interval)
        results.append(row)
        print(line(row, results[0], kinds), flush=True)
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def train(name: str, folder: Path, words: list[str], budget: float) -> None:
    """Distil in `folder`, with as many passes of a network over a picture as `budget` says."""
    lcm = name == "lcm"
    config = distill.settings(words)
    size = config.train_batch_size * len(times_of(config.steps)) if lcm else config.train_batch_size
    updates = max(1, round(budget / (size * (PASSES if lcm else distill.evaluations(config)))))
    words = [*words, "--train_batch_size", str(size), "--max_train_steps", str(updates), "--output_dir", str(folder)]
    with mock.patch.object(distill, "Distillation", LatentConsistencyDistillation) if lcm else contextlib.nullcontext():
        distill.distill(distill.settings([*words, "--report_to", "none"]))
    AcceleratorState._reset_state(reset_partial_state=True)  # a process trains once; here another run follows
    GradientState._reset_state()


def line(row: dict[str, Any], teacher: dict[str, Any], kinds: list[str]) -> str:
    """A row of the table: KID in each kind of features, beside the teacher's; recall; prompt accuracy."""
    cells = [row["row"], str(row["steps"]), str(row["evaluations"])]
    for kind in kinds:
        kid, most = row[kind]["kernel_distance"][0], teacher[kind]["kernel_distance"][0]
        cells.append(f"{kid:.4f} ({kid / most:.2f})")
    cells += [f"{row[kinds[0]][name][0]:.2f}" for name in ("precision", "recall")]
    cells.append("{:.1%}".format(row["accuracy"][0]) if "accuracy" in row else "")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
