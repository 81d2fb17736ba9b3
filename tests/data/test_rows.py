"""Rows: which sets and columns are taken, what is said of the others, and which rows are held out."""

import io
import json
import os
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tiny_run import digits, pictures

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data import rows
from mezzotint_training.data.digits import DIGIT_NAMES
from mezzotint_training.data.rows import NUMBER, checked_split, held_out, load_splits

NOISE = np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cached_here(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(rows, "digits", digits)


def rows_of(**settings) -> datasets.Dataset:
    """The rows to train on."""
    config = TrainConfig(**settings)
    return held_out(config, load_splits(config))[0]


def refused(**settings) -> str:
    with pytest.raises(UserError) as error:
        rows_of(**settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, "PNG")
    return file.getvalue()


# -------------------------------------------------------------------------------------------------------------- digits


def test_digits_are_scikit_learns():
    bunch, splits = load_digits(), digits()
    assert {name: len(split) for name, split in splits.items()} == {"train": 1498, "test": 299}
    place = {"train": [i for i in range(1797) if i % 6 != 5], "test": range(5, 1797, 6)}
    for name, split in splits.items():
        names = [DIGIT_NAMES[x] for x in bunch.target[place[name]]]
        assert split["label"][:] == bunch.target[place[name]].tolist()
        assert split["text"][:] == [
            [f"a handwritten {n}", f"the digit {n}", str(x)]
            for n, x in zip(names, bunch.target[place[name]], strict=True)
        ]
        for row in (0, 7, len(split) - 1):
            expected = bunch.images[place[name][row]] / 16 * 255
            assert np.abs(np.asarray(split[row]["image"]) - expected).max() <= 0.5


def test_the_split_and_the_first_rows_are_chosen():
    chosen = rows_of(dataset_name="digits", dataset_split="test", max_train_samples=3)
    assert chosen["label"][:] == load_digits().target[[5, 11, 17]].tolist()
    message = refused(dataset_name="digits", dataset_split="trian")
    assert message == "dataset_split 'trian' is not there: got 'train', 'test'"
    assert refused(dataset_name="digits", max_train_samples=0) == "max_train_samples must be at least 1: got 0"


def test_digits_are_streamed_in_sixteen_shares():
    splits = load_splits(TrainConfig(dataset_name="digits", streaming=True))
    assert {name: split.num_shards for name, split in splits.items()} == {"train": 16, "test": 16}
    for name, split in splits.items():
        assert [row["text"] for row in split] == digits()[name]["text"][:]


# ------------------------------------------------------------------------------------------------------ held-out rows


def split_in_two(splits=None, **settings) -> tuple[list, list | None]:
    """The captions of the rows to train on and of those held out."""
    config = TrainConfig(dataset_name="digits", **settings)
    trained, held = held_out(config, splits or numbered(train=400, test=30))
    return trained["text"][:], held and held["text"][:]


def numbered(**sizes) -> datasets.DatasetDict:
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    columns = {k: {"image": [None] * n, "text": [f"{k} {i}" for i in range(n)]} for k, n in sizes.items()}
    return datasets.DatasetDict({k: datasets.Dataset.from_dict(c, features=features) for k, c in columns.items()})


def test_a_twentieth_of_the_rows_is_kept_out_of_training():
    whole = [f"train {i}" for i in range(400)]
    trained, held = split_in_two()
    assert len(held) == 20 and trained == [x for x in whole if x not in held] and len(trained) == 380
    assert set(held) < set(whole) and held not in (whole[:20], whole[-20:], whole[::20])
    assert len(split_in_two(num_validation_samples=9)[1]) == 9
    trained, held = split_in_two(max_train_samples=200)  # of which the held-out ones are a part
    assert len(held) == 10 and sorted(trained + held) == sorted(whole[:200])
    for settings in ({"max_train_samples": 159}, {"num_validation_samples": 0}, {"num_validation_samples": 7}):
        assert split_in_two(**settings) == (whole[: settings.get("max_train_samples", 400)], None)


def test_held_out_rows_are_the_same_for_every_seed():
    splits = numbered(train=400, validation=300)
    assert split_in_two() == split_in_two(seed=1) == split_in_two(seed=2**40)
    assert split_in_two(splits)[1] == split_in_two(splits, seed=1)[1]


def test_rows_that_were_chosen_know_their_numbers_and_are_undecoded():
    splits = numbered(train=400)
    for part in held_out(TrainConfig(dataset_name="digits"), splits):
        assert part["text"][:] == [f"train {number}" for number in part[NUMBER]]
        assert part.features["image"] == datasets.Image(decode=False)
    whole, _ = held_out(TrainConfig(dataset_name="digits", num_validation_samples=0), splits)
    assert NUMBER not in whole.column_names


def test_a_split_for_it_is_used_and_nothing_kept_out_then():
    whole = [f"train {i}" for i in range(400)]
    for name, settings in (("validation", {}), ("test", {"validation_split": "test"})):
        splits = numbered(**{"train": 400, "validation": 30, "test": 30, name: 300})
        trained, held = split_in_two(splits, **settings)
        assert trained == whole and len(held) == 256 and set(held) < {f"{name} {i}" for i in range(300)}
        assert split_in_two(splits, num_validation_samples=0, **settings) == (whole, None)
        few = split_in_two(splits, num_validation_samples=3, max_train_samples=2, **settings)
        assert few[0] == whole[:2] and len(few[1]) == 3
    assert len(split_in_two(numbered(train=9, validation=400), dataset_split="validation")[1]) == 20
    assert split_in_two(numbered(train=400, validation=0))[1] is None


def test_a_held_out_split_that_cannot_be():
    for settings, message in (
        ({"validation_split": "dev"}, "validation_split 'dev' is not there: got 'train', 'test'"),
        ({"validation_split": "train"}, "validation_split must be another than dataset_split: got 'train' for both"),
    ):
        with pytest.raises(UserError) as error:
            split_in_two(**settings)
        assert str(error.value) == message


# ------------------------------------------------------------------------------------------------------------- sources


def test_a_folder_of_pictures_with_their_captions(tmp_path):
    found = rows_of(train_data_dir=str(pictures(tmp_path / "flat", count=4)))
    assert found["text"][:] == [f"picture {i}" for i in range(4)]
    assert found["image"][:] == [{"bytes": None, "path": str(tmp_path / "flat" / f"{i}.png")} for i in range(4)]
    folder = pictures(tmp_path / "several", count=2, captions=[["a", "b"], ["c"]])
    assert rows_of(train_data_dir=str(folder))["text"][:] == [["a", "b"], ["c"]]


@pytest.mark.parametrize("large", [False, True])
def test_a_folder_of_parquet_files(tmp_path, large):
    text = datasets.Value("large_string" if large else "string")
    features = datasets.Features({"picture": datasets.Image(), "words": datasets.List(text)})
    (tmp_path / "set").mkdir()
    for part in range(2):
        columns = {"picture": [{"bytes": png(), "path": None}] * 2, "words": [[f"{part}"], [f"{part}", "more"]]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "set" / f"train-{part}.parquet")
    found = rows_of(train_data_dir=str(tmp_path / "set"), image_column="picture", caption_column="words")
    assert found["words"][:] == [["0"], ["0", "more"], ["1"], ["1", "more"]]
    assert found["picture"][:] == [{"bytes": png(), "path": None}] * 4


def tars(folder: Path) -> Path:
    """Two tars of two pictures, captioned 0 to 3."""
    folder.mkdir()
    for part in range(2):
        with tarfile.open(folder / f"{part}.tar", "w") as tar:
            for i in (2 * part, 2 * part + 1):
                for ending, content in (("png", png()), ("txt", str(i).encode())):
                    member = tarfile.TarInfo(f"{i}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_tars(tmp_path, streaming):
    settings = {"train_data_dir": str(tars(tmp_path / "set")), "image_column": "png", "caption_column": "txt"}
    config = TrainConfig(**settings, streaming=streaming)
    found = list(checked_split(config, load_splits(config), "dataset_split", "train"))
    assert [row["txt"] for row in found] == ["0", "1", "2", "3"]
    assert [row["png"]["bytes"] for row in found] == [png()] * 4
    # whose captions no metadata.jsonl could hold
    message = refused(**settings | {"caption_column": "text"})
    assert message == "caption_column 'text' is not there: got columns 'png', 'txt', '__key__', '__url__'"


@pytest.mark.parametrize("captions, got", [([1, 2], "Value('int64')"), ([[1], [2]], "List(Value('int64'))")])
def test_captions_must_be_text(tmp_path, captions, got):
    message = refused(train_data_dir=str(pictures(tmp_path / "set", count=2, captions=captions)))
    assert message == f"caption_column 'text' must hold text or lists of text: got {got}"


def test_columns_that_are_not_there_or_are_something_else(tmp_path):
    folder = str(pictures(tmp_path / "set", count=2))
    message = refused(train_data_dir=folder, image_column="titel")
    assert message == "image_column 'titel' is not there: got columns 'image', 'text'"
    hint = "a folder of pictures needs a metadata.jsonl with 'file_name' and"
    message = refused(train_data_dir=folder, caption_column="titel")
    assert message == f"caption_column 'titel' is not there: got columns 'image', 'text'; {hint} 'titel'"
    message = refused(train_data_dir=folder, image_column="text")
    assert message == "image_column 'text' must hold pictures: got Value('string')"
    message = refused(train_data_dir=str(pictures(tmp_path / "bare", count=2, captions=False)))
    assert message == f"caption_column 'text' is not there: got columns 'image'; {hint} 'text'"


def test_a_stream_whose_columns_nothing_tells_is_refused(monkeypatch):
    unknown = datasets.IterableDataset.from_generator(lambda: iter([{"image": None, "text": "a"}]))
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: {"train": unknown})
    config = TrainConfig(dataset_name="user/set", streaming=True)
    with pytest.raises(UserError, match="^image_column 'image' must hold pictures: got columns of unknown types$"):
        checked_split(config, load_splits(config), "dataset_split", "train")


def test_folders_that_hold_no_set(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("words")
    assert refused(train_data_dir=str(tmp_path / "none")).startswith("train_data_dir must be a folder: ")
    assert refused(train_data_dir=str(tmp_path / "notes.txt")).startswith("train_data_dir must be a folder: ")
    message = refused(train_data_dir=str(tmp_path / "empty"))
    assert (
        message == f"train_data_dir must hold parquet files, tars, pictures or sounds: {tmp_path / 'empty'} holds none"
    )
    (tmp_path / "empty" / "train.parquet").write_bytes(b"words")
    assert refused(train_data_dir=str(tmp_path / "empty")).startswith(f"cannot load {tmp_path / 'empty'}: ")
    folder = pictures(tmp_path / "set", count=2)
    (folder / "metadata.jsonl").write_text("{words")
    assert refused(train_data_dir=str(folder)).startswith(f"cannot load {folder}: ")


@pytest.mark.parametrize("name", ["train.parquet", "metadata.jsonl"])
def test_a_pipe_among_the_files_of_a_set_is_not_waited_for(tmp_path, name):
    pictures(tmp_path / "set")
    (tmp_path / "set" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "set" / name)
    with pytest.raises(UserError, match=f"must hold plain files: .*{name} is not one"):
        load_splits(TrainConfig(train_data_dir=str(tmp_path / "set")))


def test_what_is_wrong_with_a_table_is_said_once(tmp_path, capfd, caplog):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.parquet").write_bytes(b"PAR1words and no numbersPAR1")
    with pytest.raises(UserError, match="cannot load .*train.parquet"):
        load_splits(TrainConfig(train_data_dir=str(tmp_path / "set")))
    assert caplog.text == "" and "Failed" not in capfd.readouterr().err


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_set_is_asked_for_by_name_and_its_failure_is_one_line(monkeypatch, streaming):
    asked = []

    def fail(*names, **options):
        asked.append((names, options))
        raise ConnectionError("no way\n  to the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = refused(dataset_name="user/set", dataset_config_name="small", streaming=streaming)
    assert message == "cannot load user/set: no way to the Hub"
    assert asked == [(("user/set", "small"), {"streaming": streaming})]


def test_pictures_with_a_text_file_each_are_told_what_they_need(tmp_path):
    folder = pictures(tmp_path / "set", count=3, captions=False)
    for i in range(3):
        (folder / f"{i}.txt").write_text(f"picture {i}")
    message = refused(train_data_dir=str(folder))
    assert message.endswith("; a folder of pictures needs a metadata.jsonl with 'file_name' and 'text'")


def test_a_column_may_not_have_the_name_of_one_of_ours(tmp_path):
    rows = datasets.Dataset.from_dict({"image": [None] * 3, "text": ["a"] * 3, NUMBER: [1, 2, 3]})
    rows = rows.cast_column("image", datasets.Image())
    with pytest.raises(UserError, match=f"^a column may not be called '{NUMBER}', as one of ours is: rename it$"):
        checked_split(TrainConfig(train_data_dir="none"), {"train": rows}, "dataset_split", "train")


@pytest.mark.parametrize("name", ["imagefolder", "parquet", "text"])
def test_a_folder_may_have_the_name_of_a_kind_of_file(tmp_path, monkeypatch, name):
    """For which `datasets` has a reader that would take all there is in the current directory."""
    pictures(tmp_path / name, count=3)
    pictures(tmp_path / "other", count=5)
    monkeypatch.chdir(tmp_path)
    assert len(load_splits(TrainConfig(train_data_dir=name))["train"]) == 3


def test_metadata_is_found_by_its_reader(tmp_path):
    folder = pictures(tmp_path / "set", count=2, captions=False)
    (folder / "metadata.csv").write_text("file_name,text\n0.png,a\n1.png,b\n")
    assert rows_of(train_data_dir=str(folder))["text"][:] == ["a", "b"]
    deep = pictures(tmp_path / "deep" / "inner", count=2, captions=False)
    lines = [json.dumps({"file_name": f"inner/{i}.png", "text": str(i)}) for i in range(2)]
    (deep.parent / "metadata.jsonl").write_text("\n".join(lines))
    assert rows_of(train_data_dir=str(deep.parent))["text"][:] == ["0", "1"]
