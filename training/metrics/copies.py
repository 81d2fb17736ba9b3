# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Which training pictures and which texts a picture is nearest to: the copy rate, and retrieval."""

from typing import NamedTuple

import torch

from mezzotint_training.metrics.distances import pairwise
from mezzotint_training.metrics.intervals import Figure, share


def retrieved(pictures: torch.Tensor, texts: torch.Tensor, own: torch.Tensor, k: int, seed: int = 0) -> torch.Tensor:
    """Whether each picture is nearer to its own text than to k - 1 others: R-precision of a text-image model, as in
    <https://huggingface.co/papers/1711.10485> (section 4).

    Args:
        pictures (`torch.Tensor` of shape `(N, D)`), texts (`torch.Tensor` of shape `(T, D)`): unit vectors; the texts
            are different ones.
        own (`torch.Tensor` of shape `(N,)`): which text each picture is of.
        k: how many texts each is shown, 2 to T; by chance 1 / k are right.
        seed: of the choice of the others, which depends on it and on a picture's place alone.

    Returns:
        `torch.Tensor` of shape `(N,)`: bool.
    """
    if not 2 <= k <= len(texts):
        raise ValueError(f"k must be from 2 to the number of different texts, {len(texts)}: got {k}")
    generator, own = torch.Generator().manual_seed(seed), own.cpu()
    keys = torch.rand(len(own), len(texts), generator=generator)
    keys[torch.arange(len(own)), own] = -1  # the own text is the first of the k
    shown = keys.topk(k, dim=1, largest=False, sorted=True).indices  # (N, k)
    scores = torch.einsum("nd,nkd->nk", pictures, texts[shown.to(texts.device)])
    return scores[:, 0] > scores[:, 1:].amax(dim=1)


def nearest(pictures: torch.Tensor, train: torch.Tensor) -> torch.Tensor:
    """The distance of each picture (N, D) to the nearest of the training pictures (T, D): (N,)."""
    return torch.cat([d.amin(dim=1) for d in pairwise(pictures, train)])


def copy_ratios(pictures: torch.Tensor, train: torch.Tensor, same: float = 0.0) -> torch.Tensor:
    """How near the nearest training picture is, beside the next that is another picture: distance over distance, 0 for
    a copy and about 1 for a picture that is like many or like none.

    Args:
        pictures (`torch.Tensor` of shape `(N, D)`): pixels or features.
        train (`torch.Tensor` of shape `(T, D)`): of training pictures.
        same: two training pictures no further apart than this are one picture: the next must be further than this from
            the nearest.

    Returns:
        `torch.Tensor` of shape `(N,)`: infinite where there is no next.
    """
    # what the distance of a picture to itself comes to, in floating point
    same = max(same, 4 * torch.finfo(train.dtype).eps ** 0.5 * float(train.norm(dim=1).max()))
    found = []
    for distances in pairwise(pictures, train):
        first, which = distances.min(dim=1)
        apart = torch.cat(list(pairwise(train[which], train)))
        following = distances.masked_fill(apart <= same, torch.inf).amin(dim=1)
        found.append((first / following).where(following.isfinite(), torch.inf))
    return torch.cat(found)


class Copies(NamedTuple):
    """What `copies` finds: the shares of drawn and of real held-out pictures that pass for copies, the ratio below
    which a drawn one does, and the distance up to which two training pictures are the same one."""

    drawn: Figure
    real: Figure
    threshold: float
    same: float


def copies(drawn: torch.Tensor, real: torch.Tensor, train: torch.Tensor, rate: float) -> Copies:
    """The copy rate: the share of drawn pictures whose nearest training picture is suspiciously nearer than the next
    one that is another picture.

    Suspicious is a ratio (`copy_ratios`) that only the share `rate` of real held-out pictures falls below. The share of
    these beside it is found on each half of them with the other half's threshold: near `rate`, but for chance. Of a
    set that repeats pictures the next must be another one than the nearest: two training pictures are the same one if
    they are nearer to each other than all but a hundredth of `rate` of `real` are to any of them.

    Args:
        drawn (`torch.Tensor` of shape `(N, D)`), real (`torch.Tensor` of shape `(M, D)`), train (`torch.Tensor` of
            shape `(T, D)`): pixels or features.
        rate: of false alarms.

    Raises:
        ValueError: for a training set without two different pictures.
    """
    same = float(nearest(real, train).quantile(rate / 100))
    ratios = copy_ratios(real, train, same)
    if not bool(ratios.isfinite().any()):
        raise ValueError(f"a copy rate needs two or more different training pictures: got {len(train)}, all alike")
    threshold = float(ratios.quantile(rate))
    half = torch.randperm(len(real), generator=torch.Generator().manual_seed(0)).to(ratios.device) % 2 == 0
    alarms = sum(int((ratios[part] < ratios[~part].quantile(rate)).sum()) for part in (half, ~half))
    hits = int((copy_ratios(drawn, train, same) < threshold).sum())
    return Copies(share(hits, len(drawn)), share(alarms, len(real)), threshold, same)
