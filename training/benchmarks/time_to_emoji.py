# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A race: the seconds from pictures to a network that draws emoji of 64 px well enough, as `LEADERBOARD.md` has it.

    python training/benchmarks/time_to_emoji.py --data path/to/emoji-64 --text path/to/all-MiniLM-L6-v2
    python training/benchmarks/time_to_emoji.py ... --max_train_steps 3000 --learning_rate 2e-3
    python training/benchmarks/time_to_emoji.py ... --peer --max_train_steps 1500

A run is `train.py` by the recipe emoji-64, with any of its flags; with --peer it is diffusers' own recipe
(`diffusers_recipe.py`) with as many parameters, the same captions and the same frozen text. Its time is wall time from
reading the data to the last update, encoding of captions and validations included. What it draws is then judged by
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

from mezzotint_training.benchmarks.quality import SCALES, QualityJudge, prepare, run
from mezzotint_training.benchmarks.time_to_quality import PEER, show
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import Help, parse_args

SCALE = "emoji-64"
# What a row of the leaderboard has to reach
ACCURACY, KID = 0.6, 0.05


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--data", required=True, help="folder of the set emoji-64")
    parser.add_argument("--text", required=True, help="folder or Hub name of the frozen text encoder")
    parser.add_argument("--peer", action="store_true", help="train by diffusers' recipe")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="weight of the guidance in drawing")
    parser.add_argument("--sampling_steps", type=int, default=20, help="steps in which pictures are drawn")
    parser.add_argument("--judge_steps", type=int, default=1000, help="updates of the two-tower model")
    parser.add_argument("--output", default="time_to_emoji", help="a folder for the figures and the pictures")
    args, flags = parser.parse_known_args(argv)
    torch.set_num_threads(args.threads)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    side = "peer" if args.peer else "ours"
    with tempfile.TemporaryDirectory() as folder:
        shared = prepare(SCALE, args.data, Path(folder), args.text)
        recipe = [] if args.peer else ["--recipe", "emoji-64"]
        own = parse_args([*recipe, "--train_data_dir", args.data, *flags], description=__doc__)
        common = {"text_encoder_name_or_path": shared.text_encoder_name_or_path, "output_dir": f"{folder}/run"}
        config = replace(own, **common)
        if args.peer:
            settings = {**PEER, "unet": SCALES[SCALE].peer, **SCALES[SCALE].settings, "resolution": [64]}
            config = replace(config, **{k: v for k, v in settings.items() if k not in own.given})
        ended = run(side, config, args.threads)
        judge = QualityJudge(shared, SCALES[SCALE], 1000, args.sampling_steps, args.judge_steps)
        where = Path(folder) / "run"
        found = (
            judge.of_peer(where / f"unet-{config.max_train_steps}", args.guidance_scale)
            if args.peer
            else judge.of_ours(where, args.guidance_scale)
        )
    real = judge.judge(judge.asked.pixels, judge.asked).accuracy.value
    share, kid = found.accuracy.value / real, found.kernel_distance.value
    figures = {
        "side": side, "flags": flags, "seconds": ended.wall, "processor": ended.processor,
        "accuracy": found.accuracy.value, "accuracy_interval": found.accuracy.interval, "real": real,
        "kernel_distance": kid, "kernel_distance_interval": found.kernel_distance.interval,
    }  # fmt: skip
    with (output / "time_to_emoji.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(figures) + "\n")
    show(found, judge, output / f"{side}-{ended.wall:.0f}.png")
    met = "yes" if share >= ACCURACY and kid <= KID else "no"
    print("| seconds | accuracy | of real pictures' | KID x 1000 | met |\n|--:|--:|--:|--:|---|")
    print(f"| {ended.wall:,.0f} | {found.accuracy.value:.1%} | {share:.0%} | {1000 * kid:.1f} | {met} |")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"time_to_emoji: {error}")
