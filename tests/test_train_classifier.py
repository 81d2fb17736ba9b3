"""The classifier's training program: what it learns of real digits, what it leaves on disk, and what it refuses."""

import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from tiny_run import digits, pictures, tree

from mezzotint import MezzotintClassifier, MezzotintPipeline, MezzotintScheduler
from mezzotint_training import cli, train_classifier
from mezzotint_training.config.errors import UserError
from mezzotint_training.data import rows
from mezzotint_training.data.labels import labelled
from mezzotint_training.data.rows import column

UNET = {"in_channels": 1, "out_channels": 1, "sample_mean": (-0.4,), "sample_std": (0.75,)}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(save_pipe, tmp_path):
    save_pipe(tmp_path / "pipe", **UNET)
    (tmp_path / "pipe" / "README.md").write_text("# The card\n")
    return tmp_path / "pipe"


@pytest.fixture
def train(folder, tmp_path, monkeypatch, capsys):
    """`train(output, **settings)` is the exit code and what was said; without a data source, on digits."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(rows, "digits", digits)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run(output, *argv, **settings) -> tuple[int, str]:
        settings = {"pipeline": folder, "max_train_steps": 2, "train_batch_size": 4} | settings
        if "train_data_dir" not in settings:
            settings = {"dataset_name": "digits", "validation_split": "test", "num_validation_samples": 8} | settings
        flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        capsys.readouterr()
        try:
            code = cli.main(["train-classifier", "--output_dir", str(tmp_path / output), *flags, *argv])
        finally:  # a process trains once; here the next run must not find the last one's state
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        out, err = capsys.readouterr()
        return code, out if code == 0 else err

    return run


def test_it_learns_to_tell_digits_apart_and_less_so_under_noise(train, tmp_path):
    settings = {"max_train_steps": 80, "train_batch_size": 32, "learning_rate": 5e-3, "lr_warmup_steps": 5}
    code, out = train("run", "--only_classifier", **settings, logging_steps=20, num_validation_samples=200)
    losses = [float(line.split("much ")[1].split()[0]) for line in out.splitlines() if line.startswith("step ")]
    assert code == 0 and len(losses) == 4
    assert losses[0] > 2.1 and losses[-1] < 2.0  # with the least noise; by chance ln(10) = 2.3
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    held_out = metrics["held_out"]
    assert [round(x["timestep"]) for x in held_out] == [0, 125, 375, 624, 874]
    assert all(x["pictures"] == 200 for x in held_out)
    assert held_out[0]["interval"][0] > 0.25 and held_out[1]["interval"][0] > 0.25  # by chance a tenth
    assert held_out[1]["accuracy"] > held_out[2]["accuracy"] > held_out[4]["accuracy"]
    assert f"held-out accuracy at timestep 0, without noise: {held_out[0]['accuracy']:.1%} of 200" in out
    classifier = MezzotintClassifier.from_pretrained(tmp_path / "run")
    assert classifier.config.id2label == {i: str(i) for i in range(10)}
    assert (classifier.config.sample_mean, classifier.config.sample_std) == ([-0.4], [0.75])


def test_it_becomes_the_pipelines_in_both_of_its_lives(train, folder, tmp_path):
    before = tree(folder)
    code, _ = train("run", max_train_steps=10, learning_rate=1e-2)
    after = tree(tmp_path / "run")
    assert code == 0 and tree(folder) == before
    for path, content in before.items():  # transformers may write a tokenizer in other words
        assert after[path] == content or path.startswith(("model_index", "modular_model_index", "tokenizer")), path
    installed = MezzotintPipeline.from_pretrained(tmp_path / "run")
    stranger = DiffusionPipeline.from_pretrained(str(tmp_path / "run"), trust_remote_code=True)
    assert type(installed.classifier) is MezzotintClassifier
    assert type(stranger.classifier).__module__.startswith("diffusers_modules.local.classifier_mezzotint_v")
    drawn = {}
    for name, pipe in {"installed": installed, "stranger": stranger}.items():
        pipe.set_progress_bar_config(disable=True)
        for label in (None, 3, "8"):
            drawn[name, label] = pipe(
                "", num_inference_steps=3, guidance_scale=1.0, class_labels=label, output_type="np",
                generator=torch.Generator().manual_seed(0),
            ).images  # fmt: skip
    for label in (None, 3, "8"):
        np.testing.assert_array_equal(drawn["installed", label], drawn["stranger", label])
    assert min(np.abs(drawn["installed", x] - drawn["installed", None]).max() for x in (3, "8")) > 1e-3


def test_it_is_a_function_of_its_seed(train, tmp_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert train(name, "--only_classifier", seed=seed, classifier="{dropout: 0.1}")[0] == 0
        weights.append(load_file(tmp_path / name / WEIGHTS))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any(not torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


def test_it_begins_with_what_the_unet_has_learned(train, folder, tmp_path):
    train("run", "--only_classifier", learning_rate=1e-30, max_train_steps=1)
    unet, classifier = load_file(folder / "unet" / WEIGHTS), load_file(tmp_path / "run" / WEIGHTS)
    shared = [key for key in classifier if not key.startswith(("head", "norm_out"))]
    assert "conv_in.weight" in shared and "mid_block.transformer_layers.0.attn1.to_q.weight" in shared
    for key in shared:
        assert torch.equal(classifier[key], unet[key]), key


def test_rows_without_a_label_are_said_and_can_be_left_out(train, tmp_path):
    folder = pictures(tmp_path / "pictures", 12)
    lines = [{"file_name": f"{i}.png", "kind": None if i == 5 else "cat" if i % 2 else "ape"} for i in range(12)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    settings = {"train_data_dir": folder, "label_column": "kind"}
    code, err = train("run", **settings)
    assert code == 2 and "row 5 must be text: got None for" in err and "--on_bad_row skip" in err
    code, out = train("run", "--only_classifier", **settings, on_bad_row="skip")
    assert code == 0 and "11 pictures of 2 classes" in out and out.count("row 5") == 1
    assert MezzotintClassifier.from_pretrained(tmp_path / "run").config.id2label == {0: "ape", 1: "cat"}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["held_out"] == []


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"pipeline": "{tmp}/none"}, "pipeline {tmp}/none cannot be loaded: "),
        ({"label_column": "kind"}, "label_column 'kind' is not there: got columns 'image', 'text', 'label'"),
        ({"label_column": "text"}, "label_column 'text' must hold a ClassLabel, whole numbers or text: got List"),
        ({"validation_split": "dev"}, "validation_split 'dev' is not there: got 'train', 'test'"),
        ({"resolution": 9}, "resolution must be a multiple of 2 for a model of 2 levels: got 9x9, possible is 8x8"),
        ({"classifier": "{layers: 3}"}, "MezzotintClassifier has no argument 'layers'; did you mean"),
        ({"classifier": "[1]"}, "classifier must be a mapping of names to values: got '[1]'"),
        ({"classifier": "&a [*a]"}, "classifier must be YAML: got '&a [*a]' (aliases are not possible here"),
        ({"classifier": "[" * 5000}, "classifier must be YAML: got '[[["),
        ({"train_batch_size": 10**12}, "train_batch_size must be at most 65,536: got 1000000000000"),
        ({"seed": 2**63}, "seed must be below 2^63: got"),
        ({"label_column": ""}, "argument --label_column: must not be empty: got ''"),
        ({"classifier": "{block_out_channels: [7]}"}, "classifier cannot be made: transformer_layers_per_block needs"),
        ({"learning_rate": "fast"}, "learning_rate must be of type float: got 'fast'"),
        (
            {"train_data_dir": "{tmp}/none"},
            "train_data_dir must be a folder: {tmp}/none does not exist or is not a folder",
        ),
    ],
)
def test_bad_input_is_said_in_one_line_and_leaves_nothing(train, tmp_path, settings, words):
    settings = {k: v.format(tmp=tmp_path) if v is not None and "tmp" in str(v) else v for k, v in settings.items()}
    code, err = train("run", **settings)
    assert code == 2
    assert err.count("\n") == 1 and err.startswith(f"mezzotint: {words.format(tmp=tmp_path)}"), err
    assert not (tmp_path / "run").exists()


def test_what_is_in_the_way_stays(train, folder):
    before = tree(folder)
    code, err = train(folder.name)
    assert (code, err) == (2, f"mezzotint: output_dir must be a new or an empty folder: got {folder}\n")
    assert tree(folder) == before


def test_a_loss_that_is_no_number_ends_the_run(train, tmp_path):
    code, err = train("run", learning_rate=1e30, lr_warmup_steps=0, max_train_steps=10, logging_steps=5)
    assert code == 3 and err.startswith("mezzotint: the loss is ") and "a lower learning_rate may help" in err
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------- its parts


def dataset(values, feature) -> datasets.DatasetDict:
    features = datasets.Features({"image": datasets.Value("string"), "label": feature})
    rows = {"image": [""] * len(values), "label": values}
    return datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)})


@pytest.mark.parametrize(
    "values, feature, texts, classes",
    [
        ([10, 9, None], datasets.Value("int64"), ["10", "9", None], ["9", "10"]),
        (["b", "a", "b"], datasets.Value("string"), ["b", "a", "b"], ["a", "b"]),
        ([True, False], datasets.Value("bool"), ["True", "False"], ["False", "True"]),
        ([1, -1], datasets.ClassLabel(names=["b", "a", "c"]), ["a", None], ["b", "a", "c"]),
    ],
)
def test_labels_go_by_name(values, feature, texts, classes):
    named, found = labelled(dataset(values, feature), "label")
    assert column(named["train"], "label").to_pylist() == texts and found == classes


def test_numbers_that_are_no_classes_are_refused():
    with pytest.raises(UserError, match="^label_column 'label' must hold a ClassLabel, whole numbers or text: got Va"):
        labelled(dataset([0.5], datasets.Value("float32")), "label")


def test_accuracy_is_counted_and_has_wilsons_interval(monkeypatch):
    """A classifier that says 'dark' at the least noise and reads the mean otherwise, on pictures of 3 dark and 7 light;
    under all noise levels but the greatest the mean of 4096 numbers is told by its sign."""
    items = [
        {"sample": torch.full((1, 64, 64), x), "caption": "light" if x > 0 else "dark"} for x in [-1.0] * 3 + [1.0] * 7
    ]
    monkeypatch.setattr(train_classifier, "fixed_items", lambda images, count: items[:count])

    class Mean(SimpleNamespace):
        def __call__(self, sample, timestep, return_dict):
            light = sample.mean((1, 2, 3)) * (timestep > 0)
            return (torch.stack([torch.zeros(len(sample)), light], dim=1),)

    found = train_classifier.accuracies(
        Mean(device="cpu"), MezzotintScheduler(), items, {"dark": 0, "light": 1}, batch_size=4
    )
    assert [x["accuracy"] for x in found[:4]] == [0.3, 1.0, 1.0, 1.0]
    z, p, n = 1.959964, 0.3, 10
    half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = [(p + z**2 / (2 * n) + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]  # Wilson (1927)
    np.testing.assert_allclose(found[0]["interval"], expected, atol=1e-6)
    assert found[1]["interval"][1] == 1.0 and found[0]["noise"] is False and found[1]["noise"] is True
