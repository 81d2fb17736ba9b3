# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How far drawn pictures are from real ones, as plain functions on tensors: distances between sets of features, their
intervals, precision and recall, retrieval and copies. What a picture's features are is said in `features.py`.

N drawn pictures, M real ones, D features. Everything is computed where its tensors are, best in float64.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest

GROUPS = 20  # of the jackknife
STUDENT = 2.09  # 95 % of Student's t with 19 degrees
CELLS = 2**24  # of a matrix of distances that are held at a time


class Figure(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    interval: tuple[float, float]


# -------------------------------------------------------------------------------------------------- between two sets


def kernel_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The squared maximum mean discrepancy under k(a, b) = (a.b / D + 1)^3, estimated without bias: the kernel distance
    of <https://huggingface.co/papers/1801.01401> (section 4), by the estimator of Gretton et al. (2012, eq. 3). Around
    0, below it too, where the sets are alike. They must be drawn independently: pictures for the very captions of the
    others would come out nearer than they are.

    Args:
        x (`torch.Tensor` of shape `(N, D)`), y (`torch.Tensor` of shape `(M, D)`): features, two or more of each.
    """
    _at_least(2, x, y)

    def total(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        parts = [(rows @ b.mT / a.shape[1] + 1).pow(3).sum() for rows in a.split(max(1, CELLS // len(b)))]
        return torch.stack(parts).sum()

    def mean_of_pairs(a: torch.Tensor) -> torch.Tensor:
        diagonal = (a.square().sum(1) / a.shape[1] + 1).pow(3).sum()  # a picture is no pair with itself
        return (total(a, a) - diagonal) / (len(a) * (len(a) - 1))

    return mean_of_pairs(x) + mean_of_pairs(y) - 2 * total(x, y) / (len(x) * len(y))


def gaussian(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (..., D) and covariance (..., D, D) of features (..., N, D)."""
    mean = features.mean(-2)
    centred = features - mean[..., None, :]
    return mean, centred.mT @ centred / (features.shape[-2] - 1)


def frechet_distance(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), Fréchet (1957) and Dowson & Landau (1982), of two Gaussians
    or of batches of them; on a network's features eq. 6 of <https://huggingface.co/papers/1706.08500>. Sets of few
    pictures are further apart than what they are drawn from: compare only figures of as many."""
    values, axes = torch.linalg.eigh(a[1])
    root = (axes * values.clamp(min=0).sqrt()[..., None, :]) @ axes.mT  # C_a^(1/2)
    cross = torch.linalg.eigvalsh(root @ b[1] @ root).clamp(min=0).sqrt().sum(-1)
    traces = sum(c.diagonal(dim1=-2, dim2=-1).sum(-1) for c in (a[1], b[1]))
    return ((a[0] - b[0]) ** 2).sum(-1) + traces - 2 * cross


def sliced_wasserstein(x: torch.Tensor, y: torch.Tensor, directions: int = 256) -> torch.Tensor:
    """The sliced 2-Wasserstein distance (Bonneel et al., 2015, "Sliced and Radon Wasserstein Barycenters of Measures"):
    along each direction the sets are points on a line, where the best transport is in order of rank.

        SW_2^2 = mean over directions of int_0^1 (F_x^-1(q) - F_y^-1(q))^2 dq

    Args:
        x (`torch.Tensor` of shape `(N, D)`), y (`torch.Tensor` of shape `(M, D)`): features.
        directions: drawn at random, always the same.
    """
    axes = torch.randn(x.shape[1], directions, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
    axes = axes / axes.norm(dim=0)
    # Both quantile functions are constant between neighbours of these levels
    levels = torch.cat([torch.arange(1, len(z) + 1, dtype=torch.float64) / len(z) for z in (x, y)]).unique()
    widths = levels.diff(prepend=levels.new_zeros(1))
    middles = levels - widths / 2
    along = [(z @ axes).sort(dim=0).values[(middles * len(z)).long().to(z.device)] for z in (x, y)]  # (levels, axes)
    squares = (along[0] - along[1]).square()
    return (widths.to(squares)[:, None] * squares).sum(0).mean().sqrt()


def precision_recall(drawn: torch.Tensor, real: torch.Tensor, neighbours: int = 3) -> torch.Tensor:
    """Improved precision and recall, eq. 1 and 2 of <https://huggingface.co/papers/1904.06991>: the share of drawn
    pictures that lie within the real set, and of real ones within the drawn set, where a set is the union of balls
    about its members that reach to their `neighbours`-th nearest.

    Args:
        drawn (`torch.Tensor` of shape `(N, D)`), real (`torch.Tensor` of shape `(M, D)`): features, more than
            `neighbours` of each.

    Returns:
        `torch.Tensor` of shape `(2,)`.
    """
    _at_least(neighbours + 1, drawn, real)

    def within(points: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
        radii = torch.cat([d.kthvalue(neighbours + 1, dim=1).values for d in _distances(members, members)])  # + itself
        return torch.cat([(d <= radii).any(dim=1) for d in _distances(points, members)]).to(points.dtype).mean()

    return torch.stack([within(drawn, real), within(real, drawn)])


# --------------------------------------------------------------------------------------------------------- intervals


def jackknife(count: int, groups: int = GROUPS) -> torch.Tensor:
    """Which of `count` noises are left when each of `groups` groups is left out, (groups, N). Unlike a bootstrap it
    repeats no noise, which would bias a Fréchet distance, and be every repeated one's nearest neighbour."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    parts = order[: count // groups * groups].reshape(groups, -1)
    return torch.stack([torch.cat([parts[:i], parts[i + 1 :]]).flatten() for i in range(groups)])


def interval(value: float, left: torch.Tensor, scale: Literal["log", "linear"] = "log") -> list[float]:
    """95 % around `value` from those with each group left out (groups,), on a logarithmic scale for what is above 0
    (Student's t, 19 degrees)."""
    numbers = left.log() if scale == "log" else left
    spread = float(((len(left) - 1) / len(left) * ((numbers - numbers.mean()) ** 2).sum()).sqrt())
    if scale == "log":
        return [value * float(np.exp(sign * STUDENT * spread)) for sign in (-1, 1)]
    return [value + sign * STUDENT * spread for sign in (-1, 1)]


def estimated(
    measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    y: torch.Tensor,
    scale: Literal["log", "linear", "share"] = "linear",
) -> list[Figure]:
    """Each figure of `measure(x, y)` with its interval over both sets: a twentieth of each is left out at a time. What
    the two do to the figure adds up, and so do the variances: the two must be drawn independently.

    Args:
        measure: gives a number, or a tensor of several.
        x (`torch.Tensor` of shape `(N, D)`), y (`torch.Tensor` of shape `(M, D)`): features, 40 or more of each.
        scale: of the interval, see `interval`; a `share` is a linear one between 0 and 1.
    """
    _at_least(2 * GROUPS, x, y)
    values = measure(x, y).reshape(-1)
    rows = zip(jackknife(len(x)).to(x.device), jackknife(len(y)).to(y.device), strict=True)
    left = torch.stack([measure(x[i], y[j]).reshape(-1) for i, j in rows])  # (groups, figures)
    found = []
    for value, one in zip(values.tolist(), left.T, strict=True):
        low, high = interval(value, one, "log" if scale == "log" else "linear")
        if scale == "share":
            low, high = max(0.0, low), min(1.0, high)
        found.append(Figure(value, (low, high)))
    return found


def share(hits: int, count: int) -> Figure:
    """A proportion with its 95 % score interval (Wilson, 1927)."""
    wilson = binomtest(hits, count).proportion_ci(method="wilson")
    return Figure(hits / count, (float(wilson.low), float(wilson.high)))


def average(values: torch.Tensor) -> Figure:
    """The mean of independent values (N,) with its 95 % normal interval."""
    mean, error = float(values.mean()), float(values.std() / len(values) ** 0.5)
    return Figure(mean, (mean - 1.96 * error, mean + 1.96 * error))


# -------------------------------------------------------------------------------------------------- pictures and text


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


# ------------------------------------------------------------------------------------------------------------- copies


def nearest(pictures: torch.Tensor, train: torch.Tensor) -> torch.Tensor:
    """The distance of each picture (N, D) to the nearest of the training pictures (T, D): (N,)."""
    return torch.cat([d.amin(dim=1) for d in _distances(pictures, train)])


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
    for distances in _distances(pictures, train):
        first, which = distances.min(dim=1)
        apart = torch.cat(list(_distances(train[which], train)))
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


# ------------------------------------------------------------------------------------------------------------- shared


def _distances(x: torch.Tensor, y: torch.Tensor):
    """Euclidean distances of the rows of x to those of y, some rows of x at a time: (rows, M)."""
    for rows in x.split(max(1, CELLS // len(y))):
        yield torch.cdist(rows, y)


def _at_least(count: int, *sets: torch.Tensor) -> None:
    if min(map(len, sets)) < count:
        raise ValueError(f"each set must have {count} or more pictures: got {' and '.join(str(len(x)) for x in sets)}")
