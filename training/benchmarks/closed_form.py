# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Networks whose every answer is known: the exact E[x_0 | x_t] of a Gaussian mixture or of a finite set of pictures,
under a scheduler's noise schedule, speaking v-prediction at fractional timesteps as a trained network does.

They have no training error, so what error is left is the solver's. With x_t = alpha x_0 + sigma eps and x_0 from a
mixture of N(m_k, C_k) with weights w_k, each component's x_t is N(alpha m_k, alpha^2 C_k + sigma^2 I), hence

    E[x_0 | x_t] = sum_k p(k | x_t) (m_k + alpha C_k (alpha^2 C_k + sigma^2 I)^-1 (x_t - alpha m_k))
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.digits import digits
from mezzotint_training.data.rows import load_splits


class Denoiser(Protocol):
    """E[x_0 | x_t] at signal `alpha` and noise `sigma`; `labels` (B,) says of which kind of picture each x_0 is, or
    `None`, of any. `x` and the answer are (B, C, H, W)."""

    def posterior_mean(
        self, x: torch.Tensor, alpha: float, sigma: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor: ...


class GaussianMixture:
    """A mixture of Gaussians with full covariances, one component a label.

    Args:
        means (`torch.Tensor` of shape `(K, C, H, W)`): of the components.
        covariances (`torch.Tensor` of shape `(K, D, D)` with D = C H W): positive semi-definite.
        weights (`torch.Tensor` of shape `(K,)`): positive; they need not sum to 1.
    """

    def __init__(self, means: torch.Tensor, covariances: torch.Tensor, weights: torch.Tensor):
        self.means = means.double().flatten(1)  # (K, D)
        self.variances, self.axes = torch.linalg.eigh(covariances.double())  # (K, D), (K, D, D), axes in columns
        self.variances = self.variances.clamp(min=0)
        self.log_weights = (weights.double() / weights.sum()).log()

    @classmethod
    def of(cls, pictures: torch.Tensor, labels: torch.Tensor) -> "GaussianMixture":
        """One component a label, with the mean and the covariance of its pictures `(N, C, H, W)`. A hundredth of the
        pictures' average variance is added to every direction, for pixels that never change."""
        flat, kinds = pictures.double().flatten(1), labels.unique()
        groups = [flat[labels == kind] for kind in kinds]
        floor = 0.01 * torch.eye(flat.shape[1]).double() * flat.var(0).mean()
        return cls(
            torch.stack([group.mean(0) for group in groups]).unflatten(1, pictures.shape[1:]),
            torch.stack([torch.cov(group.T) + floor for group in groups]),
            torch.tensor([float(len(group)) for group in groups]),
        )

    def posterior_mean(self, x, alpha, sigma, labels=None):
        rest = x.double().flatten(1) - alpha * self.means[:, None]  # (K, B, D)
        rest = rest @ self.axes  # each component's residual along its own axes
        variances = (alpha**2 * self.variances + sigma**2)[:, None]  # (K, 1, D), of x_t
        log_p = self.log_weights[:, None] - 0.5 * (rest**2 / variances + variances.log()).sum(-1)  # (K, B)
        share = log_p.softmax(0) if labels is None else torch.eye(len(self.means)).double()[:, labels]  # p(k | x_t)
        gain = alpha * self.variances[:, None] / variances
        x_0 = self.means[:, None] + (gain * rest) @ self.axes.mT  # (K, B, D)
        return (share[..., None] * x_0).sum(0).reshape(x.shape).to(x.dtype)


class Empirical:
    """The pictures themselves, each as a Gaussian of standard deviation `bandwidth` (0: exactly those pictures, the
    sharpest denoiser that there is).

    Args:
        pictures (`torch.Tensor` of shape `(N, C, H, W)`): unit-variance data.
        labels (`torch.Tensor` of shape `(N,)`, *optional*): of which kind each is.
    """

    def __init__(self, pictures: torch.Tensor, labels: torch.Tensor | None = None, bandwidth: float = 0.0):
        self.pictures, self.labels, self.bandwidth = pictures.double().flatten(1), labels, bandwidth  # (N, D)

    def posterior_mean(self, x, alpha, sigma, labels=None):
        flat = x.double().flatten(1)  # (B, D)
        variance = alpha**2 * self.bandwidth**2 + sigma**2  # of each picture's x_t
        # -|x - alpha m|^2 / (2 variance) without |x|^2, which is the same for all
        log_p = (alpha * flat @ self.pictures.T - alpha**2 / 2 * (self.pictures**2).sum(1)) / variance  # (B, N)
        if labels is not None:
            if self.labels is None:
                raise ValueError("these pictures have no labels: guidance must be 1")
            log_p = log_p.masked_fill(labels[:, None] != self.labels, -math.inf)
        mean = log_p.softmax(1) @ self.pictures  # (B, D)
        gain = alpha * self.bandwidth**2 / variance
        return (mean + gain * (flat - alpha * mean)).reshape(x.shape).to(x.dtype)


class ClosedFormNetwork:
    """A denoiser that answers as a network of `scheduler` would: v at x_t and a (fractional) timestep.

    Args:
        denoiser (`Denoiser`): of unit-variance data.
        scheduler (`MezzotintScheduler`): with `prediction_type="v_prediction"`.
        guidance_scale (`float`): 1 asks for any kind of picture; another for the kind of `labels`, guided.
        labels (`torch.Tensor` of shape `(B,)`, *optional*): of the samples; row i of a batch has that of i modulo B.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scheduler: SchedulerMixin,
        guidance_scale: float = 1.0,
        labels: torch.Tensor | None = None,
    ):
        if scheduler.config.prediction_type != "v_prediction":
            raise ValueError(f"prediction_type must be 'v_prediction': got {scheduler.config.prediction_type!r}")
        self.denoiser, self.scheduler = denoiser, scheduler
        self.guidance_scale, self.labels = guidance_scale, labels

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """`sample` (B, C, H, W), `timestep` one for the whole batch; the answer is as `sample`."""
        ratio = float(self.scheduler.timesteps_to_sigmas(torch.as_tensor(timestep, dtype=torch.float32)))
        alpha, sigma = 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)
        x = sample.double()
        x_0 = self.denoiser.posterior_mean(x, alpha, sigma)
        if self.guidance_scale != 1:
            labels = None if self.labels is None else self.labels[torch.arange(len(x)) % len(self.labels)]
            x_0 = x_0 + self.guidance_scale * (self.denoiser.posterior_mean(x, alpha, sigma, labels) - x_0)
        # v = alpha eps - sigma x_0 with eps = (x_t - alpha x_0) / sigma
        return ((alpha * x - x_0) / sigma).to(sample.dtype)


def unit_variance(pictures: Sequence) -> torch.Tensor:
    """Pictures of one size as training normalises them, (N, C, H, W): mean 0 and variance 1 in each channel."""
    pixels = torch.tensor(np.stack([np.asarray(picture) for picture in pictures]))
    pixels = (pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)).double()  # (N, C, H, W)
    mean, std = (f((0, 2, 3), keepdim=True) for f in (pixels.mean, pixels.std))
    return ((pixels - mean) / std).float()


def pictures_of(data: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The training split of `"digits"`, with its labels, or of a folder of parquet files, without, at unit variance."""
    if data == "digits":
        rows = digits()["train"]
        return unit_variance(rows["image"]), torch.tensor(rows["label"])
    return unit_variance(load_splits(TrainConfig(train_data_dir=data))["train"]["image"]), None
