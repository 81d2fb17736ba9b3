"""Attributes of pictures: as they are found in a set, as they are dropped, and in runs."""

import json
import math
import shutil

import datasets
import pytest
import torch
from PIL import Image
from test_train import assert_same_end
from tiny_run import LONG, pictures, run, trained

from mezzotint import MezzotintPipeline
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.attributes import Attributes, specification

ROWS = datasets.Dataset.from_dict(
    {
        "kind": ["b", "a", None, "b"],
        "size": [1.0, 3.0, None, float("nan")],
        "shade": [0, 1, 2, 1],
        "on": [True, False] * 2,
    },
    features=datasets.Features(
        {
            "kind": datasets.Value("string"),
            "size": datasets.Value("float64"),
            "shade": datasets.ClassLabel(names=["dark", "grey", "light"]),
            "on": datasets.Value("bool"),
        }
    ),
)
SAID = {"label_column": "label", "attribute_columns": ["label"]}


def config(**settings) -> TrainConfig:
    return TrainConfig(dataset_name="digits", **settings)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, None),
        ({"label_column": "kind"}, {"class_labels": ["a", "b"]}),
        ({"label_column": "shade"}, {"class_labels": ["dark", "grey", "light"]}),
        ({"attribute_columns": ["size", "on"]}, {"size": [2.0, 1.0], "on": [0.5, 0.5]}),
    ],
)
def test_what_a_set_says_is_found(settings, expected):
    assert specification(config(**settings), ROWS) == expected


@pytest.mark.parametrize(
    "settings, rule",
    [
        ({"label_column": "kinds"}, "^label_column 'kinds' is not there: got columns 'kind', .*did you mean kind"),
        ({"label_column": "size"}, "^label_column 'size' must hold names or whole numbers: got"),
        ({"attribute_columns": ["kind"]}, "^attribute_columns 'kind' must hold numbers: got"),
        ({"attribute_columns": ["shade"]}, "^attribute_columns 'shade' must hold numbers: got ClassLabel"),
    ],
)
def test_columns_that_say_nothing_are_refused(settings, rule):
    with pytest.raises(UserError, match=rule):
        specification(config(**settings), ROWS)
    with pytest.raises(UserError, match="must hold different numbers"):
        specification(config(attribute_columns=["size"]), ROWS.select([0, 2]))


def test_a_row_is_read_and_what_is_missing_is_unknown():
    settings = config(label_column="shade", attribute_columns=["size"])
    read = Attributes(settings, specification(settings, ROWS), ROWS.features)
    found = [read.vector(row).tolist() for row in ROWS]
    assert found == [[1, 0, 0, -1, 1], [0, 1, 0, 1, 1], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0]]
    other = Attributes(config(label_column="kind"), {"class_labels": ["a", "c"]}, ROWS.features)
    with pytest.raises(ValueError, match="^label_column has a class that the network does not know: got 'b'"):
        other.vector(ROWS[0])
    with pytest.raises(UserError, match="^row 0: label_column has a class that the network does not know: got 'b'; le"):
        other.check(ROWS)
    other.check(ROWS.select([1, 2]))
    none = {"shade": -1, "size": 1.0}  # by which `datasets` says that there is no label
    assert read.vector(none).tolist() == [0, 0, 0, -1, 1]
    with pytest.raises(UserError, match="^attributes must be among those that the network reads, none: got size$"):
        Attributes(config(attribute_columns=["size"]), {}, ROWS.features)


def test_each_is_dropped_by_itself():
    settings = config(label_column="shade", attribute_columns=["size"], proportion_empty_attributes=0.3)
    read = Attributes(settings, specification(settings, ROWS), ROWS.features)
    drawn = torch.stack([read.drawn(ROWS[0], [0, 0, i, 0]) for i in range(2000)])
    assert torch.equal(read.drawn(ROWS[0], [0, 0, 5, 0]), drawn[5])
    kept = drawn[:, [0, 4]].bool()
    for share, expected in (
        (kept.float().mean(0)[0], 0.7),
        (kept.float().mean(0)[1], 0.7),
        (kept.all(1).float().mean(), 0.49),
    ):
        assert abs(share - expected) < 3 * math.sqrt(0.25 / 2000)


def test_a_run_reads_them_goes_on_and_draws_by_them(tmp_path):
    whole = trained(tmp_path / "whole", **LONG, **SAID)
    about = json.loads((whole / "unet" / "config.json").read_text())["attributes"]
    assert about["class_labels"] == [str(i) for i in range(10)] and len(about["label"]) == 2
    shutil.copytree(whole / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    assert_same_end(trained(tmp_path / "run", resume_from_checkpoint="latest", **LONG, **SAID), whole)
    card = (whole / "README.md").read_text()
    assert "it reads a class, of `label` (`class_labels=`), and `label` (`attributes={name: number}`); what" in card
    plan = json.loads((whole / "metrics.json").read_text())["plan"]["data"]["columns"]
    assert plan == {"image": ["image"], "caption": ["text"], "attributes": ["label", "label"]}
    pipe = MezzotintPipeline.from_pretrained(whole)
    pipe.set_progress_bar_config(disable=True)

    def draw(**call):
        generator = torch.Generator().manual_seed(0)
        return pipe("7", num_inference_steps=2, generator=generator, output_type="latent", **call).images

    assert not torch.equal(draw(class_labels="7"), draw())
    assert not torch.equal(draw(attributes={"label": 9.0}), draw(attributes={"label": 1.0}))


def test_a_saved_pipeline_is_tuned_on_what_it_reads(tmp_path):
    base = trained(tmp_path / "base", **SAID)
    tune = {"pretrained_model_name_or_path": base, "unet": ..., "text_encoder": ..., "max_text_length": ...}
    trained(tmp_path / "tuned", **tune, label_column="label")
    plain = trained(tmp_path / "plain")
    result = run(output_dir=tmp_path / "not", **tune | {"pretrained_model_name_or_path": plain}, label_column="label")
    assert result.code == 2 and "attributes must be among those that the network reads, none" in result.err


def test_streams_folders_and_buckets_say_it_too(tmp_path):
    trained(tmp_path / "stream", streaming=True, shuffle_buffer_size=20, **SAID)
    folder = pictures(tmp_path / "set", count=12)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    lines = [line | {"kind": "ab"[i % 2], "warmth": i / 10} for i, line in enumerate(lines)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Image.open(folder / "0.png").resize((16, 8)).save(folder / "0.png")
    of_a_folder = {"recipe": ..., "dataset_name": ..., "train_data_dir": folder, "max_train_samples": ...}
    result = trained(tmp_path / "run", **of_a_folder, label_column="kind", attribute_columns=["warmth"], resolution=8,
                     aspect_ratio_buckets="8,8;8,16")  # fmt: skip
    about = json.loads((result / "unet" / "config.json").read_text())["attributes"]
    assert about["class_labels"] == ["a", "b"] and about["warmth"] == [0.55, pytest.approx(0.345205)]
