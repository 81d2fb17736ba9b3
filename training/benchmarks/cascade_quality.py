# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A cascade beside one network of the full size that was trained for as long, what dynamic thresholding does to either
under strong guidance, what the noise between the stages and in the steps does, and how many steps the upscaler needs.

    python training/benchmarks/cascade_quality.py digits --seconds 120
    python training/benchmarks/cascade_quality.py emoji-64 --data path/to/emoji-64 --text path/to/all-MiniLM-L6-v2 \
        --seconds 600 --threads 1
    python training/benchmarks/cascade_quality.py emoji-64 ... --trained folder/

The single network and the stages of the cascade are trained by the recipes of the same name, on the same text of a
frozen encoder, each for so many updates as fit into its part of the processor time: all of --seconds for the one
network, and of the cascade --share for the base and the rest for the upscaler. With --trained they are those that a run
of this command left there. What is drawn is judged as in `quality.py`, by a network of real training pictures: how
often it reads what was asked for (of emoji among 32 captions of the test split, which nobody was trained on), and the
kernel distance (KID) to real pictures on its features. Saturated is the share of values that are 0 or 255; grain is how
far values are, in grey levels on average, from the median of the three by three around them, which is 0 on flat ground
and along straight edges.

Grids go to --output: a row of real pictures, then of each in the order of the table.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from mezzotint import MezzotintCascadePipeline
from mezzotint.drawing import class_of
from mezzotint_training.benchmarks.quality import SCALES, Judged, QualityJudge, prepare, run, steps_within
from mezzotint_training.benchmarks.task_quality import grid
from mezzotint_training.config.cascade import CascadeConfig, Stages
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import Help
from mezzotint_training.config.recipe import read_named
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.metrics.intervals import Figure
from mezzotint_training.metrics.pictures import draw

