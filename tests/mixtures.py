"""A mixture of Gaussians, whose denoiser is known in closed form: for fitted sampling and for its benchmark."""

import torch


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means (3, 1, 2, 2), covariances (3, 4, 4), weights (3,)."""
    factors = randn(3, 4, 4, seed=seed + 1)
    return randn(3, 1, 2, 2, seed=seed), factors @ factors.mT * 0.2, torch.tensor([0.5, 0.2, 0.3]).double()
