# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Where rows come from: splits of a set, at hand or streamed, whose columns are checked, and which rows are held out.
Nothing is decoded here: what becomes of a row is said in `data.py`.
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from mezzotint_training.config.errors import UserError, one_line, silenced
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.modalities.images import EXTENSIONS

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Endings of files that hold rows, or what is said of pictures
TABLES = (".parquet", ".arrow", ".tar", ".jsonl", ".csv")
# The column with a row's number in its split, where rows were kept out of it
NUMBER = "number in the split"
# Held-out rows are drawn by this and not by the run's seed: losses are compared from run to run
HELD_OUT = (0, 0, 0, 0, 1)

Rows = TypeVar("Rows", datasets.Dataset, datasets.IterableDataset)


def digits() -> datasets.DatasetDict:
    """The 1,797 handwritten digits that scikit-learn carries (8x8 pixels, 16 greys; UCI Optical Recognition of
    Handwritten Digits, CC BY 4.0), captioned in three ways. Every sixth is the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.List(datasets.Value("string")), "label": datasets.Value("int64")}
    )
    rows = {"train": {"image": [], "text": [], "label": []}, "test": {"image": [], "text": [], "label": []}}
    for index, (picture, label) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        split = rows["test" if index % 6 == 5 else "train"]
        content = io.BytesIO()  # as BMP: the same bytes whatever versions of Pillow and zlib there are
        Image.fromarray(np.round(picture * (255 / 16)).astype(np.uint8)).save(content, "BMP")
        split["image"].append({"bytes": content.getvalue(), "path": None})
        name = DIGIT_NAMES[label]
        split["text"].append([f"a handwritten {name}", f"the digit {name}", str(label)])
        split["label"].append(int(label))
    return datasets.DatasetDict({name: datasets.Dataset.from_dict(r, features=features) for name, r in rows.items()})


def load_splits(config: TrainConfig) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """The splits of the set that `config` names: parquet files, WebDataset tars (whose columns are the endings of their
    files: png, txt, ...) or pictures with metadata, in a folder or on the Hub; as streams under `config.streaming`.

    Raises:
        UserError: for a missing, empty or unreadable folder, or a set that cannot be loaded.
    """
    if config.dataset_name == "digits":
        splits = digits()
        if config.streaming:
            return datasets.IterableDatasetDict({k: v.to_iterable_dataset(num_shards=16) for k, v in splits.items()})
        return splits
    files: list[Path] = []
    if config.train_data_dir is not None:
        folder = Path(config.train_data_dir)
        if not folder.is_dir():
            raise UserError(f"train_data_dir must be a folder: {folder} does not exist or is none")

        def unreadable(error: OSError) -> None:
            raise UserError(f"train_data_dir must be readable, with all in it: {one_line(error)}") from None

        # `datasets` passes over a folder that it may not read, and so would the run over its pictures
        files = [Path(place, name) for place, _, names in os.walk(folder, onerror=unreadable) for name in names]
        if not any(path.suffix.lower() in (*EXTENSIONS, *TABLES[:3]) for path in files):
            raise UserError(f"train_data_dir must hold parquet files, tars or pictures: {folder} holds none")
        for path in files:  # `datasets` would wait for a pipe
            if path.suffix.lower() in TABLES and path.exists() and not path.is_file():
                raise UserError(f"train_data_dir must hold plain files: {path} is none")
    source = config.train_data_dir or config.dataset_name
    try:
        with silenced():
            return datasets.load_dataset(source, config.dataset_config_name, streaming=config.streaming)
    except Exception as error:  # datasets raises its own, pyarrow's, the Hub client's and plain ones
        for path in sorted(path for path in files if path.suffix == ".parquet"):  # which of many it is, is not said
            try:
                pq.read_metadata(path)
            except Exception as fault:
                raise UserError(f"cannot load {source}: {path}: {one_line(fault)}") from None
        raise UserError(f"cannot load {source}: {one_line(error)}") from None


def held_out(config: TrainConfig, splits: datasets.DatasetDict) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The rows to train on and those of the held-out loss, with pictures left undecoded.

    Held out are `num_validation_samples` rows of `validation_split`, or else of a split called 'validation', or else of
    the training rows, at most a twentieth of which are kept out of training; where that makes fewer than 8, none are.
    They are drawn once for all seeds. `max_train_samples` comes first.

    Raises:
        UserError: for a split or column that isn't there or of another type; the message says what there is.
    """
    rows = checked_split(config, splits, "dataset_split", config.dataset_split)
    if config.max_train_samples is not None:
        rows = rows.select(range(min(config.max_train_samples, len(rows))))
    if len(rows) == 0:
        raise UserError(f"the split {config.dataset_split!r} must have rows: got none")
    rng = np.random.default_rng(HELD_OUT)
    other = config.validation_split or ("validation" if "validation" in splits else config.dataset_split)
    if other != config.dataset_split:
        held = checked_split(config, splits, "validation_split", other)
        count = min(config.num_validation_samples, len(held))
        return rows, _numbered(held, rng.permutation(len(held))[:count]) if count else None
    if config.validation_split is not None:
        raise UserError(f"validation_split must be another than dataset_split: got {other!r} for both")
    count = min(config.num_validation_samples, len(rows) // 20)
    if count < 8:
        return rows, None
    order = rng.permutation(len(rows))
    return _numbered(rows, order[count:]), _numbered(rows, order[:count])


def checked_split(config: TrainConfig, splits: Mapping[str, Rows], flag: str, split: str) -> Rows:
    """A split, with pictures left undecoded.

    Raises:
        UserError: for a split (which `flag` names) or column that isn't there or of another type.
    """
    if split not in splits:
        raise UserError(f"{flag} {split!r} is not there: got {', '.join(map(repr, splits))}")
    rows, image, caption = splits[split], config.image_column, config.caption_column
    if rows.features is None:  # of a stream
        raise UserError(f"image_column {image!r} must hold pictures: got columns of unknown types")
    for name, flag in ((image, "image_column"), (caption, "caption_column")):
        if name not in rows.features:
            hint = ""
            if flag == "caption_column" and rows.builder_name == "imagefolder":
                hint = f"; a folder of pictures needs a metadata.jsonl with 'file_name' and {name!r}"
            raise UserError(f"{flag} {name!r} is not there: got columns {', '.join(map(repr, rows.features))}{hint}")
    feature = rows.features[image]
    if not isinstance(feature, datasets.Image):
        raise UserError(f"image_column {image!r} must hold pictures: got {feature}")
    feature = rows.features[caption]
    inner = getattr(feature, "feature", feature)
    if getattr(inner, "dtype", None) not in ("string", "large_string"):
        raise UserError(f"caption_column {caption!r} must hold text or lists of text: got {feature}")
    return rows.cast_column(image, datasets.Image(decode=False))


def _numbered(rows: datasets.Dataset, chosen: np.ndarray) -> datasets.Dataset:
    """The chosen rows in their order in the split, each with its number there, which a message about it must give."""
    return rows.add_column(NUMBER, np.arange(len(rows))).select(np.sort(chosen))
