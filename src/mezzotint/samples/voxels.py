# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Solids that were drawn, arrays `(depth, height, width, channels)` in [0, 1]: as pictures, and as files."""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

ENDINGS = (".vox", ".glb", ".ply")
SIDE = 128  # pixels of a picture of one
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
# How bright those are that a picture shows: above, on the front, on the right
SHADES = {(1, -1): 1.0, (0, -1): 0.8, (2, 1): 0.62}


def measured(pipe: Any) -> str:
    """The grid of a pipeline's solids, in words."""
    return f"{'x'.join(map(str, pipe.default_size))} voxels"


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

    picture = Image.new("RGB", (SIDE, SIDE), "white")
    draw, faces, colours, order = ImageDraw.Draw(picture), [], [], []
    for number, (side, shade) in enumerate(SHADES.items()):
        seen = _seen(voxels, *side)
        places = np.argwhere(seen)  # (sides, 3)
        z, y, x = np.moveaxis(places[:, None] + np.array(SIDES[side]), -1, 0)  # of each corner, (sides, 4)
        faces.append(np.stack([left + (x + z) * unit, above + (x - z) * unit / 2 + y * unit], -1))
        colours.append((shade * voxels[seen][:, :3]).astype(int))
        order.append(np.stack([np.full(len(places), number), -places[:, 1], places[:, 2], -places[:, 0]]))
    faces, colours = np.concatenate(faces).reshape(-1, 8).tolist(), np.concatenate(colours).tolist()
    for face in np.lexsort(np.concatenate(order, 1)):  # from behind, from the left and from below
        draw.polygon(faces[face], fill=tuple(colours[face]))
    return picture


def _seen(voxels: np.ndarray, axis: int, way: int) -> np.ndarray:
    """The voxels (depth, height, width) behind whose side, of `SIDES`, there is nothing."""
    there = np.pad(voxels[..., 3] > 0, 1)
    return (there & ~np.roll(there, -way, axis))[1:-1, 1:-1, 1:-1]


def states(pipe: Any, data: torch.Tensor) -> np.ndarray:
    """Decoded samples (solids, channels, depth, height, width) as bytes (solids, height, width, 3), as `show` has
    them."""
    solids = (data.clamp(-1, 1) / 2 + 0.5).movedim(1, -1).cpu().numpy()
    return np.stack([np.asarray(show(one, {}, pipe.default_size)) for one in solids])


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
    colours = colours.repeat(4, 0) if len(colours) else None  # of none at all trimesh makes a wrong number of columns
    mesh = trimesh.Trimesh(places + (0, voxels.shape[1], 0), triangles, vertex_colors=colours, process=False)
    return bytes(mesh.export(file_type=ending[1:]))


def _surface(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sides of voxels behind which there is nothing: their corners (sides, 4, 3) and their colours (sides, 4)."""
    corners, colours = [], []
    for side, square in SIDES.items():
        seen = _seen(voxels, *side)
        corners.append(np.argwhere(seen)[:, None] + np.array(square))
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
