# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How far drawn pictures are from real ones, as plain functions on tensors: distances between two sets of features,
precision and recall. What a picture's features are is said in `features.py`.

N drawn pictures, M real ones, D features. Everything is computed where its tensors are, best in float64.
"""

import torch

from mezzotint_training.metrics.intervals import enough

CELLS = 2**24  # of a matrix of distances that are held at a time


def kernel_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The squared maximum mean discrepancy under k(a, b) = (a.b / D + 1)^3, estimated without bias: the kernel distance
    of <https://huggingface.co/papers/1801.01401> (section 4), by the estimator of Gretton et al. (2012, eq. 3). Around
    0, below it too, where the sets are alike. They must be drawn independently: pictures for the very captions of the
    others would come out nearer than they are.

    Args:
        x (`torch.Tensor` of shape `(N, D)`), y (`torch.Tensor` of shape `(M, D)`): features, two or more of each.
    """
    enough(2, x, y)

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
    enough(neighbours + 1, drawn, real)

    def within(points: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
        radii = torch.cat([d.kthvalue(neighbours + 1, dim=1).values for d in pairwise(members, members)])  # + itself
        return torch.cat([(d <= radii).any(dim=1) for d in pairwise(points, members)]).to(points.dtype).mean()

    return torch.stack([within(drawn, real), within(real, drawn)])


def pairwise(x: torch.Tensor, y: torch.Tensor):
    """Euclidean distances of the rows of x to those of y, some rows of x at a time: (rows, M)."""
    for rows in x.split(max(1, CELLS // len(y))):
        yield torch.cdist(rows, y)
