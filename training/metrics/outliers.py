# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What a trained network's likelihoods say of the rows that it was trained on: which are unlike the others, whose
caption does not belong to them, and whether they are remembered.

The likelihood is the variational bound, in bits, without guidance. It is estimated with and without the caption from
the same noise, so that their difference is known better than either.
"""

from typing import Any

import torch

from mezzotint import MezzotintScheduler
from mezzotint_training.engine.progress import progress_bar
from mezzotint_training.metrics.accuracy import figure
from mezzotint_training.metrics.intervals import average, estimated, share
from mezzotint_training.metrics.likelihood import (
    conditioned,
    dequantised,
    encoded,
    generators_of,
    nats_of_numbers,
    variational_bound,
)
from mezzotint_training.metrics.pictures import Real

LEVELS = 64  # noise levels at which a sample is looked at
PARTS = 8  # of these, each spread over all, from whose differences the error is taken
ALARMS = 0.05  # share of held-out samples whose caption may save as much as that of one that is remembered
ERRORS = 4.0  # standard errors by which a caption must cost bits to be reported


def bits(pipe: Any, pictures: Real, captions: list[str], batch_size: int, seed: int, what: str) -> torch.Tensor:
    """Estimates of the bound above -log2 p of each sample, given its caption: (N, PARTS), float64, whose mean
    over the parts is the bound.

    Args:
        pipe: a pipeline of text to samples, of whatever modality, that knows no latents.
        pictures: samples of its size as they are.
        captions: one for each.
        batch_size: samples at a time.
        seed: of the noise, which is the same whatever the caption.
        what: the name of the progress bar.
    """
    scheduler, found = MezzotintScheduler.from_config(pipe.scheduler.config), []
    constant = nats_of_numbers(pipe, scheduler, pictures.pixels[0])["bound"]
    starts = range(0, len(pictures.pixels), batch_size)
    for start in progress_bar(starts, what, len(starts)):
        some = slice(start, start + batch_size)
        pixels = pictures.pixels[some]
        generators = generators_of(range(start, start + len(pixels)), seed)
        samples = dequantised(pipe, pixels, generators)
        network = conditioned(pipe, *encoded(pipe, captions[some]))
        terms = variational_bound(network, scheduler, samples, generators, LEVELS)
        diffusion = torch.stack([PARTS * terms["diffusion"][:, part::PARTS].sum(1) for part in range(PARTS)], dim=1)
        rest = (terms["prior"] + terms["reconstruction"]).to(diffusion.device) + constant
        found.append((diffusion + rest[:, None]).cpu())
    return torch.cat(found) / torch.log(torch.tensor(2.0, dtype=torch.float64))


def outliers(pipe: Any, known: Real, held_out: Real, batch_size: int, seed: int, deviations: float) -> dict[str, Any]:
    """What is to be said of the rows that a pipeline was trained on, as plain data:

        bits_per_dimension      of known and of held-out samples, given their caption
        told_apart              how often a known sample is likelier than a held-out one: 0.5 where none is remembered
        remembered              share of known samples whose caption saves more bits than those of all but `ALARMS` of
                                the held-out ones; that much by design where nothing is remembered
        unlike                  rows that are less likely than the median by so many robust standard deviations (of
                                1.4826 times the median distance from it), the least likely first
        captions                rows that are likelier for the empty text than for their caption, beyond `ERRORS`
                                standard errors, the worst first

    A pipeline that reads no text has the likelihoods only.

    Args:
        pipe: a pipeline of text to samples, of whatever modality, that knows no latents.
        known, held_out: samples as they are, 40 or more of each, with their row numbers.
        deviations: by which a row is `unlike` the others.
    """
    size = known.pixels[0].numel()
    texts = {"known": [x[0] for x in known.captions], "held_out": [x[0] for x in held_out.captions]}
    reads = pipe.unet.config.cross_attention_dim is not None
    given, saved = {}, {}
    for name, some in {"known": known, "held_out": held_out}.items():
        given[name] = bits(pipe, some, texts[name], batch_size, seed, f"likelihood, {name.replace('_', ' ')}")
        if reads:
            empty = bits(pipe, some, [""] * len(texts[name]), batch_size, seed, "the same without caption")
            saved[name] = empty - given[name]
    likely = {name: found.mean(1) for name, found in given.items()}
    apart = estimated(_told_apart, likely["known"][:, None], likely["held_out"][:, None], "share")[0]
    results: dict[str, Any] = {
        "word": pipe.word,
        "dimensions": size,
        "pictures": {name: len(found) for name, found in likely.items()},
        "bits_per_dimension": {name: figure(average(found / size)) for name, found in likely.items()},
        "told_apart": figure(apart),
    }

    def row(i: int, **what: float) -> dict[str, Any]:
        number = i if known.numbers is None else int(known.numbers[i])
        return {
            "row": number,
            "caption": texts["known"][i],
            "bits_per_dimension": float(likely["known"][i] / size),
            **what,
        }

    of_known = likely["known"]
    spread = 1.4826 * (of_known - of_known.median()).abs().median()
    score = (of_known - of_known.median()) / spread
    found = (score > deviations).nonzero()[:, 0]
    found = found[score[found].argsort(descending=True)]
    results["unlike"] = [row(i, deviations=float(score[i])) for i in found.tolist()]
    if reads:
        mean, error = saved["known"].mean(1), saved["known"].std(1) / PARTS**0.5
        threshold = saved["held_out"].mean(1).quantile(1 - ALARMS)
        results["remembered"] = figure(share(int((mean > threshold).sum()), len(mean)))
        costs = (mean < -ERRORS * error).nonzero()[:, 0]
        costs = costs[mean[costs].argsort()]
        results["captions"] = [row(i, costs=-float(mean[i]), error=float(error[i])) for i in costs.tolist()]
    return results


def _told_apart(known: torch.Tensor, held_out: torch.Tensor) -> torch.Tensor:
    """Share of the pairs in which a known sample has fewer bits (N, 1) than a held-out one (M, 1): the area under the
    curve."""
    less, equal = known < held_out.T, known == held_out.T
    return less.double().mean() + 0.5 * equal.double().mean()
