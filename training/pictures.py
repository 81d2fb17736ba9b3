# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""One picture: from the cell of a dataset to pixels at the training size. What is wrong with one is found here."""

import io

import numpy as np
import torch
from PIL import Image, ImageOps

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def open_picture(cell: dict | None) -> Image.Image:
    """The picture of a cell (`{"bytes": ..., "path": ...}`) as it is on disk, upright.

    Raises:
        ValueError: for an empty cell; Pillow's readers raise OSError, SyntaxError, struct.error, TypeError, ...
    """
    if cell is None:
        raise ValueError("there is none")
    return ImageOps.exif_transpose(Image.open(io.BytesIO(cell["bytes"]) if cell.get("bytes") else cell["path"]))


def read_picture(cell: dict | None, channels: int, size: tuple[int, int]) -> torch.Tensor:
    """The picture of a cell as bytes (channels, height, width), scaled to cover `size` and cropped about its centre.

    Raises:
        ValueError: for one that cannot be read, in one line.
    """
    height, width = size
    try:
        picture = open_picture(cell)
        if picture.has_transparency_data:  # on white, not on whatever colour the hidden pixels have
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        if picture.mode.startswith("I"):  # 16 bits a pixel, all but the darkest of which Pillow would make white
            picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 256).astype(np.uint8))
        picture = picture.convert("L" if channels == 1 else "RGB")
        if picture.size != (width, height):
            picture = ImageOps.fit(picture, (width, height), method=Image.Resampling.LANCZOS)
    except Exception as error:  # see open_picture
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from None
    array = np.asarray(picture).reshape(height, width, channels)
    return torch.from_numpy(array.copy()).permute(2, 0, 1)  # (C, H, W)
