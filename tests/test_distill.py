"""The distilling program: what its student is and how it draws, a run that was killed beside one that was not, and what
is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from strangers import forked
from tiny_run import called, distance, distilled, logged, run, saved, trained, tree

from mezzotint import MezzotintImg2ImgPipeline, MezzotintPipeline, MezzotintScheduler
from mezzotint_training import distill, fit_scheduler
from mezzotint_training.learning.distillation import evaluations

PROMPTS = ["a handwritten three", "7"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("teacher") / "tiny", validation_prompts=PROMPTS, num_validation_images=1,
                   validation_steps=3, num_inference_steps=2, guidance_scale=3.0)  # fmt: skip


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "tiny-distilled"
    with forked():
        result = distilled(teacher, folder)
    assert result.code == 0, result.err
    assert "4 updates of 4 pictures, 20 passes of a network for each\n" in result.out
    return folder


def drawn(pipe, **arguments) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe("a handwritten three", generator=torch.Generator().manual_seed(0), output_type="np", **arguments).images


def test_a_student_draws_in_two_steps_without_guidance_wherever_it_is_loaded(student):
    installed = MezzotintPipeline.from_pretrained(student)
    stranger = DiffusionPipeline.from_pretrained(str(student), trust_remote_code=True)
    assert type(stranger.scheduler).__module__.startswith("diffusers_modules.local.scheduling_mezzotint_v")
    calls = []
    installed.unet.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[0]))
    pictures = drawn(installed)
    assert calls == [1, 1] and installed.guidance_scale == 1
    np.testing.assert_array_equal(pictures, drawn(stranger))
    np.testing.assert_array_equal(pictures, drawn(installed, num_inference_steps=2, guidance_scale=1.0))
    assert installed.scheduler.consistency_steps == [2, 1, 4]
    for n in (1, 4):
        calls.clear()
        assert np.isfinite(drawn(installed, num_inference_steps=n)).all() and calls == [1] * n
    other = MezzotintImg2ImgPipeline.from_pipe(installed)
    calls.clear()
    drawn(other, image=torch.rand(1, 1, 8, 8), strength=0.5)
    assert calls == [1]
    with pytest.raises(ValueError, match="^inversion follows the flow of a network that denoises: got a distilled one"):
        other.invert("", torch.rand(1, 1, 8, 8))


def test_a_student_does_not_go_on_with_another_teacher(student, teacher, tmp_path):
    shutil.copytree(student, tmp_path / "run")
    (file,) = (teacher / "unet").glob("*.safetensors")
    weights, before = load_file(file), file.read_bytes()
    name = min(weights)
    try:
        save_file(weights | {name: weights[name] + 1}, file, {"format": "pt"})
        result = distilled(teacher, tmp_path / "run", "--no-load_back")
        assert result.code == 2 and "holds a run on other data (other unet)" in result.err, result.err
    finally:
        file.write_bytes(before)
    assert distilled(teacher, tmp_path / "run", "--no-load_back").code == 0


def test_what_it_was_distilled_from_is_said(student, teacher):
    recipe, metrics = (student / "recipe.yaml").read_text(), json.loads((student / "metrics.json").read_text())
    card = (student / "README.md").read_text()
    assert "teacher_guidance_scale: 3.0" in recipe and "pretrained_model_name_or_path: ./tiny\n" in recipe
    assert metrics["evaluations"] == 20 and metrics["steps"] == 4
    assert metrics["share_of_teacher"] == 4 * 4 * 20 / (3 * 8 * 3)  # a picture costs its teacher three
    assert "distilled from `tiny`" in card and "guided at 3.0" in card and "in 2 steps by default" in card
    assert "| cost | 20 passes of the network for each picture of an update, 444.4 % of those of" in card
    assert "num_inference_steps=2, guidance_scale=1.0" in card
    assert list((student / "samples").glob("*.png"))
    for name in ("text_encoder", "tokenizer"):  # the teacher's own
        weights = [f for f in (teacher / name).glob("*.safetensors")]
        assert all(f.read_bytes() == (student / name / f.name).read_bytes() for f in weights)


def test_a_run_that_was_killed_ends_bit_for_bit_alike(student, teacher, tmp_path):
    folder = tmp_path / "run"
    for name in ("checkpoint-2", "recipe.yaml"):
        (shutil.copytree if (student / name).is_dir() else shutil.copy)(student / name, _made(folder) / name)
    result = distilled(teacher, folder, "--no-load_back")
    assert result.code == 0 and "going on from step 2\n" in result.out, result.err
    for name in ("weights", "optimizer", "ema"):
        assert distance(saved(folder, 4, name), saved(student, 4, name)) == 0
    assert logged(folder)[4] == logged(student)[4]
    result = distilled(teacher, folder, seed=1)
    assert result.code == 2 and "holds another run (seed was 0, now 1)" in result.err


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def test_a_student_begins_as_its_teacher(teacher, tmp_path):
    result = distilled(
        teacher, tmp_path / "run", "--no-load_back", "--steps", "3", "--consistency_shift", "2.5", learning_rate=1e-30,
        max_train_steps=1,
    )  # fmt: skip
    assert result.code == 0, result.err
    weights = [load_file(next((folder / "unet").glob("*.safetensors"))) for folder in (teacher, tmp_path / "run")]
    assert distance(*weights) < 1e-6
    scheduler = MezzotintScheduler.from_pretrained(tmp_path / "run" / "scheduler")
    assert scheduler.consistency_steps == [3] and scheduler.consistency_shift == 2.5


@pytest.mark.parametrize(("size", "shift"), [(8, 1.0), (16, 1.0), ((32, 48), 2.45), (64, 4.0)])
def test_larger_pictures_are_looked_at_again_at_more_noise(teacher, size, shift, monkeypatch):
    loaded = distill.load_pipeline

    def of_that_size(*args):
        pipe = loaded(*args)
        pipe.unet.register_to_config(sample_size=size)
        return pipe

    monkeypatch.setattr(distill, "load_pipeline", of_that_size)
    config = distill.settings([str(teacher), "--train_data_dir", "nowhere"])
    distill.teacher_of(config)
    assert config.consistency_shift == shift


def test_a_plan_says_what_the_run_then_does_and_touches_nothing(teacher, student, tmp_path):
    result = distilled(teacher, tmp_path / "out", "--plan")
    assert result.code == 0 and not (tmp_path / "out").exists(), result.err
    planned, measured = json.loads(result.out.splitlines()[-1]), json.loads((student / "metrics.json").read_text())
    assert planned["networks"] == measured["plan"]["networks"] and planned["batches"]["update"] == 4
    assert planned["memory"].keys() == measured["plan"]["memory"].keys() and planned["time"]["total"] > 0
    assert "4 updates of 4 pictures, 20 passes of a network for each\n" in result.out


def test_it_costs_a_fifth_of_the_teachers_training_by_default(teacher, monkeypatch):
    """3 updates of 8 pictures, three passes each: 72, of which a fifth is 14.4; a picture here costs 2 x 4 + 3."""
    config = distill.settings([str(teacher), "--train_batch_size", "1", "--teacher_steps", "4", "--steps", "1"])
    assert evaluations(config) == 2 * 4 + 3 and config.max_train_steps == round(14.4 / 11)
    assert config.dataset_name == "digits" and config.validation_prompts == PROMPTS
    assert (config.num_inference_steps, config.guidance_scale, config.teacher_guidance_scale) == (1, 1.0, 3.0)


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--train_batch_size", "1", "--steps", "1"], 0.02 / 32),  # its widest level has 32 channels
        (["--train_batch_size", "2", "--steps", "1", "2", "4"], 0.02 * 8**0.5 / 32),
        (["--train_batch_size", "16", "--steps", "1", "2", "4"], 2e-3),  # the teacher's
        (["--train_batch_size", "1", "--steps", "1", "--learning_rate", "1.0e-2"], 1e-2),
    ],
)
def test_a_wide_student_learns_at_a_lower_rate_than_its_teacher(teacher, argv, expected):
    config = distill.settings([str(teacher), *argv])
    distill.teacher_of(config)
    assert config.learning_rate == pytest.approx(expected, rel=0.03)


def test_bad_input_is_said_in_one_line_and_leaves_nothing(teacher, student, make_pipe, tmp_path):
    def saved_pipe(name: str, **config) -> Path:
        pipe = make_pipe(**{"in_channels": 1, "out_channels": 1} | config)
        pipe.save_pretrained(tmp_path / name)
        return tmp_path / name

    own = saved_pipe("own")
    epsilon = saved_pipe("epsilon", scheduler=MezzotintScheduler(prediction_type="epsilon"))
    inpaint = saved_pipe("inpaint", in_channels=3, condition={"task": "inpaint"})
    (tmp_path / "empty").mkdir()
    data = ("--dataset_name", "digits")
    out = tmp_path / "out"
    cases = [
        ((tmp_path / "none", *data), f"checkpoint {tmp_path}/none cannot be loaded: "),
        ((tmp_path / "empty", *data), f"checkpoint {tmp_path}/empty cannot be loaded: "),
        ((own,), "distill needs real pictures: --train_data_dir or --dataset_name, or a recipe that names them"),
        ((epsilon, *data), "checkpoint must predict velocities (v_prediction), which the student begins with: got eps"),
        ((inpaint, *data), "checkpoint must be trained for text_to_image: got one for inpaint, which is not distilled"),
        ((student,), "checkpoint must be a network that denoises: got one distilled to [2, 1, 4] steps"),
        ((teacher, "--steps", "0"), "steps must be at least 1: got 0"),
        ((teacher, "--steps"), "steps must be at least one number: got none"),
        ((teacher, "--steps", "two"), "steps must be of type int: got 'two'"),
        ((teacher, "--teacher_guidance_scale", "-1"), "teacher_guidance_scale must be a number from 0: got -1.0"),
        ((teacher, "--stepz", "2"), "unknown flag --stepz; did you mean --steps?"),
        ((teacher, "--train_data_dir", tmp_path / "none"), "train_data_dir must be a folder: "),
    ]
    for (checkpoint, *argv), words in cases:
        result = distilled(checkpoint, out, *map(str, argv))
        assert result.code == 2 and result.err.count("\n") == 0, (argv, result.err)
        assert result.err.startswith(f"mezzotint: {words}"), result.err
        assert not out.exists()


def test_a_student_is_not_taken_for_a_network_that_denoises(student, tmp_path):
    before = tree(student)
    result = called(fit_scheduler, str(student), "--steps", "4")
    assert result.code == 2 and "checkpoint must be a network that denoises: got one distilled" in result.err
    result = run(pretrained_model_name_or_path=student, output_dir=tmp_path / "tuned", unet=..., text_encoder=...)
    assert result.code == 0, result.err
    assert MezzotintPipeline.from_pretrained(tmp_path / "tuned").distilled_steps is None
    assert tree(student) == before
