"""The programs `classify` and `outliers` on a tiny pipeline: what they say and write, and what they refuse. What they
find is compared with closed forms in `metrics/test_zero_shot.py`."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from test_evaluate import UNET, folder  # noqa: F401 (a fixture)

from mezzotint_training import cli
from mezzotint_training.metrics import outliers as metrics_outliers

PICTURES = ("a handwritten two", "a handwritten seven")


@pytest.fixture
def run(folder, tmp_path, capsys):  # noqa: F811
    """`run(program, *words)` is the exit code, what was written and what was said."""

    def call(program, *words):
        output = tmp_path / "found.json"
        output.unlink(missing_ok=True)
        code = cli.main([program, str(folder), *words, "--output", str(output), "--device", "cpu"])
        out, err = capsys.readouterr()
        return code, json.loads(output.read_text()) if output.is_file() else None, out if code == 0 else err

    return call


@pytest.fixture
def pictures(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((20, 30), 200 * i, np.uint8)).save(path)
    return paths


def test_files_are_classified_among_the_captions_that_are_named(run, pictures):
    code, found, out = run("classify", *pictures, "--captions", *PICTURES, "--rounds", "6")
    assert code == 0 and found["captions"] == list(PICTURES)
    for path, verdict, line in zip(pictures, found["verdicts"], out.splitlines(), strict=True):
        assert verdict["caption"] in PICTURES and 0.5 <= verdict["probability"] <= 1
        assert line == f"{path}: {verdict['caption']} ({verdict['probability']:.1%})"
    assert run("classify", *pictures, "--captions", *PICTURES, "--rounds", "6") == (0, found, out)


def test_a_set_is_classified_among_its_own_captions(run):
    code, found, out = run("classify", "--count", "3", "--rounds", "6")
    assert code == 0 and len(found["captions"]) == 10 and len(found["verdicts"]) == 3
    assert found["evaluations"] <= 10 * 6 * 4
    right = sum(x["caption"] == x["own"] for x in found["verdicts"])
    assert found["right"]["value"] == right / 3
    assert (
        out.startswith(f"{right / 3:.1%} (")
        and " of 3 held-out pictures are likeliest under their own caption of 10" in out
    )


def test_rows_of_a_set_are_looked_at(run, monkeypatch):
    monkeypatch.setattr(metrics_outliers, "LEVELS", 8)
    code, found, out = run("outliers", "--count", "40")
    assert code == 0 and found["pictures"] == {"known": 40, "held_out": 40} and found["dimensions"] == 64
    low, high = found["told_apart"]["interval"]
    assert low < 0.5 < high  # of a network that was never trained
    assert out.startswith(f"40 pictures trained on: {found['bits_per_dimension']['known']['value']:.3f} (")
    for row in (*found["unlike"], *found["captions"]):
        assert 0 <= row["row"] < 300 and row["caption"].startswith("a handwritten ")


TWO = "captions must be two or more different ones to choose from: got "


@pytest.mark.parametrize(
    "words, message",
    [
        (["classify", "no.png", "--captions", "a", "b"],
         "picture no.png cannot be read: [Errno 2] No such file or directory: 'no.png'"),
        (["classify", "no.png"], f"{TWO}none"),
        (["classify", "--captions", "a", "a"], f"{TWO}['a', 'a']"),
        (["classify", "--captions", "a", "b"],
         "captions must be of the set's pictures: got none that a held-out one has"),
        (["classify", "--rounds", "5"], "rounds must be at least 6: got 5"),
        (["outliers", "--count", "39"], "count must be at least 40: got 39"),
        (["outliers", "--split", "dev"], "validation_split 'dev' is not there: got 'train', 'test'"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(run, words, message):
    assert run(*words) == (2, None, f"mezzotint: {message}\n")


@pytest.mark.parametrize("program", ["classify", "outliers"])
def test_networks_without_likelihoods_of_pictures_are_refused(program, run, folder, make_pipe):  # noqa: F811
    shutil.rmtree(folder)
    make_pipe(**UNET | {"in_channels": 3, "condition": {"task": "inpaint"}}).save_pretrained(folder)
    (folder / "recipe.yaml").write_text("dataset_name: digits\n")
    expected = f"mezzotint: {program} needs a checkpoint that is trained for text_to_image: got one for inpaint\n"
    assert run(program) == (2, None, expected)
