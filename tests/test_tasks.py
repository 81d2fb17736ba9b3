"""Runs of the tasks as a whole: each is stopped and goes on to the same end, shows what it has learned, is loaded by
whoever has no mezzotint, and refuses what its task cannot be."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image
from test_train import assert_same_end
from tiny_run import LONG, UNET, pictures, run, trained

import mezzotint
from mezzotint_training import cli
from mezzotint_training.config.settings import HINTS
from mezzotint_training.config.tasks import TASKS

LEARNED = [name for name, task in TASKS.items() if task.given and name != "unclip"]  # which test_unclip.py trains
SHOWN = {
    **{"validation_steps": 4, "num_validation_samples": 8, "num_validation_images": 2, "num_inference_steps": 2},
    "posthoc_ema_steps": 1,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    return {task: trained(folder / task, task=task, **LONG, **SHOWN) for task in LEARNED}


def test_every_task_is_a_setting():
    assert set(HINTS["task"].__args__) == set(TASKS) - {"cascade"}  # whose stages are trained, each for a task
    assert all(hasattr(mezzotint, task.pipeline) for task in TASKS.values())


@pytest.mark.parametrize("task", LEARNED)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(runs, tmp_path, task):
    shutil.copytree(runs[task] / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    assert_same_end(trained(tmp_path / "run", task=task, resume_from_checkpoint="latest", **LONG, **SHOWN), runs[task])


@pytest.mark.parametrize("task", LEARNED)
def test_it_shows_what_it_was_given_what_it_drew_and_the_truth(runs, task):
    grid = np.asarray(Image.open(runs[task] / "samples" / "step-000006.png"))
    card = (runs[task] / "README.md").read_text()
    assert grid.shape == (4 * 68, 8 * 68, 3)  # of 64 px with 2 px of white about them
    assert "From above: the " in card and f"`{TASKS[task].pipeline}.from_pretrained`" in card
    given, truth = grid[2:66:8, 2:66:8], grid[206:270:8, 206:270:8][:, :8]
    assert given.std() > 10 and truth.std() > 10
    assert ModelCard(card).data.pipeline_tag == TASKS[task].tag


@pytest.mark.parametrize("task", LEARNED)
def test_whoever_has_no_mezzotint_loads_it(runs, task, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    pipe = DiffusionPipeline.from_pretrained(runs[task], trust_remote_code=True)
    picture, mask = Image.new("L", (8, 8), 99), Image.new("L", (8, 8), 255)
    call = {"inpaint": {"image": picture, "mask_image": mask}, "layout": {"mask_image": mask}}
    (drawn, *_) = pipe("7", **call.get(task, {"image": picture}), num_inference_steps=2, return_dict=False)
    assert drawn[0].size == ((16, 16) if task == "upscale" else (8, 8))
    about = json.loads((runs[task] / "unet" / "config.json").read_text())["condition"]
    more = {"upscale": {"scale": 2}, "segment": {"num_classes": 2}, "layout": {"num_classes": 2}}
    assert about == {"task": task, **more.get(task, {})}


def test_a_pipeline_of_text_to_image_learns_a_task(runs, tmp_path):
    """And a checkpoint of the task is fine-tuned as such, and as nothing else."""
    base = trained(tmp_path / "base")
    tuned = trained(tmp_path / "tuned", task="inpaint", pretrained_model_name_or_path=base, unet=..., text_encoder=...,
                    max_text_length=...)  # fmt: skip
    assert "MezzotintInpaintPipeline" in (tuned / "model_index.json").read_text()
    settings = {"pretrained_model_name_or_path": tuned, "unet": ..., "text_encoder": ..., "max_text_length": ...}
    trained(tmp_path / "again", task="inpaint", **settings)
    result = run(output_dir=tmp_path / "not", **settings)
    assert result.code == 2 and "task must be inpaint" in result.err and not (tmp_path / "not").exists()


@pytest.mark.parametrize("task", LEARNED)
def test_the_programs_know_what_it_is_trained_for(runs, tmp_path, capsys, task):
    """A post-hoc average keeps the class; what is for text to image says so in one line."""
    assert cli.main(["ema", str(runs[task]), "--length", "0.1", "--output", str(tmp_path / "mean")]) == 0
    assert json.loads((tmp_path / "mean" / "model_index.json").read_text())["_class_name"][1] == TASKS[task].pipeline
    capsys.readouterr()
    for argv in (["evaluate", runs[task]], ["fit-scheduler", runs[task], "--steps", "4"]):
        assert cli.main(list(map(str, argv))) == 2
        err = capsys.readouterr().err
        assert "must be trained for text_to_image" in err and f"{task}" in err and err.count("\n") == 1


@pytest.mark.parametrize("task", LEARNED)
def test_a_stream_is_trained_on_as_well(tmp_path, task):
    trained(tmp_path / "run", task=task, streaming=True, shuffle_buffer_size=20)


@pytest.mark.parametrize(
    "settings, rule",
    [
        ({"task": "colour"}, "task must be one of"),
        ({"task": "segment", "mask_column": "masks"}, "mask_column 'masks' is not there: got columns"),
        ({"task": "segment", "mask_column": "label"}, "mask_column 'label' must hold pictures: got"),
        ({"task": "segment", "augment_probability": 0.1}, "augment_probability would mix the classes"),
        ({"task": "upscale", "scale": 3}, "resolution must be a multiple of scale, 3, for upscaling: got 8x8"),
        ({"task": "upscale", "scale": 1}, "scale must be at least 2: got 1"),
        ({"task": "inpaint", "unet": UNET | {"in_channels": 1}}, "the unet's in_channels must be 3 for this data"),
        ({"task": "segment", "mask_column": "image"}, "its image: class numbers must be below num_classes, 2: got"),
    ],
)  # fmt: skip
def test_what_a_task_cannot_be_is_refused(tmp_path, settings, rule):
    result = run(output_dir=tmp_path / "run", **settings)
    assert result.code == 2 and rule in result.err and result.err.count("\n") == 0
    assert not (tmp_path / "run").exists()


def test_a_set_without_masks_is_refused_with_its_columns(tmp_path):
    folder = pictures(tmp_path / "set")
    result = run(recipe=..., dataset_name=..., train_data_dir=folder, task="segment", output_dir=tmp_path / "run")
    assert result.code == 2 and "mask_column 'mask' is not there: got columns 'image', 'text'" in result.err
