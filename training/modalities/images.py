# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""One picture: from the cell of a dataset to pixels at the training size. What is wrong with one is found here; which
pictures there are, and what happens to a bad one, is not decided here."""

import contextlib
import io
import os
import re
import warnings
from typing import NamedTuple

import numpy as np
import pyarrow
import torch
from PIL import ExifTags, Image, ImageOps

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Pillow goes by a file's content, whatever its name, and knows formats for which it starts other programs
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


class Header(NamedTuple):
    """What the first bytes of a picture's file say of it, upright."""

    height: int
    width: int
    animated: bool


def open_picture(cell: dict | None, at_least: int | None = None) -> Image.Image:
    """The picture of a cell (`{"bytes": ..., "path": ...}`) as it is on disk, upright; of several frames, the first.
    A JPEG may come halved, quartered or at an eighth as long as both its sides are `at_least` so many pixels.

    Raises:
        ValueError: for an empty cell; Pillow's readers raise OSError, SyntaxError, struct.error, TypeError, ...
    """
    return ImageOps.exif_transpose(_opened(cell, at_least))


def read_header(cell: dict | None) -> Header:
    """The size of a cell's picture, of which only the header is read.

    Raises:
        ValueError: for one that cannot be read, in one line.
    """
    with _faults_in_one_line(), _opened(cell) as picture:
        width, height = picture.size
        # a TIFF's is upright already; PNG's own `getexif` would decode it
        if picture.format != "TIFF" and Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1) >= 5:
            width, height = height, width
        return Header(height, width, getattr(picture, "is_animated", False))


def read_picture(cell: dict | None, channels: int, size: tuple[int, int]) -> torch.Tensor:
    """The picture of a cell as bytes (channels, height, width), scaled to cover `size` and cropped about its centre.

    Raises:
        ValueError: for one that cannot be read, in one line.
    """
    height, width = size
    with _faults_in_one_line():
        picture = open_picture(cell, at_least=2 * max(size))  # Pillow's margin for thumbnails
        if picture.has_transparency_data:  # on white, not on whatever colour the hidden pixels have
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        if picture.mode == "F":
            raise ValueError("its pixels are fractions, of which nothing says what is white")
        if picture.mode.startswith("I"):  # 16 bits a pixel, all but the darkest of which Pillow would make white
            picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 256).astype(np.uint8))
        picture = picture.convert("L" if channels == 1 else "RGB")
        if picture.size != (width, height):
            picture = ImageOps.fit(picture, (width, height), method=Image.Resampling.LANCZOS)
    array = np.asarray(picture).reshape(height, width, channels)
    return torch.from_numpy(array.copy()).permute(2, 0, 1)  # (C, H, W)


def read_mask(cell: dict | None, num_classes: int, size: tuple[int, int]) -> torch.Tensor:
    """The class map of a cell as bytes (1, height, width), scaled and cropped as `read_picture` does the picture; no
    class is mixed with another. Pixels are class numbers, and of two classes 255 is the second one too.

    Raises:
        ValueError: for one that cannot be read, has several channels or other numbers, in one line.
    """
    height, width = size
    with _faults_in_one_line():
        picture = open_picture(cell)
        if picture.mode not in ("1", "L", "P"):
            raise ValueError(f"a class map must have one channel of whole numbers up to 255: got mode {picture.mode}")
        picture = Image.fromarray(np.asarray(picture).astype(np.uint8))
        if picture.size != (width, height):
            picture = ImageOps.fit(picture, (width, height), method=Image.Resampling.NEAREST)
        classes = np.array(picture)
        if num_classes == 2:
            classes[classes == 255] = 1
        if classes.max() >= num_classes:
            raise ValueError(f"class numbers must be below num_classes, {num_classes}: got {classes.max()}")
    return torch.from_numpy(classes)[None]


def _opened(cell: dict | None, at_least: int | None = None) -> Image.Image:
    """A cell's picture with its header read and no more. One of so many pixels that Pillow warns of a decompression
    bomb (`PIL.Image.MAX_IMAGE_PIXELS`, 89 million) is refused here, before it takes any memory."""
    content, path = (cell.get("bytes"), cell.get("path")) if cell else (None, None)
    if not content and not path:
        raise ValueError("there is none")
    if not content and os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise ValueError("it is no plain file")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if isinstance(content, pyarrow.Buffer):
            picture = Image.open(io.BufferedReader(_Mapped(content)), formats=FORMATS)
        else:
            picture = Image.open(io.BytesIO(content) if content else path, formats=FORMATS)
    if at_least is not None:
        picture.draft(None, (at_least, at_least))
    return picture


class _Mapped(io.RawIOBase):
    """A file in an Arrow buffer, of which only what is read need come from the disk. (Arrow's own reader won't seek
    beyond the end, as Pillow does in files that it cannot read.)"""

    def __init__(self, content: pyarrow.Buffer):
        self.content, self.place = memoryview(content).cast("B"), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = max(0, offset + (0, self.place, len(self.content))[whence])
        return self.place

    def readinto(self, target) -> int:
        part = self.content[self.place : self.place + len(target)]
        target[: len(part)] = part
        self.place += len(part)
        return len(part)


@contextlib.contextmanager
def _faults_in_one_line():
    try:
        yield
    except MemoryError:  # of the size that is asked for, no fault of the picture
        raise
    except Exception as error:  # see open_picture
        line = re.sub(r" <_io\.[^>]*>", "", " ".join(str(error).split()))  # always the same for a picture
        raise ValueError(line[:300] or type(error).__name__) from None


def as_picture(pixels: torch.Tensor) -> Image.Image:
    """Bytes (channels, height, width) of 1 or 3 channels as a picture."""
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def unit(pixels: torch.Tensor) -> torch.Tensor:
    """Bytes to [-1, 1]."""
    return pixels.float() / 127.5 - 1
