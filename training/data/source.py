# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The data of a run as the loop takes it, whether it is at hand or streamed: its size and kind, what is held out, and
batches from any step on. Where rows come from is said in `rows.py`, what is made of them in `dataset.py` and
`streaming.py`."""

import contextlib
import hashlib
import inspect
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from PIL import Image

from mezzotint import MezzotintUNetModel
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.config.sizes import Derived, Facts, applied, derive
from mezzotint_training.data.batches import KeyedBatches, size_buckets
from mezzotint_training.data.dataset import CaptionedImages, collate
from mezzotint_training.data.rows import cells, held_out, load_splits
from mezzotint_training.data.streaming import CaptionedStream, load_stream

# Pictures that a fingerprint is made of, at the most, and bytes of them
FINGERPRINTED, FINGERPRINTED_BYTES = 100_000, 2**30


@dataclass
class Source:
    """
    Attributes:
        config: the run's settings, those that `size` derives among them.
        derived: these.
        data: what is trained on.
        known: rows of it that are at hand: all, or the first of a stream.
        held_out: rows that are not trained on, if there are any.
    """

    config: TrainConfig
    derived: list[Derived]
    data: CaptionedImages | CaptionedStream
    known: CaptionedImages
    held_out: CaptionedImages | None

    def read(self, progress: bool) -> None:
        """Read the rows that are at hand."""
        for images in (self.known, self.held_out):
            if images is not None:
                images.read_all(progress)
        self.data.size = self.known.size

    def fingerprint(self) -> dict[str, Any]:
        """What a run must find again to go on, wherever it is: how many `rows` there are (of a stream: `parts`, its
        files or their row groups), and digests of the `captions` and of the `pictures`, as they are on disk.

        All captions count, and of the pictures as many as `FINGERPRINTED` allows, spread over the set: all of a small
        one. Of a stream, its head counts.
        """
        captions, pictures, left = hashlib.sha256(), hashlib.sha256(), FINGERPRINTED_BYTES
        for images in (self.known, self.held_out):
            if images is None:
                continue
            _add_texts(captions, images.captions)
            count = len(images.rows)
            spread = np.linspace(0, count - 1, min(count, FINGERPRINTED)).astype(int)
            spread = np.random.default_rng(0).permutation(spread)  # whatever number of them is read
            for cell in cells(images.rows.select(spread), images.config.image_column):
                content, path = cell["bytes"] or b"", Path(cell["path"] or "")
                with contextlib.suppress(OSError, ValueError):  # of a bad row
                    content = content or (path.read_bytes() if path.is_file() else b"")
                pictures.update(hashlib.sha256(content).digest())
                left -= len(content)
                if left <= 0:
                    break
        stream = isinstance(self.data, CaptionedStream)
        size = {"parts": self.data.parts} if stream else {"rows": len(self.known.rows)}
        return size | {"captions": captions.hexdigest(), "pictures": pictures.hexdigest()}

    def normalise(self, mean: list[float], std: list[float]) -> None:
        """Set the data's scale: mean and standard deviation of each channel, in [-1, 1] units."""
        for data in (self.data, self.known, self.held_out):
            if data is not None:
                data.mean, data.std = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))

    def batches(self, accelerator: Accelerator, step: int) -> Iterator[dict[str, Any]]:
        """Micro-batches without end: of a set at hand from update `step` on, of a stream from its state on."""
        config, on_gpu = self.config, accelerator.device.type == "cuda"
        if isinstance(self.data, CaptionedStream):
            return self.data.batches(config.train_batch_size, pin_memory=on_gpu)
        keys = KeyedBatches(
            len(self.data),
            config.train_batch_size,
            config.gradient_accumulation_steps,
            accelerator.process_index,
            accelerator.num_processes,
            config.seed,
            step,
            self.data.bucket[self.data.good] if len(self.data.buckets) > 1 else None,
        )
        loader = torch.utils.data.DataLoader(
            self.data,
            batch_sampler=keys,
            num_workers=config.dataloader_num_workers,
            collate_fn=collate,
            pin_memory=on_gpu,
            persistent_workers=config.dataloader_num_workers > 0,
            worker_init_fn=_leave_signals_to_the_run,
        )
        return iter(loader)


