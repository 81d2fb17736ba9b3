"""Captions from several columns: what a template writes, which entry is drawn and how often, and that a set at hand and
a stream give the same."""

import io
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.captions import choices, drawn
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.rows import checked_split, composed, held_out, load_splits
from mezzotint_training.data.source import Rows, fingerprint, fixed_items
from mezzotint_training.data.streaming import CaptionedStream, load_stream

TEXT, MORE, KIND = "text", "{text}, {keywords}", "{{{kind}}} {text}"
CELLS = {
    "text": ["a cat", "a dog", "", None, None],
    "keywords": [["pet", "", None, "fur"], [], ["x"], None, ["y"]],
    "kind": [1, 0, -1, None, 1],
    "size": [1.5, 2.0, None, float("nan"), 1e6],
    "count": [3, 4, 5, 6, None],
}
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "text": datasets.Value("string"),
        "keywords": datasets.List(datasets.Value("string")),
        "kind": datasets.ClassLabel(names=["bird", "mammal"]),
        "size": datasets.Value("float32"),
        "count": datasets.Value("int64"),
    }
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    made = datasets.Dataset.from_dict({"image": [{"bytes": file.getvalue(), "path": None}] * 5} | CELLS, FEATURES)
    (tmp_path / "set").mkdir()
    made.to_parquet(tmp_path / "set" / "train.parquet")
    return str(tmp_path / "set")


def images(folder: str, *entries: str, **settings) -> CaptionedSamples:
    more = {"on_bad_row": "skip", "proportion_empty_prompts": 0.0} | settings
    config = TrainConfig(train_data_dir=folder, caption_column=list(entries), **more)
    return CaptionedSamples(held_out(config, load_splits(config))[0], config, 3, (8, 8))


