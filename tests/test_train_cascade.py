"""The cascade's training program: its stages are runs of `train.py`, one that is stopped in any of them ends as one
that was not, what does not fit is refused before anything is trained, and the whole is one pipeline anywhere."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from strangers import forked
from tiny_run import TEXT_ENCODER, UNET, called, distance, logged, pictures, saved, tree

from mezzotint import MezzotintCascadePipeline, MezzotintPipeline, MezzotintUpscalePipeline, hub
from mezzotint_training import evaluate, sample, train, train_cascade
from mezzotint_training.config.cascade import CascadeConfig, Stages
from mezzotint_training.config.recipe import place, recipes

SMALL = {
    "recipe": "digits", "max_train_samples": 40, "num_validation_samples": 2, "text_encoder": TEXT_ENCODER,
    "max_text_length": 32, "train_batch_size": 8, "max_train_steps": 4, "checkpointing_steps": 2, "lr_warmup_steps": 2,
    "checkpoints_total_limit": "null", "logging_steps": 1, "validation_steps": 4, "num_copy_samples": 0,
    "report_to": "none", "validation_prompts": "a handwritten four", "num_validation_images": 1,
    "num_inference_steps": 2,
}  # fmt: skip
STAGES = [json.dumps({"unet": UNET}), json.dumps({"unet": UNET, "max_train_steps": 3, "checkpointing_steps": 1})]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Runs are in `run`: where the base's text encoder is, is a setting of the stages after it."""
    monkeypatch.chdir(tmp_path)


def words(stages: list[str] = STAGES, **settings) -> list[str]:
    argv = ["--output_dir", "run", "--stages", *stages]
    for name, value in (SMALL | settings).items():
        if value is not ...:
            argv += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return argv


@pytest.fixture
def here(monkeypatch) -> list[list[str]]:
    """Stages are trained in this process; the command of each."""
    return in_this_process(monkeypatch)


def in_this_process(monkeypatch) -> list[list[str]]:
    commands = []

    def call(command: list[str]) -> int:
        commands.append(command)
        result = called(train, *command[command.index("mezzotint_training.train") + 1 :])
        sys.stderr.write(result.err)
        return result.code

    monkeypatch.setattr(train_cascade, "called", call)
    return commands


def trained(folder: Path) -> Path:
    with forked():
        result = called(train_cascade, *words())
    assert result.code == 0, result.err
    return folder / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_this_process(monkeypatch)
        monkeypatch.chdir(folder := tmp_path_factory.mktemp("cascade"))
        return trained(folder)


def test_the_stages_become_one_pipeline(whole):
    base, first = MezzotintPipeline.from_pretrained(whole / "stage-1"), whole / "stage-2"
    stages = [base, MezzotintUpscalePipeline.from_pretrained(first)]
    assert [pipe.default_size for pipe in stages] == [(4, 4), (8, 8)]
    assert stages[1].trained_for == {"task": "upscale", "scale": 2}
    call = {"num_inference_steps": 2, "output_type": "pt"}
    both = MezzotintCascadePipeline.from_pretrained(whole), MezzotintCascadePipeline.from_stages(*stages)
    for pipe in both:
        pipe.set_progress_bar_config(disable=True)
    joined, by_hand = (x("a four", generator=torch.Generator().manual_seed(0), **call).images for x in both)
    assert torch.equal(joined, by_hand) and joined.shape == (1, 1, 8, 8)
    # the text encoder learned with the base alone
    assert distance(stages[0].text_encoder.state_dict(), stages[1].text_encoder.state_dict()) == 0
    assert "text_encoder.shared.weight" in saved(whole / "stage-1", 4)
    assert not [name for name in saved(whole / "stage-2", 3) if name.startswith("text_encoder")]


