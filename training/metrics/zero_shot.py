# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A network as a classifier that nobody trained: of several captions, the one that a sample is likeliest under
(<https://huggingface.co/papers/2303.16203>).

Of the variational bound above -log p(sample | caption) only the diffusion term depends on the caption. It is estimated
in rounds, each of a few noise levels evenly spread from a random one on; in a round all captions of a sample meet the
same noise, so that what they do not explain cancels out of their differences. After each round captions drop out that
are behind the best by more than the rounds leave in doubt (the paper's Algorithm 2, with a standard error in the place
of its fixed plan).
"""

from typing import Any, NamedTuple

import torch

from mezzotint import MezzotintScheduler
from mezzotint_training.config.rules import LEAST_ROUNDS
from mezzotint_training.engine.progress import progress_bar
from mezzotint_training.metrics.likelihood import conditioned, dequantised, encoded, variational_bound

LEVELS = 4  # noise levels of a round
DOUBT = 4.0  # standard errors behind the best at which one does


class Verdicts(NamedTuple):
    """What `classify` finds.

    Args:
        best (`torch.Tensor` of shape `(N,)`): the number of each sample's caption.
        nats (`torch.Tensor` of shape `(N, C)`): the estimate of the diffusion term, of captions that dropped out as it
            was then.
        evaluations: of the network, for a sample on average.
    """

    best: torch.Tensor
    nats: torch.Tensor
    evaluations: float

    @property
    def probabilities(self) -> torch.Tensor:
        """Of each caption (N, C), where all are as frequent, and the bounds are as far above the likelihoods."""
        return (-self.nats).softmax(1)


def classify(
    pipe: Any,
    pixels: torch.Tensor,
    captions: list[str],
    batch_size: int,
    seed: int,
    rounds: int = 32,
    progress: bool = True,
) -> Verdicts:
    """The caption that each sample is likeliest under, without guidance.

    Args:
        pipe: a pipeline of text to samples, of whatever modality, whose network reads text and knows no latents.
        pixels (`torch.Tensor` of shape `(N, C, *S)`): samples of its size, in whole numbers.
        captions: two or more.
        batch_size: pairs of a sample and a caption at a time.
        seed: of the noise, which a sample's place decides besides, and not the batch.
        rounds: at most, `LEAST_ROUNDS` or more; each costs `LEVELS` evaluations for every caption that is left.
    """
    scheduler = MezzotintScheduler.from_config(pipe.scheduler.config)
    text, mask = encoded(pipe, captions)
    assert text is not None
    left = torch.ones(len(pixels), len(captions), dtype=torch.bool)
    terms = torch.full((rounds, *left.shape), torch.nan, dtype=torch.float64)
    for turn in progress_bar(range(rounds), "comparing captions", rounds, progress):
        pairs = (left & (left.sum(1, keepdim=True) > 1)).nonzero()
        if len(pairs) == 0:
            continue
        for some in pairs.split(batch_size):
            picture, caption = some.T
            generators = [torch.Generator().manual_seed((seed * rounds + turn) * 10**6 + i) for i in picture.tolist()]
            samples = dequantised(pipe, pixels[picture], generators)
            rows = caption.to(text.device)
            network = conditioned(pipe, text[rows], None if mask is None else mask[rows])
            bound = variational_bound(network, scheduler, samples, generators, LEVELS)
            terms[turn, picture, caption] = bound["diffusion"].sum(1).cpu()
        if turn + 1 >= LEAST_ROUNDS:
            best = terms.nanmean(0).where(left, torch.inf).argmin(1, keepdim=True)
            behind = terms[: turn + 1] - terms[: turn + 1].gather(2, best.expand(turn + 1, -1, -1))
            # of those that are left there is a term of each round, and of a sample that is decided nothing changes
            drops = behind.mean(0) > DOUBT * behind.std(0) / (turn + 1) ** 0.5
            left &= ~drops
    nats = terms.nanmean(0)
    evaluations = LEVELS * int(terms.isfinite().sum()) / len(pixels)
    return Verdicts(nats.where(left, torch.inf).argmin(1), nats, evaluations)
