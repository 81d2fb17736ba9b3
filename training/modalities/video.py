# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""One video: from the cell of a dataset, a file or a list of frames, to bytes at the training size, and back. What is
wrong with one is found here.

Frames are pictures, and are read, scaled and cropped as `images.py` does it.
"""

import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps

from mezzotint.samples.video import FRAME_RATE, av
from mezzotint_training.modalities import images
from mezzotint_training.modalities.contents import faults_in_one_line, file_of

EXTENSIONS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".mpeg")
CHANNELS = (1, 3)


class Header(NamedTuple):
    """What is known of a video before its frames are decoded."""

    frames: int
    height: int
    width: int
    frame_rate: float | None = None
    channels: int = 3

    @property
    def measures(self) -> dict[str, float]:
        """What is told of a set as ranges."""
        return {"frames": self.frames, "heights": self.height, "widths": self.width}

    def findings(self, size: tuple[int, ...]) -> list[str]:
        """What is odd with it for videos of a size."""
        found = images.Header(self.height, self.width, False).findings(size[1:])
        found = [line.replace("a picture", "a video") for line in found]
        if self.frames > size[0]:
            found.append(f"a video of more than {size[0]} frames, of which the first are used")
        return found


def holds(feature: Any) -> bool:
    """Whether a column of this type holds videos: files, or lists of pictures."""
    return isinstance(feature, datasets.Video) or isinstance(getattr(feature, "feature", None), datasets.Image)


def undecoded(feature: Any) -> Any:
    """The type of a column of videos that are left as they are on disk.

    Raises:
        ImportError: where nothing is installed that could read them, in one line.
    """
    if isinstance(feature, datasets.Video):
        av()
        return datasets.Video(decode=False)
    return datasets.List(datasets.Image(decode=False), length=feature.length)


def settle(
    config: Any,
    first: Header,
    headers: Callable[[], Iterable[Header]],
    size: tuple[int, ...] | None,
    about: Mapping[str, Any] | None,
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Frames, height and width to train at, and the `frame_rate`: as asked, or the saved model's, or the first video's;
    and by default as many frames as the shortest video has that has two.

    Args:
        config: the run's settings.
        first: of the first video that can be read.
        headers: of all videos that can be read.
        size: that a saved model is trained at, if there is one.
        about: what it knows of all samples.

    Raises:
        ValueError: for a frame rate that is asked for and is not the saved model's.
    """
    rate = (about or {}).get("frame_rate") or config.frame_rate or first.frame_rate or FRAME_RATE
    if config.frame_rate not in (None, rate):
        raise ValueError(f"frame_rate must be that of the saved pipeline, {rate:g}: got {config.frame_rate:g}")
    asked = tuple(config.resolution or (size and size[1:]) or (first.height, first.width))
    frames = config.num_frames or (size[0] if size else min(at_rate(header, rate) for header in headers()))
    return (frames, asked[0], asked[-1]), {"frame_rate": float(rate)}


def at_rate(header: Header, rate: float) -> int:
    """The number of frames of a video at a frame rate, at least 2."""
    return max(2, math.floor(header.frames * rate / (header.frame_rate or rate)))


def header(cell: Any, about: Mapping[str, Any] | None = None) -> Header:
    """The number of a cell's frames and their size, of which only the headers are read.

    Raises:
        ValueError: for one that cannot be read, has one frame, or frames of different sizes, in one line.
    """
    with faults_in_one_line():
        if isinstance(cell, list):
            found = [images.header(frame) for frame in cell]
            _check([(one.width, one.height) for one in found])
            return Header(len(found), found[0].height, found[0].width, None, max(one.channels for one in found))
        with _opened(cell) as video:
            stream = video.streams.video[0]
            rate = float(stream.average_rate or FRAME_RATE)
            frames = stream.frames or sum(1 for _ in video.decode(stream))
            _check([(stream.width, stream.height)] * frames)
            return Header(frames, stream.height, stream.width, rate)


def read(cell: Any, channels: int, size: tuple[int, ...], about: Mapping[str, Any] | None = None) -> torch.Tensor:
    """The first frames of a cell's video as bytes (channels, frames, height, width), those of a file at the frame rate
    of `about`, each scaled to cover `size` and cropped about its centre.

    Raises:
        ValueError: for one that cannot be read, is too short, or has frames of different sizes, in one line.
    """
    count, spatial = size[0], size[1:]
    with faults_in_one_line():
        if isinstance(cell, list):
            header(cell)
            frames = [images.read(frame, channels, spatial) for frame in cell[:count]]
        else:
            frames = [_pixels(one, channels, spatial) for one in itertools.islice(_frames(cell, about or {}), count)]
        if len(frames) == 1 and count > 1:
            raise ValueError("it must have two frames or more: got one")
        if len(frames) < count:
            raise ValueError(f"it must have {count} frames, which are trained on: got {len(frames)}")
    return torch.stack(frames, 1)  # (C, T, H, W)


def content(
    drawn: np.ndarray, channels: int, size: tuple[int, ...], about: Mapping[str, Any] | None = None
) -> torch.Tensor:
    """A drawn video (frames, height, width, channels) in [0, 1] as `read` returns it."""
    return torch.from_numpy((255 * np.asarray(drawn)).round().astype(np.uint8)).permute(3, 0, 1, 2)


def _check(sizes: list[tuple[int, int]]) -> None:
    """Raises `ValueError` for the sizes of frames, width and height, that are those of no video."""
    if len(sizes) < 2:
        raise ValueError(f"it must have two frames or more: got {'one' if sizes else 'none'}")
    for number, (width, height) in enumerate(sizes):
        if (width, height) != sizes[0]:
            first = "x".join(map(str, sizes[0]))
            raise ValueError(f"its frames must have one size: got {first}, and {width}x{height} in frame {number}")


def _opened(cell: dict | None) -> Any:
    """A cell's video file, opened."""
    content, path = file_of(cell)
    return av().open(io.BytesIO(bytes(content)) if content else path)


def _frames(cell: dict | None, about: Mapping[str, Any]) -> Iterator[Image.Image]:
    """The frames of a video file at the frame rate of `about`: of each moment the one that is shown then."""
    with _opened(cell) as video:
        stream = video.streams.video[0]
        own = float(stream.average_rate or FRAME_RATE)
        rate, shown = about.get("frame_rate") or own, 0
        for number, frame in enumerate(video.decode(stream)):
            while shown * own < (number + 1) * rate - 1e-6:  # moments before the next frame
                yield frame.to_image()
                shown += 1


def _pixels(frame: Image.Image, channels: int, size: tuple[int, ...]) -> torch.Tensor:
    """A decoded frame as bytes (channels, height, width) of a size."""
    frame = frame.convert("L" if channels == 1 else "RGB")
    if frame.size != (size[1], size[0]):
        frame = ImageOps.fit(frame, (size[1], size[0]), method=Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(frame).reshape(*size, channels)).permute(2, 0, 1)
