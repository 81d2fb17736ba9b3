# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Which changes to the training recipe pay: each against the same base, in the same time, with several seeds.

    python training/benchmarks/ablations.py digits --updates 500 --seeds 3
    python training/benchmarks/ablations.py fashion --data path/to/fashion-28 --changes muon logit_normal

Every run is `train.py` in a process of its own. A change whose updates may cost more or less is first timed beside the
base, by processor time, and gets as many as fit into the time of the base's. Changes that are settings are named in
`CHANGES`; what was tried and is no setting is a context below, that replaces a part of the program. The figures go to a
table in `ABLATIONS.md` by hand, failures included. With --results they are kept in a file, and what is in there is not
run again.
"""

import argparse
import contextlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from mezzotint_training import train as program
from mezzotint_training.benchmarks.quality import SCALES, Judge, prepare, ratio, run, update_seconds
from mezzotint_training.config.arguments import Help
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.learning.objective import denoising_loss

# The settings that a change is a change to, beyond the defaults
BASE: dict[str, Any] = {
    "weighting_scheme": "logit_normal", "logit_mean": 0.5, "logit_std": 1.2, "channels_last": True,
    "train_batch_size": 32, "learning_rate": 2e-3, "ema_decay": 0.99, "lr_warmup_steps": 50,
}  # fmt: skip
# By name: the settings that differ, and whether a step may cost more or less for it
CHANGES: dict[str, tuple[dict[str, Any], bool]] = {
    "none": ({}, False),
    "any timestep alike": ({"weighting_scheme": "none"}, False),
    "logit_mean 0": ({"logit_mean": 0.0}, False),
    "logit_mean -0.5": ({"logit_mean": -0.5}, False),
    "logit_mean 1": ({"logit_mean": 1.0}, False),
    "logit_std 1.8": ({"logit_std": 1.8}, False),
    "laplace": ({"weighting_scheme": "laplace"}, False),
    "learned uncertainty": ({}, False),
    "min-SNR 5, any timestep": ({"weighting_scheme": "none"}, False),
    "epsilon": ({"scheduler": {"prediction_type": "epsilon"}}, False),
    "cosine betas": ({"scheduler": {"beta_schedule": "squaredcos_cap_v2"}}, False),
    "muon": ({"optimizer": "muon"}, True),
    "rate x 0.4": ({"learning_rate": 8e-4}, False),
    "rate x 2.5": ({"learning_rate": 5e-3}, False),
    "batch 64": ({"train_batch_size": 64}, True),
    "batch 16": ({"train_batch_size": 16}, True),
    "constant rate": ({"lr_scheduler": "constant_with_warmup"}, False),
    "linear rate": ({"lr_scheduler": "linear"}, False),
    "beta2 0.999": ({"adam_beta2": 0.999}, False),
    "longer average": ({"ema_decay": 0.998}, False),
    "no average": ({"use_ema": False}, False),
    "dropout 0.1": ({"unet": {"dropout": 0.1}}, True),
    "no empty captions": ({"proportion_empty_prompts": 0.0}, False),
    "augment 0.15": ({"augment_probability": 0.15}, True),
    "not channels last": ({"channels_last": False}, True),
    "attention": ({"unet": {"transformer_layers_per_block": 1}}, True),
    "magnitude preserving": ({}, True),
}


# ------------------------------------------------------------------------------------------- what is not in the program


@contextlib.contextmanager
def learned_uncertainty() -> Iterator[None]:
    """Every noise level weighted by one over its own loss, which is what EDM2's learned uncertainty comes to (arXiv
    2312.02696, eq. 21): here the loss is a moving average over 64 bins of the timestep."""
    average = torch.ones(64)

    def loss(unet, scheduler, samples, noise, timesteps, *rest, **options):
        each = denoising_loss(unet, scheduler, samples, noise, timesteps, *rest, **options)
        bins = (timesteps / len(scheduler) * 64).long()
        if torch.is_grad_enabled():
            for i, x in zip(bins.tolist(), each.detach().tolist(), strict=True):
                average[i].lerp_(torch.tensor(x), 0.02)
        return each / average[bins].clamp(min=1e-4) * average.mean()

    with mock.patch.object(program, "denoising_loss", loss):
        yield


@contextlib.contextmanager
def min_snr() -> Iterator[None]:
    """Min-SNR-5 weights (arXiv 2303.09556) on velocities: min(SNR, 5) / (SNR + 1)."""

    def loss(unet, scheduler, samples, noise, timesteps, *rest, **options):
        snr = scheduler.timesteps_to_sigmas(timesteps) ** -2
        weights = snr.clamp(max=5) / (snr + 1)
        return weights * denoising_loss(unet, scheduler, samples, noise, timesteps, *rest, **options)

    with mock.patch.object(program, "denoising_loss", loss):
        yield


@contextlib.contextmanager
def magnitude_preserving() -> Iterator[None]:
    """Config E of EDM2 (arXiv 2312.02696, eqs. 47 and 66): every matrix and kernel of the U-Net between hidden layers
    is used at unit norm for each output, and brought back to it after every step, so that the learning rate is a rate
    of turning. Where a layer starts from zero it has a gain that does."""

    class UnitNorm(torch.nn.Module):
        def __init__(self, weight: torch.Tensor):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(0.0 if not weight.any() else 1.0))

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            flat = weight.flatten(1)
            return (F.normalize(flat, dim=1) * self.gain).reshape(weight.shape)

    def new_components(*args: Any) -> dict[str, Any]:
        components = made(*args)
        for name, module in components["unet"].named_modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and name not in ("conv_in", "conv_out"):
                start = UnitNorm(module.weight)
                if not module.weight.any():
                    torch.nn.init.normal_(module.weight)
                with torch.no_grad():
                    module.weight.copy_(F.normalize(module.weight.flatten(1), dim=1).reshape(module.weight.shape))
                torch.nn.utils.parametrize.register_parametrization(module, "weight", start, unsafe=True)
        return components

    def finished(pipe: Any, *args: Any) -> Any:
        for module in pipe.unet.modules():
            if torch.nn.utils.parametrize.is_parametrized(module):
                torch.nn.utils.parametrize.remove_parametrizations(module, "weight")
        return finish(pipe, *args)

    def make_optimizer(config: TrainConfig, named: dict[str, torch.nn.Parameter], device: torch.device) -> Any:
        optimizer = make(config, named, device)
        weights = [p for name, p in named.items() if name.endswith("original")]

        def forced(*_: Any) -> None:
            with torch.no_grad():
                for p in weights:
                    p.copy_(F.normalize(p.flatten(1), dim=1).reshape(p.shape))

        optimizer.register_step_post_hook(forced)
        return optimizer

    made, finish, make = program.new_components, program.finish, program.make_optimizer
    with (
        mock.patch.object(program, "new_components", new_components),
        mock.patch.object(program, "finish", finished),
        mock.patch.object(program, "make_optimizer", make_optimizer),
    ):
        yield


CONTEXTS = {
    "learned uncertainty": learned_uncertainty,
    "min-SNR 5, any timestep": min_snr,
    "magnitude preserving": magnitude_preserving,
}


# --------------------------------------------------------------------------------------------------------- the program


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("scale", choices=list(SCALES), help="the set and the sizes to train at")
    parser.add_argument("--data", help="folder of the set; digits need none")
    parser.add_argument(
        "--updates", type=int, default=500, help="updates of the base; a change that costs more gets fewer"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of each change")
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), metavar="CHANGE",
                        help=f"changes to try, by default all: {', '.join(CHANGES)}")  # fmt: skip
    parser.add_argument("--also", type=json.loads, default={}, help="more changes, as JSON: name to settings")
    parser.add_argument("--base", type=json.loads, default={}, help="settings that all runs have besides, as JSON")
    parser.add_argument("--count", type=int, default=512, help="pictures drawn for each verdict")
    parser.add_argument("--sampling_steps", type=int, default=12, help="steps in which they are drawn")
    parser.add_argument("--judge_steps", type=int, default=400, help="updates of the classifier that judges")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("--results", help="a file of JSON lines that keeps the figures; what is in it is not run again")
    args = parser.parse_args(argv)
    for name in args.changes:
        if name not in CHANGES:
            raise UserError(f"a change must be one of {', '.join(CHANGES)}: got {name!r}")
    changes = {name: CHANGES[name] for name in args.changes} | {k: (v, True) for k, v in args.also.items()}

    torch.set_num_threads(args.threads)
    kept = Path(args.results) if args.results else None
    done: list[dict[str, Any]] = []
    if kept is not None and kept.is_file():
        done = [json.loads(line) for line in kept.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shared = prepare(args.scale, args.data, root)
        unet = {**shared.unet, **args.base.get("unet", {})}
        shared = replace(shared, **{**BASE, **args.base, "unet": unet})
        judge = Judge(shared, SCALES[args.scale], args.count, args.sampling_steps, args.judge_steps)
        real = judge.of_real()
        print(f"real pictures: KID x 1000 {1000 * real.kernel_distance.value:.2f}, accuracy {real.accuracy.value:.1%}")

        def settings(name: str) -> TrainConfig:
            differ = changes.get(name, ({}, False))[0]
            differ = {k: {**getattr(shared, k), **v} if isinstance(v, dict) else v for k, v in differ.items()}
            if name == "attention":  # at the lowest level; without, the text comes in with the timestep alone
                above = len(differ["unet"]["block_out_channels"]) - 1
                differ["unet"]["transformer_layers_per_block"] = [0] * above + [1]
            return replace(shared, **differ)

        def length(name: str) -> int:
            """Updates in the time of the base's: the cost of one is taken beside that of the base, twice by turns."""
            config = {x: replace(settings(x), output_dir=str(root / f"{x}-timed")) for x in ("none", name)}
            costs = [update_seconds(x, config[x], args.threads) for x in ("none", name, "none", name)]
            return round(args.updates * sum(costs[::2]) / sum(costs[1::2]))

        lengths = {name: length(name) if costs else args.updates for name, (_, costs) in changes.items()}
        print(f"updates: {lengths}", flush=True)

        def one(job: tuple[str, int]) -> None:
            name, seed = job
            known = {"scale": args.scale, "change": name, "seed": seed, "updates": args.updates, "base": args.base}
            if any(all(line[k] == v for k, v in known.items()) for line in done):
                return
            output_dir = str(root / f"{name}-{seed}".replace(" ", "_"))
            config = replace(settings(name), output_dir=output_dir, seed=seed)
            config = replace(config, max_train_steps=lengths[name], logging_steps=max(1, lengths[name] // 5))
            ended = run(name, config, args.threads)
            found = judge.of_ours(Path(config.output_dir), seed=seed)
            line = known | {
                "steps": lengths[name],
                "wall": ended.wall,
                "processor": ended.processor,
                "kernel_distance": found.kernel_distance.value,
                "frechet_distance": found.frechet_distance.value,
                "accuracy": found.accuracy.value,
                "loss": ended.lines[-1]["loss"],
            }
            done.append(line)
            if kept is not None:
                with kept.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)

        jobs = [(name, seed) for seed in range(args.seeds) for name in changes]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(one, jobs))
    print("\n" + table([x for x in done if x["scale"] == args.scale and x["base"] == args.base], args.updates))
    return 0


