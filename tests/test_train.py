"""Training runs as a whole, each against another that must end the same: a run that was stopped and went on against one
that was not, one way of dealing out a batch against another, a moving average against its definition."""

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from diffusers import DPMSolverMultistepScheduler
from diffusers.optimization import get_scheduler
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from tiny_run import LONG, TINY, UNET, digits, distance, flags, logged, pictures, run, saved, trained, tree
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mezzotint import MezzotintPipeline
from mezzotint.models.blocks_mezzotint import MezzotintBlock
from mezzotint_training.config.flags import parse_args
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data import dataset as data
from mezzotint_training.engine import checkpoint, plan
from mezzotint_training.learning import objective
from mezzotint_training.networks.text import TextEncoding
from mezzotint_training.publishing import finish

STATES = ("weights", "optimizer", "ema")
# With everything that a user sees
SHOWN = {
    "validation_prompts": ["a handwritten three", "7", ""],
    "num_validation_images": 2,
    "validation_steps": 2,
    "num_inference_steps": 3,
    "guidance_scale": 1.5,
    "report_to": "tensorboard",
    "license": "mit",
    "max_train_steps": 4,
    "checkpointing_steps": 1,
}
STILL = {"unet": UNET | {"dropout": 0.0}, "lr_warmup_steps": 0}  # nothing random but the batches


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("whole") / "run", **LONG)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("finished") / "my-digits", **SHOWN)


def component(folder: Path, name: str = "unet") -> dict[str, torch.Tensor]:
    return load_file(next((folder / name).glob("*.safetensors")))


def assert_same_end(a: Path, b: Path, step: int = 6) -> None:
    """Bit for bit the same weights, moments, averages, losses and pipeline."""
    for name in STATES:
        assert distance(saved(a, step, name), saved(b, step, name)) == 0, name
    for column in ("loss", "gradient_norm", "learning_rate"):
        assert logged(a, column) == logged(b, column)
    assert json.loads((a / "metrics.json").read_text())["loss"] == json.loads((b / "metrics.json").read_text())["loss"]
    for name in ("unet", "text_encoder"):
        assert distance(component(a, name), component(b, name)) == 0, name


# ------------------------------------------------------------------------------------------------------------ going on


class Stop(BaseException):
    """As an interruption from outside would come."""


def stop_at(monkeypatch, place, name: str, call: int, before: bool = True) -> None:
    """Make a function raise at its n-th call, before or after its work."""
    original, calls = getattr(place, name), []
    monkeypatch.setattr(plan, "make_plan", lambda *args: {})  # which looks at a few batches beforehand

    def function(*args, **kwargs):
        calls.append(None)
        if len(calls) < call or not before:
            result = original(*args, **kwargs)
        if len(calls) == call:
            raise Stop
        return result

    monkeypatch.setattr(place, name, function)