def test_it_says_what_it_is_and_what_it_cost(whole):
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["steps"] == 7 and metrics["load_back"]["words"] == "the same picture, to the bit"
    assert metrics["load_back"]["where"] == "where mezzotint is not installed"
    assert [(stage["size"], stage["steps"], stage["batch"]) for stage in metrics["stages"]] == [
        ([4, 4], 4, 8), ([8, 8], 3, 8),
    ]  # fmt: skip
    assert metrics["parameters"].keys() == {"unet", "unet_2", "text_encoder"}
    card = (whole / "README.md").read_text()
    assert "A cascade of 2 diffusion networks" in card and "It draws 4x4 pixels first, and 8x8 from what" in card
    assert "| updates | 4 of 8 pictures | 3 of 8 pictures |" in card and "| network 2 | a U-Net of" in card
    assert "mezzotint train-cascade --output_dir" in card and ModelCard(card).data.pipeline_tag == "text-to-image"
    content = hub.content(whole)
    assert content.title == "MezzotintCascadePipeline" and not content.left_out and not content.missing
    assert f"unet_2/{WEIGHTS}" in content.files and not [name for name in content.files if name.startswith("stage")]
    assert "/stage-*" in (whole / ".gitignore").read_text()
    again = Stages.parsed(["--config", str(whole / "recipe.yaml")], "")
    assert again.config.task == "cascade" and again.settings(1, [8, 8], None).max_train_steps == 3


@pytest.mark.parametrize("stage, step", [(1, 2), (2, 1)])
def test_one_that_is_stopped_in_a_stage_goes_on_as_if_it_had_not_been(whole, tmp_path, here, stage, step):
    folder = tmp_path / "run"
    for number in range(1, stage):
        shutil.copytree(whole / f"stage-{number}", folder / f"stage-{number}")
    for name in (f"checkpoint-{step}", "recipe.yaml"):
        copy = shutil.copytree if name != "recipe.yaml" else shutil.copy
        (folder / f"stage-{stage}").mkdir(parents=True, exist_ok=True)
        copy(whole / f"stage-{stage}" / name, folder / f"stage-{stage}" / name)
    shutil.copy(whole / "recipe.yaml", folder / "recipe.yaml")
    trained(tmp_path)
    assert [Path(command[-1]).stem for command in here] == [f"stage-{number}" for number in range(stage, 3)]
    for number, last in ((1, 4), (2, 3)):
        for name in ("weights", "optimizer", "ema"):
            ours, theirs = (saved(x / f"stage-{number}", last, name) for x in (folder, whole))
            assert distance(ours, theirs) == 0, (number, name)
    assert logged(folder / f"stage-{stage}").items() <= logged(whole / f"stage-{stage}").items()
    for name in ("unet", "unet_2"):
        assert (folder / name / WEIGHTS).read_bytes() == (whole / name / WEIGHTS).read_bytes()


def test_the_same_command_again_changes_nothing_but_takes_a_scheduler_that_was_fitted_since(whole, tmp_path, here):
    folder = shutil.copytree(whole, tmp_path / "run")
    path = folder / "stage-1" / "scheduler" / "scheduler_config.json"
    (folder / "evaluation.json").write_text("{}")
    before = tree(folder)
    for more in ({}, {"launch": "accelerate launch --config_file /somewhere.yaml"}):
        assert called(train_cascade, *words(**more)).out.splitlines()[-1] == "finished before: run"
    after = tree(folder)
    assert [name for name in before if after.get(name) != before[name]] == [] and here == []
    assert train_cascade.without_launch(["--launch", "a b", "--seed", "3", "--launch=c"]) == ["--seed", "3"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"solver_order": 1}))
    assert called(train_cascade, *words(), "--no-load_back").code == 0
    assert MezzotintCascadePipeline.from_pretrained(folder).scheduler.config.solver_order == 1 and here == []


def test_it_is_drawn_and_measured_as_any_pipeline(whole):
    result = called(sample, str(whole), "a handwritten four", "--noise_level", "0.3", "--num_inference_steps", "2",
                    "--animation", "steps.webp", "--num_images_per_prompt", "2",
                    "--dynamic_thresholding_ratio", "0.9")  # fmt: skip
    assert result.code == 0, result.err
    assert "2 pictures of 8x8" in result.out and Path("steps.webp").is_file()
    for flags, rule in [
        (["--image", "sample.png"], "image is not for a cascade, which draws from text alone: leave it out"),
        (["--corrector_steps", "1"], "corrector_steps is not for MezzotintCascadePipeline"),
    ]:
        result = called(sample, str(whole), "a", *flags)
        assert result.code == 2 and rule in result.err
    result = called(sample, str(whole / "stage-1"), "a", "--noise_level", "0.3")
    assert result.code == 2 and "noise_level goes with --image, or a cascade: got it alone" in result.err
    result = called(train, "--pretrained_model_name_or_path", str(whole), "--dataset_name", "digits")
    assert result.code == 2 and "must be a pipeline of one network: got a cascade" in result.err
    result = called(evaluate, str(whole), "--likelihood")
    assert result.code == 2 and "likelihood must be of one network: got a cascade" in result.err


