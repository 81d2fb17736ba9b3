"""Power-function averages of a known trajectory, by their definition (Karras et al. 2024, Eq. 1)."""

import numpy as np
import torch

from mezzotint_training.learning.averages import gamma_of


def walk(steps: int) -> list[dict[str, torch.Tensor]]:
    """A random walk of two tensors."""
    torch.manual_seed(0)
    place, trajectory = {"unet.a": torch.randn(3, 4), "unet.b": torch.randn(5)}, []
    for _ in range(steps):
        place = {name: x + 0.1 * torch.randn_like(x) for name, x in place.items()}
        trajectory.append(place)
    return trajectory


def average_of(trajectory: list[dict[str, torch.Tensor]], length: float) -> dict[str, torch.Tensor]:
    """Eq. 1 with theta constant within a step: step i weighs i^(gamma + 1) - (i - 1)^(gamma + 1)."""
    edges = (np.arange(len(trajectory) + 1) / len(trajectory)) ** (gamma_of(length) + 1)
    weights = np.diff(edges)
    return {
        name: sum(w * place[name].double() for w, place in zip(weights, trajectory, strict=True))
        for name in trajectory[0]
    }
