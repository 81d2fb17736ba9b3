# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How well solids are drawn: whether they cover the real ones and can be told from them, whether their name is found
again, and how many are copies.

    mezzotint train --recipe minis --train_data_dir path/to/minis-16 --text_encoder_name_or_path ...
    python training/benchmarks/solid_quality.py runs/minis --train_data_dir path/to/minis-16

Two solids are as far apart as the share of the voxels that either fills in which they differ: in only one of them, or
of another colour by more than an eighth. By that distance, as for point clouds (1906.12320, section 5.1): coverage, the
share of real solids that are nearest to a drawn one; and the accuracy of telling drawn from real by the nearest
neighbour, 50 % at best. A two-tower model, trained on the real training solids alone, finds the name of each again
among eight. A copy is a solid that is no further than a tenth from a training solid, turned by any quarter. Beside each
figure stands that of real solids of the test split, and for coverage and nearest neighbours that of as many training
solids.
"""

import argparse
import sys

import torch
from diffusers.utils import make_image_grid

from mezzotint.samples import voxels
from mezzotint_training.benchmarks.judged import Figures, arguments, prepared, program
from mezzotint_training.metrics.copies import retrieved
from mezzotint_training.metrics.intervals import Figure, average, share
from mezzotint_training.metrics.judges import train_caption_judge
from mezzotint_training.metrics.pictures import Real, shuffled

CHANNELS, SHADE = 4, 32  # of a solid; the difference of colours, of 255, up to which they are alike
COPY, CHOICES = 0.1, 8
SHOWN = 12  # drawn and real solids in the grid


def grids_of(solids: torch.Tensor) -> torch.Tensor:
    """Solids as judges look at them (N, 4 D, H, W) as grids (N, 4, D, H, W)."""
    return solids.unflatten(1, (CHANNELS, -1))


def apart(some: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The share of filled voxels in which solids (N, 4, D, H, W) and (M, 4, D, H, W) differ, of shape `(N, M)`."""
    rows = []
    there = others[:, 3] > 0
    for one in some:
        filled = one[3] > 0
        alike = (one[:3].int() - others[:, :3].int()).abs().amax(1) <= SHADE
        both, either = (filled & there & alike).flatten(1).sum(1), (filled | there).flatten(1).sum(1)
        rows.append(1 - both / either.clamp(min=1))
    return torch.stack(rows)


def coverage(drawn: torch.Tensor, real: torch.Tensor) -> Figure:
    """The share of real solids that are the nearest one of a drawn solid."""
    return share(len(apart(drawn, real).argmin(1).unique()), len(real))


def told_apart(drawn: torch.Tensor, real: torch.Tensor) -> Figure:
    """How often the nearest other solid is of the same kind, drawn or real; of as many of each."""
    count = min(len(drawn), len(real))
    both = torch.cat([drawn[:count], real[:count]])
    far = apart(both, both).fill_diagonal_(torch.inf)
    kind = torch.arange(2 * count) >= count
    return share(int((kind[far.argmin(1)] == kind).sum()), 2 * count)


def measure(args: argparse.Namespace) -> Figures:
    """Every figure: drawn for captions that were trained on, drawn for those of the test split, real."""
    data = prepared(args, "solid_quality")
    train, test = grids_of(data.train.pixels), grids_of(data.test.pixels)
    known, unseen = (grids_of(x) for x, _ in (data.known, data.unseen))
    asked = train[data.known[1]]
    others = train[shuffled(len(train), args.seed + 1)]
    few = others[: len(test)]
    found: Figures = {
        "coverage of the real solids of these captions": (
            coverage(known, asked), coverage(unseen, test), coverage(few, test),
        ),
        "told from them by the nearest neighbour": (
            told_apart(known, asked), told_apart(unseen, test), told_apart(few, test),
        ),
    }  # fmt: skip
    judge = train_caption_judge(
        data.train.pixels, data.train.captions, args.judge_steps, args.seed, torch.device("cpu")
    )

    def found_again(solids: torch.Tensor, real: Real, rows: torch.Tensor) -> Figure:
        texts = [captions[0] for captions in real.captions]
        names = list(dict.fromkeys(texts))
        own = torch.tensor([names.index(texts[i]) for i in rows.tolist()])
        hits = retrieved(judge.of_pictures(solids), judge.of_texts(names), own, min(CHOICES, len(names)), args.seed)
        return share(int(hits.sum()), len(hits))

    everything = torch.arange(len(test))
    found[f"name found again among {CHOICES}"] = (
        found_again(data.known[0], data.train, data.known[1]),
        found_again(data.unseen[0], data.test, data.unseen[1]),
        found_again(data.test.pixels, data.test, everything),
    )
    own = found_again(data.train.pixels[data.known[1]], data.train, data.known[1])
    found["name found again, the real solids of the captions trained on"] = (own, None, None)

    turned = torch.cat([train.rot90(quarters, (2, 4)) for quarters in range(4)])

    def nearest(solids: torch.Tensor) -> torch.Tensor:
        return apart(solids, turned).amin(1)

    near = [nearest(x) for x in (known, unseen, test)]
    found["copies"] = tuple(share(int((x <= COPY).sum()), len(x)) for x in near)
    found["distance to the nearest training solid"] = tuple(average(x) for x in near)
    filled = [(x[:, 3] > 0).float().mean((1, 2, 3)) for x in (known, unseen, test)]
    found["filled"] = tuple(average(x) for x in filled)
    if args.grid:
        rows = [known[:SHOWN], asked[:SHOWN], unseen[:SHOWN], test[:SHOWN]]
        shown = [voxels.show(one.permute(1, 2, 3, 0).numpy() / 255, {}, ()) for row in rows for one in row]
        make_image_grid(shown, rows=len(rows), cols=SHOWN).save(args.grid)
    return found


def main(argv: list[str] | None = None) -> int:
    return program(arguments("solid_quality", __doc__, "solid"), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