def refused(folder: str, *entries: str, **settings) -> str:
    with pytest.raises(UserError) as error:
        images(folder, *entries, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_template_writes_cells_of_any_kind_and_nothing_where_one_is_empty():
    features = datasets.Features({name: feature for name, feature in FEATURES.items() if name != "image"})
    rows = composed(datasets.Dataset.from_dict(CELLS, features), [MORE, KIND, "{size}/{count}", "{kind}"])
    assert rows[MORE][:] == ["a cat, pet, fur", None, None, None, None]
    assert rows[KIND][:] == ["{mammal} a cat", "{bird} a dog", None, None, None]
    assert rows["{size}/{count}"][:] == ["1.5/3", "2/4", None, None, None]
    assert rows["{kind}"][:] == ["mammal", "bird", None, None, "mammal"]


def test_a_row_has_the_captions_of_the_entries_that_give_it_any(folder):
    found = images(folder, TEXT, MORE, KIND)
    assert [found.captions[i] for i in range(5)] == [
        ["a cat", "a cat, pet, fur", "{mammal} a cat"], ["a dog", "{bird} a dog"], [""], [], [],
    ]  # fmt: skip
    assert found.good.tolist() == [0, 1, 2]  # an empty text is a caption, as ever
    lines = [f"caption in row {i} must be text: got none from '{TEXT}', '{MORE}', '{KIND}'" for i in (3, 4)]
    assert found.bad == lines
    assert refused(folder, TEXT, MORE, KIND, on_bad_row="stop").startswith(f"{lines[0]}; --on_bad_row skip ")
    assert list(found.texts()) == ["a cat", "a cat, pet, fur", "{mammal} a cat", "a dog", "{bird} a dog", ""]
    found = images(folder, MORE, "keywords", "{count}")
    assert found.captions[4] == ["y"] and found.captions[0] == ["a cat, pet, fur", "3"]  # a list with a hole is none
    assert [item["caption"] for item in fixed_items(found, 5)] == ["a cat, pet, fur", "4", "x", "6", "y"]


def test_one_column_without_weights_is_drawn_from_as_ever():
    texts = ["a", "b", "c"]
    config = TrainConfig(dataset_name="digits")
    for number in np.random.default_rng(0).random(1000):
        assert drawn(choices([texts], config), number) == texts[int(number * 3)]
    assert drawn(choices([texts], config), 1 - 2**-53) == "c"


def test_entries_are_drawn_by_weight_and_the_captions_of_one_alike():
    config = TrainConfig(dataset_name="digits", caption_column=["a", "b", "c"], caption_weights=[2, 1, 3])
    numbers = (np.arange(1200) + 0.5) / 1200
    counts = Counter(drawn(choices(["x", ["y", "z"], "w"], config), number) for number in numbers)
    assert counts == {"x": 400, "y": 100, "z": 100, "w": 600}
    counts = Counter(drawn(choices(["x", None, "w"], config), number) for number in numbers)  # of those left
    assert counts == {"x": 480, "w": 720}


def test_what_is_drawn_is_keyed_and_anew_each_epoch(folder):
    found, again = (images(folder, TEXT, MORE, KIND, caption_weights=[1, 1, 8]) for _ in range(2))
    of_first = [found[epoch, 0]["caption"] for epoch in range(300)]
    assert of_first == [again[epoch, 0]["caption"] for epoch in range(300)]
    counts = Counter(of_first)
    assert abs(counts["{mammal} a cat"] - 240) < 35 and min(counts.values()) > 10  # five standard deviations
    plain = images(folder, TEXT)  # the same random numbers decide the rest
    assert torch.equal(plain[7, 0]["noise"], found[7, 0]["noise"]) and plain[7, 0]["uniform"] == found[7, 0]["uniform"]


def test_a_stream_has_the_captions_of_the_set_at_hand(folder):
    at_hand = images(folder, TEXT, MORE, KIND, "{size}/{count}")
    config = at_hand.config
    config.streaming = True
    stream = CaptionedStream(load_stream(config), config, 3, (8, 8))
    drawn_at = next(stream.batches(300))
    assert set(drawn_at["captions"]) == set(at_hand.texts())
    assert any("got none from" in line for line in drawn_at["bad"])
    assert stream.head.column_names[-3:] == [MORE, KIND, "{size}/{count}"]


def test_a_fingerprint_is_of_all_captions(folder):
    def found(*entries) -> str:
        of = images(folder, *entries)
        return fingerprint(Rows(of.rows, None), of.config)["captions"]

    assert len({found(TEXT), found(TEXT, MORE), found(TEXT, KIND), found(MORE)}) == 4
    assert found(TEXT, MORE) == found(TEXT, MORE)


@pytest.mark.parametrize(
    "entry, message",
    [
        ("{text}, {keyword}", "caption_column '{text}, {keyword}': column 'keyword' is not there: got columns "),
        ("{text.upper}", "caption_column '{text.upper}': column 'text.upper' is not there: got columns "),
        ("{keywords[0]}", "caption_column '{keywords[0]}': column 'keywords[0]' is not there: got columns "),
        ("{image}", "caption_column '{image}' must be of text, numbers, classes and lists of these: 'image' holds "),
        *((entry, f"caption_column {entry!r} must have columns in braces, as '{{text}}' ")
          for entry in ("{text", "text}", "{}", "{text!r}", "{text:>9}", "{{text}}")),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_is_refused_in_one_line(folder, entry, message):
    said = refused(folder, "text", entry)
    assert said.startswith(message)
    assert said.endswith("; did you mean keywords?") == (entry in ("{text}, {keyword}", "{keywords[0]}"))
    assert refused(folder, "text", entry, streaming=True) == said


def test_weights_must_be_one_for_each_entry():
    for settings, message in (
        ({"caption_weights": [1, 2]}, "caption_weights must be one for each of the 1 entries of caption_column: got 2"),
        ({"caption_weights": [0]}, "caption_weights must be a number above 0: got 0.0"),
        ({"caption_column": []}, "caption_column must name one column or more: got none"),
    ):
        with pytest.raises(UserError) as error:
            TrainConfig(dataset_name="digits", **settings)
        assert str(error.value) == message


def test_a_split_is_checked_as_a_whole(folder):
    config = TrainConfig(train_data_dir=folder, caption_column=MORE)
    assert checked_split(config, load_splits(config), "dataset_split", "train").column_names[-1] == MORE
