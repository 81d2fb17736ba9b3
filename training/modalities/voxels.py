# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""One solid: from the cell of a dataset, an array of voxels, to bytes, and back; and its picture. What is wrong with
one is found here.

Axes are depth from the front backwards, height from the top down, and width from left to right. A voxel is red, green,
blue and whether there is anything (alpha, 0 or 255), or the last alone; where there is nothing its colour is 0.
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image, ImageDraw

from mezzotint_training.modalities.contents import faults_in_one_line

EXTENSIONS = ()  # solids come as columns of arrays
CHANNELS = (1, 4)
ENDINGS = (".vox", ".glb", ".ply")  # of files that drawn solids are written to
SIDE = 128  # pixels of a picture of one
# How bright the faces of a voxel are that a picture shows: above, on the front, on the right
SHADES = {"top": 1.0, "front": 0.8, "right": 0.62}
# The six sides of a voxel, by the axis and the direction in which its neighbour lies: corners in the order in which
# they are seen from there, counter-clockwise, in (depth, height, width)
SIDES = {
    (0, -1): ((0, 1, 0), (0, 1, 1), (0, 0, 1), (0, 0, 0)),
    (0, 1): ((1, 1, 1), (1, 1, 0), (1, 0, 0), (1, 0, 1)),
    (1, -1): ((0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 0, 0)),
    (1, 1): ((1, 1, 0), (1, 1, 1), (0, 1, 1), (0, 1, 0)),
    (2, -1): ((1, 1, 0), (0, 1, 0), (0, 0, 0), (1, 0, 0)),
    (2, 1): ((0, 1, 1), (1, 1, 1), (1, 0, 1), (0, 0, 1)),
}


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


def coloured(drawn: np.ndarray) -> np.ndarray:
    """A drawn solid (depth, height, width, 1 or 4) in [0, 1] as bytes (depth, height, width, 4); one without colours is
    grey."""
    voxels = (255 * np.asarray(drawn)).round().astype(np.uint8)
    if voxels.shape[3] == 1:
        voxels = np.concatenate([np.full((*voxels.shape[:3], 3), 200, np.uint8), voxels], -1)
    voxels[voxels[..., 3] < 128] = 0
    return voxels


def show(drawn: np.ndarray, about: Mapping[str, Any], size: tuple[int, ...]) -> Image.Image:
    """A solid as a picture, seen from the front, the right and above, in parallel perspective. Nearer voxels are
    painted over those behind them."""
    voxels = coloured(drawn)
    depth, height, width = voxels.shape[:3]
    # A step to the right goes right and down, one backwards right and up, one down down: two pixels to one
    across, down = width + depth, (width + depth) / 2 + height  # of the whole grid
    unit = SIDE / max(across, down)  # pixels: half the width of a voxel's top
    left, above = (SIDE - across * unit) / 2, (SIDE - down * unit + depth * unit) / 2

    def at(z: float, y: float, x: float) -> tuple[float, float]:
        return left + (x + z) * unit, above + (x - z) * unit / 2 + y * unit

    picture = Image.new("RGB", (SIDE, SIDE), "white")
    draw, there = ImageDraw.Draw(picture), voxels[..., 3] > 0
    for z in reversed(range(depth)):
        for x in range(width):
            for y in reversed(range(height)):
                if not there[z, y, x]:
                    continue
                faces = {
                    "top": (y == 0 or not there[z, y - 1, x], ((0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 0, 0))),
                    "front": (z == 0 or not there[z - 1, y, x], ((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0))),
                    "right": (x + 1 == width or not there[z, y, x + 1], ((0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1))),
                }
                for name, (seen, corners) in faces.items():
                    if seen:
                        colour = tuple(int(SHADES[name] * c) for c in voxels[z, y, x, :3])
                        draw.polygon([at(z + a, y + b, x + c) for a, b, c in corners], fill=colour)
    return picture


def encoded(drawn: np.ndarray, ending: str, about: Mapping[str, Any]) -> bytes:
    """A solid as a file of one of `ENDINGS`: voxels (MagicaVoxel), or the mesh of its surface (glTF, PLY).

    Raises:
        ImportError: for a mesh where nothing is installed that writes one, in one line.
    """
    voxels = coloured(drawn)
    if ending == ".vox":
        return _vox(voxels)
    try:
        import trimesh
    except ImportError:
        raise ImportError("meshes need trimesh; pip install 'mezzotint[voxels]' brings it") from None
    corners, colours = _surface(voxels)
    count = np.arange(len(corners)) * 4
    triangles = np.concatenate([count[:, None] + x for x in ((0, 1, 2), (0, 2, 3))])
    places = corners.reshape(-1, 3)[:, ::-1] * (1, -1, -1)  # x to the right, y upwards, z to the front
    mesh = trimesh.Trimesh(
        places + (0, voxels.shape[1], 0), triangles, vertex_colors=colours.repeat(4, 0), process=False
    )
    return bytes(mesh.export(file_type=ending[1:]))


def _surface(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sides of voxels behind which there is nothing: their corners (sides, 4, 3) and their colours (sides, 4)."""
    there, corners, colours = np.pad(voxels[..., 3] > 0, 1), [], []
    for (axis, way), square in SIDES.items():
        seen = (there & ~np.roll(there, -way, axis))[1:-1, 1:-1, 1:-1]
        places = np.argwhere(seen)
        corners.append(places[:, None] + np.array(square))
        colours.append(voxels[seen])
    return np.concatenate(corners), np.concatenate(colours)


def _vox(voxels: np.ndarray) -> bytes:
    """A solid in MagicaVoxel's format (github.com/ephtracy/voxel-model, version 150), which has up to 256 voxels along
    an axis and 255 colours; of more the nearest."""
    if max(voxels.shape[:3]) > 256:
        raise ValueError(f"a .vox file has up to 256 voxels along an axis: got {voxels.shape[:3]}")
    places = np.argwhere(voxels[..., 3] > 0)
    strip = Image.fromarray(voxels[tuple(places.T)][None, :, :3])
    if len(np.unique(np.asarray(strip).reshape(-1, 3), axis=0)) <= 255:
        palette, index = np.unique(np.asarray(strip).reshape(-1, 3), axis=0, return_inverse=True)
    else:
        few = strip.quantize(255, dither=Image.Dither.NONE)
        palette, index = np.array(few.getpalette()).reshape(-1, 3), np.asarray(few).ravel()
    depth, height, width = voxels.shape[:3]
    # its axes are to the right, backwards and upwards
    found = np.stack([places[:, 2], places[:, 0], height - 1 - places[:, 1], index.ravel() + 1], 1).astype(np.uint8)
    colours = np.full((256, 4), 255, np.uint8)
    colours[: len(palette), :3] = palette

    def chunk(name: bytes, content: bytes, children: bytes = b"") -> bytes:
        return name + struct.pack("<ii", len(content), len(children)) + content + children

    parts = chunk(b"SIZE", struct.pack("<iii", width, depth, height))
    parts += chunk(b"XYZI", struct.pack("<i", len(found)) + found.tobytes()) + chunk(b"RGBA", colours.tobytes())
    return b"VOX " + struct.pack("<i", 150) + chunk(b"MAIN", b"", parts)
