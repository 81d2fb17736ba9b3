"""The program against real pictures put in the place of drawn ones, whose figures are known, and on a tiny pipeline."""

import functools
import json
import os
import re
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from tiny_run import digits, pictures

from mezzotint import MezzotintPipeline, MezzotintScheduler
from mezzotint_training import cli
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data import rows
from mezzotint_training.learning.held_out import LEVELS
from mezzotint_training.learning.objective import denoising_loss
from mezzotint_training.metrics import pictures as pictures_of_a_set
from mezzotint_training.metrics.accuracy import accuracy
from mezzotint_training.metrics.judges import ClassJudge
from mezzotint_training.metrics.pictures import Real, real_pictures, shuffled
from mezzotint_training.publishing import evaluation

UNET = {"in_channels": 1, "out_channels": 1, "sample_mean": (-0.4,), "sample_std": (0.75,)}
METRICS_OF_RUN = {
    "parameters": {"unet": 1}, "steps": 2, "processes": 1, "threads": 1, "seconds": 1, "images_per_second": 1,
    "device": "cpu", "processor": "x", "mixed_precision": "no", "loss": 1,
}  # fmt: skip
METRICS = ["kernel_distance", "frechet_distance", "sliced_wasserstein", "precision", "recall"]


@functools.cache
def some_digits() -> datasets.DatasetDict:
    return datasets.DatasetDict({k: v.select(range({"train": 300, "test": 100}[k])) for k, v in digits().items()})


@pytest.fixture
def folder(save_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "digits", some_digits)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    save_pipe(tmp_path / "pipe", **UNET)
    (tmp_path / "pipe" / "recipe.yaml").write_text("dataset_name: digits\nvalidation_split: test\nseed: 3\n")
    return tmp_path / "pipe"


@pytest.fixture
def run(folder, tmp_path, capsys):
    """`run(**settings)` is the exit code, what was measured and what was said."""

    def call(**settings):
        output = tmp_path / "metrics.json"
        output.unlink(missing_ok=True)
        few = {"count": 40, "num_inference_steps": 2, "judge_steps": 1, "output": output, "device": "cpu"} | settings
        flags = []
        for name, value in few.items():
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        code = cli.main(["evaluate", str(folder), *flags])
        out, err = capsys.readouterr()
        return code, json.loads(output.read_text()) if output.is_file() else None, out if code == 0 else err

    return call


def finished(folder, pictures: int) -> None:
    """What a run leaves beside its pipeline, for the card."""
    (folder / "recipe.yaml").write_text(TrainConfig(dataset_name="digits", validation_split="test").to_yaml())
    (folder / "metrics.json").write_text(json.dumps(METRICS_OF_RUN | {"pictures": pictures}))


def captioned(folder, count: int, captions: list[str]):
    for split, texts in {"train": captions[:count], "test": captions[count:]}.items():
        pictures(folder / split, count, mode="L", captions=texts)
    return folder


def test_a_tiny_pipeline_on_digits(run):
    code, found, out = run()
    assert code == 0
    assert found["data"]["dataset_name"] == "digits"
    assert found["pictures"] == {"drawn": 40, "held_out": 40, "train": 300, "floor": 40, "new_captions": 0}
    assert list(found["features"]) == ["random", "classifier"]
    for figures in found["features"].values():
        assert list(figures) == METRICS
        for figure in (*figures.values(), *(x["real"] for x in figures.values())):
            assert figure["interval"][0] <= figure["value"] <= figure["interval"][1]
        # an untrained network's pictures are far from any digit
        assert figures["kernel_distance"]["interval"][0] > figures["kernel_distance"]["real"]["interval"][1]
        assert figures["precision"]["value"] < figures["precision"]["real"]["value"] > 0.6
    kid = found["features"]["random"]["kernel_distance"]
    assert f"| kernel distance (KID) x 1000, random features | {1000 * kid['value']:.3g} (" in out
    assert "| copy rate (pixels, ratio below 0." in out
    assert "likelihood" not in found and "bits" not in out
    # as found, whatever the batch
    bits = {"likelihood": [], "likelihood_count": 2, "likelihood_tolerance": 0.01}
    _, again, out = run(batch_size=7, features="random", copy_features="random", **bits)
    measured = again["likelihood"]
    assert (measured["pictures"], measured["dimensions"]) == (2, 64)
    for name, words in {"with_caption": ", given the caption", "without_caption": ""}.items():
        flow = measured[name]["flow"]
        assert f"| bits per dimension of 2 held-out pictures{words} (probability flow) | {flow['value']:.3f} (" in out
    saved = measured["caption_saves"]["flow"]["value"]
    assert saved == pytest.approx(64 * (flow["value"] - measured["with_caption"]["flow"]["value"]))
    assert f"| bits that its caption saves a picture (probability flow) | {saved:.1f} (" in out
    for metric, figure in found["features"]["random"].items():
        assert again["features"]["random"][metric]["value"] == pytest.approx(figure["value"], rel=1e-2)
    assert again["prompt_accuracy"] == {} and again["copy_rate"]["features"] == "random"


