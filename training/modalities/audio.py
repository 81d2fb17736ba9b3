# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""One sound: from the cell of a dataset to a waveform of 16 bits at the training length and rate, or to a spectrogram
of as many numbers, and back. What is wrong with one is found here.

A sample has a channel more than the sound: it says where there is sound, 1 there and -1 in the silence that a short
one is filled up with. So the network draws how long a sound is.
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch

from mezzotint.pipelines.spectrograms_mezzotint import to_spectrogram
from mezzotint.samples.audio import soundfile
from mezzotint_training.modalities.contents import faults_in_one_line, file_of, whole

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")
CHANNELS = (2, 3)  # of one or two channels of sound, and one that says where there is any
# The type of a cell as it is on disk. `datasets.Audio(decode=False)` would be another, but needs torchcodec in a stream
FILE = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
UNKNOWN_LENGTH = (0, 2**32 - 1)  # of a RIFF file that was written to a pipe


class Header(NamedTuple):
    """What the first bytes of a sound's file say of it, and the rate that it is trained at."""

    frames: int
    sampling_rate: int
    channels: int  # of a sample
    trained_at: int

    @property
    def length(self) -> int:
        """In samples of the rate that it is trained at."""
        return math.ceil(self.frames * self.trained_at / self.sampling_rate)

    @property
    def measures(self) -> dict[str, float]:
        """What is told of a set as ranges."""
        return {"seconds": round(self.frames / self.sampling_rate, 3)}

    def findings(self, size: tuple[int, ...]) -> list[str]:
        """What is odd with it for sounds of a size."""
        found = []
        if self.length > size[0]:
            found.append(f"a sound longer than {size[0] / self.trained_at:.3g} s, of which the beginning is used")
        if self.sampling_rate != self.trained_at:
            found.append(f"a sound of another sampling rate, which is brought to {self.trained_at:,} Hz")
        return found


def holds(feature: Any) -> bool:
    """Whether a column of this type holds sounds."""
    return isinstance(feature, datasets.Audio) or feature == FILE


def undecoded(feature: Any) -> Any:
    """The type of a column of sounds that are left as they are on disk.

    Raises:
        ImportError: where nothing is installed that could read them, in one line.
    """
    soundfile()
    return FILE


def settle(
    config: Any,
    first: Header,
    headers: Callable[[], Iterable[Header]],
    size: tuple[int, ...] | None,
    about: Mapping[str, Any] | None,
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The number of samples to train at, and their `sampling_rate`: as asked, or the saved model's, or the longest
    sound's and the first one's. The number is rounded up by at most an eighth, to what a network can halve often; of a
    spectrogram, with `n_fft`, to whole windows.

    Args:
        config: the run's settings.
        first: of the first sound that can be read.
        headers: of all sounds that can be read.
        size: that a saved model is trained at, if there is one.
        about: what it knows of all samples.

    Raises:
        ValueError: for a rate or an `n_fft` that is asked for and is not the saved model's; for a new network that
            would not see whole windows.
    """
    rate = (about or {}).get("sampling_rate") or config.sampling_rate or first.sampling_rate
    if config.sampling_rate not in (None, rate):
        raise ValueError(f"sampling_rate must be that of the saved pipeline, {rate}: got {config.sampling_rate}")
    n_fft = (about or {}).get("n_fft") if about else config.n_fft
    if config.n_fft not in (None, n_fft):
        raise ValueError(f"n_fft must be that of the saved pipeline, {n_fft or 'none'}: got {config.n_fft}")
    if n_fft and not about and (patch := config.unet.get("patch_size", 1)) % (n_fft // 2):
        raise ValueError(
            f"with n_fft {n_fft}, unet must have a patch_size of {n_fft // 2}, the numbers of a window, or a multiple: "
            f"got {patch}"
        )
    known = {"sampling_rate": rate} | ({"n_fft": n_fft} if n_fft else {})
    if config.audio_length_in_s is not None:
        length = math.ceil(config.audio_length_in_s * rate)
    elif size is not None:
        return size, known
    else:
        length = max(header._replace(trained_at=rate).length for header in headers())
    step = max(2 ** max(length.bit_length() - 4, 0), (n_fft or 2) // 2)
    return (math.ceil(length / step) * step,), known


def header(cell: dict | None, about: Mapping[str, Any] | None = None) -> Header:
    """The length, the rate and the channels of a cell's sound, of which only the header is read.

    Raises:
        ValueError: for one that cannot be read, in one line.
    """
    with faults_in_one_line(), _opened(cell) as file:
        rate = (about or {}).get("sampling_rate", file.samplerate)
        return Header(file.frames, file.samplerate, min(file.channels, 2) + 1, rate)


def read(
    cell: dict | None, channels: int, size: tuple[int, ...], about: Mapping[str, Any] | None = None
) -> torch.Tensor:
    """The sound of a cell as 16 bits (channels, samples), of which the last channel says where there is sound: from its
    beginning, at the rate of `about`, filled up with silence. Several channels are mixed, or one is repeated. With an
    `n_fft` in `about` there is a spectrogram in the place of the waveform, as `to_spectrogram` has it.

    Raises:
        ValueError: for one that cannot be read, is cut short, empty or not finite, in one line.
    """
    with faults_in_one_line():
        with _opened(cell) as file:
            declared, rate = file.frames, file.samplerate
            sound = file.read(dtype="float32", always_2d=True)  # (samples, channels)
        if len(sound) < declared:
            raise ValueError(f"it is cut short: {len(sound):,} of {declared:,} samples are there")
        if len(sound) == 0:
            raise ValueError("it is of zero length")
        if not np.isfinite(sound).all():
            raise ValueError("its samples must be finite numbers: got others")
        wanted = channels - 1
        if sound.shape[1] != wanted:
            sound = sound.mean(1, keepdims=True) if wanted == 1 else np.repeat(sound[:, :1], wanted, 1)
        target = (about or {}).get("sampling_rate", rate)
        if target != rate:
            from scipy.signal import resample_poly  # with a filter against aliasing

            common = math.gcd(rate, target)
            sound = resample_poly(sound, target // common, rate // common)
    return content(sound.T, channels, size, about)


def content(
    drawn: np.ndarray, channels: int, size: tuple[int, ...], about: Mapping[str, Any] | None = None
) -> torch.Tensor:
    """A sound (channels, samples) in [-1, 1] as `read` returns it."""
    length, n_fft = min(drawn.shape[1], size[0]), (about or {}).get("n_fft")
    wave = torch.zeros(channels - 1, *size)
    wave[:, :length] = torch.from_numpy(np.ascontiguousarray(drawn[:, :length], np.float32))
    found = torch.full((channels, *size), -(2**15), dtype=torch.int16)
    if n_fft and size[0] > 1:  # a size of 1 asks only whether it can be read
        wave = to_spectrogram(wave, n_fft)
    found[:-1] = whole(wave, torch.int16)
    found[-1, :length] = 2**15 - 1
    return found


def _opened(cell: dict | None) -> Any:
    """A cell's sound with its header read and no more. One whose RIFF header tells of more bytes than there are is
    refused here, as libsndfile reads what is left of it."""
    found, path = file_of(cell)
    file = memoryview(found or Path(path or "").read_bytes())
    start = bytes(file[:8])
    told = int.from_bytes(start[4:], "little") if start[:4] == b"RIFF" else 0
    if told not in UNKNOWN_LENGTH and told + 8 > len(file):
        raise ValueError(f"it is cut short: {len(file):,} of {told + 8:,} bytes are there")
    return soundfile().SoundFile(io.BytesIO(file))
