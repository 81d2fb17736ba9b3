# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""One solid: from the cell of a dataset, an array of voxels, to bytes, and back; and its picture. What is wrong with
one is found here.

Axes are depth from the front backwards, height from the top down, and width from left to right. A voxel is red, green,
blue and whether there is anything (alpha, 0 or 255), or the last alone; where there is nothing its colour is 0.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch

from mezzotint_training.modalities.contents import faults_in_one_line

EXTENSIONS = ()  # solids come as columns of arrays
CHANNELS = (1, 4)


class Header(NamedTuple):
    """What is known of a solid: its grid, and how much of it is filled."""

    size: tuple[int, ...]
    channels: int
    filled: int

    @property
    def measures(self) -> dict[str, float]:
        """What is told of a set as ranges."""
        return {"filled": self.filled}

    def findings(self, size: tuple[int, ...]) -> list[str]:
        """What is odd with it for solids of a size."""
        return []


def holds(feature: Any) -> bool:
    """Whether a column of this type holds solids: arrays of four axes, the last being channels, or of three."""
    if isinstance(feature, datasets.Array4D) and feature.shape[-1] not in CHANNELS:
        return False
    return isinstance(feature, (datasets.Array3D, datasets.Array4D)) and feature.dtype in ("uint8", "bool")


def undecoded(feature: Any) -> Any:
    """The type of a column of solids that are left as they are on disk, which is their own."""
    return feature


def settle(
    config: Any,
    first: Header,
    headers: Callable[[], Iterable[Header]],
    size: tuple[int, ...] | None,
    about: Mapping[str, Any] | None,
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Depth, height and width to train at, the saved model's or the first solid's; and what else is to be known of all
    samples, which is nothing.

    Args:
        config: the run's settings.
        first: of the first solid that can be read.
        headers: of all solids that can be read.
        size: that a saved model is trained at, if there is one.
        about: what it knows of all samples.

    Raises:
        ValueError: for solids to be turned that are not as deep as they are wide.
    """
    size = size or first.size
    if config.random_turn and size[0] != size[2]:
        raise ValueError(f"random_turn needs solids as deep as they are wide: got {size[0]} and {size[2]}")
    return size, {}


def header(cell: Any, about: Mapping[str, Any] | None = None) -> Header:
    """The grid of a cell's solid.

    Raises:
        ValueError: for what is none, in one line.
    """
    with faults_in_one_line():
        voxels = _voxels(cell)
        return Header(voxels.shape[:3], voxels.shape[3], int((voxels[..., -1] > 0).sum()))


def read(cell: Any, channels: int, size: tuple[int, ...], about: Mapping[str, Any] | None = None) -> torch.Tensor:
    """The solid of a cell as bytes (channels, depth, height, width); with a `size` of ones, of whatever size. Asked for
    another number of channels, its colours are left out, or it is white.

    Raises:
        ValueError: for a grid of another size, or for one that is empty or cannot be read, in one line.
    """
    with faults_in_one_line():
        voxels = _voxels(cell)
        if set(size) != {1} and voxels.shape[:3] != tuple(size):
            got, asked = ("x".join(map(str, x)) for x in (voxels.shape[:3], size))
            raise ValueError(f"its grid must be {asked}, as that of the others: got {got}")
        there = voxels[..., -1:] > (127 if voxels.max() > 1 else 0)
        if not there.any():
            raise ValueError("it must have one voxel or more: got none")
        if channels == 4:
            colours = voxels[..., :3] if voxels.shape[3] == 4 else 255
            voxels = np.concatenate([np.where(there, colours, 0).astype(np.uint8), 255 * there.astype(np.uint8)], -1)
        else:
            voxels = 255 * there.astype(np.uint8)
        return torch.from_numpy(np.ascontiguousarray(voxels.transpose(3, 0, 1, 2)))


def content(
    drawn: np.ndarray, channels: int, size: tuple[int, ...], about: Mapping[str, Any] | None = None
) -> torch.Tensor:
    """A drawn solid (depth, height, width, channels) in [0, 1] as `read` returns it."""
    return torch.from_numpy((255 * np.asarray(drawn)).round().astype(np.uint8)).permute(3, 0, 1, 2)


def _voxels(cell: Any) -> np.ndarray:
    """A cell as bytes (depth, height, width, channels)."""
    if cell is None:
        raise ValueError("there is none")
    voxels = np.asarray(cell)
    if voxels.ndim == 3:
        voxels = voxels[..., None]
    if voxels.ndim != 4 or voxels.shape[3] not in CHANNELS or 0 in voxels.shape or voxels.dtype.kind not in "biu":
        raise ValueError(f"it must be whole numbers (depth, height, width, 1 or 4 channels): got shape {voxels.shape}")
    if voxels.min() < 0 or voxels.max() > 255:
        raise ValueError(f"its numbers must be bytes, 0 to 255: got {voxels.min()} to {voxels.max()}")
    return voxels.astype(np.uint8)
