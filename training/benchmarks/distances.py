# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How far samples are from the exact ones: each picture's error, a Fréchet distance between features of many, and
intervals for both."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


class Features:
    """What pictures look like to a convolution network with fixed random weights: means over each quarter of the
    picture of 64 channels at half the size, on the first `count` principal directions of the real pictures'."""

    def __init__(self, pictures: torch.Tensor, count: int = 32):
        channels, generator = pictures.shape[1], torch.Generator().manual_seed(0)
        self.kernels = [
            torch.randn(out, inner, 3, 3, generator=generator) * (2 / (9 * inner)) ** 0.5
            for out, inner in ((32, channels), (64, 32), (64, 64))
        ]
        raw = self._raw(pictures)
        self.centre = raw.mean(0)
        _, values, axes = torch.linalg.svd(raw - self.centre, full_matrices=False)
        variances = values[:count] ** 2 / (len(raw) - 1)
        self.axes = axes[:count].T / variances.mean().sqrt()  # (F, count)

    def _raw(self, pictures: torch.Tensor) -> torch.Tensor:
        x = pictures.float().cpu()
        for stride, kernel in zip((1, 2, 1), self.kernels, strict=True):
            x = F.leaky_relu(F.conv2d(x, kernel, stride=stride, padding=1), 0.2)
        return F.adaptive_avg_pool2d(x, 2).flatten(1).double()  # (N, F)

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, count) in float64 of (N, C, H, W)."""
        return (self._raw(pictures) - self.centre) @ self.axes


def gaussian(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (..., D) and covariance (..., D, D) of features (..., N, D)."""
    mean = features.mean(-2)
    centred = features - mean[..., None, :]
    return mean, centred.mT @ centred / (features.shape[-2] - 1)


def frechet_distance(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), Fréchet (1957) and Dowson & Landau (1982), of two Gaussians
    or of batches of them."""
    values, axes = torch.linalg.eigh(a[1])
    root = (axes * values.clamp(min=0).sqrt()[..., None, :]) @ axes.mT  # C_a^(1/2)
    cross = torch.linalg.eigvalsh(root @ b[1] @ root).clamp(min=0).sqrt().sum(-1)
    traces = sum(c.diagonal(dim1=-2, dim2=-1).sum(-1) for c in (a[1], b[1]))
    return ((a[0] - b[0]) ** 2).sum(-1) + traces - 2 * cross


@dataclass
class Measured:
    """What is kept of one solver's samples: each picture's error (N,) and features (N, D)."""

    rmse: torch.Tensor
    features: torch.Tensor


@dataclass
class Judge:
    """Turns samples into `Measured` and those into each metric."""

    exact: torch.Tensor
    features: Features
    real: tuple[torch.Tensor, torch.Tensor] | None

    def __post_init__(self):
        self.exact_features = self.features(self.exact)

    def measure(self, samples: torch.Tensor) -> Measured:
        rmse = (samples.double() - self.exact.double()).flatten(1).square().mean(1).sqrt().cpu()
        rmse = rmse.clamp(min=1e-5)  # the rounding of a state in float32 that starts at sigma 157
        return Measured(rmse, self.features(samples))

    def metrics(self, measured: Measured, rows: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Each metric of all noises, or of each of several draws of them, `rows` (draws, N)."""
        rows = torch.arange(len(measured.rmse)) if rows is None else rows
        rmse, own = measured.rmse[rows], gaussian(measured.features[rows])
        values = {
            "rmse_median": rmse.quantile(0.5, dim=-1),
            "rmse_mean": rmse.mean(-1),
            "frechet": frechet_distance(own, gaussian(self.exact_features[rows])).clamp(min=1e-6),
        }
        if self.real is not None:
            values["frechet_real"] = frechet_distance(own, self.real)
        return values


def jackknife(count: int, groups: int = 20) -> torch.Tensor:
    """Which of `count` noises are left when each of `groups` groups is left out, (groups, N). Unlike a bootstrap it
    repeats no noise, which would bias a Fréchet distance."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    parts = order[: count // groups * groups].reshape(groups, -1)
    return torch.stack([torch.cat([parts[:i], parts[i + 1 :]]).flatten() for i in range(groups)])


def interval(value: float, left: torch.Tensor) -> list[float]:
    """95 % around `value` from those with each group left out, on a logarithmic scale (Student's t, 19 degrees)."""
    logs = left.log()
    spread = float(((len(left) - 1) / len(left) * ((logs - logs.mean()) ** 2).sum()).sqrt())
    return [value * float(np.exp(sign * 2.09 * spread)) for sign in (-1, 1)]
