"""An autoencoder's loss and the measures of its reconstructions, beside closed forms and scikit-image's."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from mezzotint_training.config.autoencoder import AutoencoderConfig
from mezzotint_training.learning.autoencoding import (
    Reconstruction,
    autoencoding_loss,
    quality,
    reconstruction_loss,
    ssim,
)


class Blocks(torch.nn.Module):
    """Latents that are the means of 2x2 pixels, and pictures that repeat them; `shift` is added to what is made."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, shift: float = 0.0):
        super().__init__()
        self.shift, self.config, self.read = shift, {"block_out_channels": (1, 1)}, []

    def encode(self, x, return_dict):
        return (F.avg_pool2d(x, 2),)

    def decode(self, z, return_dict):
        self.read.append(z)
        return (F.interpolate(z, scale_factor=2) + self.shift,)


def config(**weights) -> AutoencoderConfig:
    none = {"structure_weight": 0, "equivariance_weight": 0, "latent_noise": 0}
    return AutoencoderConfig(dataset_name="digits", **none | weights)


def blocks(side: int, size: int = 4, seed: int = 0) -> torch.Tensor:
    """Two pictures in [-1, 1] that are constant over blocks of `size` pixels."""
    small = torch.rand(2, 3, side // size, side // size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(small, scale_factor=size)


def loss(config, vae, pixels, uniform=0.0):
    process = SimpleNamespace(device=torch.device("cpu"), autocast=Accelerator(cpu=True).autocast)
    return autoencoding_loss(config, Reconstruction(vae), pixels, torch.full((len(pixels),), uniform), process)


def test_structural_similarity_is_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    a, b = blocks(32, 2), (blocks(32, 2, 1) + 3 * blocks(32, 2)) / 4
    for mine, x, y in zip(ssim(a, b), a, b, strict=True):
        whole = metrics.structural_similarity(
            x.numpy(), y.numpy(), data_range=2.0, channel_axis=0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )[1]  # fmt: skip
        inside = whole[:, 5:-5, 5:-5].mean()
        assert mine.item() == pytest.approx(inside, abs=1e-4)


@pytest.mark.parametrize("side", [3, 8, 32])
def test_flat_pictures_have_the_similarity_of_their_brightness(side):
    a, b = torch.full((1, 1, side, side), 0.5), torch.full((1, 1, side, side), -0.2)
    c1 = 0.02**2
    assert ssim(a, b).item() == pytest.approx((2 * 0.5 * -0.2 + c1) / (0.25 + 0.04 + c1), rel=1e-4)
    assert ssim(a, a).item() == pytest.approx(1)


def test_the_terms_of_the_loss_are_what_they_say():
    pixels = blocks(16)
    assert loss(config(), Blocks(), pixels).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert loss(config(), Blocks(0.3), pixels).tolist() == pytest.approx([0.3, 0.3], rel=1e-5)
    # what is added everywhere is in no band but the lowest, which L1 sees
    assert loss(config(bands_weight=5.0), Blocks(0.3), pixels).tolist() == pytest.approx([0.3, 0.3], rel=1e-4)
    structure = loss(config(structure_weight=2.0), Blocks(0.3), pixels) - 0.3
    assert structure.tolist() == pytest.approx((2 * (1 - ssim(pixels + 0.3, pixels))).tolist(), rel=1e-4)
    fine = torch.zeros(1, 1, 16, 16)
    fine[..., ::2] = 1  # of which two pixels' means tell nothing
    assert reconstruction_loss(config(bands_weight=1.0), fine, torch.zeros_like(fine)).item() > 0.5 + 0.45


def test_a_scale_equivariant_autoencoder_pays_nothing_for_it():
    pixels = blocks(16)
    assert loss(config(equivariance_weight=3.0), Blocks(), pixels).tolist() == pytest.approx([0, 0], abs=1e-6)
    # one that adds 0.3 pays L1 at both sizes
    found = loss(config(equivariance_weight=3.0), Blocks(0.3), pixels)
    assert found.tolist() == pytest.approx([1.2, 1.2], rel=1e-5)


def test_the_decoder_reads_latents_with_noise_of_their_own_scale():
    vae, pixels = Blocks(), blocks(64)
    torch.manual_seed(0)
    loss(config(latent_noise=0.4), vae, pixels, uniform=0.5)
    (read,) = vae.read
    latents = F.avg_pool2d(pixels, 2)
    noise = (read - latents).flatten(1).std(1) / latents.flatten(1).std(1)
    assert noise.tolist() == pytest.approx([0.2, 0.2], rel=0.05)


def test_quality_is_of_pictures_of_8_bits():
    pixels = list(blocks(16) * 0.5)
    found = quality(Blocks(0.1), pixels, 1)
    assert found["psnr"] == pytest.approx(-20 * math.log10(0.05), abs=0.15)
    assert found["psnr"] == pytest.approx(quality(Blocks(0.1), pixels, 2)["psnr"])
    levels = [(torch.from_numpy(np.round((x.numpy() + 1) * 127.5)) / 127.5 - 1).float() for x in pixels]
    assert quality(Blocks(), levels, 2) == pytest.approx({"psnr": 100.0, "ssim": 1.0})
