# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A set of 128 px that is made of a set of 64 px: each picture, made half as large again, somewhere on a ground of one
of eight colours, which its caption names ("red heart on a green ground"). No program; `quality.prepare` writes it."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from scipy import ndimage

SIZE, LARGE = 128, 96  # pixels a side of a scene, and of the picture in it
GROUNDS = {
    "red": (235, 120, 110),
    "orange": (250, 190, 110),
    "yellow": (250, 240, 130),
    "green": (150, 215, 140),
    "blue": (130, 180, 240),
    "purple": (190, 150, 225),
    "grey": (190, 190, 190),
    "white": (255, 255, 255),
}


def write(source: str, folder: Path) -> Path:
    """Write the scenes of a set of pictures on white (columns image, text) as parquet files, the other columns as they
    are, if they are not there yet. Place and ground depend on the split and the row alone.

    Args:
        source: folder of the set's parquet files.
        folder: for the scenes, which is returned.
    """
    if not folder.is_dir():
        splits, part = datasets.load_dataset(source), folder.with_name(f"{folder.name}-part")
        part.mkdir(parents=True, exist_ok=True)
        for number, (name, rows) in enumerate(sorted(splits.items())):
            made = rows.map(
                _scene,
                with_indices=True,
                fn_kwargs={"split": number},
                features=rows.features,
                load_from_cache_file=False,
            )
            made.to_parquet(part / f"{name}-00000-of-00001.parquet")
        part.rename(folder)
    return folder


def _scene(row: dict, index: int, split: int) -> dict:
    x, y, ground = np.random.default_rng([split, index]).integers(0, (SIZE - LARGE + 1, SIZE - LARGE + 1, len(GROUNDS)))
    colour = list(GROUNDS)[ground]
    pixels = np.full((SIZE + 2, SIZE + 2, 3), 255.0)  # with an edge of ground
    large = row["image"].convert("RGB").resize((LARGE, LARGE), Image.Resampling.LANCZOS)
    pixels[1 + y : 1 + y + LARGE, 1 + x : 1 + x + LARGE] = large
    # The ground is the white around the figure, and the two pixels in which it fades into that
    labelled: Any = ndimage.label(pixels.min(2) > 235)  # scipy's stubs have a number there too
    white = labelled[0]
    around = ndimage.binary_dilation(white == white[0, 0], iterations=2)
    pixels[around] *= np.array(GROUNDS[colour]) / 255
    content = io.BytesIO()
    Image.fromarray(pixels[1:-1, 1:-1].round().astype(np.uint8)).save(content, "PNG")
    return {"image": {"bytes": content.getvalue(), "path": None}, "text": f"{row['text']} on a {colour} ground"}
