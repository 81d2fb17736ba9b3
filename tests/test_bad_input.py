"""Bad input to the training program: each kind gives one line (the rule, what was got, what is possible), exit code 2,
and leaves everything on disk as it was."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import LONG, UNET, pictures, run, trained, tree

from mezzotint_training.data import dataset as data


def edit(change):
    """Change the tensors of a safetensors file."""

    def damage(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def pickle(path: Path) -> None:
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


DAMAGE = {
    "missing": edit(lambda tensors: tensors.pop(sorted(tensors)[0])),
    "surplus": edit(lambda tensors: tensors.update(extra=torch.zeros(1))),
    "another-shape": edit(lambda tensors: tensors.update({sorted(tensors)[0]: torch.zeros(2)})),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:500]),
    "none": Path.unlink,
    "pickle": pickle,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with all kinds of good and bad things to start from."""
    world = tmp_path_factory.mktemp("world")
    whole = trained(tmp_path_factory.mktemp("whole") / "run", **LONG)
    pictures(world / "good")
    pictures(world / "bare", captions=False)
    pictures(world / "numbers", captions=list(range(10)))
    pictures(world / "gaps", captions=["a"] * 7 + [None] * 3)
    pictures(world / "odd", size=(9, 8))
    broken = pictures(world / "broken")
    (broken / "3.png").write_bytes((broken / "3.png").read_bytes()[:50])
    (broken / "5.png").write_text("words")
    (world / "empty").mkdir()
    (world / "file").write_text("words")
    (world / "foreign").mkdir()
    (world / "foreign" / "thesis.txt").write_text("words")
    (world / "invalid.yaml").write_text("seed: [1\nunet: 2")
    (world / "unknown.yaml").write_text("trian_batch_size: 3")
    shutil.copytree(whole, world / "run", ignore=shutil.ignore_patterns("checkpoint-[24]"))
    shutil.copytree(world / "run", world / "scrawled")
    (world / "scrawled" / "recipe.yaml").write_text("seed: [1")
    for name in ("unet", "text_encoder"):
        for kind, damage in DAMAGE.items():
            shutil.copytree(whole, world / f"{name}-{kind}")
            damage(next((world / f"{name}-{kind}" / name).glob("*.safetensors")))
    return world


