# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A network that learns to tell an autoencoder's reconstructions from pictures, and what that asks of the autoencoder.

It sees each picture with the latents that it was encoded to (the idea of <https://github.com/madebyollin/seraena>), so
that it judges whether the details are such as go with these latents, not whether they are those of some picture. How
strongly the autoencoder follows is set by the gradients on the reconstruction, picture by picture, so that no scale of
either loss plays a part (2012.09841, eq. 7, where it is those on the last layer's weights, of a batch).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Adversary(nn.Module):
    """Tells pictures from reconstructions at each place of their latents.

    Args:
        channels: of pictures.
        latent_channels: of latents.
        factor: pixels along each axis that make one latent; the pictures' sides are multiples of it.
        width: channels of the hidden layers, a multiple of 8.
    """

    def __init__(self, channels: int, latent_channels: int, factor: int, width: int = 64):
        super().__init__()
        self.fold = nn.PixelUnshuffle(factor)
        self.conv_in = nn.Conv2d(channels * factor**2 + latent_channels, width, 3, padding=1)
        self.hidden = nn.Sequential(
            *(
                layer
                for _ in range(2)
                for layer in (nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width))
            ),
            nn.SiLU(),
        )
        self.conv_out = nn.Conv2d(width, 1, 1)

    def forward(self, pixels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Say how much like a picture each place is.

        Args:
            pixels (`torch.Tensor` of shape `(B, C, H, W)`): in [-1, 1].
            latents (`torch.Tensor` of shape `(B, L, H / factor, W / factor)`): of these pictures, of any scale.

        Returns:
            `torch.Tensor` of shape `(B, 1, H / factor, W / factor)`: above 0 for what is taken for a picture.
        """
        scale = latents.flatten(1).std(1).clamp(min=1e-8)[:, None, None, None]
        seen = torch.cat([self.fold(pixels), (latents / scale).to(pixels)], dim=1)
        return self.conv_out(self.hidden(self.conv_in(seen)))


def followed(
    adversary: Any,
    pixels: torch.Tensor,
    output: torch.Tensor,
    latents: torch.Tensor,
    loss: torch.Tensor,
    weight: float,
) -> torch.Tensor:
    """The loss of reconstructions with what an adversary asks of them, and with what it learns from them.

    Args:
        adversary (`Adversary`): wrapped or not.
        pixels, output (`torch.Tensor` of shape `(B, C, H, W)`): pictures, and what was made of their latents.
        latents (`torch.Tensor` of shape `(B, L, h, w)`): of the pictures.
        loss (`torch.Tensor` of shape `(B,)`): of each reconstruction.
        weight: length of the gradient that is asked of a reconstruction, in lengths of that of its loss.

    Returns:
        `torch.Tensor` of shape `(B,)`: the same numbers. Their gradient has in addition what is asked of `output`, and,
        in the mean over pictures, that of the adversary's own loss (hinge; 1705.02894), which the adversary alone gets.
    """
    latents, made = latents.detach(), output.detach()
    if weight > 0:
        (pull,) = torch.autograd.grad(loss.sum(), output, retain_graph=True)
        bare = getattr(adversary, "module", adversary)
        fixed = {name: parameter.detach() for name, parameter in bare.named_parameters()}
        with torch.enable_grad():
            seen = made.clone().requires_grad_()
            realness = torch.func.functional_call(bare, fixed, (seen, latents))
            (push,) = torch.autograd.grad(-realness.float().mean((1, 2, 3)).sum(), seen)
        length = pull.flatten(1).norm(dim=1) / push.flatten(1).norm(dim=1).clamp(min=1e-20)
        loss = loss + _gradient_alone(weight * (length[:, None, None, None] * push * output).flatten(1).sum(1))
    real, taken = adversary(torch.cat([pixels, made]), torch.cat([latents, latents])).float().chunk(2)
    return loss + _gradient_alone(F.relu(1 - real).mean() + F.relu(1 + taken).mean())


def _gradient_alone(x: torch.Tensor) -> torch.Tensor:
    """Zeros with the gradient of `x`."""
    return x - x.detach()


@torch.no_grad()
def told_apart(adversary: Any, pixels: torch.Tensor, made: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Tell for each picture (B, C, H, W) whether it is taken for one sooner than its reconstruction is: (B,), true of a
    half by chance."""
    bare = getattr(adversary, "module", adversary)  # one process alone may ask
    realness = (bare(x, latents).float().mean((1, 2, 3)) for x in (pixels, made))
    return torch.gt(*realness)