@pytest.mark.parametrize(
    "place, name, call, before, left",
    [
        (objective, "denoising_loss", 10, True, 4),  # in the middle of the fifth update
        (checkpoint, "digest", 5, True, 2),  # while the second checkpoint is written
        (checkpoint, "save", 3, False, 6),  # after the last update, before there is a pipeline
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(whole, tmp_path, monkeypatch, place, name, call, before, left):
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, place, name, call, before)
        trained(tmp_path / "run", **LONG)
    assert max(int(path.name.split("-")[1]) for path in checkpoint.found(tmp_path / "run")) == left
    assert not (tmp_path / "run" / "model_index.json").exists()
    result = run(output_dir=tmp_path / "run", **LONG)
    assert result.code == 0 and f"going on from step {left}\n" in result.out
    assert_same_end(tmp_path / "run", whole)


def test_a_run_that_ran_out_of_time_is_finished_and_goes_on(whole, tmp_path):
    folder = trained(tmp_path / "run", max_train_minutes=0, **LONG)
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 1
    assert MezzotintPipeline.from_pretrained(folder).unet.config.in_channels == 1
    trained(folder, **LONG)
    assert not logged(folder).keys() - {1, 3, 6}
    for name in STATES:
        assert distance(saved(folder, 6, name), saved(whole, 6, name)) == 0


def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    weights = tmp_path / "run" / "checkpoint-6" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    result = run(output_dir=tmp_path / "run", **LONG)
    assert result.code == 0 and "checkpoint-6 is damaged: weights.safetensors" in result.out
    assert "going on from step 4\n" in result.out
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.parametrize("source", ["folder", "latest"])
def test_a_run_goes_on_from_a_checkpoint_that_is_named(whole, tmp_path, source):
    if source == "latest":
        shutil.copytree(whole / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    name = "latest" if source == "latest" else whole / "checkpoint-2"
    result = run(output_dir=tmp_path / "run", resume_from_checkpoint=name, **LONG)
    assert result.code == 0 and "going on from step 2\n" in result.out
    assert_same_end(tmp_path / "run", whole)


def test_the_same_command_again_changes_nothing(finished):
    def kept() -> dict[str, str]:
        return {path: content for path, content in tree(finished).items() if not path.startswith("logs")}

    before = kept()
    result = run(output_dir=finished, **SHOWN)
    assert result.code == 0 and "going on from step 4\n" in result.out and "nan" not in result.out
    assert kept() == before


def test_more_steps_go_on_from_the_end(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    folder = trained(tmp_path / "run", **LONG | {"max_train_steps": 8})
    assert sorted(logged(folder)) == [3, 6, 8]
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 8
    assert distance(saved(folder, 8), saved(whole, 6)) > 0


# ------------------------------------------------------------------------------------------- what does not change a run


@pytest.mark.parametrize(
    "settings",
    [
        {"validation_prompts": ["3", "8"], "validation_steps": 1, "num_inference_steps": 2, "num_validation_images": 1},
        {"dataloader_num_workers": 2, "checkpointing_steps": 1, "checkpoints_total_limit": 1},
    ],
)
def test_what_is_shown_and_kept_does_not_change_what_is_learned(whole, tmp_path, settings):
    folder = trained(tmp_path / "run", **LONG | settings)
    assert_same_end(folder, whole)
    if "validation_prompts" in settings:
        assert len(list((folder / "samples").iterdir())) == 6
    else:
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-6"]


def test_the_seed_changes_everything(whole, tmp_path):
    folder = trained(tmp_path / "run", seed=1, **LONG)
    assert distance(saved(folder, 6), saved(whole, 6)) > 1e-3 and logged(folder)[3] != logged(whole)[3]


def test_a_run_on_two_threads_is_a_function_of_its_seed(tmp_path, monkeypatch):
    """At a batch whose gradients two threads share, among them those of captions that stand in it many times."""
    monkeypatch.setattr(plan, "make_plan", lambda *args: {})  # which takes as long as the run
    text_encoder = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1, "num_heads": 4}
    settings = {"train_batch_size": 256, "max_train_steps": 3, "text_encoder": text_encoder}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = [trained(tmp_path / name, **settings) for name in "abc"]
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert_same_end(runs[0], other, step=3)


@pytest.fixture(scope="module")
def eight_by_one(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("dealt") / "run", **STILL, adam_epsilon=1e-3)


def assert_close_end(folder: Path, expected: Path) -> None:
    """Equal but for rounding. At Adam's usual epsilon rounding of a gradient near zero would become a full step."""
    for column in ("loss", "gradient_norm"):
        for step, value in logged(expected, column).items():
            assert logged(folder, column)[step] == pytest.approx(value, rel=1e-4)
    moved = distance(saved(expected, 3), saved(expected, 3, "ema"))
    assert moved > 1e-4 and distance(saved(folder, 3), saved(expected, 3)) < 0.02 * moved


@pytest.mark.parametrize("batch, accumulation", [(1, 8), (4, 2)])
def test_a_batch_may_be_accumulated(eight_by_one, tmp_path, batch, accumulation):
    settings = {"train_batch_size": batch, "gradient_accumulation_steps": accumulation, "adam_epsilon": 1e-3}
    assert_close_end(trained(tmp_path / "run", **STILL, **settings), eight_by_one)


# -------------------------------------------------------------------------------------------------------- optimisation


def test_the_first_loss_is_that_of_a_network_that_says_nothing(eight_by_one):
    """A new network predicts zero: its loss is the mean square of the velocity, alpha noise - sigma data."""
    config = parse_args(flags(**STILL), description="")
    rows = digits()["train"].select(range(40))
    images = data.CaptionedSamples(rows.cast_column("image", datasets.Image(decode=False)), config, 1, (8, 8))
    pixels = np.stack([np.asarray(picture) for picture in rows["image"]]) / 127.5 - 1
    normalised = (pixels - round(pixels.mean(), 4)) / round(pixels.std(), 4)
    a = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    squares = []
    for row in np.random.default_rng([0, 0]).permutation(40)[:8]:
        item = images[0, row]
        level = np.interp(item["uniform"] * 999, np.arange(1000), np.log(1 / a - 1))
        alpha, sigma = (1 + np.exp(level)) ** -0.5, (1 + np.exp(-level)) ** -0.5
        squares.append((alpha * item["noise"].numpy()[0] - sigma * normalised[row]) ** 2)
    assert logged(eight_by_one)[1] == pytest.approx(np.mean(squares), rel=1e-4)


def test_the_optimizer_is_adamw_as_it_was_set(tmp_path):
    adam = {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_weight_decay": 0.3, "adam_epsilon": 1e-3}
    settings = {"checkpointing_steps": 1, "learning_rate": 0.01, "lr_scheduler": "constant", "max_train_steps": 2}
    folder = trained(tmp_path / "run", **STILL, **settings, **adam)
    before, after = ({k: v.double() for k, v in saved(folder, step, "optimizer").items()} for step in (1, 2))
    pipe = MezzotintPipeline.from_pretrained(folder)
    names = [f"{name}.{key}" for name in ("unet", "text_encoder") for key, _ in getattr(pipe, name).named_parameters()]
    for name in names:
        gradient = (after[f"{name}.exp_avg"] - 0.8 * before[f"{name}.exp_avg"]) / 0.2
        square = 0.95 * before[f"{name}.exp_avg_sq"] + 0.05 * gradient**2
        torch.testing.assert_close(after[f"{name}.exp_avg_sq"], square, rtol=1e-3, atol=1e-12)
        step = after[f"{name}.exp_avg"] / (1 - 0.8**2) / ((square / (1 - 0.95**2)).sqrt() + 1e-3)
        expected = saved(folder, 1)[name].double() * (1 - 0.01 * 0.3) - 0.01 * step
        torch.testing.assert_close(saved(folder, 2)[name].double(), expected, rtol=0, atol=1e-6)


@pytest.fixture
def updates():
    """`updates(optimizer, ...)` of each step of any optimizer: its learning rate, and the norm of all gradients."""
    seen = []

    def see(optimizer, args, kwargs):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norm = torch.cat([g.flatten() for g in grads]).double().norm().item()
        seen.append((optimizer.param_groups[0]["lr"], norm))

    handle = register_optimizer_step_pre_hook(see)
    yield seen
    handle.remove()


@pytest.mark.parametrize("name, warmup", [("cosine", 2), ("linear", 0), ("constant_with_warmup", 99)])
def test_the_learning_rate_follows_diffusers_schedule(tmp_path, updates, name, warmup):
    settings = {"lr_scheduler": name, "lr_warmup_steps": warmup, "learning_rate": 1e-4, "max_train_steps": 5}
    folder = trained(tmp_path / "run", gradient_accumulation_steps=2, train_batch_size=2, **settings)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-4)
    # a warm-up longer than the run ends with it
    expected = get_scheduler(name, optimizer, num_warmup_steps=min(warmup, 5), num_training_steps=5)
    rates = [expected.get_last_lr()[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer takes no steps
        rates += [(expected.step(), expected.get_last_lr()[0])[1] for _ in range(5)]
    assert [rate for rate, _ in updates] == rates[:5] and len(set(rates)) > 2
    assert list(logged(folder, "learning_rate").values()) == rates[1:]


@pytest.mark.parametrize("limit", [0.01, 1000])
def test_gradients_are_scaled_down_to_a_norm(tmp_path, updates, limit):
    folder = trained(tmp_path / "run", max_grad_norm=limit, learning_rate=0.01)
    norms = list(logged(folder, "gradient_norm").values())
    assert len(updates) == 3 and min(norms) > 0.02
    assert [norm for _, norm in updates] == pytest.approx([min(norm, limit) for norm in norms], rel=1e-3)


def test_the_moving_average_is_that_of_the_weights(tmp_path):
    settings = {"checkpointing_steps": 1, "checkpoints_total_limit": "null", "learning_rate": 0.01}
    folder = trained(tmp_path / "run", ema_decay=0.24, max_train_steps=5, **settings)
    average = {}
    for step in range(1, 6):
        # the decay after n updates before this one is (1 + n) / (10 + n), at most 0.24; nothing is kept of the start
        n = step - 1
        decay = min((1 + n) / (10 + n), 0.24) if n > 0 else 0
        for key, weight in saved(folder, step).items():
            average[key] = decay * average.get(key, 0) + (1 - decay) * weight.double()
        assert distance(saved(folder, step, "ema"), average) < 1e-6
    published = {f"{name}.{key}": x for name in ("unet", "text_encoder") for key, x in component(folder, name).items()}
    assert distance({key: x for key, x in published.items() if key in average}, saved(folder, 5, "ema")) == 0
    assert distance(saved(folder, 5), saved(folder, 5, "ema")) > 1e-4


def test_without_a_moving_average_the_weights_are_published(tmp_path):
    folder = trained(tmp_path / "run", use_ema=False)
    assert sorted(path.name for path in (folder / "checkpoint-3").iterdir()) == [
        *("optimizer.safetensors", "state.json", "weights.safetensors")
    ]
    weights = {key.removeprefix("unet."): x for key, x in saved(folder, 3).items() if key.startswith("unet.")}
    assert distance(component(folder), weights) == 0


def test_the_loss_goes_down(tmp_path):
    settings = {"max_train_samples": 8, "learning_rate": 5e-3, "lr_scheduler": "constant", "max_train_steps": 40}
    loss = list(logged(trained(tmp_path / "run", **STILL | settings)).values())
    assert np.mean(loss[:5]) > 0.9 and np.mean(loss[-10:]) < 0.7 * np.mean(loss[:5])


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # where norms stay in float32
def test_half_precision_keeps_full_weights(tmp_path):
    settings = STILL | {"learning_rate": 0.01}
    expected = trained(tmp_path / "full", **settings)
    folder = trained(tmp_path / "half", mixed_precision="bf16", **settings)
    assert json.loads((folder / "metrics.json").read_text())["mixed_precision"] == "bf16"
    for tensors in (*(saved(folder, 3, name) for name in STATES), component(folder), component(folder, "text_encoder")):
        assert {x.dtype for x in tensors.values()} == {torch.float32}
    a, b = list(logged(folder).values()), list(logged(expected).values())
    assert a != b and a == pytest.approx(b, rel=0.02)
    assert 0 < distance(saved(folder, 3), saved(expected, 3)) < 0.05


def test_recomputed_activations_give_the_same_run(tmp_path, monkeypatch):
    blocks, forward = [], MezzotintBlock.forward
    monkeypatch.setattr(MezzotintBlock, "forward", lambda self, *args: (blocks.append(0), forward(self, *args))[1])
    monkeypatch.setattr(plan, "make_plan", lambda *args: {})
    monkeypatch.setattr(finish, "check_saved", lambda *args: None)  # which draws
    expected = trained(tmp_path / "kept", num_validation_samples=0)
    once = len(blocks)
    folder = trained(tmp_path / "recomputed", gradient_checkpointing=True, num_validation_samples=0)
    assert len(blocks) - once == 2 * once > 0  # each of them again on the way back
    assert distance(saved(folder, 3), saved(expected, 3)) < 1e-6 and logged(folder) == pytest.approx(logged(expected))


@pytest.mark.parametrize("share, captions", [(1, {""}), (0, None)])
def test_captions_are_dropped(tmp_path, monkeypatch, share, captions):
    seen = []
    call = TextEncoding.__call__
    monkeypatch.setattr(TextEncoding, "__call__", lambda self, texts: (seen.extend(texts), call(self, texts))[1])
    monkeypatch.setattr(plan, "make_plan", lambda *args: {})  # which looks at a few batches beforehand
    trained(tmp_path / "run", proportion_empty_prompts=share, num_validation_samples=0)
    assert len(seen) == 24 and (set(seen) == captions if captions else "" not in seen)


# --------------------------------------------------------------------------------------------------------- fine-tuning


@pytest.fixture(scope="module")
def base(whole, tmp_path_factory) -> Path:
    """A pipeline with a stock sampler, to start from."""
    pipe = MezzotintPipeline.from_pretrained(whole)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, algorithm_type="sde-dpmsolver++")
    folder = tmp_path_factory.mktemp("base") / "base"
    pipe.save_pretrained(folder)
    return folder


def test_fine_tuning_keeps_all_but_the_unets_weights(base, tmp_path, monkeypatch):
    encoded, encode = [], TextEncoding._frozen_states
    monkeypatch.setattr(
        TextEncoding, "_frozen_states", lambda self, texts: (encoded.extend(texts), encode(self, texts))[1]
    )  # fmt: skip
    dark = pictures(tmp_path / "dark", count=6, size=(16, 16), mode="L", captions=["a", "b", "a", "b", "a", "b"])
    settings = {"pretrained_model_name_or_path": base, "train_data_dir": dark, "resolution": 16, "unet": ...}
    folder = trained(tmp_path / "run", max_train_steps=4, text_encoder=..., max_text_length=..., **settings)

    for name in ("text_encoder", "tokenizer", "scheduler"):
        for path in (base / name).iterdir():
            if path.suffix == ".safetensors":
                assert distance(component(folder, name), component(base, name)) == 0
            elif path.suffix != ".py":
                assert json.loads((folder / name / path.name).read_text()) == json.loads(path.read_text())
    assert json.loads((folder / "model_index.json").read_text())["scheduler"][1] == "DPMSolverMultistepScheduler"
    before, after = (json.loads((x / "unet" / "config.json").read_text()) for x in (base, folder))
    assert after == before | {"sample_size": 16}  # the data's scale too, though these are other data
    assert set(encoded) == {"a", "b", ""} and len(encoded) <= 5  # in 32 rows: for the cache, and for the plan before it
    assert {key.split(".")[0] for key in saved(folder, 4)} == {"unet"}
    changed = [key for key, x in component(base).items() if not torch.equal(x, component(folder)[key])]
    assert len(changed) == len(component(base))
    assert "fine-tuned from" in (folder / "README.md").read_text()


def test_fine_tuning_begins_at_the_saved_weights(base, tmp_path):
    settings = {"pretrained_model_name_or_path": base, "unet": ..., "text_encoder": ..., "learning_rate": 1e-9}
    folder = trained(tmp_path / "run", train_text_encoder=True, max_train_steps=1, lr_warmup_steps=0, **settings)
    for name in ("unet", "text_encoder"):
        assert 0 < distance(component(folder, name), component(base, name)) < 2e-9


def test_a_loaded_text_encoder_is_frozen(base, tmp_path):
    encoder = tmp_path / "encoder"
    shutil.copytree(base / "text_encoder", encoder)
    shutil.copytree(base / "tokenizer", encoder, dirs_exist_ok=True)
    folder = trained(tmp_path / "run", text_encoder_name_or_path=encoder, text_encoder=...)
    assert distance(component(folder, "text_encoder"), component(base, "text_encoder")) == 0
    assert {key.split(".")[0] for key in saved(folder, 3)} == {"unet"}


# ---------------------------------------------------------------------------------------------------- the output folder


def test_the_folder_is_a_repository(finished):
    names = {path.name for path in finished.iterdir()}
    code = [name for name in names if name.endswith(".py")]
    assert [name.split("_mezzotint_v")[0] for name in sorted(code)] == ["modular", "pipeline"]
    assert names == {
        *("model_index.json", "unet", "scheduler", "text_encoder", "tokenizer", *code),
        *("modular_config.json", "modular_model_index.json"),
        *(
            "README.md",
            "recipe.yaml",
            "metrics.json",
            "metrics.jsonl",
            ".gitignore",
            "samples",
            "logs",
            "checkpoint-3",
            "checkpoint-4",
        ),
    }
    for name in ("unet", "scheduler"):
        assert len(list((finished / name).glob("*_v????????.py"))) == 1
    own = [path for path in finished.rglob("*") if path.is_file() and not {"logs", ".gitignore"} & set(path.parts)]
    suffixes = {path.suffix for path in own}
    assert suffixes == {".json", ".jsonl", ".md", ".png", ".py", ".safetensors", ".yaml"}  # nothing pickled
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["loss"] == logged(finished)[4] and (metrics["steps"], metrics["pictures"]) == (4, 40)
    counts = {name: sum(x.numel() for x in component(finished, name).values()) for name in ("unet", "text_encoder")}
    assert metrics["parameters"] == counts and metrics["bad_rows"] == 0


def test_its_recipe_is_the_run(finished, tmp_path):
    recipe = finished / "recipe.yaml"
    text = recipe.read_text()
    for name in ("mezzotint", "torch", "diffusers", "transformers", "accelerate", "datasets"):
        assert f"{name} " in text.splitlines()[0]
    config = parse_args(["--config", str(recipe)], description="")
    settings = TINY | yaml.safe_load(text)
    assert config == TrainConfig(**{k: v for k, v in settings.items() if k != "recipe"})
    assert {f.name for f in dataclasses.fields(config)} == set(yaml.safe_load(text))
    none = {name: ... for name in TINY}
    folder = trained(tmp_path / "again", f"--config={recipe}", **none | {"report_to": "none", "validation_prompts": []})
    assert distance(saved(folder, 4), saved(finished, 4)) == 0


def test_its_card_says_what_was_measured(finished):
    card = ModelCard.load(finished / "README.md")
    metrics = json.loads((finished / "metrics.json").read_text())
    assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == ("diffusers", "text-to-image", "mit")
    assert card.data.widget[0]["output"]["url"] == "samples/step-000004.png"
    assert card.text.lstrip().startswith("# my-digits\n")
    for words in (
        f"{metrics['parameters']['unet']:,} (unet), {metrics['parameters']['text_encoder']:,} (text_encoder)",
        f"{metrics['loss']:.4f}",
        "40 captioned pictures of `digits` (UCI",
        "4 of 8 pictures",
        '"a handwritten three", "7", ""',
        'from_pretrained("./my-digits", trust_remote_code=True)',
        'pipe("a handwritten three", num_inference_steps=3, guidance_scale=1.5)',
    ):
        assert words in card.text, words
    assert not any(word in card.text for word in ("{{", "{%", "None", "nan"))


def test_its_samples_are_the_pipelines(finished):
    assert [path.name for path in sorted((finished / "samples").iterdir())] == ["step-000002.png", "step-000004.png"]
    grid = Image.open(finished / "samples" / "step-000004.png")
    cell = 64 + 2 * 2  # eight pixels shown as 64, in a frame
    assert grid.size == (3 * cell, 2 * cell)
    pipe = MezzotintPipeline.from_pretrained(finished)
    for row in range(2):
        for column, prompt in enumerate(["a handwritten three", "7", ""]):
            picture = pipe(
                prompt, num_inference_steps=3, guidance_scale=1.5, generator=torch.Generator().manual_seed(row)
            ).images[0]
            drawn = np.asarray(grid)[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            assert (drawn[[0, -1]] == 255).all() and (drawn[:, [0, -1]] == 255).all()
            drawn = drawn[2:-2, 2:-2].reshape(8, 8, 8, 8, 3)
            assert (drawn == drawn[:, :1, :, :1, :1]).all()
            # a batch of three and one alone may round to neighbouring greys
            assert np.abs(drawn[:, 0, :, 0, 0].astype(int) - np.asarray(picture)).max() <= 1


def test_its_log_goes_to_the_tracker(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in (finished / "logs").glob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    for name in ("loss", "learning_rate", "gradient_norm"):
        values = {event.step: event.value for event in events.Scalars(name)}
        assert values == pytest.approx(logged(finished, name))
    assert {event.step for event in events.Images("samples")} == {2, 4}


def test_its_log_goes_to_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # before it is imported
    storage = pytest.importorskip("trackio.sqlite_storage", reason="the extra `trackio` is not installed").SQLiteStorage
    folder = trained(tmp_path / "run", report_to="trackio")
    (name,) = storage.get_runs("logs")
    lines = storage.get_logs("logs", name)
    for name in ("loss", "learning_rate", "gradient_norm"):
        assert {line["step"]: line[name] for line in lines} == pytest.approx(logged(folder, name))
