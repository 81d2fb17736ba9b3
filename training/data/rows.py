# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Loads the splits of a set, at hand or streamed, checks their columns and chooses the rows that are held out. Nothing
is decoded here: what becomes of a row is decided in `dataset.py`.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mezzotint_training.config.errors import UserError, one_line, silenced
from mezzotint_training.config.rules import nearest, shown
from mezzotint_training.config.settings import TrainConfig, default
from mezzotint_training.config.tasks import MODALITIES, TASKS, modality, reader, sample_column
from mezzotint_training.data.blocks import blocks
from mezzotint_training.data.chains import chains
from mezzotint_training.data.digits import digits
from mezzotint_training.data.squares import squares
from mezzotint_training.data.templates import check_fields, columns_of, is_template
from mezzotint_training.data.templates import reader as caption_reader
from mezzotint_training.data.tones import tones

# Endings of files that hold rows, or what is said of samples
TABLES = (".parquet", ".arrow", ".tar", ".jsonl", ".csv")
# The column with a row's number in its split, where rows were kept out of it
NUMBER = "number in the split"
# Held-out rows are drawn by this and not by the run's seed: losses are compared from run to run
HELD_OUT = (0, 0, 0, 0, 1)

Rows = TypeVar("Rows", datasets.Dataset, datasets.IterableDataset)


def load_splits(config: TrainConfig) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """The splits of the set that `config` names: parquet files, WebDataset tars (whose columns are the endings of their
    files: png, txt, ...) or pictures or sounds with metadata, in a folder or on the Hub; as streams under
    `config.streaming`. What a sample is, where `config` does not say it, is noted there.

    Raises:
        UserError: for a missing, empty or unreadable folder, a set that cannot be loaded, or settings that are not for
            what its samples are.
    """
    splits = _loaded(config)
    if config.dataset_split in splits:
        settle_modality(config, splits[config.dataset_split].features or {})
    return splits


def settle_modality(config: TrainConfig, features: Mapping[str, Any]) -> None:
    """Note in `config` what the samples of a set are and in which column, where it does not say it: what is no picture
    is told by the type of a column, where there is no column of pictures by the name of `image_column`.

    Raises:
        UserError: for settings that are not for such samples.
    """
    if config.modality is not None or not isinstance(features.get(config.image_column), datasets.Image):
        _settle_other_modality(config, features)
        if config.modality is None:
            return
    name, word = config.modality or "image", modality(config).word
    if name != "image" and "modality" in config.without:
        raise UserError(f"{config.program} is for pictures: got {word}s (modality {name})")
    for setting in modality(config).without:
        if (value := getattr(config, setting)) != default(setting, type(config)):
            raise UserError(f"{setting} is not for {word}s (modality {name}): got {shown(value)}")


def _settle_other_modality(config: TrainConfig, features: Mapping[str, Any]) -> None:
    """Note in `config` the modality, which is none of pictures, and the column that the types of columns tell."""
    for name, kind in MODALITIES.items():
        if name == "image" or (config.modality or name) != name or not (kind.told or config.modality):
            continue
        columns = [column for column, feature in features.items() if kind.reader.holds(feature)]
        if config.modality is None:  # bytes and a path may be any file's
            columns = [column for column in columns if not isinstance(features[column], dict)]
        if not columns and config.modality is None:
            continue
        config.modality = name
        if config.sample_column is None and kind.column not in columns and len(columns) == 1:
            config.sample_column = columns[0]


