# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Values with their 95 % intervals: by a jackknife over both sets, of a share, of a mean."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest

from mezzotint_training.config.rules import GROUPS

STUDENT = 2.09  # 95 % of Student's t with 19 degrees


class Figure(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    interval: tuple[float, float]


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
    values, left = left_out(measure, x, y)
    found = []
    for value, one in zip(values.tolist(), left.T, strict=True):
        low, high = interval(value, one, "log" if scale == "log" else "linear")
        if scale == "share":
            low, high = max(0.0, low), min(1.0, high)
        found.append(Figure(value, (low, high)))
    return found


def left_out(
    measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The figures of `measure(x, y)` and those with each group left out, (figures,) and (groups, figures). Groups are
    the same rows for all sets of as many: figures of pictures for the same captions can be compared in pairs."""
    enough(2 * GROUPS, x, y)
    rows = zip(jackknife(len(x)).to(x.device), jackknife(len(y)).to(y.device), strict=True)
    return measure(x, y).reshape(-1), torch.stack([measure(x[i], y[j]).reshape(-1) for i, j in rows])


def share(hits: int, count: int) -> Figure:
    """A proportion with its 95 % score interval (Wilson, 1927)."""
    wilson = binomtest(hits, count).proportion_ci(method="wilson")
    return Figure(hits / count, (float(wilson.low), float(wilson.high)))


def average(values: torch.Tensor) -> Figure:
    """The mean of independent values (N,) with its 95 % normal interval."""
    mean, error = float(values.mean()), float(values.std() / len(values) ** 0.5)
    return Figure(mean, (mean - 1.96 * error, mean + 1.96 * error))


def enough(count: int, *sets: torch.Tensor) -> None:
    """Check that each set has enough pictures.

    Raises:
        ValueError: for fewer than `count`.
    """
    if min(map(len, sets)) < count:
        raise ValueError(f"each set must have {count} or more pictures: got {' and '.join(str(len(x)) for x in sets)}")