# The settings, with `@` for the world's folder, and what the line must say: the rule, what was got, what is possible
NEW = {"recipe": ..., "unet": UNET, "dataset_name": ...}
TUNED = {"unet": ..., "text_encoder": ..., "max_text_length": ...}
BAD = {
    "no folder": (NEW | {"train_data_dir": "@/none"}, ["train_data_dir must be a folder", "@/none does not exist"]),
    "a file for a folder": (NEW | {"train_data_dir": "@/file"}, ["train_data_dir must be a folder", "@/file"]),
    "an empty folder": (
        NEW | {"train_data_dir": "@/empty"},
        ["must hold parquet files, tars, pictures or sounds", "@/empty"],
    ),
    "no captions": (NEW | {"train_data_dir": "@/bare"}, ["'text' is not there", "'image'", "needs a metadata.jsonl"]),
    "no such column": (
        NEW | {"train_data_dir": "@/good", "caption_column": "title"},
        ["caption_column 'title' is not there", "'image', 'text'"],
    ),
    "captions of numbers": (NEW | {"train_data_dir": "@/numbers"}, ["'text' must hold text", "Value('int64')"]),
    "a caption missing": (NEW | {"train_data_dir": "@/gaps"}, ["caption in row 7 must be text", "None"]),
    "a broken picture": (NEW | {"train_data_dir": "@/broken"}, ["row 3 (@/broken/3.png)", "--on_bad_row skip"]),
    "no such split": ({"dataset_split": "trian"}, ["dataset_split 'trian' is not there", "'train', 'test'"]),
    "no source": ({"recipe": ...}, ["exactly one of dataset_name and train_data_dir must be given: got neither"]),
    "two sources": (
        {"train_data_dir": "@/good", "dataset_name": "digits"},
        ["exactly one of dataset_name and train_data_dir must be given: got both"],
    ),
    "a size of the pictures": (NEW | {"train_data_dir": "@/odd"}, ["a multiple of 2", "got 9x8", "possible is 8x8"]),
    "a size asked for": ({"resolution": [13, 8]}, ["a multiple of 2", "got 13x8", "possible is 12x8"]),
    "no such recipe": ({"recipe": "digit"}, ["unknown recipe 'digit'; did you mean digits?; there are digits"]),
    "no such flag": ({"learning_rat": 1}, ["unknown flag --learning_rat; did you mean --learning_rate?"]),
    "no such key": ({"config": "@/unknown.yaml"}, ["unknown setting 'trian_batch_size'", "mean train_batch_size?"]),
    "no YAML": ({"config": "@/invalid.yaml"}, ["@/invalid.yaml cannot be read as YAML", "line 1"]),
    "no such file": ({"config": "@/none.yaml"}, ["@/none.yaml does not exist"]),
    "no such argument": (
        {"unet": UNET | {"droput": 0.1}},
        ["MezzotintUNetModel has no argument 'droput'; did you mean dropout?"],
    ),
    "an argument of another type": ({"unet": UNET | {"block_out_channels": 16}}, ["must be a list of numbers", "16"]),
    "a seed": ({"seed": -1}, ["seed must be at least 0: got -1"]),
    "an empty place": ({"output_dir": ""}, ["output_dir must not be empty: got ''"]),
    "a batch beyond sense": ({"train_batch_size": 10**12, "plan": True}, ["train_batch_size must be at most 65,536"]),
    "a resolution beyond sense": ({"resolution": [100_000]}, ["resolution must be at most 8,192: got 100000"]),
    "more drawing steps than levels": (
        {"num_inference_steps": 1001},
        ["num_inference_steps must be at most 1,000: got 1001"],
    ),
    "an encoder of no width": (
        {"text_encoder": {"d_model": 0, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}},
        ["the text_encoder's d_model must be at least 1: got 0"],
    ),
    "half precision on a CPU": (
        {"mixed_precision": "fp16"},
        ["fp16 needs a GPU", "got a CPU", "possible are bf16 and"],
    ),
    "no such tracker": ({"report_to": "tensorbord"}, ["report_to must be 'auto', 'none'", "'tensorbord'"]),
    "a tracker not there": ({"report_to": "aim"}, ["a tracker that is installed (", "tensorboard", "got 'aim'"]),
    "no checkpoint": ({"resume_from_checkpoint": "@/empty"}, ["must be a checkpoint folder", "state.json", "@/empty"]),
    "no latest": ({"resume_from_checkpoint": "latest"}, ["resume_from_checkpoint is 'latest', but", "no whole checkp"]),
    "a checkpoint of another run": (
        LONG | {"resume_from_checkpoint": "@/run/checkpoint-6", "seed": 1},
        ["@/run/checkpoint-6 holds another run", "seed was 0, now 1): what may change is", "learning_rate"],
    ),
    "a checkpoint of this run with another rate": (
        LONG | {"output_dir": "@/run", "resume_from_checkpoint": "@/run/checkpoint-6", "learning_rate": 1},
        ["@/run holds another run", "learning_rate was 0.002, now 1.0"],
    ),
    "another run's folder": (
        LONG | {"output_dir": "@/run", "seed": 1},
        ["output_dir", "@/run holds another run", "seed was 0, now 1", "choose another output_dir"],
    ),
    "a run's folder that cannot be read": (
        LONG | {"output_dir": "@/scrawled"},
        ["@/scrawled/recipe.yaml cannot be rea"],
    ),
    "a folder of other things": ({"output_dir": "@/foreign"}, ["output_dir must be empty, new, or hold this run"]),
    "other things in the way": (
        LONG | {"output_dir": "@/foreign", "resume_from_checkpoint": "@/run/checkpoint-6"},
        ["output_dir must be empty, new, or hold this run: @/foreign holds other files"],
    ),
    "a file in the way": ({"output_dir": "@/file"}, ["output_dir must be a folder", "@/file is a file"]),
    "a file above": ({"output_dir": "@/file/run"}, ["output_dir must be a folder to write to", "@/file"]),
    "no pipeline": (TUNED | {"pretrained_model_name_or_path": "@/good"}, ["no file named model_index.json", "@/good"]),
    "no text encoder": ({"text_encoder_name_or_path": "@/good"}, ["text_encoder_name_or_path @/good cannot be loaded"]),
}
WORDS = {
    "missing": ["1 missing", "(conv_in.bias)"],
    "surplus": ["1 unexpected", "(extra)"],
    "another-shape": ["conv_in.bias", "shape", "[2]"],
    "cut": ["safetensors"],
    "none": ["no file named diffusion_pytorch_model.safetensors"],
    "pickle": ["no file named diffusion_pytorch_model.safetensors"],
}
TEXT_WORDS = {
    "missing": ["text_encoder must be those of its config: 1 missing (encoder.block"],
    "surplus": ["text_encoder must be those of its config: 1 unexpected (extra)"],
    "another-shape": ["text_encoder must be those of its config: 1 mismatched", "[2]"],
    "cut": ["header"],
    "none": ["no file named model.safetensors"],
    "pickle": ["no file named model.safetensors"],
}
for part, words in (("unet", WORDS), ("text_encoder", TEXT_WORDS)):
    for kind, said in words.items():
        source = f"@/{part}-{kind}"
        expected = [f"pretrained_model_name_or_path {source} cannot be loaded: ", *said]
        BAD[f"{part} {kind}"] = (TUNED | {"pretrained_model_name_or_path": source}, expected)