def open_source(config: TrainConfig, components: dict | None, accelerator: Accelerator) -> Source:
    """The data that `config` names; nothing of it is read yet.

    Args:
        components: of the saved pipeline that is fine-tuned, whose size and channels the data are brought to.

    Raises:
        UserError: as `rows.load_splits`, `rows.held_out`, `streaming.load_stream` and `level_factor` do.
    """
    stream = load_stream(config) if config.streaming else None
    rows, held = held_out(config, load_splits(config)) if stream is None else (stream.head, stream.held_out)
    first = first_picture(rows, config)
    saved = components["unet"].config if components else None
    channels = (saved.in_channels if saved else config.unet.get("in_channels")) or (
        1 if first.mode in ("1", "L", "I", "I;16") else 3
    )
    height, width = picture_size(config, components, first)
    levels = tuple(saved.block_out_channels) if saved else None
    derived = derive(config, Facts(None if config.streaming else len(rows), height, width, channels, levels))
    config = applied(config, derived)
    factor = level_factor(config, components, (height, width))
    buckets = size_buckets(config, (height, width), factor)
    known = CaptionedImages(rows, config, channels, (height, width), buckets)
    data = known
    if stream is not None:
        rank, world = accelerator.process_index, accelerator.num_processes
        data = CaptionedStream(stream, config, channels, (height, width), rank, world)
    unseen = CaptionedImages(held, config, channels, (height, width), buckets) if held is not None else None
    return Source(config, derived, data, known, unseen)


def fixed_items(images: CaptionedImages, count: int) -> list[dict[str, Any]]:
    """`count` pictures, evenly spread over the good ones, each with its first caption: always the same."""
    items = []
    for index in images.good[np.linspace(0, len(images.good) - 1, min(count, len(images.good))).astype(int)].tolist():
        pixels, caption = images.pixels(index), images.captions[index].as_py()
        if pixels is not None:
            sample = (pixels.float() / 127.5 - 1 - images.mean) / images.std
            items.append({"sample": sample, "caption": caption[0] if isinstance(caption, list) else caption})
    return items


def _add_texts(digest, texts: pa.Array) -> None:
    """Texts or lists of texts, however Arrow keeps them."""
    for start in range(0, len(texts), 2**20):
        some = texts.slice(start, 2**20)
        if not (pa.types.is_string(some.type) or pa.types.is_large_string(some.type)):
            _add_numbers(digest, pc.list_value_length(some))
            some = pc.list_flatten(some)
        some = some.cast(pa.large_binary())
        _add_numbers(digest, pc.binary_length(some))
        some = pc.fill_null(some, b"")
        _, ends, content = some.buffers()
        ends = np.frombuffer(ends, np.int64)[some.offset : some.offset + len(some) + 1] if len(some) else [0, 0]
        if content is not None:
            digest.update(memoryview(content)[ends[0] : ends[-1]])


def _add_numbers(digest, numbers: pa.Array) -> None:
    digest.update(pc.fill_null(numbers, -1).to_numpy(zero_copy_only=False).astype("<i8").tobytes())


def _leave_signals_to_the_run(_) -> None:
    """Ignore signals in a data worker, which a terminal's Ctrl-C and a batch system's SIGTERM reach too: the run
    handles them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def first_picture(rows, config: TrainConfig) -> Image.Image:
    """The first readable picture, for its size and mode; whether others can be read is not looked at here."""
    probe = CaptionedImages(rows, config, channels=3, size=(1, 1))
    for index in range(len(rows)):
        if probe.pixels(index) is not None:
            return probe.open(index)
    raise UserError(f"no picture could be read; the first: {probe.bad[0]}")


def picture_size(config: TrainConfig, components: dict | None, first: Image.Image) -> tuple[int, int]:
    """Height and width to train at: as asked, or the saved model's, or the first picture's."""
    saved = components["unet"].config.sample_size if components else None
    size = config.resolution or saved or (first.height, first.width)
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def level_factor(config: TrainConfig, components: dict | None, size: tuple[int, int]) -> int:
    """The number of which height and width must be multiples, since the U-Net halves them from level to level.

    Raises:
        UserError: where `size` is none, with the nearest that is.
    """
    default = inspect.signature(MezzotintUNetModel).parameters["block_out_channels"].default
    levels = (
        components["unet"].config.block_out_channels if components else config.unet.get("block_out_channels", default)
    )
    if not isinstance(levels, (list, tuple)) or not levels:
        raise UserError(f"the unet's block_out_channels must be a list of numbers, one a level: got {levels!r}")
    factor = 2 ** (len(levels) - 1)
    height, width = size
    if height % factor or width % factor:
        nearest = [max(factor, round(x / factor) * factor) for x in (height, width)]
        raise UserError(
            f"resolution must be a multiple of {factor} for a model of {len(levels)} levels: got {height}x{width}, "
            f"possible is {nearest[0]}x{nearest[1]}"
        )
    return factor
