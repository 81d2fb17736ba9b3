"""Runs in the latents of an autoencoder: with one that changes nothing they are the runs in pixels, bit for bit; their
checkpoints go on, load where mezzotint is not installed, and go through the other programs; what does not fit is
refused in one line."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import strangers
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file
from test_train import assert_same_end
from tiny_run import LONG, UNET, logged, run, saved, trained

from mezzotint import MezzotintImg2ImgPipeline, MezzotintInpaintPipeline, MezzotintPipeline, hub
from mezzotint.pipelines.latents_mezzotint import to_latents
from mezzotint_training import cli, train
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.augment import augment, version_labels, versions
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.digits import digits
from mezzotint_training.data.rows import held_out, load_splits
from mezzotint_training.modalities.contents import unit
from mezzotint_training.networks import latents as latents_module
from mezzotint_training.networks.frozen import Frozen
from mezzotint_training.networks.latents import Latents
from mezzotint_training.publishing import evaluation

IMAGES = datasets.Image(decode=False)
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


def test_a_plan_says_what_the_latents_take_and_touches_nothing(vae, tmp_path):
    result = run("--plan", output_dir=tmp_path / "run", vae=vae)
    assert result.code == 0 and not (tmp_path / "run").exists()
    assert "latents      of 40 pictures, about " in result.out and "vae          " in result.out


@pytest.mark.parametrize(
    "changes, size, said",
    [
        ({}, (64, 96), True),
        ({}, (32, 64), False),
        ({"task": "upscale"}, (64, 64), False),
        ({"pretrained_model_name_or_path": "somewhere"}, (128, 128), False),
        ({"modality": "video"}, (8, 64, 64), False),
    ],
)
def test_a_plan_says_whether_latents_would_pay(changes, size, said):
    """A plan says so where a new network is to draw large pictures from text, and nowhere else."""
    frozen = Frozen(TrainConfig(dataset_name="set", report_to="none", **changes), None, None, Accelerator(cpu=True))
    lines = frozen.foretell(40, size)
    assert len(lines) == said and all(line.startswith("space        pixels: latents of ") for line in lines)


# ------------------------------------------------------------------------------------------------------- the checkpoint


def test_it_loads_and_draws_the_same_where_mezzotint_is_not_installed(whole, tmp_path):
    def draw(pipe) -> np.ndarray:
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipe("a handwritten seven", num_inference_steps=2, output_type="np", generator=generator).images

    def stranger() -> tuple[str, np.ndarray]:
        pipe = DiffusionPipeline.from_pretrained(whole, trust_remote_code=True)
        return type(pipe.vae).__name__, draw(pipe)

    kind, picture = strangers.called(stranger, tmp_path)
    assert kind == "AutoencoderKL" and picture.shape == (1, 8, 8, 1)
    np.testing.assert_array_equal(draw(MezzotintPipeline.from_pretrained(whole)), picture)


def test_the_folder_holds_the_autoencoder_and_no_place_of_the_machine(whole, vae):
    _, files, left_out, missing, _ = hub.content(whole)
    assert {"vae/config.json", "vae/diffusion_pytorch_model.safetensors"} <= files.keys() and not missing + left_out
    kept = load_file(whole / "vae" / "diffusion_pytorch_model.safetensors")
    given = load_file(vae / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(kept[name], given[name]) for name in given)
    about = json.loads((whole / "unet" / "config.json").read_text())
    assert (about["sample_size"], about["in_channels"], about["out_channels"]) == (4, 2, 2)
    assert "vae: ./kl\n" in (whole / "recipe.yaml").read_text()
    assert "It draws in the latents of an autoencoder" in (whole / "README.md").read_text()


def test_the_other_programs_take_it(whole, tmp_path, capsys):
    assert cli.main(["ema", str(whole), "--length", "0.1", "--output", str(tmp_path / "mean")]) == 0
    pipe = MezzotintPipeline.from_pretrained(tmp_path / "mean")
    assert pipe.default_size == (8, 8) and pipe.vae is not None
    picture = str(tmp_path / "seven.png")
    assert cli.main(["sample", str(whole), "seven", "--num_inference_steps", "2", "--output", picture]) == 0
    again = ["sample", str(whole), "one", "--image", picture, "--num_inference_steps", "2", "--output", picture]
    assert cli.main(again) == 0
    assert "1 picture of 8x8" in capsys.readouterr().out
    argv = ["--pipeline", str(whole), "--dataset_name", "digits", "--output_dir", str(tmp_path / "classified")]
    assert cli.main(["train-classifier", *argv]) == 2 and "a classifier is trained in pixels" in capsys.readouterr().err


def test_its_held_out_loss_is_measured_in_its_latents(whole):
    """As the run itself measured it, of the weights that it published."""
    config = TrainConfig(dataset_name="digits", validation_split="test", num_validation_samples=2, max_train_samples=40)
    images = CaptionedSamples(held_out(config, load_splits(config))[1], config, 1, (8, 8))
    pipe, args = MezzotintPipeline.from_pretrained(whole), SimpleNamespace(count=8, batch_size=3)
    levels = evaluation.held_out_loss(pipe, images, args, torch.device("cpu"))
    mean = sum(level["value"] for level in levels) / len(levels)
    assert mean == pytest.approx(logged(whole, "held_out_loss")[6], rel=1e-4)


def test_a_pipeline_is_fine_tuned_in_its_latents(whole, tmp_path):
    settings = {"pretrained_model_name_or_path": whole, "unet": ..., "text_encoder": ..., "max_text_length": ...}
    folder = trained(tmp_path / "run", **settings, max_train_steps=1)
    before, after = (json.loads((x / "unet" / "config.json").read_text()) for x in (whole, folder))
    assert before == after and (folder / "vae" / "config.json").is_file()


# ------------------------------------------------------------------------------------------------------------- latents


@pytest.fixture
def images():
    config = TrainConfig(dataset_name="digits", image_column="image", augment_probability=0.5, random_flip=True)
    return CaptionedSamples(digits()["train"].select(range(6)).cast_column("image", IMAGES), config, 1, (8, 8))


def test_a_rows_latents_are_of_all_its_versions_and_computed_once(vae, images, tmp_path, monkeypatch):
    model, process = AutoencoderKL.from_pretrained(vae).eval(), SimpleNamespace(device=torch.device("cpu"))
    process.process_index, process.num_processes = 0, 1
    seen = []
    monkeypatch.setattr(latents_module, "to_latents", lambda vae, x: (seen.append(x), to_latents(vae, x))[1])
    for _ in range(2):  # the second time from the files
        latents = Latents(model, images.config, process)
        latents.prepare([images, None], {"pictures": "a"}, tmp_path, progress=False)
        found = latents.read(images, 4)
        with torch.no_grad():
            expected = to_latents(model, versions(images.config, 4, images.content(4)))
        assert found.shape == (9, 2, 4, 4) and torch.equal(found, expected)
    assert len(seen) == 6
    for changes in ({"pictures": "b"}, {"pictures": "a"}):
        model.decoder.conv_out.bias.data += changes["pictures"] == "a"  # another autoencoder, or other pictures
        Latents(model, images.config, process).prepare([images], changes, tmp_path, progress=False)
    assert len(seen) == 18 and len(list(tmp_path.glob("latents-*"))) == 3


def test_versions_are_the_picture_and_changed_ones_with_their_labels(images):
    config, pixels = images.config, images.content(3)
    found = versions(config, 3, pixels)
    assert torch.equal(found[0], unit(pixels)) and not version_labels(config, 3, 0, (8, 8)).any()
    for version in range(1, 9):
        mirrored = unit(pixels.flip(-1) if version % 2 else pixels)
        changed, labels = augment(mirrored, np.random.default_rng([0, 3, version, 0, 7]), 0.5)
        assert torch.equal(found[version], changed.clamp(-1, 1))
        assert torch.equal(version_labels(config, 3, version, (8, 8)), labels)
    assert len({tuple(x.flatten().tolist()) for x in found}) > 6


def test_what_is_inpainted_leaves_the_rest_and_takes_whole_latents(whole):
    pipe = MezzotintInpaintPipeline.from_pretrained(whole)
    pipe.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 1, 10, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 10, 8)
    mask[:, 3, 4] = 1
    (drawn,) = pipe("", image=picture, mask_image=mask, num_inference_steps=2, output_type="pt", return_dict=False)
    assert torch.allclose(drawn[:, 0][mask == 0], picture[:, 0][mask == 0], atol=1e-6)
    assert (drawn[:, 0] - picture[:, 0])[mask > 0].abs().item() > 1e-3
    spatial = pipe.padded((10, 8))
    covered = pipe.covered(mask[None], spatial)
    assert spatial == (6, 4) and covered[0, 0].nonzero().tolist() == [[1, 2], *[[5, i] for i in range(4)]]


def test_the_autoencoder_takes_less_memory_where_it_is_told_to(whole, make_pipe):
    pipe = MezzotintPipeline.from_pretrained(whole)
    for what in ("slicing", "tiling"):
        getattr(pipe, f"enable_vae_{what}")()
        assert getattr(pipe.vae, f"use_{what}")
        getattr(pipe, f"disable_vae_{what}")()
        assert not getattr(pipe.vae, f"use_{what}")
        with pytest.raises(ValueError, match=r"draws pixels: got no autoencoder \(vae\)"):
            getattr(make_pipe(), f"enable_vae_{what}")()


# ------------------------------------------------------------------------------------------------------------ bad input


def test_an_autoencoder_that_does_not_fit_the_unet_is_refused(whole, make_pipe):
    pipe = MezzotintPipeline.from_pretrained(whole)
    with pytest.raises(ValueError, match="unet must draw the latents of the vae, of 2 channels: got out_channels 3"):
        MezzotintPipeline(**make_pipe().components | {"vae": pipe.vae})
    with pytest.raises(ValueError, match="vae must be one whose config has block_out_channels"):
        MezzotintPipeline(**make_pipe().components | {"vae": make_classless()})
    upscale = make_pipe(in_channels=7, out_channels=3, condition={"task": "upscale", "scale": 2})
    with pytest.raises(ValueError, match="weights that are trained to upscale draw pixels: got them with an autoenc"):
        MezzotintPipeline(**upscale.components | {"vae": Identity()})


def make_classless() -> Identity:
    vae = Identity()
    vae.register_to_config(block_out_channels=())
    return vae


@pytest.mark.parametrize(
    "settings, rule",
    [
        ({"task": "inpaint"}, "vae goes with task text_to_image, the others are trained in pixels: got inpaint"),
        ({"streaming": True}, "vae needs a set that is at hand, whose latents are computed once: got streaming"),
        ({"pretrained_model_name_or_path": "runs/a"}, "vae is for a model from scratch"),
        ({"latent_versions": 4}, "latent_versions needs random_flip or augment_probability"),
        ({"vae": "/nowhere"}, "vae /nowhere cannot be loaded: "),
        ({"unet": UNET | {"in_channels": 1}}, "the unet's in_channels must be 2 for this data and text: got 1"),
        ({"resolution": 6}, "must be a multiple of 4 for a model of 2 levels in latents of 2 px: got 6x6"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_trained(vae, tmp_path, settings, rule):
    result = run(output_dir=tmp_path / "run", **{"vae": vae} | settings)
    assert result.code == 2 and rule in result.err and result.err.count("\n") == 0
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_folder_of_another_network_and_latents_without_variance_are_refused(whole, vae, tmp_path):
    result = run(output_dir=tmp_path / "run", vae=whole / "unet")
    assert result.code == 2 and "it must be one of AutoencoderDC, AutoencoderKL, AutoencoderTiny: got" in result.err
    flat = AutoencoderKL.from_pretrained(vae)
    for parameter in (*flat.encoder.conv_out.parameters(), *flat.quant_conv.parameters()):
        parameter.data[0] = 0
    flat.save_pretrained(tmp_path / "flat")
    result = run(output_dir=tmp_path / "run", vae=tmp_path / "flat")
    assert result.code == 2 and result.err.count("\n") == 0
    assert "latents of the vae must vary: channel 0 has mean 0 and standard deviation 0" in result.err
    result = run(output_dir=tmp_path / "run", vae=whole)  # of a pipeline its own is taken; what is there is no run yet
    assert result.code == 0 and (tmp_path / "run" / "vae" / "config.json").is_file()
