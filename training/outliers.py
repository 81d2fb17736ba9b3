# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Find, after training, the rows of a set that deserve a look: a lint that only a trained network can make.

    mezzotint outliers runs/mine --train_data_dir pictures/ --output rows.json

By the likelihoods of a network that draws pictures, sounds, videos, solids or molecules from a text, without guidance:

- samples that are unlike the others: less likely than the median by many robust standard deviations;
- captions that do not belong to their sample: it is likelier for the empty text;
- what is remembered: how often a training sample is likelier than a held-out one (50 % where nothing is), and the
  share of training samples whose caption saves more bits than those of all but one in twenty held-out ones.

Each sample takes 128 evaluations of the network. Everything is a function of --seed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mezzotint_training.config.arguments import parser_of
from mezzotint_training.config.errors import UserError, exit_code
from mezzotint_training.config.rules import GROUPS, writable_file
from mezzotint_training.metrics.outliers import ALARMS, outliers
from mezzotint_training.metrics.pictures import read, real_pictures, shuffled
from mezzotint_training.publishing.evaluation import data_settings, load_for_likelihood


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("outliers")

    def program() -> None:
        args = parser.parse_args(argv)
        if args.output:
            writable_file("output", Path(args.output))
        results = find(args)
        print("\n".join(told(results, args.top)))
        if args.output:
            Path(args.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    return exit_code(program)


def find(args: argparse.Namespace) -> dict[str, Any]:
    """What `metrics.outliers.outliers` finds of the set.

    Raises:
        UserError: for bad input, before anything is measured.
    """
    config = data_settings(args, "outliers")
    pipe = load_for_likelihood(args.checkpoint, args.device, "outliers")
    images, _ = real_pictures(config, pipe, args.split, args.label_column)
    parts = [read(some, [], "label", as_seen=False) for some in images]
    parts = [some.rows(shuffled(len(some.pixels), args.seed)[: args.count]) for some in parts]
    if min(len(some.pixels) for some in parts) < 2 * GROUPS:
        counts = " and ".join(str(len(some.pixels)) for some in parts)
        raise UserError(
            f"outliers needs {2 * GROUPS} or more {pipe.word}s trained on, and as many held out: got {counts}"
        )
    return outliers(pipe, *parts, args.batch_size, args.seed, args.deviations)


def told(results: dict[str, Any], top: int) -> list[str]:
    """The findings in lines."""
    counts, word, lines = results["pictures"], results["word"], []
    for name, found in results["bits_per_dimension"].items():
        low, high = found["interval"]
        what = "trained on" if name == "known" else "held out"
        lines.append(
            f"{counts[name]} {word}s {what}: {found['value']:.3f} ({low:.3f} to {high:.3f}) bits per dimension"
        )
    low, high = results["told_apart"]["interval"]
    lines.append(f"a {word} trained on is likelier than one held out in {results['told_apart']['value']:.1%} "
                 f"({low:.1%} to {high:.1%}) of the pairs; 50 % where nothing is remembered")  # fmt: skip
    if "remembered" in results:
        low, high = results["remembered"]["interval"]
        lines.append(f"captions save more bits than those of {1 - ALARMS:.0%} of the held-out {word}s in "
                     f"{results['remembered']['value']:.1%} ({low:.1%} to {high:.1%}) of the rows; {ALARMS:.0%} where "
                     "nothing is remembered")  # fmt: skip
    kinds = {"unlike": f"{word}s unlike the others", "captions": f"captions that make their {word} less likely"}
    for kind, words in kinds.items():
        if kind in results:
            rows = results[kind]
            lines.append(f"{words}: {len(rows) or 'none'}")
            for row in rows[:top]:
                how = f"{row['deviations']:.1f} deviations" if kind == "unlike" else f"{row['costs']:.0f} bits"
                lines.append(f"  row {row['row']}, {row['caption']!r}: {how}")
            if len(rows) > top:
                lines.append(f"  and {len(rows) - top} more")
    return lines


if __name__ == "__main__":
    sys.exit(main())