def test_training_pictures_in_the_place_of_drawn_ones_are_the_floor_and_copies(run, monkeypatch):
    """A model that has learned the set by heart is as near to the held-out pictures as the training pictures are."""
    train = some_digits()["train"]
    by_caption = [texts[0] for texts in train["text"]]
    pixels = torch.from_numpy(np.stack([np.asarray(x) for x in train["image"]]))[:, None]
    chosen = shuffled(len(train), 0)[:60]
    asked = []

    def recalled(pipe, captions, **how):
        asked.extend(captions)
        return pixels[chosen]

    monkeypatch.setattr(evaluation, "draw", recalled)
    _, found, _ = run(count=60, judge_steps=20)
    assert [texts[0] for texts in asked] == [by_caption[i] for i in chosen]
    for figures in found["features"].values():
        for figure in figures.values():
            assert figure["value"] == figure["real"]["value"] and figure["interval"] == figure["real"]["interval"]
    assert found["copy_rate"]["value"] == 1 and found["copy_rate"]["real"]["value"] < 0.2
    accuracy = found["prompt_accuracy"]["classifier"]
    assert accuracy["interval"][0] > 0.3 and accuracy["real"]["interval"][0] > 0.3  # by chance a tenth


def test_accuracy_is_of_what_was_asked_for():
    """By a judge that reads a picture's first pixel; 255 is no class, and -1 no label."""
    judge = ClassJudge.__new__(ClassJudge)
    judge.__dict__["read"] = lambda pixels: pixels[:, 0, 0, 0].long()

    def asked(seen, labels):
        pixels = torch.tensor(seen, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
        return Real(pixels, [["a"]] * len(seen), torch.tensor(labels))

    found = accuracy(judge, asked([0, 1, 2, 255], [0, 1, 1, 2]), asked([1], [0]), asked([3, 3], [3, -1]))
    assert found["value"] == 0.5 and found["unseen"]["value"] == 0 and found["real"]["value"] == 1
    assert accuracy(judge, asked([0], [0]), None, asked([3], [-1])) is None


def test_captions_without_labels_and_some_that_were_not_trained_on(run, folder, tmp_path):
    names = [f"a {kind} thing number {i % 4}" for kind in ("red", "blue") for i in range(45)]
    names[45:60] = names[:15]
    data = captioned(tmp_path / "data", 45, names)
    finished(folder, pictures=45)
    code, found, out = run(train_data_dir=data, card=[])
    assert code == 0 and list(found["features"]) == ["random", "two-tower"]
    assert found["pictures"]["new_captions"] in range(20, 31)
    accuracy = found["prompt_accuracy"]["two-tower"]
    assert accuracy["choices"] == 4 and 0 <= accuracy["unseen"]["value"] <= 1
    assert "| prompt accuracy (two-tower, own caption of 4) |" in out
    assert "| the same, captions that were not trained on |" in out

    # The card says as much, and nothing of where things are
    kept = (folder / "evaluation.json").read_text()
    assert str(tmp_path) not in kept
    assert found.pop("checkpoint") == str(folder) and found["data"].pop("train_data_dir") == str(data)
    command = "mezzotint evaluate pipe --train_data_dir data --count 40 --num_inference_steps 2 --judge_steps 1 --card "
    command += "--device cpu"
    assert found.pop("command") == command.replace(" pipe ", f" {folder} ").replace(" data ", f" {data} ").split()
    kept = json.loads(kept)
    assert kept.pop("command") == command.split() and kept["data"].pop("train_data_dir") == "data" and kept == found
    card = (folder / "README.md").read_text()
    _, section, _, limits = re.split("\n## (?:How good it is|How it was trained|Limits)\n", card)
    assert str(tmp_path) not in section and "against 40 held-out ones of `data`;" in section and command in section
    assert out.partition("\n\n")[2].strip() in section
    for figure in (accuracy, accuracy["real"], accuracy["unseen"], found["copy_rate"], found["copy_rate"]["real"]):
        assert "{:.1%} ({:.1%} to {:.1%})".format(figure["value"], *figure["interval"]) in limits
    assert "Nothing was measured of prompts of other kinds than these captions, or of biases in the data." in limits


def test_held_out_loss_is_the_objective_at_fixed_levels(folder):
    pipe = MezzotintPipeline.from_pretrained(folder)
    args = SimpleNamespace(
        checkpoint=folder,
        split=None,
        label_column=None,
        count=3,
        batch_size=2,
        **dict.fromkeys(evaluation.EVALUATION_DATA),
    )
    (_, test), classes = real_pictures(evaluation.data_settings(args, "evaluate"), pipe, None, None)
    assert classes == [str(i) for i in range(10)] and len(test) == 100
    found = evaluation.held_out_loss(pipe, test, args, torch.device("cpu"))
    assert [x["level"] for x in found] == list(LEVELS)
    losses = []
    for number, index in enumerate([0, 49, 99]):
        picture = (test.content(index).float() / 127.5 - 1 + 0.4) / 0.75
        noise = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(4 * number + 2))
        text, _, mask, _ = pipe.encode_prompt([test.captions[index][0]], torch.device("cpu"), 1, False)
        timestep = torch.tensor([LEVELS[2] * 999])
        with torch.no_grad():
            losses.append(
                float(denoising_loss(pipe.unet, MezzotintScheduler(), picture[None], noise[None], timestep, text, mask))
            )
    assert found[2]["value"] == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"count": 39}, "count must be at least 40: got 39"),
        ({"copy_alarms": 1}, "copy_alarms must be between 0 and 1: got 1"),
        ({"copy_features": "clip"}, "copy_features must be pixels or among the features (random, classifier): got 'cl"),
        ({"split": "dev"}, "validation_split 'dev' is not there: got 'train', 'test'"),
        ({"label_column": "kind"}, "label_column 'kind' is not there: got columns 'image', 'text', 'label'"),
        ({"output": "{tmp}/none/x.json"}, "output must be in a folder that is there: got {tmp}/none/x.json"),
        ({"card": []}, "card needs the folder of a finished run, with recipe.yaml and metrics.json: got {tmp}/pipe"),
        ({"features": "{tmp}/none"}, "features '{tmp}/none' cannot be loaded: "),
        (
            {"train_data_dir": "{tmp}/none"},
            "train_data_dir must be a folder: {tmp}/none does not exist or is not a folder",
        ),
    ],
)
def test_bad_input_is_said_in_one_line(run, tmp_path, settings, words):
    code, _, err = run(**{k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in settings.items()})
    assert code == 2
    assert err.count("\n") == 1 and err.startswith(f"mezzotint: {words.format(tmp=tmp_path)}"), err