def test_a_stage_that_ends_otherwise_ends_the_command(tmp_path, monkeypatch):
    for code, expected in ((75, 75), (-9, 3)):
        monkeypatch.setattr(train_cascade, "called", lambda command, code=code: code)
        result = called(train_cascade, *words())
        assert result.code == expected and not (tmp_path / "run" / "model_index.json").exists()
    assert "stage 1 was ended by signal 9; the same command goes on in the middle of it" in result.err


def test_signals_are_the_stage_s(tmp_path):
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); open('up', 'w'); time.sleep(60)"

    def stop():
        while not (tmp_path / "up").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    before = signal.getsignal(signal.SIGTERM)
    assert train_cascade.called([sys.executable, "-S", "-c", code]) == 75
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stage_is_launched_by_what_is_asked_for(tmp_path, monkeypatch):
    commands = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cascade, "called", lambda command: commands.append(command) or 75)
        called(train_cascade, *words(launch="accelerate launch --num_processes 2"))
    assert commands[0][:6] == ["accelerate", "launch", "--num_processes", "2", "-m", "mezzotint_training.train"]
    result = called(train_cascade, *words(launch="no-such-program"))
    assert result.code == 2 and "launch must name a command that can be run" in result.err
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = called(train_cascade, *words())
    assert result.code == 2 and "a cascade must be trained from one process" in result.err


def test_a_plan_is_of_every_stage_and_touches_nothing(tmp_path, monkeypatch):
    told = []

    def call(command: list[str]) -> int:
        told.append((command[-1], yaml.safe_load(Path(command[-2]).read_text())))
        return 0

    monkeypatch.setattr(train_cascade, "called", call)
    result = called(train_cascade, *words(), "--plan")
    assert result.code == 0 and not (tmp_path / "run").exists()
    assert [flag for flag, _ in told] == ["--plan", "--plan"]
    # an upscaler is planned with an encoder like the one that there will be, which it does not train
    assert "text_encoder_name_or_path" not in told[1][1] and told[1][1]["train_text_encoder"] is False


@pytest.mark.parametrize(
    "settings, rule",
    [
        ({"recipe": ..., "dataset_name": "digits", "stages": ["{}"]}, "a base, and one or two upscalers: got 1"),
        ({"recipe": ..., "dataset_name": "digits", "stages": ["{}"] * 4}, "one or two upscalers: got 4"),
        ({"stages": ["{}"] * 3}, "stages must be 2, as many as there are before: got 3"),
        ({"stages": ["{scale: 2}", "{}"]}, "stage 1 must be the base, which enlarges nothing: got a scale"),
        ({"stages": ["{}", "{scale: 3}"]}, "resolution must be a multiple of 3, which the stages enlarge by in all: "
         "got 8x8"),
        ({"stages": ["{}", "{resolution: 16}"]}, "stage 2 must draw 8x8, 2 times what stage 1 draws: got a resolution "
         "of 16x16"),
        ({"stages": ["{resolution: 8}", "{}"]}, "stage 1 must draw 4x4, a 2th of 8x8: got a resolution of 8x8"),
        ({"stages": ["{}", "{text_encoder_name_or_path: x}"]}, "stage 2 must have settings of its own alone: got "
         "text_encoder_name_or_path, which all stages have alike"),
        ({"stages": ["{}", "{max_step: 3}"]}, "got max_step, which there is not; did you mean"),
        ({"stages": ["{}", "{unet: {block_out_channels: [16, 32, 64, 128, 256]}}"]}, "stage 2: resolution must be a m"),
        ({"stages": ["{}", "{unet: {width: 3}}"]}, "stage 2: MezzotintUNetModel has no argument 'width'"),
        ({"stages": ["{}", "{learning_rate: -1}"]}, "stage 2: learning_rate must be a number above 0: got -1"),
        ({"stages": ["3", "4"]}, "stages must be mappings of names to values, one for each stage: got [3, 4]"),
        ({"text_encoder_name_or_path": "/nowhere"}, "stage 1: text_encoder_name_or_path /nowhere cannot be loaded"),
        ({"vae": "x"}, "unknown flag --vae"),
    ],
)  # fmt: skip
def test_what_it_cannot_be_is_refused(tmp_path, settings, rule):
    settings = dict(settings)
    stages = settings.pop("stages", STAGES)
    result = called(train_cascade, *words(stages, **settings))
    assert result.code == 2 and rule in result.err and result.err.count("\n") == 0
    assert not (tmp_path / "run").exists()


