"""Runs in the latents of an autoencoder: with one that changes nothing they are the runs in pixels, bit for bit; their
checkpoints go on, load where mezzotint is not installed, and go through the other programs; what does not fit is
refused in one line."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from test_train import assert_same_end
from tiny_run import LONG, logged, run, saved, trained

from mezzotint import MezzotintImg2ImgPipeline, MezzotintInpaintPipeline, MezzotintPipeline
from mezzotint_training import train

KL = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
    "norm_num_groups": 2,
    "latent_channels": 2,
}


class Identity(ModelMixin, ConfigMixin):
    """An autoencoder whose latents are the pixels."""

    @register_to_config
    def __init__(self, in_channels: int = 3, latent_channels: int = 3, block_out_channels: tuple[int, ...] = (1,)):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def encode(self, x, return_dict=True):
        return (x,)

    def decode(self, z, return_dict=True):
        return (z,)


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    """An untrained autoencoder of grey pictures with latents of 2 channels at half the size."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae") / "kl"
    AutoencoderKL(in_channels=1, out_channels=1, **KL).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(vae, tmp_path_factory) -> Path:
    """A run in its latents."""
    shown = {"validation_steps": 4, "num_validation_images": 1, "num_inference_steps": 2}
    return trained(tmp_path_factory.mktemp("latents") / "run", vae=vae, **LONG, **shown, posthoc_ema_steps=3)


@pytest.mark.parametrize("changes", [{"random_flip": True}, {}])
def test_a_run_in_latents_that_are_the_pixels_is_the_run_in_pixels(tmp_path, monkeypatch, changes):
    pixels = trained(tmp_path / "pixels", **changes)
    monkeypatch.setattr(train, "load_autoencoder", lambda source: Identity(1, 1))
    monkeypatch.setattr(train, "finish", lambda *_: None)  # the class is no checkpoint's
    latents = trained(tmp_path / "latents", vae="identity", **changes)
    assert logged(latents) == logged(pixels) and logged(latents, "held_out_loss") == logged(pixels, "held_out_loss")
    a, b = (saved(folder, 3) for folder in (latents, pixels))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_pictures_drawn_in_latents_that_are_the_pixels_are_those_drawn_in_pixels(make_pipe):
    plain = make_pipe(sample_mean=(0.1,) * 3, sample_std=(0.5,) * 3)
    latent = MezzotintPipeline(**plain.components | {"vae": Identity()})
    picture = torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(1))  # padded by the U-Net
    mask = torch.zeros(1, 9, 8)
    mask[:, 3:5, 2:] = 1
    calls = {
        MezzotintPipeline: {"height": 10, "width": 7},
        MezzotintImg2ImgPipeline: {"image": picture},
        MezzotintInpaintPipeline: {"image": picture, "mask_image": mask},
    }
    for kind, arguments in calls.items():
        for output_type in ("pt", "latent"):
            drawn = []
            for pipe in (plain, latent):
                pipe = kind(**pipe.components)
                pipe.set_progress_bar_config(disable=True)
                call = {"num_inference_steps": 3, "output_type": output_type, "return_dict": False}
                drawn += pipe("a", **arguments, **call, generator=torch.Generator().manual_seed(0))
            assert torch.equal(*drawn)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(whole, vae, tmp_path):
    shutil.copytree(whole / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    shown = {"validation_steps": 4, "num_validation_images": 1, "num_inference_steps": 2, "posthoc_ema_steps": 3}
    moved = shutil.copytree(vae, tmp_path / "moved")
    again = trained(tmp_path / "run", vae=moved, resume_from_checkpoint="latest", **LONG, **shown)
    assert_same_end(again, whole)
    other = tmp_path / "other"
    AutoencoderKL(in_channels=1, out_channels=1, **KL).save_pretrained(other)
    before = {path.name for path in (again / "cache").iterdir()}
    result = run(output_dir=again, vae=other, **LONG | {"max_train_steps": 8}, **shown)
    assert result.code == 2 and "holds a run on other data (other autoencoder)" in result.err
    assert {path.name for path in (again / "cache").iterdir()} == before
