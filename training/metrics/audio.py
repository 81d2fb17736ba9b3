# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What sounds look like to those that judge: log-mel spectrograms, pictures of which all figures are taken that are
taken of pictures: distances on a classifier's features, prompt accuracy, copy rate."""

import functools
import math

import torch

from mezzotint.pipelines.spectrograms_mezzotint import by_windows, loudness

BANDS, RANGE = 32, 80  # pitches of a picture of a sound; decibels from black to white
WINDOW, HOP = 0.032, 0.016  # seconds


def mel(hertz: float) -> float:
    """A pitch on the mel scale (O'Shaughnessy 1987; HTK's formula)."""
    return 2595 * math.log10(1 + hertz / 700)


@functools.cache
def mel_filters(sampling_rate: int, window: int) -> torch.Tensor:
    """Triangles that are evenly spaced on the mel scale up to half the rate, of shape `(bands, window / 2 + 1)`. No
    narrower than the distance of two frequencies of the spectrum, so that none is empty."""
    top, step = mel(sampling_rate / 2), sampling_rate / window
    centres = [700 * (10 ** (top * i / (BANDS + 1) / 2595) - 1) for i in range(BANDS + 2)]
    frequencies = torch.arange(window // 2 + 1) * step
    filters = []
    for low, centre, high in zip(centres, centres[1:], centres[2:], strict=False):
        rising = (frequencies - centre) / max(centre - low, step) + 1
        falling = (centre - frequencies) / max(high - centre, step) + 1
        filters.append(torch.minimum(rising, falling).clamp(min=0))
    return torch.stack(filters)


def seen(content: torch.Tensor, sampling_rate: int, n_fft: int | None = None) -> torch.Tensor:
    """Sounds as bytes of grey pictures `(N, 1, pitches, times)`, the lowest pitch first: 32 bands of the mel scale over
    80 decibels, every 16 ms, or of spectrograms in each of their windows.

    Args:
        content (`torch.Tensor` of shape `(N, channels + 1, samples)`): whole numbers, as `modalities/audio.py` has
            them; the last channel is not looked at.
        sampling_rate: samples a second.
        n_fft: samples of a window, where they are spectrograms.
    """
    sounds = content[:, :-1].float() / 32768  # (N, channels, samples)
    if n_fft is None:
        window, hop = 2 ** round(math.log2(WINDOW * sampling_rate)), max(1, round(HOP * sampling_rate))
        waves, shape = sounds.mean(1), torch.hann_window(window, device=sounds.device)
        spectrum = torch.stft(waves, window, hop, window=shape, pad_mode="constant", return_complex=True).abs() / window
    else:
        window = n_fft
        spectrum = by_windows(loudness(sounds).mean(1) / 4, n_fft)  # of the loudest sine 1/4, as above
        spectrum = torch.nn.functional.pad(spectrum, (0, 0, 1, 0))  # no frequency 0
    power = mel_filters(sampling_rate, window).to(sounds.device) @ spectrum.square()  # (N, bands, times)
    decibels = 10 * power.clamp(min=1e-12).log10()
    bright = ((decibels + RANGE + 10) / RANGE).clamp(0, 1)  # 0 of the loudest sine is -12
    return (255 * bright).round().byte()[:, None]
