# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A waveform as a spectrogram in decibels of as many numbers, which can be diffused in its place, and back.

Only this lives here; how long a sound is, and what it is filled up with, is not decided here. The file travels inside
checkpoints, joined with the pipeline that imports it.
"""

import math
from pathlib import Path

import torch

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()

SILENCE = 1e-4  # of a sine at its loudest: what counts as silent, 80 decibels below it
ITERATIONS, MOMENTUM = 64, 0.99


def to_spectrogram(waves: torch.Tensor, n_fft: int) -> torch.Tensor:
    """The loudness of each frequency in windows of `n_fft` samples, each half a window after the one before. Phases,
    and the frequency 0, are left out.

    Args:
        waves (`torch.Tensor` of shape `(..., samples)`): in [-1, 1]; `samples` is a multiple of `n_fft / 2`.
        n_fft: an even number of samples.

    Returns:
        `torch.Tensor` of shape `(..., samples)`: for each window `n_fft / 2` numbers, the lowest frequency first. -1 is
        silence, 1 a sine that is as loud as can be, with 80 decibels between.
    """
    flat = waves.reshape(-1, waves.shape[-1]).float()
    loud = _stft(flat, n_fft)[:, 1:, :-1].abs() / (n_fft / 4)  # (waves, frequencies, windows)
    return (1 + (loud + SILENCE).log10() / 2).transpose(1, 2).reshape(waves.shape)


def by_windows(spectrogram: torch.Tensor, n_fft: int) -> torch.Tensor:
    """A spectrogram of shape `(..., samples)` as it is drawn on paper, `(..., n_fft / 2, windows)`: a row for each
    frequency, the lowest first, and a column for each window."""
    return spectrogram.unflatten(-1, (-1, n_fft // 2)).transpose(-1, -2)


def loudness(spectrogram: torch.Tensor) -> torch.Tensor:
    """Amplitudes of a spectrogram, which is in decibels: 1 is a sine as loud as can be. Of the same shape."""
    return (10 ** (2 * (spectrogram.clamp(-1, 1.25) - 1)) - SILENCE).clamp(min=0)


def from_spectrogram(
    spectrogram: torch.Tensor, n_fft: int, waves: torch.Tensor | None = None, stays: torch.Tensor | None = None
) -> torch.Tensor:
    """Waveforms whose spectrogram is as near to this one as can be found: the inverse of `to_spectrogram`, with phases
    by the algorithm of Griffin and Lim, sped up by a momentum (Perraudin, Balazs and Sondergaard 2013), always from the
    same random ones.

    Args:
        spectrogram (`torch.Tensor` of shape `(sounds, channels, samples)`): as `to_spectrogram` returns it.
        n_fft: samples of a window.
        waves (`torch.Tensor` of shape `(channels, samples)`, *optional*): what is known of each.
        stays (`torch.Tensor` of shape `(samples,)`, *optional*): bool, true where it is known.

    Returns:
        `torch.Tensor` of shape `(sounds, channels, samples)`.
    """
    samples = spectrogram.shape[-1]
    loud = by_windows(loudness(spectrogram.flatten(0, 1).float()), n_fft) * (n_fft / 4)
    loud = torch.nn.functional.pad(loud, (0, 1, 1, 0))  # a silent window at the end, and no frequency 0
    turns = torch.rand(loud.shape[1:], generator=torch.Generator().manual_seed(0)).to(loud.device)
    phases, before = torch.polar(torch.ones_like(turns), 2 * math.pi * turns), torch.zeros(())
    for _ in range(ITERATIONS):
        found = _istft(loud * phases, n_fft, samples, spectrogram.shape, waves, stays)
        consistent = _stft(found.flatten(0, 1), n_fft)
        phases = torch.sgn(consistent + MOMENTUM / (1 + MOMENTUM) * (consistent - before))
        before = consistent
    return _istft(loud * phases, n_fft, samples, spectrogram.shape, waves, stays)


def _hann(n_fft: int, like: torch.Tensor) -> torch.Tensor:
    return torch.hann_window(n_fft, device=like.device)


def _stft(waves: torch.Tensor, n_fft: int) -> torch.Tensor:
    """Complex, of shape `(waves, n_fft / 2 + 1, windows + 1)`."""
    window = _hann(n_fft, waves)
    return torch.stft(waves, n_fft, n_fft // 2, window=window, pad_mode="constant", return_complex=True)


def _istft(transform: torch.Tensor, n_fft: int, samples: int, shape, waves, stays) -> torch.Tensor:
    """The waveforms of a transform, with what is known of them in its place."""
    found = torch.istft(transform, n_fft, n_fft // 2, window=_hann(n_fft, transform), length=samples).view(shape)
    return found if stays is None else torch.where(stays, waves.to(found), found)
