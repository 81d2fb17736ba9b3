"""Spectrograms of as many numbers as a waveform has: beside scipy's, and back to sounds that have them again."""

import numpy as np
import pytest
import torch
from scipy import signal

from mezzotint.pipelines.spectrograms_mezzotint import from_spectrogram, loudness, to_spectrogram

RATE, N_FFT, SAMPLES = 8000, 64, 2048


def sine(frequency: float, loud: float = 1.0) -> torch.Tensor:
    return loud * torch.sin(2 * torch.pi * frequency * torch.arange(SAMPLES) / RATE)


def test_decibels_are_those_of_scipy():
    waves = 0.3 * torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(0))
    found = to_spectrogram(waves, N_FFT).unflatten(1, (-1, N_FFT // 2)).transpose(1, 2)
    # its window sums to 1, which leaves half of a sine to each of the frequencies, the positive and the negative one
    _, _, expected = signal.stft(waves.numpy(), nperseg=N_FFT, padded=False)
    decibels = 20 * np.log10(2 * np.abs(expected[:, 1:, :-1]) + 1e-4)
    np.testing.assert_allclose(found, decibels / 40 + 1, atol=1e-4)


def test_silence_is_minus_1_and_the_loudest_sine_1():
    assert (to_spectrogram(torch.zeros(1, SAMPLES), N_FFT) == -1).all()
    step = RATE / N_FFT
    for loud, level in ((1.0, 1.0), (0.1, 0.5), (0.01, 0.0)):
        windows = to_spectrogram(sine(8 * step, loud), N_FFT).unflatten(0, (-1, N_FFT // 2))
        assert windows[3:-3, 7].numpy() == pytest.approx(level, abs=0.005)  # the eighth from the lowest
        np.testing.assert_allclose(loudness(windows[3:-3, 7]), loud, rtol=0.01)


def test_a_sound_of_a_spectrogram_has_it_again():
    given = torch.stack([sine(437, 0.5) * torch.hann_window(SAMPLES), sine(1000, 0.3) + sine(1700, 0.2)])[None]
    wanted = to_spectrogram(given, N_FFT)
    again = to_spectrogram(from_spectrogram(wanted, N_FFT), N_FFT)
    assert again.shape == wanted.shape == (1, 2, SAMPLES)
    heard = wanted > 0.25  # within 30 decibels of the loudest
    assert (again - wanted)[heard].abs().mean() * 40 < 1  # decibels
    random = to_spectrogram(torch.randn(given.shape, generator=torch.Generator().manual_seed(0)) * 0.3, N_FFT)
    assert (random - wanted)[heard].abs().mean() * 40 > 5


def test_a_sound_is_the_same_whatever_the_batch_and_what_is_known_stays():
    waves = 0.3 * torch.randn(2, 1, SAMPLES, generator=torch.Generator().manual_seed(0))
    both = from_spectrogram(to_spectrogram(waves, N_FFT), N_FFT)
    torch.testing.assert_close(both[1:], from_spectrogram(to_spectrogram(waves[1:], N_FFT), N_FFT), atol=1e-4, rtol=0)
    stays = torch.arange(SAMPLES) < SAMPLES // 2
    found = from_spectrogram(to_spectrogram(waves[:1], N_FFT), N_FFT, waves[0], stays)
    assert torch.equal(found[0, :, stays], waves[0, :, stays])
    # beside half that is known the other half's phases are found as well, up to where it is heard no more
    near = slice(SAMPLES // 2, SAMPLES // 2 + N_FFT // 4)
    assert (found[0, :, near] - waves[0, :, near]).abs().mean() < (both[0, :, near] - waves[0, :, near]).abs().mean()
