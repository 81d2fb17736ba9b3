# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Geometric changes to a picture of which the network is told, so that it does not draw changed pictures by itself:
sampled with labels of zero, as it is without any, it draws pictures as they are. Colours are left alone.

After EDM (<https://huggingface.co/papers/2206.00364>, appendix F.2), whose chances and ranges these are.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.modalities.contents import unit

# Length of `labels`, and the U-Net's `augment_dim`
AUGMENT_DIM = 11
TURN_DIM = 2  # the same of a network that is told of quarter turns alone
# Standard deviation of scaling and stretching in octaves, and the largest translation as a share of the side
SCALE, STRETCH, SHIFT = 0.2, 0.2, 0.125
# The fifth word of the keys of versions, as in `dataset.py`
VERSION = 7


def turned(sample: torch.Tensor, quarters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A solid turned about the vertical axis, and what was done to it.

    Args:
        sample (`torch.Tensor` of shape `(channels, depth, height, width)`): the solid, as deep as it is wide.
        quarters: how many quarter turns, 0 to 3.

    Returns:
        the turned solid, and `labels` (`torch.Tensor` of shape `(2,)`): `cos - 1` and `sin` of the angle, zero for no
        change.
    """
    angle = quarters * math.pi / 2
    return sample.rot90(quarters, (1, 3)), torch.tensor([math.cos(angle) - 1, math.sin(angle)]).round()


def augment(sample: torch.Tensor, rng: np.random.Generator, probability: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture after random changes, each of which is made with `probability`, and what was done to it.

    Whole pixels first, exactly: mirrored left to right, upside down, turned by quarters (square pictures only), shifted
    by up to an eighth of the side. Then, resampled once (bicubic): scaled, turned by any angle, stretched along any
    axis. What comes in from outside is the picture's mirror image.

    Args:
        sample (`torch.Tensor` of shape `(channels, height, width)`): the picture, in any units.
        rng: draws the changes; as many numbers are drawn whatever they turn out to be.
        probability: of each change.

    Returns:
        the changed picture, of the same shape, and `labels` (`torch.Tensor` of shape `(11,)`): mirrored, upside down,
        quarter turns (2), shift to the right and down in units of the largest, octaves of scaling by 0.2, `cos - 1` and
        `sin` of the angle, octaves of stretching by 0.2 times `cos` and `sin` of its axis. All zero for no change.
    """
    height, width = sample.shape[1:]
    made = rng.random(7) < probability
    mirrored, upside_down, quarters, right, down, angle, axis, tilted = rng.random(8)
    scale, stretch = rng.standard_normal(2) * made[[4, 6]]

    # 1. Whole pixels
    mirrored, upside_down = made[0] and mirrored < 0.5, made[1] and upside_down < 0.5
    flipped = [axis for axis, yes in ((-1, mirrored), (-2, upside_down)) if yes]
    quarters = int(quarters * 4) if made[2] and height == width else 0
    right, down = (
        (round((2 * x - 1) * SHIFT * side) if made[3] else 0) for x, side in ((right, width), (down, height))
    )
    sample = torch.rot90(sample.flip(flipped), quarters, (-2, -1))
    for dim, side, shift in ((-1, width, right), (-2, height, down)):
        if shift:
            source = (torch.arange(side) - shift) % (2 * side)  # mirrored about the edges
            sample = sample.index_select(dim, torch.minimum(source, 2 * side - 1 - source))

    # 2. Resampled: `matrix` takes a place in the picture to come to one in the picture there is
    angle = (2 * angle - 1) * math.pi * made[5]
    axis = (2 * axis - 1) * math.pi * (tilted < 0.5)
    if scale or angle or stretch:
        octaves = np.array([scale * SCALE + stretch * STRETCH, scale * SCALE - stretch * STRETCH])
        along = _rotation(axis)
        matrix = _rotation(-angle) @ along @ np.diag(2.0**-octaves) @ along.T
        half = np.array([width, height]) / 2  # `affine_grid` counts in half sides
        matrix = torch.from_numpy(np.pad(matrix * half / half[:, None], ((0, 0), (0, 1)))).to(sample)
        grid = F.affine_grid(matrix[None], [1, *sample.shape], align_corners=False)
        sample = F.grid_sample(sample[None], grid, "bicubic", padding_mode="reflection", align_corners=False)[0]

    labels = [
        mirrored, upside_down, quarters in (1, 2), quarters in (2, 3), right / (SHIFT * width), down / (SHIFT * height),
        scale, math.cos(angle) - 1, math.sin(angle), stretch * math.cos(axis), stretch * math.sin(axis),
    ]  # fmt: skip
    return sample, torch.tensor(labels, dtype=torch.float32)


def versions(config: TrainConfig, number: int, pixels: torch.Tensor) -> torch.Tensor:
    """All versions of a picture that latents are computed of: first as it is, then mirrored (every other one, with
    `random_flip`) and changed (with `augment_probability`), as often as `latent_versions` says.

    Args:
        config: the run's settings.
        number: of the row.
        pixels (`torch.Tensor` of shape `(channels, height, width)`): bytes.

    Returns:
        `torch.Tensor` of shape `(versions, channels, height, width)`, in [-1, 1].
    """
    found = [unit(pixels)]
    for version in range(1, 1 + count_versions(config)):
        one = unit(pixels.flip(-1) if config.random_flip and version % 2 else pixels)
        if config.augment_probability > 0:
            one = augment(one, _of_version(config, number, version), config.augment_probability)[0].clamp(-1, 1)
        found.append(one)
    return torch.stack(found)


def version_labels(config: TrainConfig, number: int, version: int, size: tuple[int, int]) -> torch.Tensor:
    """The labels of what was done to a version, of which 0 is the picture as it is, of a picture of that size."""
    if version == 0:
        return torch.zeros(AUGMENT_DIM)
    return augment(torch.zeros(1, *size), _of_version(config, number, version), config.augment_probability)[1]


def count_versions(config: TrainConfig) -> int:
    """How many versions of a picture there are beside itself."""
    if config.augment_probability == 0 and not config.random_flip:
        return 0
    return config.latent_versions or (8 if config.augment_probability > 0 else 2)


def _of_version(config: TrainConfig, number: int, version: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, number, version, 0, VERSION])


def _rotation(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
