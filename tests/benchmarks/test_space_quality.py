"""Latents beside pixels: what each side may spend, against runs that take what they are told, and what an autoencoder
does to pictures."""

import argparse
import json

import pytest
import torch
from diffusers import AutoencoderTiny

from mezzotint.pipelines.latents_mezzotint import to_latents, to_pixels
from mezzotint_training.benchmarks import quality, space_quality
from mezzotint_training.config.settings import TrainConfig


@pytest.mark.parametrize("scale", ["emoji-64", "scenes-128"])
def test_each_side_has_the_same_time_and_latents_have_all_of_theirs_in_it(tmp_path, monkeypatch, scale):
    runs, encoded = [], []

    def run(side, config, threads):
        """A run of an update a second, that encodes the set in 25 seconds where nobody has done so before."""
        runs.append(config)
        (tmp_path / config.output_dir).mkdir(exist_ok=True)
        first = config.vae is not None and not encoded
        encoded.extend([config] * first)
        return quality.Run([], 1.0, config.max_train_steps + 25.0 * first)

    for module in (quality, space_quality):
        monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(space_quality, "steps_within", lambda seconds, *_: [round(x) for x in seconds])
    side, unet = quality.SCALES[scale].size, quality.SCALES[scale].ours
    shared = TrainConfig(
        train_data_dir="set", resolution=[side], unet=unet, report_to="none", text_encoder_name_or_path="text"
    )
    space_quality.train(argparse.Namespace(scale=scale, seconds=400.0, share=0.3, threads=1), shared, tmp_path)
    told = json.loads((tmp_path / "trained.json").read_text())
    assert {name: one["processor"] for name, one in told.items()} == {
        "pixels": 400, "autoencoder": 120, "latents": pytest.approx(280)
    }  # fmt: skip
    assert told["latents"]["updates"] == 400 - 120 - 25
    pixels, latents = (config for config in runs if config.output_dir.endswith(("/pixels", "/latents")))
    assert pixels.unet["block_out_channels"] == latents.unet["block_out_channels"]
    assert (pixels.unet["patch_size"], latents.unet.get("patch_size", 1)) == (side // 16, 1)
    assert all(config.resolution == [side] and config.train_data_dir == "set" for config in runs)
    assert latents.vae == str(tmp_path / "autoencoder") and pixels.vae is None


def test_pictures_go_through_the_autoencoder_in_bytes():
    vae = AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=4,
                          num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()  # fmt: skip
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    found = space_quality.through_autoencoder(vae, pixels, batch=2)
    assert found.dtype == torch.uint8 and found.shape == pixels.shape
    with torch.no_grad():
        expected = to_pixels(vae, to_latents(vae, pixels[3:4].float() / 127.5 - 1)).clamp(-1, 1)
    torch.testing.assert_close(found[3:4].float() / 127.5 - 1, expected, atol=1 / 255 + 1e-6, rtol=0)
