# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Conditions that a network reads beside the noisy sample and its text. Training and sampling make them by the same
functions.

Where it is trained for a task: a picture, and a last channel that says how little is known of it, 0 being all and 1
nothing. Where it reads attributes, classes and numbers: a vector.

Nothing known, zeros and a last channel of ones, is the same for all tasks: it is what training drops conditions to.

In a saved pipeline this text stands in place of the line that imports it.
"""

import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


def picture_condition(picture: torch.Tensor) -> torch.Tensor:
    """A picture of which all is known.

    Args:
        picture (`torch.Tensor` of shape `(B, C, H, W)`): in [-1, 1].

    Returns:
        `torch.Tensor` of shape `(B, C + 1, H, W)`.
    """
    return F.pad(picture, (0, 0, 0, 0, 0, 1))


def masked_condition(picture: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A picture with a hole, as Stable Diffusion's inpainting has it.

    Args:
        picture (`torch.Tensor` of shape `(B, C, H, W)`): normalised.
        mask (`torch.Tensor` of shape `(B, 1, H, W)`): 1 where nothing is known, 0 elsewhere.

    Returns:
        `torch.Tensor` of shape `(B, C + 1, H, W)`.
    """
    return torch.cat([picture * (1 - mask), mask], dim=1)


def enlarged_condition(
    small: torch.Tensor, size: tuple[int, int], level: torch.Tensor, noise: torch.Tensor | None = None
) -> torch.Tensor:
    """A small picture that is enlarged, with noise of a known level that hides what may be wrong with it: conditioning
    augmentation (cascaded diffusion, <https://huggingface.co/papers/2106.15282>, section 4.2). It is mixed in before
    the picture is enlarged, so that a level hides as much at any scale.

    Args:
        small (`torch.Tensor` of shape `(B, C, h, w)`): normalised.
        size: `(H, W)` to enlarge it to.
        level (`torch.Tensor` of shape `(B,)`): standard deviation of the noise, in [0, 1]; what stays of the picture
            has `sqrt(1 - level^2)`.
        noise (`torch.Tensor` of shape `(B, C, h, w)`, *optional*): standard normal; not needed at level 0.

    Returns:
        `torch.Tensor` of shape `(B, C + 1, H, W)`.
    """
    level = level.to(small).reshape(-1, 1, 1, 1)
    if noise is not None:
        small = (1 - level.square()).sqrt() * small + level * noise
    large = F.interpolate(small, size, mode="bicubic", align_corners=False)
    return torch.cat([large, level.expand(len(small), 1, *size)], dim=1)


def class_bits(num_classes: int) -> int:
    """The number of bits that tell so many classes apart."""
    return max(1, math.ceil(math.log2(num_classes)))


def classes_to_bits(classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Class numbers as analog bits, -1 and 1 (<https://huggingface.co/papers/2208.04202>, section 2).

    Args:
        classes (`torch.Tensor` of shape `(B, 1, *spatial)`): whole numbers below `num_classes`.

    Returns:
        `torch.Tensor` of shape `(B, class_bits(num_classes), *spatial)`, float32, the lowest bit first.
    """
    places = torch.arange(class_bits(num_classes), device=classes.device).reshape(1, -1, *[1] * (classes.ndim - 2))
    return ((classes.long() >> places) & 1).float() * 2 - 1


def bits_to_classes(bits: torch.Tensor, num_classes: int) -> torch.Tensor:
    """The inverse of `classes_to_bits` for any numbers, by their signs; codes beyond the classes are the last class.

    Returns:
        `torch.Tensor` of shape `(B, H, W)`, int64.
    """
    places = torch.arange(bits.shape[1], device=bits.device).reshape(1, -1, 1, 1)
    return ((bits > 0).long() << places).sum(dim=1).clamp(max=num_classes - 1)


def bits_to_shares(bits: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Probabilities of the classes, given the means of their analog bits: a bit of mean `b` is 1 with probability
    `(1 + b) / 2`, independently of the others. Codes beyond the number of classes count as the last class.

    Args:
        bits (`torch.Tensor` of shape `(B, class_bits(num_classes), H, W)`): the lowest bit first; cut to [-1, 1].

    Returns:
        `torch.Tensor` of shape `(B, num_classes, H, W)`, whose sums over the classes are 1.
    """
    chances = (1 + bits.clamp(-1, 1)) / 2
    shares = torch.ones_like(chances[:, :1])
    for one in chances.split(1, dim=1):
        shares = torch.cat([shares * (1 - one), shares * one], dim=1)  # (B, 2, H, W), (B, 4, H, W), …
    last = shares[:, num_classes - 1 :].sum(dim=1, keepdim=True)
    return torch.cat([shares[:, : num_classes - 1], last], dim=1)


def attribute_vector(known: Mapping[str, list[Any]], values: Mapping[str, Any]) -> torch.Tensor:
    """Attributes as a network reads them: a class as one of as many numbers as there are, a number as its distance from
    the mean in standard deviations and a one, in the order of their names. Zeros are an attribute of which nothing is
    known.

    Args:
        known: of each attribute its classes, or mean and standard deviation (the U-Net's `attributes`).
        values: of some of them a number, or a class by its name or its place among them; all known.

    Returns:
        `torch.Tensor` of shape `(features,)`, float32.
    """
    parts = []
    for name, about in sorted(known.items()):
        part = torch.zeros(len(about))
        if name in values and isinstance(about[0], str):
            value = values[name]
            part[about.index(value) if isinstance(value, str) else int(value)] = 1
        elif name in values:
            part[0], part[1] = (float(values[name]) - about[0]) / about[1], 1
        parts.append(part)
    return torch.cat(parts)


def attributes_without(known: Mapping[str, list[Any]], vectors: torch.Tensor, names: Container[str]) -> torch.Tensor:
    """Vectors of `attribute_vector`, of shape `(B, features)`, with nothing known of some of the attributes."""
    vectors, first = vectors.clone(), 0
    for name, about in sorted(known.items()):
        if name in names:
            vectors[:, first : first + len(about)] = 0
        first += len(about)
    return vectors
