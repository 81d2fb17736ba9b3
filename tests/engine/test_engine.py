"""What the engine is made of, in whole runs: with each of its parts a run that is stopped and goes on ends bit for bit
as one that is not, and what it leaves behind is what it says."""

import errno
import functools
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from test_stops import at_call
from tiny_run import LONG, TINY, UNET, distance, logged, pictures, run, saved, trained, tree
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

from mezzotint import MezzotintPipeline
from mezzotint_training import cli, train
from mezzotint_training.config.errors import CANNOT_GO_ON, INTERRUPTED
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.rows import held_out, load_splits
from mezzotint_training.data.source import fixed_items
from mezzotint_training.engine import plan
from mezzotint_training.learning.objective import denoising_loss
from mezzotint_training.networks.saved import pretrained_components

NEW = {"recipe": ..., "max_train_samples": ...}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A saved pipeline (`base`), a text encoder (`encoder`), and pictures of several shapes (`shapes`)."""
    folder = tmp_path_factory.mktemp("world")
    trained(folder / "base")
    torch.manual_seed(0)
    T5EncoderModel(T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(
        folder / "encoder"
    )
    ByT5Tokenizer(model_max_length=32).save_pretrained(folder / "encoder")
    pictures(folder / "shapes", count=12)
    for index in range(12):
        size = ((8, 8), (16, 8), (9, 20))[index % 3]
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "shapes" / f"{index}.png")
    return folder


PARTS = {
    "muon": {"optimizer": "muon"},
    "schedule-free": {"optimizer": "schedule_free", "use_ema": False, "lr_scheduler": "constant_with_warmup"},
    "prodigy": {"optimizer": "prodigy", "learning_rate": 1, "lr_scheduler": "constant"},
    "post-hoc averages": {"posthoc_ema_steps": 2},
    "held-out loss": {"validation_steps": 2, "validation_split": "test", "num_validation_samples": 8},
    "a stream": {"streaming": True, "shuffle_buffer_size": 12, "dataloader_num_workers": 2},
    "a frozen encoder": {"text_encoder_name_or_path": "@/encoder", "text_encoder": ...},
    "LoRA": {"pretrained_model_name_or_path": "@/base", "adapter": "lora", "rank": 2, "unet": ..., "text_encoder": ...},
    "DoRA with text": {
        **{"pretrained_model_name_or_path": "@/base", "adapter": "dora", "rank": 2, "unet": ..., "text_encoder": ...},
        **{"train_text_encoder": True, "lora_dropout": 0.5},
    },
    "augmentation": {"augment_probability": 0.5, "random_flip": True},
    "buckets": NEW | {"train_data_dir": "@/shapes", "resolution": 8, "aspect_ratio_buckets": "8,8;16,8;8,16"},
    "balance": {"balance_column": "label", "balance_power": 0.5},
    "a size": {"size": "tiny", "unet": UNET, "train_batch_size": 4},
    "not channels last": {"channels_last": False},
}


def settings_of(part: str, world: Path) -> dict:
    return LONG | {k: v.replace("@", str(world)) if isinstance(v, str) else v for k, v in PARTS[part].items()}


@pytest.fixture(scope="module")
def whole_of(world, tmp_path_factory):
    """`whole_of(part)`: the folder of a run with a part, never stopped."""
    return functools.cache(lambda part: trained(tmp_path_factory.mktemp("whole") / "run", **settings_of(part, world)))


@pytest.mark.parametrize("part", PARTS)
def test_with_each_part_a_run_that_is_stopped_goes_on_to_the_same_end(world, whole_of, tmp_path, monkeypatch, part):
    settings, whole = settings_of(part, world), whole_of(part)
    with monkeypatch.context() as patch:
        at_call(patch, [5], lambda loss: (os.kill(os.getpid(), signal.SIGTERM), loss)[1])  # in the third update
        assert run(output_dir=tmp_path / "run", **settings).code == INTERRUPTED
    shutil.rmtree(tmp_path / "run" / "cache", ignore_errors=True)  # which a run may lose
    result = run(output_dir=tmp_path / "run", **settings)
    assert result.code == 0 and "going on from step 3\n" in result.out, result.err

    names = {path.stem for path in (whole / "checkpoint-6").glob("*.safetensors")}
    assert {"weights", "optimizer"} <= names
    for name in names:
        assert distance(saved(tmp_path / "run", 6, name), saved(whole, 6, name)) == 0, name
    assert distance(saved(whole, 6), saved(whole, 4)) > 0
    for column in ("loss", "gradient_norm", "learning_rate", "held_out_loss", "held_out_loss_raw", "seen_loss"):
        assert logged(tmp_path / "run", column) == logged(whole, column), column
    for pattern in ("ema/*.safetensors", "unet/*.safetensors", "text_encoder/*.safetensors", "*.safetensors"):
        for path in whole.glob(pattern):
            assert distance(load_file(tmp_path / "run" / path.relative_to(whole)), load_file(path)) == 0, path
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in (whole, tmp_path / "run")]
    assert figures[0]["held_out"] == figures[1]["held_out"]


@pytest.mark.parametrize("part", ["a stream", "buckets", "muon", "post-hoc averages"])
def test_two_seeds_are_two_runs(world, whole_of, tmp_path, part):
    other = trained(tmp_path / "run", **settings_of(part, world), seed=1)
    assert TrainConfig.seed != 1 and distance(saved(whole_of(part), 6), saved(other, 6)) > 1e-4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_that_are_not_finite_are_refused_before_anything_is_written(world, tmp_path, part, value):
    shutil.copytree(world / "base", tmp_path / "base")
    (path,) = (tmp_path / "base" / part).glob("*.safetensors")
    tensors = load_file(path)
    next(x for x in tensors.values() if x.is_floating_point()).view(-1)[0] = value
    save_file(tensors, path, metadata={"format": "pt"})
    settings = {"pretrained_model_name_or_path": tmp_path / "base", "unet": ..., "text_encoder": ...}
    result = run(output_dir=tmp_path / "run", **settings)
    assert result.code == 2 and not (tmp_path / "run").exists()
    assert result.err.startswith("mezzotint: weights must be finite numbers: ")
    assert result.err.endswith(f" of the {part} has others")


# ------------------------------------------------------------------------------------------------------------ the plan


def test_a_plan_touches_nothing_and_says_what_the_run_then_does(world, tmp_path):
    settings = {"validation_split": "test", "max_train_steps": 25, "output_dir": tmp_path / "run"}
    plan = run("--plan", **settings)
    assert plan.code == 0 and not (tmp_path / "run").exists(), plan.err
    facts = json.loads(plan.out.splitlines()[-1])
    for words in ("columns      image from 'image', caption from 'text'", "40 of 40 rows", "dropped      no row"):
        assert words in plan.out
    assert "8 pictures an update (train_batch_size 8 x 1 micro-steps x 1 processes), 25 updates" in plan.out

    result = run(**settings)
    assert result.code == 0 and plan.out.splitlines()[:5] == result.out.splitlines()[:5]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["plan"]["data"] == facts["data"] and metrics["plan"]["networks"] == facts["networks"]
    assert facts["networks"]["unet"]["parameters"] == metrics["parameters"]["unet"]
    assert metrics["pictures"] == facts["data"]["pictures"] == 40
    files = [path for path in (tmp_path / "run" / "checkpoint-25").glob("*.safetensors")]
    size = sum(path.stat().st_size for path in files)
    assert sum(facts["disk"]["checkpoint"].values()) == pytest.approx(size, rel=0.1)  # headers are on top
    assert facts["time"]["left"] == 25 and metrics["plan"]["time"]["left"] == 5


def test_a_plan_shows_every_row_that_is_bad_and_that_the_run_would_stop(tmp_path):
    folder = pictures(tmp_path / "pictures", count=60)
    for index in range(0, 60, 2):
        (folder / f"{index}.png").write_bytes(b"nothing")
    plan = run("--plan", output_dir=tmp_path / "run", train_data_dir=folder, **NEW)
    assert plan.code == 0 and plan.out.count("cannot be read") == 2 * 30  # once in words, once in the line of JSON
    assert "the run will stop at the first of these rows; --on_bad_row skip" in plan.out
    result = run(output_dir=tmp_path / "run", train_data_dir=folder, on_bad_row="skip", **NEW)
    assert result.code == 0 and "and 10 more; --plan shows them all" in result.out


def test_a_size_is_derived_said_and_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "STEPS", 2)
    none = {name: ... for name in ("unet", "text_encoder", "train_batch_size", "max_text_length", "lr_warmup_steps")}
    result = run("--plan", output_dir=tmp_path / "run", size="tiny", **none)
    assert result.code == 0, result.err
    derived = {x.split()[0]: x for x in json.loads(result.out.splitlines()[-1])["derived"]}
    assert all(" ← " in line for line in derived.values())
    assert "unet.attention_head_dim" in derived and "train_batch_size" in derived
    assert "max_train_steps" not in derived  # which was given
    folder = trained(tmp_path / "run", size="tiny", **none | {"max_train_steps": 1, "unet": {"dropout": 0.5}})
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert f"train_batch_size {recipe['train_batch_size']} " in derived["train_batch_size"]
    unet = MezzotintPipeline.from_pretrained(folder).unet.config
    assert list(unet.block_out_channels) == recipe["unet"]["block_out_channels"] and unet.dropout == 0.5
    # the recipe alone makes the same run
    again = trained(tmp_path / "again", f"--config={folder / 'recipe.yaml'}", **{name: ... for name in TINY})
    assert distance(saved(again, 1), saved(folder, 1)) == 0


# ------------------------------------------------------------------------------------------------------ how it is going


def test_the_held_out_loss_is_that_of_the_published_weights_on_rows_that_are_not_trained_on(tmp_path):
    settings = {"validation_split": "test", "num_validation_samples": 8, "max_train_steps": 4, "validation_steps": 2}
    folder = trained(tmp_path / "run", **settings)
    assert sorted(logged(folder, "held_out_loss")) == [2, 4]
    assert logged(folder, "verdict")[2] is None and logged(folder, "verdict")[4] in ("improving", "flat", "worse")
    assert len(logged(folder, "held_out_loss_by_noise_level")[4]) == 4
    figures = json.loads((folder / "metrics.json").read_text())["held_out"]
    assert figures["held_out_loss"] == logged(folder, "held_out_loss")[4]

    config = TrainConfig(dataset_name="digits", pretrained_model_name_or_path=str(folder), **settings)
    pipe = MezzotintPipeline(**pretrained_components(config))
    images = CaptionedSamples(held_out(config, load_splits(config))[1], config, 1, (8, 8))
    images.mean, images.std = (torch.tensor(pipe.unet.config[f"sample_{x}"])[:, None, None] for x in ("mean", "std"))
    losses = []
    for number, item in enumerate(fixed_items(images, 8)):
        text, _, mask, _ = pipe.encode_prompt(item["caption"], device="cpu", do_classifier_free_guidance=False)
        for level, u in enumerate((0.125, 0.375, 0.625, 0.875)):
            noise = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(4 * number + level))
            sample, timesteps = item["sample"][None], torch.tensor([u]) * 999
            with torch.no_grad():
                loss = denoising_loss(pipe.unet, pipe.scheduler, sample, noise[None], timesteps, text, mask)
            losses.append(loss.item())
    assert logged(folder, "held_out_loss")[4] == pytest.approx(np.mean(losses), rel=1e-5)


def test_every_line_of_the_log_has_what_a_run_is_judged_by(tmp_path):
    folder = trained(tmp_path / "run")
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        assert 0 <= line["data_wait"] <= 1 and line["images_per_second"] > 0 and line["gradient_norm"] > 0
        assert line["peak_memory"] > 2**26 and line["skipped_steps"] == 0 and len(line["loss_by_noise_level"]) == 4


# ------------------------------------------------------------------------------------------------- what is left behind


def test_adapters_are_a_folder_of_their_own(world, tmp_path):
    settings = {"validation_prompts": ["a handwritten three"], "num_inference_steps": 3, "guidance_scale": 1.5}
    settings |= {"num_validation_images": 1, "validation_steps": 2, "max_train_steps": 4, "learning_rate": 0.1}
    settings |= settings_of("LoRA", world) | {"max_train_steps": 4, "checkpointing_steps": 4}
    base = tree(world / "base")
    folder = trained(tmp_path / "run", **settings)
    assert tree(world / "base") == base
    assert not (folder / "model_index.json").exists() and not (folder / "unet").exists()
    weights = load_file(folder / "pytorch_lora_weights.safetensors")
    assert all(name.startswith("unet.") and "lora" in name for name in weights)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["parameters"] == {"unet": sum(x.numel() for x in weights.values())}
    card = (folder / "README.md").read_text()
    assert 'pipe.load_lora_weights("./run")' in card and "LoRA adapters of rank 2" in card
    assert not any(word in card for word in ("{{", "{%", "None", "`text_encoder`: "))  # nor what is for new models

    pipe = MezzotintPipeline.from_pretrained(world / "base")
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": "a handwritten three", "num_inference_steps": 3, "guidance_scale": 1.5}
    before = pipe(**call, generator=torch.Generator().manual_seed(0))
    pipe.load_lora_weights(folder)
    after = pipe(**call, generator=torch.Generator().manual_seed(0))
    grid = np.asarray(Image.open(folder / "samples" / "step-000004.png"))[2:-2, 2:-2, 0][::8, ::8]
    assert (grid == np.asarray(after.images[0])).all() and (grid != np.asarray(before.images[0])).any()


def test_an_average_of_any_length_is_made_after_the_run(tmp_path, capsys):
    folder = trained(tmp_path / "run", posthoc_ema_steps=1, max_train_steps=8)
    assert len(list((folder / "ema").iterdir())) == 8
    assert cli.main(["ema", str(folder), "--length", "0.1", "--output", str(tmp_path / "long")]) == 0, (
        capsys.readouterr()
    )
    made = load_file(next((tmp_path / "long" / "unet").glob("*.safetensors")))
    snapshot = load_file(folder / "ema" / "step-000008.safetensors")
    assert distance(made, {k: snapshot[f"0.1/unet.{k}"].float() for k in made}) < 2e-3
    assert distance(made, load_file(next((folder / "unet").glob("*.safetensors")))) > 1e-4


def test_a_run_goes_on_with_its_updates_dealt_out_anew_and_with_no_others(tmp_path):
    still = LONG | {"unet": UNET | {"dropout": 0.0}, "adam_epsilon": 1e-3, "checkpointing_steps": 3}
    whole = trained(tmp_path / "whole", **still)
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    other = still | {"train_batch_size": 2, "gradient_accumulation_steps": 4}
    result = run(output_dir=tmp_path / "run", **other)
    assert result.code == 0 and "going on from step 3\n" in result.out, result.err
    assert logged(tmp_path / "run")[6] == pytest.approx(logged(whole)[6], rel=1e-4)
    moved = distance(saved(whole, 6), saved(whole, 3))
    assert 0 < distance(saved(tmp_path / "run", 6), saved(whole, 6)) < 0.02 * moved

    result = run(output_dir=tmp_path / "run", **still | {"train_batch_size": 3})
    assert result.code == 2 and "holds another run (updates of 8 pictures, now of 6): " in result.err


@pytest.mark.parametrize("place", ["log", "samples"])
def test_a_full_disk_ends_the_run_in_one_line(tmp_path, monkeypatch, place):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if place == "log":
        monkeypatch.setattr(train.Report, "write", full)
    else:
        monkeypatch.setattr(Image.Image, "save", full)
    settings = {"checkpointing_steps": 1, "logging_steps": 3, "validation_prompts": ["7"], "num_inference_steps": 2}
    result = run(output_dir=tmp_path / "run", **settings)
    assert result.code == CANNOT_GO_ON
    assert result.err.splitlines()[-1].startswith("mezzotint: the disk is full (")
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
