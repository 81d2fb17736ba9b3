# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Tell which of several captions a picture is likeliest under, to a pipeline that draws from text: a classifier that
nobody trained (<https://huggingface.co/papers/2303.16203>). Sounds, videos, solids and molecules are classified as
well.

    mezzotint classify runs/digits picture.png --captions "a handwritten six" "a handwritten eight"
    mezzotint classify runs/mine --train_data_dir pictures/ --split test --output verdicts.json
    mezzotint classify runs/spoken-digits seven.wav --captions "a spoken six" "a spoken seven"

Files that are named are read as in training, pictures scaled and cropped, and each has a line with its likeliest
caption and its probability; a molecule is named by its string. Without one, held-out samples of a set are classified,
by default among the first captions of its training samples, and the share that is right stands in the end with its
95 % interval.

Captions are compared by the variational bound of the likelihood, without guidance, under the same noise; those that are
clearly behind drop out early. A sample takes hundreds of evaluations of the network. Everything is a function of
--seed.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from mezzotint_training.config.arguments import parser_of
from mezzotint_training.config.errors import UserError, exit_code
from mezzotint_training.config.rules import writable_file
from mezzotint_training.config.tasks import MODALITIES
from mezzotint_training.metrics.accuracy import figure
from mezzotint_training.metrics.intervals import share
from mezzotint_training.metrics.pictures import Real, read, real_pictures, shuffled
from mezzotint_training.metrics.zero_shot import Verdicts, classify
from mezzotint_training.networks.saved import sample_size
from mezzotint_training.publishing.evaluation import data_settings, load_for_likelihood

MOST_CAPTIONS = 100  # of a set's own, among which samples are classified without being asked to
CONFUSIONS = 5  # that are told


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("classify")

    def program() -> None:
        args = parser.parse_args(argv)
        if args.output:
            writable_file("output", Path(args.output))
        results = of_files(args) if args.images else of_a_set(args)
        if args.output:
            Path(args.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    return exit_code(program)


def of_files(args: argparse.Namespace) -> dict[str, Any]:
    """Classify the files that are named, print a line for each and return the verdicts as plain data."""
    captions = checked_captions(args.captions)
    pipe = load(args)
    kind = MODALITIES[pipe.modality]
    if not kind.reader.EXTENSIONS:
        raise UserError(f"{kind.word}s are classified of a set, in a column of arrays: got files")
    samples, about = [], pipe.unet.config.get("modality")
    for name in args.images:
        cell = name if pipe.modality == "molecules" else {"path": name, "bytes": None}
        try:
            samples.append(kind.reader.read(cell, pipe.channels, sample_size(pipe), about))
        except ValueError as error:
            raise UserError(f"{kind.word} {name} cannot be read: {error}") from None
    found = classify(pipe, torch.stack(samples), captions, args.batch_size, args.seed, args.rounds)
    verdicts = [verdict(found, i, captions) | {kind.word: name} for i, name in enumerate(args.images)]
    for one in verdicts:
        print(f"{one[kind.word]}: {one['caption']} ({one['probability']:.1%})")
    return {"captions": captions, "evaluations": found.evaluations, "verdicts": verdicts}


def of_a_set(args: argparse.Namespace) -> dict[str, Any]:
    """Classify held-out samples of a set, print how many are right and return the verdicts as plain data."""
    if args.captions:
        checked_captions(args.captions)
    config = data_settings(args, "classify")
    pipe = load(args)
    parts, classes = real_pictures(config, pipe, args.split, args.label_column)
    held_out: Real = read(parts[1], classes, args.label_column or "label", as_seen=False)
    held_out = held_out.rows(shuffled(len(held_out.pixels), args.seed)[: args.count])
    known = list(dict.fromkeys(parts[0].captions[i][0] for i in parts[0].good.tolist()))
    if args.captions is None and not 2 <= len(known) <= MOST_CAPTIONS:
        raise UserError(
            f"captions must be named where a set has fewer than 2 or more than {MOST_CAPTIONS}: got {len(known):,}"
        )
    captions = args.captions or sorted(known)
    own = torch.tensor([next((captions.index(x) for x in some if x in captions), -1) for some in held_out.captions])
    if (own < 0).all():
        raise UserError(f"captions must be of the set's {pipe.word}s: got none that a held-out one has")
    held_out, own = held_out.rows((own >= 0).nonzero()[:, 0]), own[own >= 0]
    found = classify(pipe, held_out.pixels, captions, args.batch_size, args.seed, args.rounds)
    right = figure(share(int((found.best == own).sum()), len(own)))
    wrong = Counter(
        (captions[i], captions[j]) for i, j in zip(own.tolist(), found.best.tolist(), strict=True) if i != j
    )
    low, high = right["interval"]
    print(f"{right['value']:.1%} ({low:.1%} to {high:.1%}) of {len(own)} held-out {pipe.word}s are likeliest under "
          f"their own caption of {len(captions)}, by {found.evaluations:.0f} evaluations each")  # fmt: skip
    for (said, taken), count in wrong.most_common(CONFUSIONS):
        print(f"  {said!r} taken for {taken!r}: {count}")
    assert held_out.numbers is not None
    rows = enumerate(zip(held_out.numbers.tolist(), own.tolist(), strict=True))
    verdicts = [verdict(found, i, captions) | {"row": row, "own": captions[number]} for i, (row, number) in rows]
    return {"captions": captions, "evaluations": found.evaluations, "right": right, "verdicts": verdicts}


def load(args: argparse.Namespace) -> Any:
    """The pipeline.

    Raises:
        UserError: for one without likelihoods of samples given a text.
    """
    pipe = load_for_likelihood(args.checkpoint, args.device, "classify")
    if pipe.unet.config.cross_attention_dim is None:
        raise UserError("classify needs a network that reads captions: got one that reads no text")
    return pipe


def checked_captions(captions: list[str] | None) -> list[str]:
    """The captions.

    Raises:
        UserError: for fewer than two, or one that is there twice.
    """
    if len(captions or []) < 2 or len(set(captions or [])) < len(captions or []):
        raise UserError(f"captions must be two or more different ones to choose from: got {captions or 'none'}")
    return captions or []


def verdict(found: Verdicts, i: int, captions: list[str]) -> dict[str, Any]:
    """The likeliest caption of a sample, by its number, as plain data."""
    best = int(found.best[i])
    return {"caption": captions[best], "probability": float(found.probabilities[i, best])}


if __name__ == "__main__":
    sys.exit(main())