GUIDANCE = (2.0, 3.0, 5.0, 8.0, 15.0)
RATIOS = {"free": None, "0.995": 0.995, "0.01": 0.01}  # quantiles: none, Imagen's, and one that clips alone
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8)
STEPS = (1, 2, 3, 4, 6, 10, 20)
ETAS = (0.0, 0.5, 1.0)
TABLES = ("equal_time", "thresholding", "noise_level", "upscaler_steps", "eta")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("scale", choices=["digits", "emoji-64"], help="the set and the recipes")
    parser.add_argument("--data", help="folder of the set, but of digits")
    parser.add_argument("--text", help="folder or Hub name of the frozen text encoder, but of digits")
    parser.add_argument("--seconds", type=float, default=120, help="processor time of either side")
    parser.add_argument("--share", type=float, default=0.5, help="part of the cascade's time that its base has")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--trained", help="a folder with what this command trained, to measure it again")
    parser.add_argument("--count", type=int, default=500, help="pictures that each row is judged by")
    parser.add_argument("--sampling_steps", type=int, default=20, help="steps of every network")
    parser.add_argument("--judge_steps", type=int, default=1000, help="updates of the network that judges")
    parser.add_argument("--batch_size", type=int, default=128, help="pictures drawn at a time")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="which tables")
    parser.add_argument("--output", default="cascade_quality", help="a folder for runs, grids and figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    place = Path(args.trained or args.output)
    shared = prepare(args.scale, args.data, place, args.text)
    if args.trained is None:
        train(args, shared, place)
    single = loaded(place / "single") if compared(args.tables) else None
    cascade = loaded(place / "stage-1", place / "stage-2")
    judge = Judge(args, shared, output)
    for name in args.tables:
        print(f"\n### {name}\n")
        show(getattr(judge, name)(single, cascade))
    return 0


def compared(tables: list[str]) -> bool:
    """Whether one of these tables needs the one network beside the cascade."""
    return bool({"equal_time", "thresholding"} & set(tables))


def train(args: argparse.Namespace, shared: TrainConfig, place: Path) -> None:
    """Train the one network, where a table needs it, and both stages, each for its part of the time; `trained.json`
    says for how long."""
    common = {
        name: getattr(shared, name)
        for name in (
            "train_data_dir", "text_encoder_name_or_path", "caption_column", "caption_weights", "cache_dir",
            "num_validation_samples", "validation_steps", "report_to", "mixed_precision",
        )
    }  # fmt: skip
    own = SCALES[args.scale].recipe
    common |= {name: value for name, value in own.items() if name != "logit_mean"} | {
        "num_copy_samples": 0,
        "checkpointing_steps": 10**6,
        "lr_warmup_steps": 50,
    }
    common |= {"learning_rate": 1e-3, "ema_decay": 0.99, "output_dir": str(place), "validation_prompts": []}
    stages = Stages([read_named(args.scale, CascadeConfig), common])
    size = SCALES[args.scale].size
    encoder = str(shared.text_encoder_name_or_path)
    alone = {"unet": read_named(args.scale)["unet"], "output_dir": str(place / "single"), "load_back": False}
    runs = {"single": (replace(shared, **common | own | alone), 1.0)} if compared(args.tables) else {}
    for number, side in enumerate(stages.sizes(size, size)):
        share = args.share if number == 0 else 1 - args.share
        runs[f"stage-{number + 1}"] = (replace(stages.settings(number, side, encoder), train_text_encoder=False), share)
    told = {}
    for name, (config, share) in runs.items():
        (steps,) = steps_within([share * args.seconds], "ours", config, args.threads)
        ended = run("ours", replace(config, max_train_steps=steps, logging_steps=steps), args.threads)
        told[name] = {"updates": steps, "processor": ended.processor, "wall": ended.wall}
        print(f"{name}: {steps} updates, {ended.processor:.0f} s of processor time", flush=True)
    (place / "trained.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def loaded(*folders: Path) -> Any:
    """The pipeline of a run, or the cascade of several."""
    pipes = [class_of(folder).from_pretrained(folder) for folder in folders]
    if len(pipes) == 1:
        return pipes[0]
    return MezzotintCascadePipeline.from_stages(*pipes)


class Judge:
    """Draws for the judge's captions and judges."""

    def __init__(self, args: argparse.Namespace, shared: TrainConfig, output: Path):
        self.args, self.output = args, output
        self.of = QualityJudge(shared, SCALES[args.scale], args.count, args.sampling_steps, args.judge_steps)
        self.grids: dict[str, list[torch.Tensor]] = {}

    def drawn(self, table: str, pipe: Any, guidance_scale: float, **more: Any) -> Judged:
        """What the pipeline draws, judged; the first of it becomes a row of the table's grid."""
        how = {"num_inference_steps": self.args.sampling_steps, "batch_size": self.args.batch_size, "seed": 0}
        pixels = draw(
            pipe, self.of.asked.captions, guidance_scale=guidance_scale, progress=False, **how | more
        )  # (N, C, H, W)
        found = self.of.judge(pixels, self.of.asked)
        self.grids.setdefault(table, [self.of.asked.pixels]).append(pixels)
        grid(self.output / f"{self.args.scale}-{table}.png", self.grids[table])
        return found

    def equal_time(self, single: Any, cascade: Any) -> list[list[str]]:
        rows = [["", "guidance", "read as asked for", "KID x 1000"]]
        for scale in (1.0, 2.0, 3.0):
            for name, pipe in (("one network", single), ("cascade", cascade)):
                rows.append([name, f"{scale:g}", *cells(self.drawn("equal_time", pipe, scale))])
        # an upscaler that is guided too costs twice as much
        rows.append(["cascade, both stages", "2", *cells(self.drawn("equal_time", cascade, [2.0, 2.0]))])  # pyright: ignore
        rows.append(["real pictures", "", *cells(self.of.of_real())])
        return rows

    def thresholding(self, single: Any, cascade: Any) -> list[list[str]]:
        rows = [
            ["", "guidance", *(f"{what}, {name}" for what in ("saturated", "read", "KID x 1000") for name in RATIOS)]
        ]
        for name, pipe in (("one network", single), ("cascade", cascade)):
            for scale in GUIDANCE:
                found = [
                    self.drawn(f"thresholding-{name.split()[0]}", pipe, scale, dynamic_thresholding_ratio=ratio)
                    for ratio in RATIOS.values()
                ]
                read, kid = zip(*map(cells, found), strict=True)
                rows.append([name, f"{scale:g}", *(saturated(one.pixels) for one in found), *read, *kid])
        rows.append(["real pictures", "", saturated(self.of.asked.pixels), *[""] * (3 * len(RATIOS) - 1)])
        return rows

    def noise_level(self, single: Any, cascade: Any) -> list[list[str]]:
        rows = [["noise level", "read as asked for", "KID x 1000"]]
        for level in LEVELS:
            rows.append([f"{level:g}", *cells(self.drawn("noise_level", cascade, 2.0, noise_level=level))])
        return rows

    def upscaler_steps(self, single: Any, cascade: Any) -> list[list[str]]:
        rows = [["steps of the upscaler", "read as asked for", "KID x 1000", "grain"]]
        for steps in STEPS:
            found = self.drawn("upscaler_steps", cascade, 2.0, num_inference_steps=[self.args.sampling_steps, steps])
            rows.append([str(steps), *cells(found), f"{grain(found.pixels):.2f}"])
        rows.append(["real pictures", *cells(self.of.of_real()), f"{grain(self.of.asked.pixels):.2f}"])
        return rows

    def eta(self, single: Any, cascade: Any) -> list[list[str]]:
        rows = [["steps of the base", "eta", "read as asked for", "KID x 1000", "grain"]]
        for steps in (self.args.sampling_steps, 2 * self.args.sampling_steps):
            for eta in ETAS:
                found = self.drawn("eta", cascade, 2.0, num_inference_steps=steps, eta=eta)
                rows.append([str(steps), f"{eta:g}", *cells(found), f"{grain(found.pixels):.2f}"])
        return rows


def show(rows: list[list[str]]) -> None:
    """Print a table in Markdown, the first of whose rows are its headings."""
    for i, row in enumerate(rows):
        print(f"| {' | '.join(row)} |" + (f"\n|---|{'--:|' * (len(row) - 1)}" if i == 0 else ""), flush=True)


def cells(found: Judged) -> list[str]:
    def shown(figure: Figure, form: str, factor: float = 1.0) -> str:
        value, low, high = (format(factor * x, form) for x in (figure.value, *figure.interval))
        return f"{value} ({low} to {high})"

    return [shown(found.accuracy, ".1%"), shown(found.kernel_distance, ".1f", 1000)]


def grain(pixels: torch.Tensor) -> float:
    """The mean distance of values to the median of the 3x3 around them, in grey levels.

    Args:
        pixels (`torch.Tensor` of shape `(pictures, channels, height, width)`): bytes.
    """
    values = pixels.float()
    near = F.pad(values, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)  # (N, C, H, W, 9)
    return (values - near.median(dim=-1).values).abs().mean().item()


def saturated(pixels: torch.Tensor) -> str:
    return f"{((pixels == 0) | (pixels == 255)).float().mean().item():.1%}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"cascade_quality: {error}")