def test_what_is_there_is_not_trained_over(whole, tmp_path, here):
    folder = shutil.copytree(whole, tmp_path / "run")
    data = pictures(tmp_path / "set", count=12)
    for settings, rule in [
        ({"seed": 3}, "holds another run (seed was 0, now 3)"),
        ({"stages": ["{learning_rate: 0.5}", "{}"]}, "holds another run (learning_rate was 0.002, now 0.5)"),
        (
            {"stages": ["{max_train_steps: 5}", "{}"]},
            "stage 1 must not go on once stage 2 has begun: got 5 updates, whi",
        ),
        ({"recipe": ..., "train_data_dir": data}, "holds another run"),
    ]:
        settings = {"stages": STAGES, **settings}
        stages = settings.pop("stages")
        if stages is not STAGES:
            stages = [json.dumps(yaml.safe_load(a) | yaml.safe_load(b)) for a, b in zip(STAGES, stages, strict=True)]
        before = tree(folder)
        result = called(train_cascade, *words(stages, **settings))
        assert result.code == 2 and rule in result.err, result.err
        assert tree(folder) == before and here == []
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    result = called(train_cascade, *words())
    assert result.code == 2 and "output_dir must be empty, new, or hold this cascade: " in result.err


def test_settings_stand_over_each_other_layer_by_layer(tmp_path):
    """A flag over what a recipe says of a stage; in one layer a stage's own over what all share."""
    (tmp_path / "own.yaml").write_text(
        "learning_rate: 0.5\nstages: [{}, {learning_rate: 0.25, unet: {dropout: 0.5}}]\n"
    )
    argv = ["--recipe", "digits", "--config", str(tmp_path / "own.yaml"), "--max_train_steps", "7", "--output_dir", "x"]
    stages = Stages.parsed(argv, "")
    base, upscaler = (stages.settings(number, [8, 8], "encoder") for number in range(2))
    assert (base.learning_rate, upscaler.learning_rate) == (0.5, 0.25)
    assert (base.max_train_steps, upscaler.max_train_steps) == (7, 7)
    assert upscaler.unet == {**base.unet, "dropout": 0.5} and base.unet["block_out_channels"] == [32, 64]
    assert (upscaler.task, upscaler.scale, upscaler.text_encoder_name_or_path) == ("upscale", 2, "encoder")
    assert base.validation_prompts and not upscaler.validation_prompts
    assert stages.sizes(8, 16) == [[4, 8], [8, 16]]


@pytest.mark.parametrize("name", recipes(CascadeConfig))
def test_a_recipe_s_stages_fit_together(name):
    text = yaml.safe_load((place(CascadeConfig) / f"{name}.yaml").read_text())
    stages = Stages.parsed(["--recipe", name, *([] if "dataset_name" in text else ["--train_data_dir", "x"])], "")
    defaults = CascadeConfig(dataset_name="any")
    assert [key for key, value in text.items() if value == getattr(defaults, key)] == []
    from mezzotint_training.config.sizes import Facts
    from mezzotint_training.data.source import sized

    side = text.get("resolution", 8)
    for number, size in enumerate(stages.sizes(side, side)):
        run = stages.settings(number, size, "encoder" if number else None)
        sized(run, Facts(100, tuple(size), 3))
