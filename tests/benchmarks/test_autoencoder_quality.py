"""The loss of an autoencoder part by part: where the variance of latents lies, against maps of known frequencies."""

import json
import math

import pytest
import torch

from mezzotint_training.benchmarks import autoencoder_quality


def test_white_noise_lies_where_the_areas_of_the_rings_say():
    maps = (
        torch.randn(64, 2, 64, 64, generator=torch.Generator().manual_seed(0))
        + torch.tensor([3.0, -1.0])[:, None, None]
    )
    expected = [math.pi / 64, math.pi / 16 - math.pi / 64, 1 - math.pi / 16]
    assert autoencoder_quality.spectrum(maps) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("cycles, band", [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (8, 2)])
def test_a_wave_lies_in_the_band_of_its_frequency(cycles, band):
    """Waves are of 16 places; what is the same all over a map, but not in all maps, lies in the lowest band."""
    wave = torch.cos(2 * math.pi * cycles * torch.arange(16) / 16)
    maps = wave.expand(1, 1, 16, 16) * torch.tensor([1.0, -1.0])[:, None, None, None]
    for turned in (maps, maps.transpose(2, 3)):
        found = autoencoder_quality.spectrum(turned)
        assert found == pytest.approx([float(band == i) for i in range(3)], abs=1e-9)


def test_a_table_of_the_changes_that_were_asked_for(tmp_path, capsys):
    changes = ["L1 alone", "neither", "an adversary"]
    asked = ["digits", "--updates", "2", "--output", str(tmp_path), "--changes", *changes]
    assert autoencoder_quality.main(asked) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0].strip("| ") for row in rows[2:]] == [*changes, "the pictures, averaged"]
    told = json.loads((tmp_path / "figures.json").read_text())
    for name, recipe in (
        ("L1-alone", "structure_weight: 0"),
        ("neither", "latent_noise: 0"),
        ("an-adversary", "adversary_weight: 0.5"),
    ):
        assert recipe in (tmp_path / name / "recipe.yaml").read_text()
    assert all(told[name]["frechet_distance"] > 0 for name in changes)
    assert told["neither"]["psnr"] > 3 and sum(told["neither"]["spectrum"]) == pytest.approx(1)
