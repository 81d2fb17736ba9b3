# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Fit the scheduler of a trained pipeline to its network: few steps that end where many would.

mezzotint fit-scheduler runs/digits --steps 4 5 6 8 10

Each table that is better than the default and than the stock solvers, on noises that it was not fitted on, is written
into the checkpoint at once; the same command run again goes on with those that are left. The method is in
`few_steps/fitting.py`.
"""

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mezzotint import MezzotintPipeline, MezzotintScheduler
from mezzotint_training.config.arguments import parser_of
from mezzotint_training.config.errors import UserError, exit_code
from mezzotint_training.config.recipe import read_recipe
from mezzotint_training.config.rules import (
    at_most,
    new_folder,
    number,
    writable_folder,
)
from mezzotint_training.config.settings import checked
from mezzotint_training.engine.files import hold
from mezzotint_training.few_steps.fitting import Fitted, fit, solve
from mezzotint_training.few_steps.network import PipelineNetwork
from mezzotint_training.few_steps.stock_solvers import common_settings, settings
from mezzotint_training.networks.saved import check_denoises, load_pipeline, sample_size
from mezzotint_training.publishing import card

PLACES = 64_000  # that the samples have together on which a correction is fitted, by default
PACKAGES = ("mezzotint", "diffusers", "torch")  # whose versions go into a table's provenance


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("fit-scheduler")

    def program() -> None:
        args = parser.parse_args(argv)
        name = "output_dir" if args.output_dir else "checkpoint"
        folder = getattr(args, name)
        with hold(Path(folder), name) if _has(folder) else contextlib.nullcontext():
            fit_scheduler(args)

    return exit_code(program)


def fit_scheduler(args: argparse.Namespace) -> None:
    """Fit the tables that the arguments ask for, and write each into the checkpoint as soon as it is fitted.

    Raises:
        UserError: for bad input, before anything is fitted or written.
    """
    steps = list(dict.fromkeys(args.steps))
    if args.teacher_steps < 2 * max(steps):  # whose trajectories the fitted steps are to end like
        raise UserError(f"teacher_steps must be at least twice the steps, {2 * max(steps)}: got {args.teacher_steps}")
    folder = Path(args.output_dir or args.checkpoint)
    source, name = (folder, "output_dir") if _has(args.output_dir) else (args.checkpoint, "checkpoint")
    if args.output_dir and not _has(args.output_dir):
        new_folder("output_dir", folder)
    elif not folder.is_dir():
        raise UserError(f"a checkpoint that is no folder needs output_dir: got {args.checkpoint}")
    else:
        for part in (folder, folder / "scheduler"):
            if part.is_dir():
                writable_folder(name, part)
    recipe = read_recipe(source)
    prompts = args.prompts or checked("validation_prompts", recipe.get("validation_prompts", [])) or [""]
    scales = args.guidance_scale or [checked("guidance_scale", recipe.get("guidance_scale", 2.0))]
    if card.of_a_run(Path(source)):
        card.check(Path(source))
    pipe = load_pipeline(source, name, device=args.device)
    if (task := pipe.trained_for["task"]) != "text_to_image":
        raise UserError(f"the checkpoint must be trained for text_to_image, whose steps are fitted: got {task}")
    if not isinstance(pipe.scheduler, MezzotintScheduler):
        raise UserError(f"the checkpoint's scheduler must be a MezzotintScheduler: got {type(pipe.scheduler).__name__}")
    check_denoises(pipe)
    number("teacher_steps", int, args.teacher_steps, at_most(len(pipe.scheduler)))
    reads_text = pipe.unet.config.cross_attention_dim is not None
    if not reads_text:
        prompts, scales = [""], [1.0]
    # rows are dealt out to the prompts in turn, so each must get as many
    count = math.ceil(args.noises / len(prompts)) * len(prompts)
    shape = (pipe.unet.config.out_channels, *pipe.padded(sample_size(pipe, name)))
    more = args.correction_noises
    if more is None:
        more = min(1000, max(160, math.ceil(PLACES / math.prod(shape[1:]))))
    sizes = [count, count, *([math.ceil(more / count) * count] if more else [])]
    if source != folder and args.output_dir:
        pipe.save_pretrained(folder)

    began, done = time.monotonic(), 0
    wanted = [(n, scale) for scale in scales for n in steps]
    for scale in scales:
        network, ends, many = PipelineNetwork(pipe, prompts, scale), None, None
        for n in (n for n, s in wanted if s == scale):
            if not args.refit and any(table["guidance_scale"] == scale for table in pipe.scheduler.fitted(n)):
                print(f"{n} steps, guidance {scale:g}: has a table (--refit fits another)", flush=True)
                done += 1
                continue
            # cuDNN would round convolutions to TF32's 10 bits, in which the fit's differences are lost
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                if ends is None:
                    generator = torch.Generator().manual_seed(args.seed)
                    noise = torch.randn(sum(sizes), *shape, generator=generator).to(pipe.device)
                    print(f"guidance {scale:g}: {len(noise)} trajectories of {args.teacher_steps} steps", flush=True)
                    ends, held_out, *others = (
                        solve(network, pipe.scheduler, part, args.teacher_steps) for part in noise.split(sizes)
                    )
                    many = others[0] if others else None
                found = fit(
                    network, pipe.scheduler, ends, held_out, n, scale,
                    among=settings() if args.stock == "all" else common_settings(),
                    starts=args.starts, history=args.history, many=many,
                    say=lambda line, n=n: print(f"  {n} steps: {line}", flush=True),
                )  # fmt: skip
            done += 1
            left = (time.monotonic() - began) / done * (len(wanted) - done)
            print(f"{outcome(n, scale, found)}; about {left / 60:.0f} min left", flush=True)
            if found.table is not None:
                judged = [x for x in ("default", found.best_stock, "fitted", "uncorrected") if x in found.errors]
                provenance = {
                    "prompts": len(prompts),
                    "trajectories": count,
                    "correction_trajectories": sizes[-1] if "uncorrected" in found.errors else 0,
                    "teacher_steps": args.teacher_steps,
                    "seed": args.seed,
                    "evaluations": found.evaluations,
                    "seconds": round(found.seconds, 1),
                    # median and root mean square over as many other noises
                    "held_out_rmse": {name: [round(x, 5) for x in found.errors[name]] for name in judged},
                    "started_from": found.started_from[0],
                    "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
                }
                keep(pipe, found.table | {"provenance": provenance}, folder)
    if card.of_a_run(folder):  # which says it too
        card.rewrite(folder)


def outcome(n: int, scale: float, found: Fitted) -> str:
    """One line that says how the fit did on the held-out noises."""
    if "fitted" not in found.errors:
        return f"{n} steps, guidance {scale:g}: no solver to start from (--history, --stock)"
    names = {"fitted": "fitted", "default": "default", "best stock": found.best_stock, "uncorrected": "uncorrected"}
    errors = ", ".join(f"{name} {found.errors[key][0]:.4f}" for name, key in names.items() if key in found.errors)
    verdict = "kept" if found.table is not None else "NOT kept, as it is no better than what there is"
    return (
        f"{n} steps, guidance {scale:g}: median error on held-out noises {errors} ({found.best_stock}): {verdict}; "
        f"{found.evaluations:,} evaluations, {found.seconds:.0f} s"
    )


def keep(pipe: MezzotintPipeline, table: dict[str, Any], folder: Path) -> None:
    """Put the table into the pipeline's scheduler and into the folder. The code goes first: a checkpoint of an older
    version would carry a scheduler that knows no tables. Figures of as many steps go: they were of other pictures."""
    kind = (table["num_inference_steps"], table["guidance_scale"])
    others = [
        old
        for old in pipe.scheduler.fitted_schedules or ()
        if (old["num_inference_steps"], old["guidance_scale"]) != kind
    ]
    tables = sorted([*others, table], key=lambda t: (t["num_inference_steps"], t["guidance_scale"]))
    pipe.scheduler = MezzotintScheduler.from_config(pipe.scheduler.config, fitted_schedules=tables)
    pipe.save_config(folder)
    evaluation = folder / card.EVALUATION
    if evaluation.is_file():
        steps = json.loads(evaluation.read_text(encoding="utf-8"))["settings"]["num_inference_steps"]
        if steps == table["num_inference_steps"]:
            card.drop_evaluation(folder)
            print(f"the evaluation was of {steps} steps without this table: removed", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as aside:  # the old one is whole until the new one is
        pipe.scheduler.save_pretrained(aside)
        os.replace(Path(aside) / pipe.scheduler.config_name, folder / "scheduler" / pipe.scheduler.config_name)


def _has(folder: str | None) -> bool:
    return folder is not None and (Path(folder) / MezzotintPipeline.config_name).is_file()


if __name__ == "__main__":
    sys.exit(main())
