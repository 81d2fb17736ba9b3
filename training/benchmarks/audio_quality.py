# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How well spoken digits are drawn: whether the digit and the speaker are those that were asked for, how far the sounds
are from real ones, and how many are copies.

    mezzotint train --recipe spoken-digits --train_data_dir path/to/spoken-digits-8k
    python training/benchmarks/audio_quality.py runs/spoken-digits --train_data_dir path/to/spoken-digits-8k

Two classifiers, of digits and of speakers, see log-mel spectrograms and are trained on the real training clips alone.
Each figure stands beside that of real clips of the test split, which no training saw: of the classifiers it is their
own accuracy, the ceiling; of the Fréchet distance it is that of as many training clips, the floor. Sounds are drawn for
every pair of digit and speaker equally often, in the words of the recipe.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import make_image_grid

from mezzotint.drawing import as_grid
from mezzotint_training.config.errors import exit_code
from mezzotint_training.config.flags import Parser, text
from mezzotint_training.config.recipe import data_of
from mezzotint_training.config.rules import COUNT, GUIDANCE, SEED, at_least, at_most
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.metrics.accuracy import distances
from mezzotint_training.metrics.copies import copies
from mezzotint_training.metrics.intervals import Figure, share
from mezzotint_training.metrics.judges import train_class_judge
from mezzotint_training.metrics.pictures import Real, draw, read, real_pictures, shuffled
from mezzotint_training.modalities.contents import unit
from mezzotint_training.networks.saved import load_pipeline

ASKED = ("digit", "speaker")  # columns that classifiers are trained on
SHOWN = 8  # drawn and real sounds in the grid


def arguments() -> Parser:
    parser = Parser("audio_quality", __doc__)
    parser.add_argument("checkpoint", type=text, help="a pipeline of spoken digits: a folder or a Hub name")
    parser.add_argument("--train_data_dir", type=text, required=True, help="folder of the set that it was trained on")
    parser.number("count", int, at_least(40), at_most(10**5), default=250, help="sounds to draw")
    parser.number("num_inference_steps", int, *COUNT, default=20, help="sampling steps")
    parser.number("guidance_scale", float, *GUIDANCE, default=2.0, help="weight of the guidance")
    parser.number("judge_steps", int, at_least(1), at_most(10**6), default=600, help="updates of the classifiers")
    parser.number("batch_size", int, at_least(1), at_most(4096), default=50, help="sounds drawn at a time")
    parser.number("seed", int, *SEED, default=0, help="seed of the drawings and of the classifiers")
    parser.add_argument("--output", type=text, help="a JSON file for all figures")
    parser.add_argument("--grid", type=text, help="a PNG file for spectrograms: drawn ones above real ones")
    return parser


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every figure: drawn, real."""
    given = {"train_data_dir": args.train_data_dir}
    names = ("caption_column", "validation_split", "num_validation_samples", "modality", "sample_column")
    config = TrainConfig(**data_of(args.checkpoint, given, names, "audio_quality"), report_to="none")
    pipe: Any = load_pipeline(args.checkpoint, device="cpu")
    sets: dict[str, tuple[Real, Real]] = {}
    for column in ASKED:
        images, classes = real_pictures(config, pipe, "test", column)
        sets[column] = tuple(read(some, classes, column) for some in images)
        if column == ASKED[0]:  # a caption of each pair, by its first row
            pairs = {caption[0]: None for caption in sets[column][0].captions}
    captions = [[caption] for caption in list(pairs) * (args.count // len(pairs) + 1)][: args.count]
    how = {name: getattr(args, name) for name in ("num_inference_steps", "guidance_scale", "batch_size", "seed")}
    drawn = draw(pipe, captions, **how)

    found: dict[str, Any] = {"settings": vars(args), "captions": len(pairs)}
    for column, (train, test) in sets.items():
        judge = train_class_judge(
            train.pixels, train.labels, int(train.labels.max()) + 1, args.judge_steps, args.seed, torch.device("cpu")
        )
        label_of = {caption[0]: int(label) for caption, label in zip(train.captions, train.labels, strict=True)}
        asked = torch.tensor([label_of[caption[0]] for caption in captions])
        hits, real = judge.read(drawn) == asked, judge.read(test.pixels) == test.labels
        found[f"{column} as asked"] = share(int(hits.sum()), len(hits)), share(int(real.sum()), len(real))
        if column == ASKED[0]:
            floor = train.rows(shuffled(len(train.pixels), args.seed)[: args.count])
            features = [judge(pixels) for pixels in (drawn, test.pixels, floor.pixels)]
            far, near = distances(features[0], features[1]), distances(features[2], features[1])
            for name in ("frechet_distance", "precision", "recall"):
                found[name.replace("_", " ")] = far[name], near[name]
    train, test = sets[ASKED[0]]
    alike = copies(*(unit(x).flatten(1).double() for x in (drawn, test.pixels, train.pixels)), rate=0.05)
    found["copy rate"] = alike.drawn, alike.real
    if args.grid:
        rows = [some[:SHOWN].flip(2).permute(0, 2, 3, 1).numpy() for some in (drawn, test.pixels)]  # low pitch below
        make_image_grid([as_grid(row) for row in rows], rows=1, cols=2).save(args.grid)
    return found


def main(argv: list[str] | None = None) -> int:
    def program() -> None:
        args = arguments().parse_args(argv)
        found = measure(args)
        print("| | drawn | real |\n|---|---|---|")
        for name, figures in found.items():
            if isinstance(figures, tuple):
                style = ".3g" if "distance" in name else ".1%"
                print(f"| {name} | {' | '.join(_shown(x, style) for x in figures)} |")
        if args.output:
            plain = {k: [list(x) for x in v] if isinstance(v, tuple) else v for k, v in found.items()}
            Path(args.output).write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")

    return exit_code(program)


def _shown(figure: Figure, style: str) -> str:
    low, high = figure.interval
    return f"{figure.value:{style}} ({low:{style}} to {high:{style}})"


if __name__ == "__main__":
    sys.exit(main())
