# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""One picture: from the cell of a dataset to pixels at the training size, and back. What is wrong with one is found
here; which pictures there are, and what happens to a bad one, is not decided here."""

import io
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow
import torch
from PIL import ExifTags, Image, ImageOps

from mezzotint.pipelines.images_mezzotint import opaque
from mezzotint_training.modalities.contents import faults_in_one_line, file_of

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Pillow goes by a file's content, whatever its name, and knows formats for which it starts other programs
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
CHANNELS = (1, 3)


class Header(NamedTuple):
    """What the first bytes of a picture's file say of it, upright."""

    height: int
    width: int
    animated: bool
    channels: int = 3  # that it is read with, where nothing else is asked for

    @property
    def measures(self) -> dict[str, float]:
        """What is told of a set as ranges."""
        return {"heights": self.height, "widths": self.width}

    def findings(self, size: tuple[int, ...]) -> list[str]:
        """What is odd with it for pictures of a size."""
        (height, width), found = size, []
        shape = self.height * width / (self.width * height)  # 1 is no crop
        if self.height < height or self.width < width:
            found.append("a picture smaller than it is trained at")
        if min(shape, 1 / shape) < 0.5:
            found.append("a picture of which more than half is cropped")
        if self.animated:
            found.append("a picture of several frames, of which the first is used")
        return found


def holds(feature: Any) -> bool:
    """Whether a column of this type holds pictures."""
    return isinstance(feature, datasets.Image)


def undecoded(feature: Any) -> Any:
    """The type of a column of pictures that are left as they are on disk."""
    return datasets.Image(decode=False)


def settle(
    config: Any,
    first: Header,
    headers: Callable[[], Iterable[Header]],
    size: tuple[int, ...] | None,
    about: Mapping[str, Any] | None,
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Height and width to train at: as asked, or the saved model's, or the first picture's; and what else is to be
    known of all samples, which is nothing.

    Args:
        config: the run's settings.
        first: of the first picture that can be read.
        headers: of all samples that can be read.
        size: that a saved model is trained at, if there is one.
        about: what it knows of all samples.
    """
    asked = tuple(config.resolution or size or (first.height, first.width))
    return (asked[0], asked[-1]), {}


def open_picture(cell: dict | None, at_least: int | None = None) -> Image.Image:
    """The picture of a cell (`{"bytes": ..., "path": ...}`) as it is on disk, upright; of several frames, the first.
    A JPEG may come halved, quartered or at an eighth as long as both its sides are `at_least` so many pixels.

    Raises:
        ValueError: for an empty cell; Pillow's readers raise OSError, SyntaxError, struct.error, TypeError, ...
    """
    return ImageOps.exif_transpose(_opened(cell, at_least))


def header(cell: dict | None, about: Mapping[str, Any] | None = None) -> Header:
    """The size of a cell's picture, of which only the header is read.

    Raises:
        ValueError: for one that cannot be read, in one line.
    """
    with faults_in_one_line(), _opened(cell) as picture:
        width, height = picture.size
        # a TIFF's is upright already; PNG's own `getexif` would decode it
        if picture.format != "TIFF" and Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1) >= 5:
            width, height = height, width
        channels = 1 if picture.mode in ("1", "L") or picture.mode.startswith("I") else 3
        return Header(height, width, getattr(picture, "is_animated", False), channels)


def read(
    cell: dict | None,
    channels: int,
    size: tuple[int, ...],
    about: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """The picture of a cell as bytes (channels, height, width), scaled to cover `size` and cropped about its centre.

    Raises:
        ValueError: for one that cannot be read, in one line.
    """
    height, width = size
    with faults_in_one_line():
        picture = open_picture(cell, at_least=2 * max(size))  # Pillow's margin for thumbnails
        picture = opaque(picture, "L" if channels == 1 else "RGB")
        if picture.size != (width, height):
            picture = ImageOps.fit(picture, (width, height), method=Image.Resampling.LANCZOS)
    array = np.asarray(picture).reshape(height, width, channels)
    return torch.from_numpy(array.copy()).permute(2, 0, 1)  # (C, H, W)


def read_mask(cell: dict | None, num_classes: int, size: tuple[int, int]) -> torch.Tensor:
    """The class map of a cell as bytes (1, height, width), scaled and cropped as `read` does the picture; no
    class is mixed with another. Pixels are class numbers, and of two classes 255 is the second one too.

    Raises:
        ValueError: for one that cannot be read, has several channels or other numbers, in one line.
    """
    height, width = size
    with faults_in_one_line():
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
    content, path = file_of(cell)
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


def as_picture(pixels: torch.Tensor) -> Image.Image:
    """Bytes (channels, height, width) of 1 or 3 channels as a picture."""
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
