"""Videos and solids from a set to a published pipeline: a short run on each embedded set, gone on with, sampled,
measured."""

import io
import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from strangers import forked
from tiny_run import TEXT_ENCODER, UNET, distilled, logged, run, saved, steered, trained

import mezzotint
from mezzotint_training import cli
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.source import look_at, open_rows
from mezzotint_training.data.streaming import CaptionedStream
from mezzotint_training.modalities.contents import whole
from mezzotint_training.networks.saved import load_pipeline

COMMON = {
    "recipe": ...,
    "max_train_samples": ...,
    "validation_split": "test",
    "num_validation_samples": 48,
    "text_encoder": TEXT_ENCODER,
    "train_batch_size": 8,
    "max_train_steps": 4,
    "checkpointing_steps": 2,
    "num_copy_samples": 4,
    "num_inference_steps": 2,
    "num_validation_images": 1,
}
RUNS = {
    "video": {"dataset_name": "squares", "unet": UNET | {"patch_size": 2, "linear_skip_size": 2},
              "validation_prompts": ["a red square moving left", "a blue square moving up"]},
    "voxels": {"dataset_name": "blocks", "unet": UNET | {"patch_size": 2}, "random_turn": True,
               "validation_prompts": ["a red box", "a blue ball"]},
}  # fmt: skip


@pytest.fixture(scope="module", params=RUNS)
def made(request, tmp_path_factory):
    """The modality of a run, and its folder."""
    with forked():
        folder = tmp_path_factory.mktemp(request.param) / "run"
        return request.param, trained(folder, **COMMON | RUNS[request.param] | {"load_back": True})


def test_a_finished_run_is_a_pipeline_that_a_stranger_loads(made):
    kind, folder = made
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["load_back"]["where"] == "where mezzotint is not installed" and metrics["load_back"]["moved"] == 0
    config = json.loads((folder / "unet" / "config.json").read_text())
    size, axes, about, augmented = {
        "video": ([4, 16, 16], [1, 2], {"name": "video", "frame_rate": 8.0}, None),
        "voxels": (8, None, {"name": "voxels"}, 2),
    }[kind]
    assert (config["sample_size"], config["downsample_axes"], config["modality"]) == (size, axes, about)
    assert (config["spatial_dims"], config["augment_dim"]) == (3, augmented)
    name = {"video": "MezzotintVideoPipeline", "voxels": "MezzotintVoxelPipeline"}[kind]
    assert json.loads((folder / "model_index.json").read_text())["_class_name"][1] == name
    pipe = getattr(mezzotint, name).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    (drawn, *_) = pipe("red", num_inference_steps=2, output_type="np", return_dict=False)
    assert drawn.shape == {"video": (1, 4, 16, 16, 3), "voxels": (1, 8, 8, 8, 4)}[kind]


def test_a_run_that_is_stopped_ends_bit_for_bit_as_one_that_was_not(made, tmp_path):
    kind, folder = made
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    for path in ("checkpoint-4", "unet", "scheduler"):
        shutil.rmtree(again / path)
    (again / "model_index.json").unlink()
    result = run(output_dir=again, **COMMON | RUNS[kind])
    assert result.code == 0 and "going on from step 2" in result.out, result.err
    for name in ("weights", "optimizer", "ema"):
        before, after = saved(folder, 4, name), saved(again, 4, name)
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert logged(folder) == logged(again)


def test_it_is_distilled_to_two_steps(made, tmp_path):
    kind, folder = made
    result = distilled(folder, tmp_path / "student", "--no-load_back")
    assert result.code == 0, result.err
    name = {"video": "MezzotintVideoPipeline", "voxels": "MezzotintVoxelPipeline"}[kind]
    pipe, evaluations = getattr(mezzotint, name).from_pretrained(tmp_path / "student"), []
    pipe.unet.register_forward_pre_hook(lambda _, inputs: evaluations.append(len(inputs[0])))
    (drawn, *_) = pipe("red", output_type="np", return_dict=False)
    assert drawn.shape == {"video": (1, 4, 16, 16, 3), "voxels": (1, 8, 8, 8, 4)}[kind] and evaluations == [1, 1]


def test_a_classifier_steers_it(made, tmp_path):
    kind, folder = made
    name, label = {"video": ("squares", "direction"), "voxels": ("blocks", "label")}[kind]
    settings = {"dataset_name": name, "label_column": label, "max_train_steps": 40}
    (plain, guided), classifier = steered(folder, tmp_path / "steered", **settings)
    unet = json.loads((folder / "unet" / "config.json").read_text())
    for setting in ("spatial_dims", "patch_size", "downsample_axes", "sample_mean", "sample_std"):
        assert classifier.config[setting] == unet[setting], setting
    assert guided > plain + 0.01