@pytest.fixture(scope="module")
def untouched(world) -> dict[str, str]:
    return tree(world)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_said_in_one_line_and_nothing_is_touched(world, untouched, name):
    settings, said = BAD[name]
    settings = {k: v.replace("@", str(world)) if isinstance(v, str) else v for k, v in settings.items()}
    result = run(**{"output_dir": world / "out"} | settings)
    assert result.code == 2
    assert result.err.startswith("mezzotint: ") and result.err.count("\n") == 0, result.err
    for words in said:
        assert words.replace("@", str(world)) in result.err, result.err
    assert tree(world) == untouched


def test_bad_rows_may_be_skipped_and_are_counted(world, tmp_path):
    settings = NEW | {"train_data_dir": world / "broken", "on_bad_row": "skip"}
    result = run(output_dir=tmp_path / "run", **settings)
    assert result.code == 0 and "8 of 10 rows; heights 8, widths 8;" in result.out
    assert "dropped      2 rows\n" in result.out
    assert [line.split(" cannot")[0].strip() for line in result.out.splitlines() if " cannot be read" in line] == [
        f"picture in row {i} ({world / 'broken' / f'{i}.png'})" for i in (3, 5)
    ]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["pictures"], metrics["bad_rows"]) == (8, 2)
    assert "| rows left out, with a bad picture or caption | 2 |" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_found_late_is_said_in_one_line(world, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(data, "CACHE_BYTES", 0)
    monkeypatch.setattr(data.CaptionedSamples, "statistics", lambda self: ([0.0] * 3, [1.0] * 3))
    settings = NEW | {"train_data_dir": world / "broken", "dataloader_num_workers": workers}
    result = run(output_dir=tmp_path / "run", **settings)
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert line.startswith("mezzotint: picture in row ")
    assert line.endswith("--on_bad_row skip goes on without it")


def test_a_device_of_accelerate_that_is_not_there_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "quantum")
    result = run(output_dir=tmp_path / "run")
    assert result.code == 2 and result.err.count("\n") == 0 and result.err.endswith("device string: quantum")
    assert result.err.startswith("mezzotint: Expected one of cpu, cuda, ") and not (tmp_path / "run").exists()
