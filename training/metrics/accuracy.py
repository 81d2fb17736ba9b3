# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Figures of drawn pictures beside those of real ones: distances, and how often what was asked for is recognised."""

from typing import Any

import torch

from mezzotint_training.metrics.copies import retrieved
from mezzotint_training.metrics.distances import (
    frechet_distance,
    gaussian,
    kernel_distance,
    precision_recall,
    sliced_wasserstein,
)
from mezzotint_training.metrics.intervals import Figure, estimated, share
from mezzotint_training.metrics.judges import ClassJudge
from mezzotint_training.metrics.pictures import Real
from mezzotint_training.metrics.table import ROWS


def distances(x: torch.Tensor, y: torch.Tensor) -> dict[str, Figure]:
    """Each distance between features (N, D) of drawn pictures and (M, D) of real ones, by the names of `table.ROWS`."""

    def frechet(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return frechet_distance(gaussian(a), gaussian(b)).clamp(min=1e-12)

    found = [
        *estimated(kernel_distance, x, y),
        *estimated(frechet, x, y, "log"),
        *estimated(sliced_wasserstein, x, y, "log"),
        *estimated(precision_recall, x, y, "share"),
    ]
    return dict(zip(ROWS, found, strict=True))


def accuracy(
    judge: Any, drawn: Real, unseen: Real | None, test: Real, choices: int = 32, seed: int = 0
) -> dict[str, Any] | None:
    """How often pictures are taken for what was asked for, and held-out ones for what they are; `None` where nothing
    can be told apart.

    Args:
        drawn: with the captions and labels that were asked for, which the model was trained on.
        unseen: likewise, for captions that it was not trained on.
        test: held-out ones.
        choices: captions that a two-tower model picks from, at most.
        seed: of the choice of the others.
    """
    sets = {"drawn": drawn, "unseen": unseen, "real": test}
    sets = {name: some for name, some in sets.items() if some is not None}
    if isinstance(judge, ClassJudge):
        how = {}
        sets = {name: some.rows((some.labels >= 0).nonzero()[:, 0]) for name, some in sets.items()}
        if min(len(some.pixels) for some in sets.values()) == 0:
            return None
        hits = {name: judge.read(some.pixels) == some.labels for name, some in sets.items()}
    else:
        texts = {name: list(dict.fromkeys(c[0] for c in some.captions)) for name, some in sets.items()}
        k = min(choices, *map(len, texts.values()))  # as many for all
        if k < 2:
            return None
        how, hits = {"choices": k}, {}
        for name, some in sets.items():
            number = {text: i for i, text in enumerate(texts[name])}
            own = torch.tensor([number[captions[0]] for captions in some.captions])
            hits[name] = retrieved(judge.of_pictures(some.pixels), judge.of_texts(texts[name]), own, k, seed)
    figures = {name: share(int(x.sum()), len(x)) for name, x in hits.items()}
    found = how | figure(figures["drawn"], figures["real"])
    return found | ({"unseen": figure(figures["unseen"])} if "unseen" in figures else {})


def figure(found: Figure, real: Figure | None = None) -> dict[str, Any]:
    """A figure as plain data, with that of real pictures beside it."""
    plain = {"value": found.value, "interval": list(found.interval)}
    return plain if real is None else plain | {"real": {"value": real.value, "interval": list(real.interval)}}