def _loaded(config: TrainConfig) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """The splits, as they are."""
    embedded = {"digits": digits, "tones": tones, "squares": squares, "blocks": blocks, "chains": chains}
    if config.dataset_name in embedded:
        splits = embedded[config.dataset_name]()
        if config.streaming:
            return datasets.IterableDatasetDict({k: v.to_iterable_dataset(num_shards=16) for k, v in splits.items()})
        return splits
    files: list[Path] = []
    if config.train_data_dir is not None:
        folder = Path(config.train_data_dir)
        if not folder.is_dir():
            raise UserError(f"train_data_dir must be a folder: {folder} does not exist or is not a folder")

        def unreadable(error: OSError) -> None:
            raise UserError(f"train_data_dir must be readable, with all in it: {one_line(error)}") from None

        # `datasets` passes over a folder that it may not read, and so would the run over its samples
        files = [Path(place, name) for place, _, names in os.walk(folder, onerror=unreadable) for name in names]
        endings = {ending for kind in MODALITIES.values() for ending in kind.reader.EXTENSIONS}
        if not any(path.suffix.lower() in (*endings, *TABLES[:3]) for path in files):
            raise UserError(f"train_data_dir must hold parquet files, tars, pictures or sounds: {folder} holds none")
        for path in files:  # `datasets` would wait for a pipe
            if path.suffix.lower() in TABLES and path.exists() and not path.is_file():
                raise UserError(f"train_data_dir must hold plain files: {path} is not one")
    source = config.train_data_dir or config.dataset_name
    try:
        with silenced():
            # A folder by its whole path: a plain name may be one of a kind of file that `datasets` knows, as parquet
            place = source if config.train_data_dir is None else os.path.abspath(source)
            return datasets.load_dataset(place, config.dataset_config_name, streaming=config.streaming)
    except Exception as error:  # datasets raises its own, pyarrow's, the Hub client's and plain ones
        for path in sorted(path for path in files if path.suffix == ".parquet"):  # which of many it is, is not said
            try:
                pq.read_metadata(path)
            except Exception as fault:
                raise UserError(f"cannot load {source}: {path}: {one_line(fault)}") from None
        raise UserError(f"cannot load {source}: {one_line(error)}") from None


def held_out(config: TrainConfig, splits: datasets.DatasetDict) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The rows to train on and those of the held-out loss, with samples left undecoded.

    Held out are `num_validation_samples` rows of `validation_split`, or else of a split called 'validation', or else of
    the training rows, at most a twentieth of which are kept out of training; where that makes fewer than 8, none are.
    They are drawn once for all seeds. `max_train_samples` comes first.

    Raises:
        UserError: for a split or column that isn't there or of another type; the message says what there is.
    """
    rows = checked_split(config, splits, "dataset_split", config.dataset_split)
    if config.balance_column is not None:
        check_column("balance_column", config.balance_column, rows)
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
    """The split called `split`, with samples left undecoded; one at hand has a column for each template of
    `caption_column`, by its name.

    Raises:
        UserError: for a split (which `flag` names) or column that isn't there or of another type, or a template that
            cannot be read.
    """
    if split not in splits:
        raise UserError(f"{flag} {split!r} is not there: got {', '.join(map(repr, splits))}")
    rows, kind, captions = splits[split], modality(config), config.caption_column
    column, holder = sample_column(config), "image_column" if kind.stem == "images" else "sample_column"
    if rows.features is None:  # of a stream
        raise UserError(f"{holder} {column!r} must hold {kind.word}s: got columns of unknown types")
    if NUMBER in rows.features:
        raise UserError(f"a column may not be called {NUMBER!r}, as one of ours is: rename it")
    masks = [("mask_column", config.mask_column)] if TASKS[config.task].masks else []
    for flag, entry in ((holder, column), *masks, *(("caption_column", entry) for entry in captions)):
        for name in columns_of(entry) if flag == "caption_column" else [entry]:
            if name not in rows.features:
                what, hint = f"{flag} {entry!r}", ""
                if name != entry:
                    what, hint = f"{what}: column {name!r}", nearest(name, list(rows.features))
                elif flag == "caption_column" and rows.builder_name == "imagefolder":
                    hint = f"; a folder of pictures needs a metadata.jsonl with 'file_name' and {name!r}"
                elif rows.builder_name == "text":  # files of captions beside pictures, of which `datasets` reads those
                    hint = f"; a folder of pictures needs a metadata.jsonl with 'file_name' and {captions[0]!r}"
                raise UserError(f"{what} is not there: got columns {', '.join(map(repr, rows.features))}{hint}")
    read = {holder: column} | dict(masks)
    for flag, name in read.items():
        if not reader(config).holds(feature := rows.features[name]):
            raise UserError(f"{flag} {name!r} must hold {kind.word}s: got {feature}")
    for entry in captions:
        if is_template(entry):
            check_fields(entry, rows.features)
            continue
        feature = rows.features[entry]
        inner = getattr(feature, "feature", feature)
        if getattr(inner, "dtype", None) not in ("string", "large_string"):
            raise UserError(f"caption_column {entry!r} must hold text or lists of text: got {feature}")
    if isinstance(rows, datasets.Dataset):
        rows = composed(rows, captions)
    for name in read.values():
        try:
            if (feature := reader(config).undecoded(rows.features[name])) != rows.features[name]:
                datasets.disable_progress_bars()  # of a list of pictures each row is looked at
                rows = rows.cast_column(name, feature)
        except ImportError as error:  # nothing is installed that reads them
            raise UserError(str(error)) from None
        finally:
            datasets.enable_progress_bars()
    return rows


def check_column(flag: str, name: str, rows: datasets.Dataset) -> None:
    """Check that a column is there; `flag` is the setting that names it.

    Raises:
        UserError: for one that isn't, with the nearest.
    """
    if name not in rows.features:
        known = ", ".join(repr(other) for other in rows.features if other != NUMBER)
        raise UserError(f"{flag} {name!r} is not there: got columns {known}{nearest(name, list(rows.features))}")


def composed(rows: datasets.Dataset, entries: list[str]) -> datasets.Dataset:
    """The rows with a column for each template among the entries of `caption_column`, called by its text: captions, or
    nothing where one of its fields is empty."""
    for entry in entries:
        if is_template(entry) and entry not in rows.features:
            caption, names = caption_reader(entry, rows.features), columns_of(entry)
            cells = zip(*(_values(column(rows, name)) for name in names), strict=True)
            texts = pa.array((caption(dict(zip(names, row, strict=True))) for row in cells), pa.large_string())
            rows = rows.add_column(entry, texts, feature=datasets.Value("large_string"))
    return rows


def _values(cells: pa.Array) -> Iterator[Any]:
    """The cells of a column in Python's types; bytes that are no text are `None`."""
    for start in range(0, len(cells), 2**16):
        part = cells.slice(start, 2**16)
        try:
            yield from part.to_pylist()
        except UnicodeDecodeError:
            for cell in part:
                try:
                    yield cell.as_py()
                except UnicodeDecodeError:
                    yield None


