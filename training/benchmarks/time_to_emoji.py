# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A race: the seconds from pictures to a network that draws emoji of 64 px well enough, as `LEADERBOARD.md` has it.

    python training/benchmarks/time_to_emoji.py --data path/to/emoji-64 --text path/to/all-MiniLM-L6-v2
    python training/benchmarks/time_to_emoji.py ... --max_train_steps 3000 --learning_rate 2e-3
    python training/benchmarks/time_to_emoji.py ... --side cascade --stages '{max_train_steps: 1500}' '{}'
    python training/benchmarks/time_to_emoji.py ... --side peer --max_train_steps 1500

A run is `train.py` by the recipe emoji-64, with any of its flags; with --side cascade it is `train_cascade.py` by the
recipe of the same name, a stage after the other; with --side peer it is diffusers' own recipe (`diffusers_recipe.py`)
with as many parameters, the same captions and the same frozen text. Its time is wall time from reading the data to the
last update, encoding of captions and validations included. What it draws is then judged by
captions of the test split, which it was not trained on, one picture each, with guidance: how often a two-tower model of
real training pictures picks the picture's own caption among 32, as a share of how often it does for the real pictures;
and the kernel distance (KID) to these, on the model's features. The command prints a row of the leaderboard, and writes
the pictures.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from mezzotint_training.benchmarks.cascade_quality import loaded
from mezzotint_training.benchmarks.quality import SCALES, Judged, QualityJudge, prepare, run
from mezzotint_training.benchmarks.time_to_quality import PEER, show
from mezzotint_training.config.cascade import Stages
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import Help, parse_args
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.metrics.pictures import draw

SCALE = "emoji-64"
ACCURACY = 0.6  # of real pictures': what a row of the leaderboard has to reach
SIDES = ("ours", "cascade", "peer")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--data", required=True, help="folder of the set emoji-64")
    parser.add_argument("--text", required=True, help="folder or Hub name of the frozen text encoder")
    parser.add_argument("--side", choices=SIDES, default="ours", help="what trains")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="weight of the guidance in drawing")
    parser.add_argument("--sampling_steps", type=int, default=20, help="steps in which pictures are drawn")
    parser.add_argument("--judge_steps", type=int, default=1000, help="updates of the two-tower model")
    parser.add_argument("--output", default="time_to_emoji", help="a folder for the figures and the pictures")
    args, flags = parser.parse_known_args(argv)
    torch.set_num_threads(args.threads)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        shared = prepare(SCALE, args.data, Path(folder), args.text)
        configs = settings(args.side, shared, f"{folder}/run", flags)
        runs = [run("peer" if args.side == "peer" else "ours", config, args.threads) for config in configs]
        judge = QualityJudge(shared, SCALES[SCALE], 1000, args.sampling_steps, args.judge_steps)
        found = judged(args, judge, configs)
    real = judge.judge(judge.asked.pixels, judge.asked).accuracy.value
    share, kid = found.accuracy.value / real, found.kernel_distance.value
    wall, processor = sum(one.wall for one in runs), sum(one.processor for one in runs)
    figures = {
        "side": args.side, "flags": flags, "seconds": wall, "processor": processor,
        "accuracy": found.accuracy.value, "accuracy_interval": found.accuracy.interval, "real": real,
        "kernel_distance": kid, "kernel_distance_interval": found.kernel_distance.interval,
    }  # fmt: skip
    with (output / "time_to_emoji.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(figures) + "\n")
    show(found, judge, output / f"{args.side}-{wall:.0f}.png")
    met = "yes" if share >= ACCURACY else "no"
    print("| seconds | accuracy | of real pictures' | KID x 1000 | met |\n|--:|--:|--:|--:|---|")
    print(f"| {wall:,.0f} | {found.accuracy.value:.1%} | {share:.0%} | {1000 * kid:.1f} | {met} |")
    return 0


def settings(side: str, shared: TrainConfig, place: str, flags: list[str]) -> list[TrainConfig]:
    """The settings of the runs, one after the other: of each stage of a cascade one."""
    text, data = str(shared.text_encoder_name_or_path), ["--train_data_dir", str(shared.train_data_dir)]
    recipe = ["--recipe", "emoji-64"] if side != "peer" else []
    if side == "cascade":
        given = [*recipe, *data, "--text_encoder_name_or_path", text, "--output_dir", place, *flags]
        stages = Stages.parsed(given, __doc__ or "")
        sizes = enumerate(stages.sizes(SCALES[SCALE].size, SCALES[SCALE].size))
        return [stages.settings(number, size, text) for number, size in sizes]
    own = parse_args([*recipe, *data, *flags], description=__doc__)
    config = replace(own, text_encoder_name_or_path=text, output_dir=place)
    if side == "peer":
        stock = {**PEER, "unet": SCALES[SCALE].peer, **SCALES[SCALE].settings, "resolution": [64]}
        config = replace(config, **{name: value for name, value in stock.items() if name not in own.given})
    return [config]


def judged(args: argparse.Namespace, judge: QualityJudge, configs: list[TrainConfig]) -> Judged:
    """The verdict on pictures that the finished runs of these settings draw."""
    folders = [Path(config.output_dir) for config in configs]
    if args.side == "cascade":
        how = {"num_inference_steps": args.sampling_steps, "batch_size": 128, "seed": 0, "progress": False}
        drawn = draw(loaded(*folders), judge.asked.captions, guidance_scale=args.guidance_scale, **how)
        return judge.judge(drawn, judge.asked)
    if args.side == "peer":
        return judge.of_peer(folders[0] / f"unet-{configs[0].max_train_steps}", args.guidance_scale)
    return judge.of_ours(folders[0], args.guidance_scale)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"time_to_emoji: {error}")
