# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How far samples are from the exact ones: each picture's error, and a Fréchet distance between features of many."""

from dataclasses import dataclass

import torch

from mezzotint_training.metrics.distances import frechet_distance, gaussian
from mezzotint_training.metrics.features import RandomFeatures


@dataclass
class Measured:
    """What is kept of one solver's samples: each picture's error (N,) and features (N, D)."""

    rmse: torch.Tensor
    features: torch.Tensor


@dataclass
class SampleErrors:
    """Turns samples into `Measured` and those into each metric."""

    exact: torch.Tensor
    features: RandomFeatures
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