def table(lines: list[dict[str, Any]], updates: int) -> str:
    """Markdown, best change first; ratios are to the runs with none."""
    lines = [line for line in lines if line["updates"] == updates]
    by_name: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_name.setdefault(line["change"], []).append(line)

    def column(name: str, key: str) -> list[float]:
        return [max(line[key], 1e-5) for line in by_name[name]]

    rows = []
    for name, some in by_name.items():
        cells = [name, f"{np.mean(column(name, 'processor')):.0f}", f"{some[0]['steps']:,}"]
        cells += [f"{1000 * math.exp(np.mean(np.log(column(name, 'kernel_distance')))):.2f}"]
        value = 1.0
        if name == "none" or len(some) < 2:
            cells += ["", ""]
        else:
            value, low, high = ratio(column(name, "kernel_distance"), column("none", "kernel_distance"))
            other = ratio(column(name, "frechet_distance"), column("none", "frechet_distance"))
            cells += [f"{value:.2f} ({low:.2f} to {high:.2f})", "{:.2f} ({:.2f} to {:.2f})".format(*other)]
        cells += [f"{np.mean(column(name, 'accuracy')):.1%}"]
        rows.append((value, f"| {' | '.join(cells)} |"))
    head = (
        "| change | seconds | updates | KID x 1000 | ratio to none | Fréchet distance, ratio | accuracy |\n"
        + "|---" * 7
    )
    return "\n".join([head + "|", *(row for _, row in sorted(rows))])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"ablations: {error}")
