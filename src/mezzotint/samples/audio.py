# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Sounds that were drawn, arrays `(channels, samples)` in [-1, 1]: as spectrograms, and as files."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from mezzotint.pipelines.spectrograms_mezzotint import by_windows
from mezzotint.samples import as_bytes

ENDINGS = (".wav", ".flac")
SIDE, RANGE = 128, 80  # of a picture of a sound: pixels, and decibels from black to white


def measured(pipe: Any) -> str:
    """The length and the sampling rate of a pipeline's sounds, in words."""
    return f"{pipe.default_size[0] / pipe.sampling_rate:.3g} s at {pipe.sampling_rate:,} Hz"


def soundfile() -> Any:
    """The library that reads and writes sounds.

    Raises:
        ImportError: where it is not installed, in one line.
    """
    try:
        import soundfile
    except (ImportError, OSError):  # the latter without libsndfile
        raise ImportError("sounds need soundfile; pip install 'mezzotint[audio]' brings it") from None
    return soundfile


def show(drawn: np.ndarray, about: Mapping[str, Any], size: tuple[int, ...]) -> Image.Image:
    """A sound (channels, samples) as a picture: its spectrogram, time to the right and pitch upwards, the louder the
    brighter, as wide as samples of a size are long."""
    length, window = size[0], 2 * SIDE
    sound = torch.zeros(max(length, drawn.shape[1]))
    sound[: drawn.shape[1]] = torch.from_numpy(np.asarray(drawn, np.float32)).mean(0)
    hop = max(1, round(len(sound) / SIDE))
    found = torch.stft(sound, window, hop, window=torch.hann_window(window), pad_mode="constant", return_complex=True)
    decibels = 20 * (found.abs() / window).clamp(min=1e-6).log10()  # 0 of a sound at its loudest is about -12
    bright = ((decibels[1:, :SIDE] + RANGE) / RANGE).clamp(0, 1)
    return Image.fromarray((255 * bright.flip(0)).round().byte().numpy())


def states(pipe: Any, data: torch.Tensor) -> np.ndarray:
    """Decoded samples (sounds, channels + 1, samples) as spectrograms, bytes (sounds, height, width, 1): of waveforms
    as `show` has them, of what is a spectrogram as it is."""
    waves, n_fft = data[:, :-1].clamp(-1, 1).cpu(), pipe.n_fft
    if n_fft is None:
        pictures = [np.asarray(show(one.numpy(), {}, pipe.default_size)) for one in waves]
        return np.stack(pictures)[..., None]
    return as_bytes(by_windows(waves.mean(1), n_fft).flip(1)[:, None])


def encoded(drawn: np.ndarray, ending: str, about: Mapping[str, Any]) -> bytes:
    """A sound (channels, samples) in [-1, 1] as a file, with 16 bits, of one of `ENDINGS`.

    Raises:
        ImportError: for a FLAC where nothing is installed that writes one, in one line.
    """
    sound, file = (np.asarray(drawn, np.float32) * 32768).round().clip(-32768, 32767).astype("<i2").T, io.BytesIO()
    if ending == ".flac":
        soundfile().write(file, sound, about["sampling_rate"], subtype="PCM_16", format="FLAC")
    else:
        import wave

        with wave.open(file, "wb") as written:
            written.setparams((sound.shape[1], 2, about["sampling_rate"], len(sound), "NONE", ""))
            written.writeframes(sound.tobytes())
    return file.getvalue()
