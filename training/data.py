# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""From rows of a dataset to batches of (picture, caption, noise).

A run is a function of its seed: what happens to a picture in an epoch (its caption, whether that is dropped, its noise
and noise level) depends on (seed, epoch, row) alone, not on the batch, the worker or the process that it falls to.
"""

from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from mezzotint_training.config import TrainConfig, UserError
from mezzotint_training.pictures import EXTENSIONS, open_picture, read_picture

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Decoded pictures of a set that takes no more than this are kept in memory
CACHE_BYTES = 2**31


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
        split["image"].append(Image.fromarray(np.round(picture * (255 / 16)).astype(np.uint8)))
        name = DIGIT_NAMES[label]
        split["text"].append([f"a handwritten {name}", f"the digit {name}", str(label)])
        split["label"].append(int(label))
    return datasets.DatasetDict({name: datasets.Dataset.from_dict(r, features=features) for name, r in rows.items()})


def load_rows(config: TrainConfig) -> datasets.Dataset:
    """The rows to train on, with pictures left undecoded.

    Raises:
        UserError: for a missing or empty folder, a set that cannot be loaded, a split or column that isn't there, or
            captions that are no text; the message says what there is.
    """
    if config.dataset_name == "digits":
        splits = digits()
    else:
        if config.train_data_dir is not None:
            folder = Path(config.train_data_dir)
            if not folder.is_dir():
                raise UserError(f"train_data_dir must be a folder: {folder} does not exist or is none")
            files = [p for p in folder.rglob("*") if p.suffix.lower() in (*EXTENSIONS, ".parquet")]
            if not files:
                raise UserError(f"train_data_dir must hold parquet files or pictures: {folder} holds none")
        source = config.train_data_dir or config.dataset_name
        try:
            splits = datasets.load_dataset(source, config.dataset_config_name)
        except Exception as error:  # datasets raises its own, pyarrow's, the Hub client's and plain ones
            raise UserError(f"cannot load {source}: {_one_line(error)}") from None
    if config.dataset_split not in splits:
        raise UserError(f"dataset_split {config.dataset_split!r} is not there: got {', '.join(map(repr, splits))}")
    rows = splits[config.dataset_split]

    for name, flag in ((config.image_column, "image_column"), (config.caption_column, "caption_column")):
        if name not in rows.column_names:
            hint = ""
            if flag == "caption_column" and config.train_data_dir and not any(folder.rglob("metadata.*")):
                hint = "; a folder of pictures needs a metadata.jsonl with 'file_name' and 'text'"
            raise UserError(
                f"{flag} {name!r} is not there: got columns {', '.join(map(repr, rows.column_names))}{hint}"
            )
    feature = rows.features[config.image_column]
    if not isinstance(feature, datasets.Image):
        raise UserError(f"image_column {config.image_column!r} must hold pictures: got {feature}")
    feature = rows.features[config.caption_column]
    inner = getattr(feature, "feature", feature)
    if getattr(inner, "dtype", None) not in ("string", "large_string"):
        raise UserError(f"caption_column {config.caption_column!r} must hold text or lists of text: got {feature}")
    if config.max_train_samples is not None:
        rows = rows.select(range(min(config.max_train_samples, len(rows))))
    if len(rows) == 0:
        raise UserError(f"the split {config.dataset_split!r} must have rows: got none")
    for index, caption in enumerate(rows[config.caption_column]):
        texts = caption if isinstance(caption, list) else [caption]
        if not texts or None in texts:
            raise UserError(f"caption in row {index} must be text: got {caption!r}")
    return rows.cast_column(config.image_column, datasets.Image(decode=False))


class CaptionedImages(torch.utils.data.Dataset):
    """Pictures with captions and noise, addressed by `(epoch, row)`.

    Args:
        rows: what `load_rows` returns.
        config: the run's settings.
        channels: 1 for grey pictures, 3 for colour.
        size: `(height, width)`; pictures are scaled to cover it and cropped about their centre.
        mean, std: of each channel, in [-1, 1] units; samples are normalised with them. Set after `statistics`.

    Items are dicts of `sample` (channels, height, width), `noise` of the same shape, `uniform` () and `caption`.
    """

    def __init__(self, rows: datasets.Dataset, config: TrainConfig, channels: int, size: tuple[int, int]):
        if channels not in (1, 3):
            raise UserError(f"the model must take pictures of 1 or 3 channels: got {channels}")
        self.rows, self.config, self.channels, self.size = rows, config, channels, size
        self.captions = rows[config.caption_column]
        self.mean, self.std = torch.zeros(channels, 1, 1), torch.ones(channels, 1, 1)
        self.bad: list[str] = []
        self.good = np.arange(len(rows))
        self.cache: list[torch.Tensor | None] | None = None

    def read_all(self, progress: bool = True) -> None:
        """Decode every picture now and keep it, if the set is small enough; bad ones are then known before step 1."""
        if len(self.rows) * self.channels * self.size[0] * self.size[1] > CACHE_BYTES:
            return
        cache: list[torch.Tensor | None] = []
        disable = None if progress else True  # `None` is where nobody watches
        for index in tqdm(range(len(self.rows)), desc="reading pictures", disable=disable, leave=False):
            cache.append(self.pixels(index))
        self.cache = cache
        self.good = np.array([index for index, pixels in enumerate(cache) if pixels is not None], dtype=np.int64)
        if len(self.good) == 0:
            raise UserError(f"no picture could be read; the first: {self.bad[0]}")

    def open(self, index: int) -> Image.Image:
        """A row's picture as it is on disk, upright."""
        return open_picture(self.rows[index][self.config.image_column])

    def pixels(self, index: int) -> torch.Tensor | None:
        """A row's picture as bytes (channels, height, width), or `None` for a bad one under `on_bad_row=skip`.

        Raises:
            UserError: for a bad picture under `on_bad_row=stop`, with its file or row.
        """
        if self.cache is not None:
            return self.cache[index]
        cell = self.rows[index][self.config.image_column]
        try:
            return read_picture(cell, self.channels, self.size)
        except ValueError as error:
            path = (cell or {}).get("path")
            message = f"picture in row {index}{f' ({path})' if path else ''} cannot be read: {error}"
            if self.config.on_bad_row == "stop":
                raise UserError(f"{message}; --on_bad_row skip goes on without it") from None
            self.bad.append(message)
            return None

    def statistics(self, limit: int = 10_000) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel in [-1, 1] units, over at most `limit` pictures."""
        total, square, count = torch.zeros(self.channels), torch.zeros(self.channels), 0
        for index in self.good[np.linspace(0, len(self.good) - 1, min(limit, len(self.good))).astype(int)]:
            pixels = self.pixels(int(index))
            if pixels is not None:
                x = pixels.double() / 127.5 - 1
                total, square, count = total + x.mean((1, 2)), square + x.square().mean((1, 2)), count + 1
        mean = total / count
        std = (square / count - mean.square()).clamp(min=1e-4).sqrt()
        return [round(v, 4) for v in mean.tolist()], [round(v, 4) for v in std.tolist()]

    def __len__(self) -> int:
        return len(self.good)

    def __getitem__(self, key: tuple[int, int]) -> dict | None:
        epoch, position = key
        index = int(self.good[position])
        pixels = self.pixels(index)
        if pixels is None:
            return None
        return make_item(self.config, epoch, index, pixels, self.captions[index], self.mean, self.std)


def make_item(
    config: TrainConfig,
    epoch: int,
    index: int,
    pixels: torch.Tensor,
    captions: str | list[str],
    mean: torch.Tensor,
    std: torch.Tensor,
) -> dict:
    """A row's picture and captions as what is trained on in an epoch: a function of (seed, epoch, index) alone.

    Args:
        config: the run's settings.
        epoch, index: of the row.
        pixels (`torch.Tensor` of shape `(channels, height, width)`): bytes.
        captions: one, or several of which one is drawn.
        mean, std (`torch.Tensor` of shape `(channels, 1, 1)`): of the data, in [-1, 1] units.

    Returns:
        a dict of `sample` (channels, height, width), `noise` of the same shape, `uniform` () and `caption`.
    """
    generator = np.random.default_rng([config.seed, epoch, index])
    caption, dropped, flip, uniform, seed = generator.random(5)
    text = captions[int(caption * len(captions))] if isinstance(captions, list) else captions
    sample = (pixels.float() / 127.5 - 1 - mean) / std
    if config.random_flip and flip < 0.5:
        sample = sample.flip(-1)
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(int(seed * 2**53)))
    return {
        "sample": sample,
        "noise": noise,
        "uniform": torch.tensor(uniform, dtype=torch.float32),
        "caption": "" if dropped < config.proportion_empty_prompts else text,
    }


def collate(items: list[dict | None]) -> dict:
    kept = [item for item in items if item is not None]
    if not kept:
        raise UserError("every picture of a batch was bad: check the data, or train on larger batches")
    batch = {key: torch.stack([item[key] for item in kept]) for key in ("sample", "noise", "uniform")}
    return {**batch, "captions": [item["caption"] for item in kept]}


class KeyedBatches:
    """The batches of one process from a given update on, without end, as lists of `(epoch, position)`.

    The pictures of update s are number `s * n` to `(s + 1) * n - 1` of an endless sequence of shuffled epochs, where n
    counts all micro-steps and processes: how they are dealt out does not change which they are.

    Args:
        length: pictures in the set.
        batch_size: of one micro-step of one process.
        accumulation: micro-steps in an update.
        rank, world: this process and how many there are.
        seed: of the shuffling.
        start: the first update.
    """

    def __init__(self, length: int, batch_size: int, accumulation: int, rank: int, world: int, seed: int, start: int):
        self.length, self.batch_size, self.accumulation = length, batch_size, accumulation
        self.rank, self.world, self.seed, self.start = rank, world, seed, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: dict[int, np.ndarray] = {}
        number = self.start * self.accumulation * self.world + self.rank
        while True:
            batch = []
            for n in range(number * self.batch_size, (number + 1) * self.batch_size):
                epoch, place = divmod(n, self.length)
                if epoch not in order:
                    order = {e: o for e, o in order.items() if e >= epoch - 1}
                    order[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.length)
                batch.append((epoch, int(order[epoch][place])))
            yield batch
            number += self.world


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