def test_they_are_classified_by_their_likelihood(made, tmp_path, capsys):
    kind, folder = made
    word = {"video": "video", "voxels": "solid"}[kind]
    words = [
        "classify",
        str(folder),
        "--rounds",
        "6",
        "--device",
        "cpu",
        "--captions",
        *RUNS[kind]["validation_prompts"],
    ]
    assert cli.main([*words, "--count", "48"]) == 0
    assert f" held-out {word}s are likeliest under their own caption of 2" in capsys.readouterr().out
    if kind == "voxels":
        assert cli.main([*words[:2], "x.vox", *words[2:]]) == 2
        assert "solids are classified of a set, in a column of arrays: got files" in capsys.readouterr().err


def test_each_prompt_has_a_video_of_its_own(made):
    kind, folder = made
    if kind == "video":
        pipe = mezzotint.MezzotintVideoPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        given = np.random.default_rng(0).random((2, 4, 16, 16, 3))
        how = {"num_inference_steps": 2, "num_videos_per_prompt": 2, "output_type": "np"}
        found = pipe(["red", "blue"], video=list(given), mask=[0, 0, 1, 1], **how).frames
        np.testing.assert_allclose(found[:, :2], given[[0, 0, 1, 1], :2], atol=1e-6)
        assert np.abs(found[:, 2:] - given[[0, 0, 1, 1], 2:]).max() > 0.1


def test_its_card_shows_what_is_drawn_and_links_to_files_of_it(made):
    kind, folder = made
    card = (folder / "README.md").read_text()
    tag, ending = {"video": ("text-to-video", ".webp"), "voxels": ("text-to-3d", ".vox")}[kind]
    assert f"pipeline_tag: {tag}" in card and "picture" not in card.partition("## How it was trained")[0]
    for number in (1, 2):
        assert f"samples/step-000004-{number}{ending}" in card
        file = (folder / f"samples/step-000004-{number}{ending}").read_bytes()
        assert file[:4] == b"VOX " if kind == "voxels" else Image.open(io.BytesIO(file)).n_frames == 4
    width = Image.open(folder / "samples/step-000004.png").size[0]
    assert width > 2 * {"video": 4 * 16, "voxels": 128}[kind]


def test_sample_writes_files_or_a_picture_of_them(made, tmp_path, capsys):
    kind, folder = made
    argv = ["sample", str(folder), "red", "blue", "--num_inference_steps", "2", "--device", "cpu", "--output"]
    for ending in {"video": (".webp", ".mp4"), "voxels": (".vox", ".glb")}[kind]:
        assert cli.main([*argv, str(tmp_path / f"x{ending}")]) == 0, capsys.readouterr().err
        assert all((tmp_path / f"x-{number}{ending}").stat().st_size > 100 for number in (1, 2))
    if kind == "video":
        assert Image.open(tmp_path / "x-1.webp").n_frames == 4
        first = tmp_path / "first.png"
        Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(first)
        assert cli.main([*argv, str(tmp_path / "y.webp"), "--image", str(first), "--num_frames", "6"]) == 0
        video = Image.open(tmp_path / "y-1.webp")
        assert video.n_frames == 6 and (np.asarray(video.convert("RGB")) == 90).all()
        for given in ("x-1.webp", "x-1.mp4"):
            again = ["--video", str(tmp_path / given), "--strength", "0.5"]
            assert cli.main([*argv, str(tmp_path / "z.webp"), *again]) == 0, capsys.readouterr().err
            assert Image.open(tmp_path / "z-1.webp").n_frames == 4
    assert cli.main([*argv, str(tmp_path / "all.png")]) == 0
    assert Image.open(tmp_path / "all.png").size == {"video": (64, 32), "voxels": (128, 256)}[kind]
    assert cli.main([*argv, str(tmp_path / "x.wav")]) == 2
    assert "output must be a picture file" in capsys.readouterr().err


def test_adapters_are_trained_of_a_saved_pipeline(made, tmp_path):
    kind, folder = made
    of_it = {"pretrained_model_name_or_path": folder, "unet": ..., "text_encoder": ..., "validation_prompts": []}
    tuned = trained(tmp_path / "tuned", **COMMON | RUNS[kind] | of_it | {"adapter": "lora", "max_train_steps": 1})
    pipe: Any = load_pipeline(str(folder))
    pipe.load_lora_weights(tuned)
    assert [*pipe.unet.peft_config] == [*pipe.get_list_adapters()["unet"]] and pipe.modality == kind


@pytest.mark.parametrize("name, size", [("squares", (3, 4, 16, 16)), ("blocks", (4, 8, 8, 8))])
def test_a_stream_has_the_same_samples(name, size):
    config = TrainConfig(dataset_name=name, streaming=True, validation_split="test", shuffle_buffer_size=40)
    rows = open_rows(config)
    facts = look_at(rows, config, None)
    known = CaptionedSamples(open_rows(replace(config, streaming=False)).known, config, size[0], facts.size)
    every = {known.content(row).numpy().tobytes() for row in range(len(known))}
    batch = next(CaptionedStream(rows.stream, config, size[0], facts.size, about=facts.about).batches(8))
    assert batch["sample"].shape == (8, *size) and batch["bad"] == []
    assert all(whole(sample).numpy().tobytes() in every for sample in batch["sample"])
