"""The autoencoder's training program: its result loads with diffusers alone, a stopped run ends as one that was not,
what it needs of a set is pictures, and what does not fit is refused in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import strangers
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from huggingface_hub import ModelCard
from PIL import Image
from tiny_run import called, distance, logged, pictures, saved

from mezzotint_training import train_autoencoder
from mezzotint_training.config.autoencoder import AutoencoderConfig
from mezzotint_training.config.recipe import place, recipes

SMALL = {
    "AutoencoderDC": "{encoder_block_out_channels: [8, 16], decoder_block_out_channels: [8, 16]}",
    "AutoencoderKL": "{block_out_channels: [8, 16], norm_num_groups: 4}",
    "AutoencoderTiny": "{encoder_block_out_channels: [8, 8], decoder_block_out_channels: [8, 8]}",
}
LONG = {
    "recipe": "digits", "max_train_samples": 40, "num_validation_samples": 8, "network": SMALL["AutoencoderDC"],
    "train_batch_size": 4, "gradient_accumulation_steps": 2, "max_train_steps": 6, "checkpointing_steps": 2,
    "checkpoints_total_limit": "null", "logging_steps": 3, "validation_steps": 3, "lr_warmup_steps": 2,
    "report_to": "none",
}  # fmt: skip


def run(folder: Path, **settings):
    flags = [
        text for name, value in (LONG | settings).items() if value is not ... for text in (f"--{name}", str(value))
    ]
    return called(train_autoencoder, "--output_dir", str(folder), *flags)


def trained(folder: Path, **settings) -> Path:
    result = run(folder, **settings)
    assert result.code == 0, result.err
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("autoencoder") / "run")


def test_a_stopped_run_goes_on_as_if_it_had_not_been(whole, tmp_path):
    shutil.copytree(whole / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    again = trained(tmp_path / "run", resume_from_checkpoint="latest")
    for name in ("weights", "optimizer", "ema"):
        assert distance(saved(again, 6, name), saved(whole, 6, name)) == 0, name
    for column in ("loss", "held_out_loss", "psnr", "ssim"):
        assert logged(again, column) == logged(whole, column) != {}
    vaes = [AutoencoderDC.from_pretrained(folder).state_dict() for folder in (again, whole)]
    assert distance(*vaes) == 0


def test_a_run_with_an_adversary_goes_on_as_if_it_had_not_been_stopped(whole, tmp_path):
    settings = {"adversary_weight": 0.5, "adversary_from": 0.5}  # from update 4 on
    first = trained(tmp_path / "first", **settings)
    shutil.copytree(first / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    again = trained(tmp_path / "run", resume_from_checkpoint="latest", **settings)
    for name in ("weights", "optimizer", "ema"):
        assert distance(saved(again, 6, name), saved(first, 6, name)) == 0, name
    assert any(name.startswith("adversary.conv_out") for name in saved(first, 6, "weights"))
    for column in ("loss", "held_out_loss", "psnr", "told_apart"):
        assert logged(again, column) == logged(first, column) != {}
    metrics = json.loads((first / "metrics.json").read_text())
    assert 0 <= metrics["quality"]["told_apart"] <= 1 and metrics["parameters"].keys() == {"vae"}
    assert [network in metrics["plan"]["networks"] for network in ("vae", "adversary")] == [True, True]
    # the autoencoder follows it from the time that was asked for, and what is saved is the autoencoder alone
    idle = trained(tmp_path / "idle", **settings | {"adversary_from": 1})
    vaes = [{k: v for k, v in saved(x, 6, "weights").items() if k.startswith("vae.")} for x in (first, idle)]
    assert distance(*vaes) > 0
    early = [{k: v for k, v in saved(x, 2, "weights").items() if k.startswith("vae.")} for x in (first, idle)]
    assert distance(*early) == 0
    kinds = [AutoencoderDC.from_pretrained(folder).state_dict() for folder in (first, whole)]
    assert kinds[0].keys() == kinds[1].keys()


def test_the_same_command_again_changes_nothing_that_was_measured(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    before = json.loads((folder / "metrics.json").read_text())
    trained(folder)
    assert json.loads((folder / "metrics.json").read_text()) == before


def test_it_says_what_it_is_worth(whole):
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["quality"] == {"psnr": logged(whole, "psnr")[6], "ssim": logged(whole, "ssim")[6]}
    assert metrics["pictures"] == 40 and metrics["parameters"].keys() == {"vae"}
    card = (whole / "README.md").read_text()
    assert "`AutoencoderDC` of diffusers" in card and "4 numbers for each\nblock of 2x2 pixels" in card
    assert f"PSNR {metrics['quality']['psnr']:.2f} dB" in card and "![reconstructions](samples/step-000006.png)" in card
    assert ModelCard(card).data.library_name == "diffusers"
    grid = np.asarray(Image.open(whole / "samples" / "step-000006.png"))
    assert grid.shape == (2 * 68, 8 * 68, 3)  # of 64 px with 2 px of white about them
    vae = AutoencoderDC.from_pretrained(whole)
    assert len(metrics["latents"]["std"]) == 4 and vae.config.scaling_factor > 0


def test_every_class_is_trained(tmp_path):
    name = "AutoencoderTiny"
    folder = trained(tmp_path / "run", autoencoder=name, network=SMALL[name], max_train_steps=2)
    vae = AutoencoderTiny.from_pretrained(folder)
    assert vae.encode(torch.zeros(1, 1, 8, 8)).latents.shape == (1, 4, 4, 4)


def test_it_loads_with_diffusers_alone(tmp_path):
    name = "AutoencoderKL"
    folder = trained(tmp_path / "run", autoencoder=name, network=SMALL[name], max_train_steps=2)

    def stranger() -> tuple:
        vae, x = AutoencoderKL.from_pretrained(folder), torch.zeros(1, 1, 8, 8)
        return tuple(vae.encode(x).latent_dist.mode().shape), tuple(vae(x).sample.shape)

    assert strangers.called(stranger, tmp_path) == ((1, 4, 4, 4), (1, 1, 8, 8))


def test_it_learns(tmp_path):
    folder = trained(tmp_path / "run", max_train_steps=60, validation_steps=20, checkpointing_steps=60)
    psnr, loss = logged(folder, "psnr"), logged(folder, "held_out_loss")
    assert psnr[60] > psnr[20] + 1 and loss[60] < loss[40] < loss[20]
    assert logged(folder, "verdict")[60] == "improving"


def test_pictures_are_all_that_it_reads(tmp_path):
    folder = pictures(tmp_path / "set", count=12, size=(12, 8), captions=False)
    settings = {"recipe": ..., "train_data_dir": folder, "max_train_samples": ..., "max_train_steps": 1}
    out = run(tmp_path / "run", **settings)
    assert out.code == 0 and "columns      image from 'image'\n" in out.out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["quality"] is None and metrics["plan"]["data"]["size"] == [12, 8]


def test_a_saved_one_goes_on_with_other_data(whole, tmp_path):
    settings = {"pretrained_model_name_or_path": whole, "network": ..., "max_train_steps": 1, "lr_warmup_steps": 0}
    folder = trained(tmp_path / "run", **settings, learning_rate=1e-9)
    a, b = (AutoencoderDC.from_pretrained(x) for x in (folder, whole))
    assert 0 < distance(a.state_dict(), b.state_dict()) < 1e-6
    assert a.config.encoder_block_out_channels == b.config.encoder_block_out_channels


def test_a_plan_touches_nothing(tmp_path):
    result = called(
        train_autoencoder, "--output_dir", str(tmp_path / "run"), "--plan",
        *[text for name, value in LONG.items() for text in (f"--{name}", str(value))],
    )  # fmt: skip
    assert result.code == 0 and not (tmp_path / "run").exists()
    plan = json.loads(result.out.splitlines()[-1])
    assert plan["batches"]["update"] == 8 and plan["time"]["left"] == 6


@pytest.mark.parametrize(
    "settings, rule",
    [
        ({"vae_scale_factor": 3}, "vae_scale_factor must be a power of 2: got 3"),
        ({"vae_scale_factor": 1}, "vae_scale_factor must be at least 2: got 1"),
        ({"resolution": 6, "vae_scale_factor": 4}, "resolution must be a multiple of 4, the autoencoder's factor: got "
         "6x6, possible is 8x8"),
        ({"network": "{width: 3}"}, "AutoencoderDC has no argument 'width'"),
        ({"autoencoder": "VQModel"}, "autoencoder must be one of AutoencoderDC, AutoencoderKL, AutoencoderTiny"),
        ({"latent_channels": 5}, "AutoencoderDC cannot be made: "),
        ({"vae_scale_factor": 4}, "network must make latents of (4, 2, 2) for vae_scale_factor 4: got (4, 4, 4)"),
        ({"caption_column": "text"}, "unknown flag --caption_column"),
        ({"adversary_from": 1.5}, "adversary_from must be at most 1: got 1.5"),
        ({"adversary_weight": -1}, "adversary_weight must be a number from 0: got -1.0"),
        ({"pretrained_model_name_or_path": "/nowhere"}, "pretrained_model_name_or_path /nowhere cannot be loaded"),
    ],
)  # fmt: skip
def test_what_it_cannot_be_is_refused(tmp_path, settings, rule):
    result = run(tmp_path / "run", **settings)
    assert result.code == 2 and rule in result.err and result.err.count("\n") == 0
    assert not (tmp_path / "run").exists()


def test_every_recipe_holds_differences_from_its_own_defaults():
    assert recipes(AutoencoderConfig) == ["digits", "emoji-64"]
    defaults = AutoencoderConfig(dataset_name="any")
    for name in recipes(AutoencoderConfig):
        lines = (place(AutoencoderConfig) / f"{name}.yaml").read_text().splitlines()
        settings = dict(line.split(": ", 1) for line in lines if line and not line.startswith("#"))
        assert not [key for key, value in settings.items() if value == str(getattr(defaults, key))]
