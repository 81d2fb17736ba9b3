# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What the benchmarks of videos and of solids share: arguments, real and drawn samples, and a table of drawn beside
real."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mezzotint_training.config.errors import exit_code
from mezzotint_training.config.flags import Parser, text
from mezzotint_training.config.recipe import data_of
from mezzotint_training.config.rules import COUNT, GUIDANCE, SEED, at_least, at_most
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.rows import column
from mezzotint_training.metrics.intervals import Figure
from mezzotint_training.metrics.pictures import Real, draw, read, real_pictures, shuffled
from mezzotint_training.networks.saved import load_pipeline

# What a figure is called, and its values: of drawn samples for captions that were trained on, for captions of the test
# split, and of real samples of that split; None where there is none
Figures = dict[str, tuple[Figure | None, Figure | None, Figure | None]]


class Judged(NamedTuple):
    """
    Attributes:
        train, test: real samples of the two splits, as judges look at them.
        rows: the same with all their columns.
        known, unseen: what is drawn for captions of `train`, and of `test`: samples, and the row of each caption.
    """

    train: Real
    test: Real
    rows: tuple[CaptionedSamples, CaptionedSamples]
    known: tuple[torch.Tensor, torch.Tensor]
    unseen: tuple[torch.Tensor, torch.Tensor]

    def labels(self, name: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """The classes of a column in both splits by number, -1 for one that `train` does not have, and their names."""
        names = [column(x.rows, name).to_pylist() for x in self.rows]
        classes = sorted(set(names[0]))
        number = {value: i for i, value in enumerate(classes)}
        train, test = (
            torch.tensor([number.get(some[i], -1) for i in x.good.tolist()])
            for x, some in zip(self.rows, names, strict=True)
        )
        return train, test, classes


def arguments(program: str, words: str, word: str) -> Parser:
    """The arguments of a benchmark of samples that a word is for."""
    parser = Parser(program, words)
    parser.add_argument("checkpoint", type=text, help=f"a pipeline of {word}s: a folder or a Hub name")
    parser.add_argument("--train_data_dir", type=text, required=True, help="folder of the set that it was trained on")
    parser.number("count", int, at_least(8), at_most(10**5), default=96, help=f"{word}s to draw for trained captions")
    parser.number("num_inference_steps", int, *COUNT, default=20, help="sampling steps")
    parser.number("guidance_scale", float, *GUIDANCE, default=2.0, help="weight of the guidance")
    parser.number("judge_steps", int, at_least(1), at_most(10**6), default=300, help="updates of each judge")
    parser.number("batch_size", int, at_least(1), at_most(4096), default=32, help=f"{word}s drawn at a time")
    parser.number("seed", int, *SEED, default=0, help="seed of the drawings and of the judges")
    parser.add_argument("--output", type=text, help="a JSON file for all figures")
    parser.add_argument("--grid", type=text, help="a PNG file that shows drawn ones above real ones")
    return parser


def prepared(args: argparse.Namespace, program: str) -> Judged:
    """Real samples, and drawn ones: `count` for captions that are spread over the training split, and one for each row
    of the test split."""
    given = {"train_data_dir": args.train_data_dir}
    names = ("caption_column", "validation_split", "num_validation_samples", "modality", "sample_column")
    config = TrainConfig(**data_of(args.checkpoint, given, names, program), report_to="none")
    pipe: Any = load_pipeline(args.checkpoint, device="cpu")
    (known, held), _ = real_pictures(config, pipe, "test", None)
    train, test = (read(some, [], "label") for some in (known, held))
    how = {name: getattr(args, name) for name in ("num_inference_steps", "guidance_scale", "batch_size")}
    chosen = shuffled(len(train.pixels), args.seed)[: args.count]
    drawn = []
    for number, (real, rows) in enumerate(((train, chosen), (test, torch.arange(len(test.pixels))))):
        captions = [real.captions[i] for i in rows.tolist()]
        drawn.append((draw(pipe, captions, **how, seed=2 * args.seed + number), rows))
    return Judged(train, test, (known, held), *drawn)


def program(parser: Parser, measure: Callable[[argparse.Namespace], Figures], argv: list[str] | None) -> int:
    """Measure, print a table and write the figures. Returns the exit code."""

    def run() -> None:
        args = parser.parse_args(argv)
        found = measure(args)
        print(
            "| | drawn, captions trained on | drawn, captions of the test split | real, test split |\n|---|---|---|---|"
        )
        for name, figures in found.items():
            style = ".3g" if "distance" in name or "movement" in name else ".1%"
            print(f"| {name} | {' | '.join(_shown(x, style) for x in figures)} |")
        if args.output:
            plain = {name: [None if x is None else list(x) for x in figures] for name, figures in found.items()}
            text = json.dumps({"settings": vars(args), "figures": plain}, indent=1)
            Path(args.output).write_text(text + "\n", encoding="utf-8")

    return exit_code(run)


def _shown(figure: Figure | None, style: str) -> str:
    if figure is None:
        return ""
    low, high = figure.interval
    return f"{figure.value:{style}} ({low:{style}} to {high:{style}})"
