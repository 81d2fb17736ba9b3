"""What judges see of sounds: bands of the mel scale. The oracle is a sine of known pitch and loudness."""

import math

import pytest
import torch

from mezzotint_training.metrics.audio import BANDS, HOP, mel, mel_filters, seen
from mezzotint_training.modalities.contents import whole


def sines(frequency: float, rate: int, *loud: float) -> torch.Tensor:
    """Sounds of a second, with a channel that says that they are."""
    wave = torch.sin(2 * math.pi * frequency * torch.arange(rate) / rate)
    return torch.stack(
        [torch.stack([whole(x * wave, torch.int16), torch.zeros(rate, dtype=torch.int16)]) for x in loud]
    )


@pytest.mark.parametrize("rate", [2000, 8000, 44_100])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_a_pitch_is_brightest_in_its_band(rate, share):
    hertz = share * rate / 2
    found = seen(sines(hertz, rate, 0.5), rate)
    assert found.shape == (1, 1, BANDS, rate // round(HOP * rate) + 1) and found.dtype == torch.uint8
    band = mel(hertz) / mel(rate / 2) * (BANDS + 1) - 1
    assert int(found[0, 0].float().mean(1).argmax()) == pytest.approx(band, abs=2)


def test_half_as_loud_is_6_decibels_darker_and_silence_is_black():
    loud, soft, silence = seen(sines(1000, 8000, 0.5, 0.25, 0.0), 8000)[:, 0].float()
    at = loud[:, 30].argmax()
    assert float(loud[at, 30] - soft[at, 30]) == pytest.approx(20 * math.log10(2) / 80 * 255, abs=1.01)
    assert not silence.any()


def test_no_band_is_empty_at_any_rate():
    for rate, window in ((2000, 64), (8000, 256), (44_100, 1024)):
        assert (mel_filters(rate, window).sum(1) > 0).all()