def _numbered(rows: datasets.Dataset, chosen: np.ndarray) -> datasets.Dataset:
    """The chosen rows in their order in the split, each with its number there, which a message about it must give."""
    return rows.add_column(NUMBER, np.arange(len(rows))).select(np.sort(chosen))


def column(rows: datasets.Dataset, name: str) -> pa.Array:
    """A column of a set, not decoded."""
    return rows.select_columns(name).with_format("arrow")[:].column(name).combine_chunks()


def cells(rows: datasets.Dataset, column: str) -> Iterator[Any]:
    """The cells of a column of samples, one after another; bytes of files stay where they are until they are read."""
    for table in rows.select_columns(column).with_format("arrow").iter(batch_size=100):
        for cell in table.column(column):
            if not pa.types.is_struct(cell.type):
                yield cell.as_py()
                continue
            content = cell["bytes"].as_buffer() if cell.is_valid else None
            try:
                path = cell["path"].as_py() if cell.is_valid else None
            except UnicodeDecodeError:  # decoding finds it, and says in which row
                path = None
            yield {"bytes": content, "path": path}


def bytes_of(cell: Any) -> bytes:
    """What a cell holds, as bytes: the content of its file or files, a text, or numbers."""
    if isinstance(cell, dict):
        return cell.get("bytes") or Path(cell["path"]).read_bytes()
    if isinstance(cell, list) and cell and isinstance(cell[0], dict):
        return b"".join(map(bytes_of, cell))
    return cell.encode() if isinstance(cell, str) else np.asarray(cell).tobytes()


def bad_captions(captions: pa.Array) -> Iterator[tuple[int, str]]:
    """The rows whose captions are missing or are not text, each with what is wrong with it."""
    try:
        captions.validate(full=True)
        if pa.types.is_string(captions.type) or pa.types.is_large_string(captions.type):
            suspects = pc.indices_nonzero(pc.is_null(captions)).to_pylist()
        else:
            empty = pc.fill_null(pc.equal(pc.list_value_length(captions), 0), True)
            holes = pc.list_parent_indices(captions).filter(pc.is_null(pc.list_flatten(captions)))
            suspects = sorted({*pc.indices_nonzero(empty).to_pylist(), *holes.to_pylist()})
    except pa.ArrowInvalid:  # somewhere there are bytes that are no text
        suspects = range(len(captions))
    for index in suspects:
        try:
            caption = captions[index].as_py()
        except UnicodeDecodeError as error:
            yield index, f"must be text in UTF-8: {error}"
        else:
            if caption is None or isinstance(caption, list) and (not caption or None in caption):
                yield index, f"must be text: got {caption!r}"
