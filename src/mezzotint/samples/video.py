# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Videos that were drawn, lists of frames: as pictures, and as files."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from mezzotint.samples import as_bytes

ENDINGS = (".webp", ".gif", ".mp4")
FRAME_RATE = 8.0  # frames a second where nothing says it


def measured(pipe: Any) -> str:
    """The size and the frame rate of a pipeline's videos, in words."""
    frames, height, width = pipe.default_size
    return f"{frames} frames of {width}x{height} pixels, {pipe.frame_rate:g} a second"


def av() -> Any:
    """The library that reads and writes files of videos.

    Raises:
        ImportError: where it is not installed, in one line.
    """
    try:
        import av
    except ImportError:
        raise ImportError("files of videos need av; pip install 'mezzotint[video]' brings it") from None
    return av


def show(drawn: list[Image.Image], about: Mapping[str, Any], size: tuple[int, ...]) -> Image.Image:
    """A video as a picture: its frames side by side."""
    width, height = drawn[0].size
    strip = Image.new("RGB", (width * len(drawn), height))
    for number, frame in enumerate(drawn):
        strip.paste(frame, (number * width, 0))
    return strip


def states(pipe: Any, data: torch.Tensor) -> np.ndarray:
    """Decoded samples (videos, channels, frames, height, width) as bytes (videos, height, frames, width, channels)."""
    return as_bytes(data).swapaxes(1, 2)


def encoded(drawn: list[Image.Image], ending: str, about: Mapping[str, Any]) -> bytes:
    """Frames as a file of one of `ENDINGS`: a WebP, to the bit, or a GIF, both of which go round, or an MP4.

    Raises:
        ImportError: for an MP4 where nothing is installed that writes one, in one line.
    """
    frames, rate, file = [frame.convert("RGB") for frame in drawn], about.get("frame_rate") or FRAME_RATE, io.BytesIO()
    if ending == ".mp4":
        _write_mp4(frames, rate, file)
    else:
        options = {"lossless": True} if ending == ".webp" else {}
        frames[0].save(
            file, ending[1:].upper(), save_all=True, append_images=frames[1:], duration=round(1000 / rate), loop=0,
            **options,
        )  # fmt: skip
    return file.getvalue()


def _write_mp4(frames: list[Image.Image], rate: float, file: io.BytesIO) -> None:
    """Write frames as H.264, whose sides are even: an odd one gets a black row or column."""
    from fractions import Fraction

    width, height = (side + side % 2 for side in frames[0].size)
    with av().open(file, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=Fraction(rate).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", {"crf": "12"}
        for frame in frames:
            frame = frame.crop((0, 0, width, height))
            container.mux(stream.encode(av().VideoFrame.from_image(frame)))
        container.mux(stream.encode())