def said(capsys, *argv) -> str:
    """The one line of a program that must refuse its input."""
    assert cli.main([*map(str, argv), "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"output": "{tmp}"}, "output must be a file: got the folder {tmp}"),
        ({"output": ""}, "argument --output: must not be empty: got ''"),
        ({"device": "quantum"}, "device must be one of this machine's (cpu"),
        ({"device": "cuda:99"}, "device must be one of this machine's (cpu"),
        ({"device": ""}, "device must be one of this machine's (cpu"),
        ({"seed": 2**63}, "seed must be at most 1,000,000,000,000: got"),
        ({"guidance_scale": "nan"}, "guidance_scale must be a number from 0: got nan"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1: got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1: got 0"),
        ({"batch_size": 10**12}, "batch_size must be at most 65,536: got"),
        ({"judge_steps": 10**12}, "judge_steps must be at most 1,000,000: got"),
        ({"choices": 1}, "choices must be at least 2: got 1"),
        ({"likelihood_tolerance": 0}, "likelihood_tolerance must be between 0 and 0.1: got 0"),
        ({"likelihood_probes": -1}, "likelihood_probes must be at least 0: got -1"),
        ({"copy_alarms": "nan"}, "copy_alarms must be between 0 and 1: got nan"),
        ({"count": True}, "count must be of type int: got 'True'"),
    ],
)
def test_nothing_is_loaded_for_arguments_that_are_wrong(folder, tmp_path, capsys, monkeypatch, flags, words):
    monkeypatch.setattr(MezzotintPipeline, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
    flags = [text.format(tmp=tmp_path) for name, value in flags.items() for text in (f"--{name}", str(value))]
    assert cli.main(["evaluate", str(folder), "--device", "cpu", *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mezzotint: {words.format(tmp=tmp_path)}") and err.count("\n") == 1, err


def test_steps_beyond_the_schedulers_are_said_before_anything_is_drawn(folder, capsys):
    assert "num_inference_steps must be at most 1,000: got 1001" in said(
        capsys, "evaluate", folder, "--num_inference_steps", 1001
    )


def test_a_set_that_only_somebodys_recipe_names_is_neither_fetched_nor_read(folder, tmp_path, capsys, monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("fetched")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(pictures_of_a_set, "load_splits", load)
    for place in ("dataset_name: user/set", f"train_data_dir: {tmp_path}", "train_data_dir: digits"):
        (folder / "recipe.yaml").write_text(f"{place}\n")
        name, value = place.split(": ")
        err = said(capsys, "evaluate", folder)
        assert err == f"mezzotint: evaluate reads the set that the recipe names if you name it too: --{name} {value}\n"


def test_the_recipes_set_named_by_the_user_is_read_as_the_recipe_says(folder, tmp_path):
    def config(**given):
        return evaluation.data_settings(
            SimpleNamespace(checkpoint=folder, **dict.fromkeys(evaluation.EVALUATION_DATA) | given), "evaluate"
        )

    recipe = "train_data_dir: elsewhere/sprites\ncaption_column: title\nmax_train_samples: 50\nof_another_version: 1\n"
    (folder / "recipe.yaml").write_text(recipe)
    same = config(train_data_dir=str(tmp_path / "sprites"))
    assert (same.train_data_dir, same.caption_column, same.max_train_samples) == (
        str(tmp_path / "sprites"), ["title"], 50
    )  # fmt: skip
    assert config(train_data_dir="sprites", caption_column="name").caption_column == ["name"]
    other = config(train_data_dir="others")
    assert (other.caption_column, other.max_train_samples) == (["text"], None)
    assert config(dataset_name="digits").train_data_dir is None
    (folder / "recipe.yaml").write_text("dataset_name: digits\nnum_validation_samples: 7\n")
    assert (config().dataset_name, config().num_validation_samples) == ("digits", 7)


@pytest.mark.parametrize(
    "pipe, words",
    [
        ({"vae": 1}, "likelihood must be of a network of pixels: got one of latents, whose bits are not of pictures"),
        ({"distilled_steps": 2}, "checkpoint must be a network that denoises: got one distilled to 2 steps"),
        ({"trained_for": {"task": "inpaint"}}, "checkpoint must be trained for text_to_image: got one for inpaint"),
    ],
)
def test_likelihood_is_of_networks_that_denoise_pixels(folder, capsys, monkeypatch, pipe, words):
    whole = {"trained_for": {"task": "text_to_image"}, "vae": None, "distilled_steps": None, "modality": "image"} | pipe
    monkeypatch.setattr(evaluation, "load_pipeline", lambda *args, **kwargs: SimpleNamespace(**whole))
    assert words in said(capsys, "evaluate", folder, "--likelihood")


@pytest.mark.parametrize(
    "text, words",
    [
        ("seed: [1", "cannot be read as YAML"),
        ("a: &a [*a]", "aliases are not possible here"),
        ("- 1", "must hold 'name: value' lines: got list"),
        ("dataset_name: [digits]", "dataset_name must be text: got ['digits']"),
        ("dataset_name: digits\nmax_train_samples: lots", "max_train_samples must be of type int: got 'lots'"),
        ("dataset_name: digits\ndataset_name: digits", "the key 'dataset_name' comes twice"),
    ],
)
def test_a_broken_recipe_is_said_before_the_work(folder, capsys, monkeypatch, text, words):
    monkeypatch.setattr(MezzotintPipeline, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
    (folder / "recipe.yaml").write_text(text)
    assert words in said(capsys, "evaluate", folder)


def test_a_folder_that_takes_no_card_is_said_before_the_work(folder, capsys, monkeypatch):
    monkeypatch.setattr(MezzotintPipeline, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
    finished(folder, pictures=300)
    (folder / "evaluation.json").write_text('{"settings": []}')
    assert f"what the card of {folder} is made of cannot be loaded: " in said(capsys, "evaluate", folder, "--card")
    (folder / "evaluation.json").unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(folder))  # for root, permissions do not bind
    assert f"checkpoint must be a folder that may be written to: got {folder}" in said(
        capsys, "evaluate", folder, "--card"
    )


def test_a_card_takes_figures_of_the_runs_own_pictures_in_its_folder(run, folder, capsys):
    finished(folder, pictures=301)
    assert run(card=[])[2] == "mezzotint: card needs the very pictures that were trained on, 301: got 300\n"
    assert not (folder / "evaluation.json").exists() and not (folder / "README.md").exists()
    assert cli.main(["evaluate", "user/name", "--card"]) == 2
    assert capsys.readouterr().err.endswith("with recipe.yaml and metrics.json: got user/name\n")


def test_a_checkpoint_without_data_or_that_is_none(run, folder, capsys):
    (folder / "recipe.yaml").unlink()
    assert run()[2].startswith("mezzotint: evaluate needs real pictures: --train_data_dir or --dataset_name, or a rec")
    assert cli.main(["evaluate", str(folder / "unet"), "--dataset_name", "digits", "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mezzotint: checkpoint {folder / 'unet'} cannot be loaded: ") and err.count("\n") == 1
