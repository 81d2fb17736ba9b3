# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""From a set that is read as it comes to batches: for sets larger than the memory or the disk. Where the set comes from
is said in `rows.py`, what becomes of one row in `dataset.py` and `modalities/`; here is only which rows come when, and
how a reading is taken up again.

A streamed run is a function of its seed and of the number of processes (a map-style one is a function of its seed
alone): which rows a process gets, and the number of a row, depend on how the set is split.
"""

import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import datasets
import fsspec
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node

from mezzotint_training.config.errors import UserError, one_line
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.config.tasks import modality, sample_column
from mezzotint_training.data.attributes import Attributes, attribute_columns
from mezzotint_training.data.captions import choices, none_of
from mezzotint_training.data.dataset import (
    CaptionedSamples,
    check_channels,
    collate,
    make_item,
    of_channels,
    read_content,
    sample_columns,
)
from mezzotint_training.data.rows import bytes_of, checked_split, held_out, load_splits
from mezzotint_training.data.templates import columns_of, reader

# Of a set in fewer files than this the row groups of a parquet file are shuffled and dealt out, not the whole files
FEW_FILES = 64
# A process gets whole files where there are so many for each that it hardly matters if it has one more than another
FILES_PER_RANK = 8
HEAD_ROWS = 1000


class Stream(NamedTuple):
    """A streamed set: its rows, and, in memory, the first of them (what is to be known of a set before step 1, such as
    size, channels and statistics of its samples, is known from these, in every process) and those of the held-out loss.
    """

    rows: datasets.IterableDataset
    head: datasets.Dataset
    held_out: datasets.Dataset | None


def load_stream(config: TrainConfig) -> Stream:
    """The set that `config` names, under `streaming`, with samples left undecoded. Held out are rows of the head, as
    `rows.held_out` would have them of the set.

    Raises:
        UserError: as `rows.load_splits` and `rows.held_out` do, and for a set that cannot be read.
    """
    splits = load_splits(config)
    asked = {config.dataset_split: "dataset_split"}
    if config.validation_split or "validation" in splits:
        asked.setdefault(config.validation_split or "validation", "validation_split")
    streams, heads = {}, datasets.DatasetDict()
    for name, flag in asked.items():
        # a set on the Hub may come with threads that decode, which only `decode` takes off
        rows = checked_split(config, splits, flag, name).decode(False)
        used = (
            *sample_columns(config),
            *attribute_columns(config).values(),
            *(name for entry in config.caption_column for name in columns_of(entry)),
        )
        kept = dict.fromkeys((*used, "__url__"))  # the last is the tar's name
        rows = rows.select_columns([column for column in kept if column in rows.features])
        if flag == "dataset_split" and config.max_train_samples is not None:
            rows = rows.take(config.max_train_samples)
        streams[name], heads[name] = rows, _head(rows, config)
    rows = streams[config.dataset_split]
    if config.max_train_samples is None and rows.num_shards < FEW_FILES:
        rows = rows.reshard()
    return Stream(rows, *held_out(config, heads))


def _head(rows: datasets.IterableDataset, config: TrainConfig) -> datasets.Dataset:
    """The first rows of a stream: 1,000, or as many as are shuffled among themselves, if that is less."""
    first = []
    try:
        for row in rows.take(min(HEAD_ROWS, config.shuffle_buffer_size)):
            first.append(row | {name: _fetched(row[name]) for name in sample_columns(config)})
    except Exception as error:  # see `load_splits`
        raise UserError(f"the set cannot be read from row {len(first)} on: {one_line(error)}") from None
    columns = {name: [row[name] for row in first] for name in rows.features or ()}
    return datasets.Dataset.from_dict(columns, features=rows.features)


class CaptionedStream:
    """Batches without end of one process's share of a stream, from any point of it on.

    An epoch reads the share once, its files in an order drawn for the epoch. Rows wait as they are on disk in a window
    of `shuffle_buffer_size`, which is handed out in a drawn order while the next one takes its place, so no more rows
    than that are ever held; rows with a sample that is held out never are. Where there is a state to go on from, only
    its window is read again. Processes may have shares of unequal length: each begins its next epoch by itself.

    Args:
        stream: what `load_stream` returns.
        config: the run's settings; samples are decoded by `dataloader_num_workers` threads, on whose number nothing
            depends.
        channels, size, about: of samples, as of `CaptionedSamples`.
        rank, world: this process and how many there are.
        mean, std: of each channel, in [-1, 1] units; samples are normalised with them. Set after `statistics`.
    """

    def __init__(
        self,
        stream: Stream,
        config: TrainConfig,
        channels: int,
        size: tuple[int, ...],
        rank: int = 0,
        world: int = 1,
        about: Mapping[str, Any] | None = None,
    ):
        check_channels(config, channels)
        self.about, self.column = dict(about or {}), sample_column(config)
        self.config, self.channels, self.size, self.rank, self.world = config, channels, size, rank, world
        self.mean, self.std = of_channels([0.0] * channels, size), of_channels([1.0] * channels, size)
        self.attributes: Attributes | None = None
        self.head = stream.head
        self.readers = [reader(entry, stream.head.features) for entry in config.caption_column]
        held = stream.held_out.select_columns(self.column) if stream.held_out is not None else []
        self.held_out = {_identity(row[self.column]) for row in held} - {None}
        self.parts = stream.rows.num_shards
        if config.max_train_samples is not None:  # of a part of the set, shares of files would be other parts
            strategy = "examples"
        else:
            strategy = "shards" if stream.rows.num_shards >= FILES_PER_RANK * world else "auto"
        self.rows = split_dataset_by_node(stream.rows, rank, world, strategy)
        self.state = self._start_of(0)

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel in [-1, 1] units, over the stream's head."""
        return CaptionedSamples(self.head, self.config, self.channels, self.size, about=self.about).statistics()

    def state_dict(self) -> dict[str, Any]:
        """Where the reading stands after the last batch that was handed out, as JSON can hold it."""
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> str | None:
        """Go on from a `state_dict` of this process; or, where the run had another number of processes, of any of its
        processes, at the start of the next epoch. What is returned then says so."""
        self.state = state
        if state["world"] == self.world:
            return None
        self.state = self._start_of(state["epoch"] + 1)
        return (
            f"the stream was split over {state['world']} processes, now over {self.world}: "
            f"going on at the start of epoch {state['epoch'] + 1}, without the rest of epoch {state['epoch']}"
        )

    def batches(self, batch_size: int, pin_memory: bool = False) -> Iterator[dict]:
        """Batches of `data.collate`, always full, from the state on: bad rows give way to the next ones and are named
        in `bad`. One batch is made ahead while the last one is worked with.

        Raises:
            UserError: for a bad row under `on_bad_row=stop`; for a set that cannot be read on, or that has no good row.
        """
        made = self._make(batch_size, pin_memory)
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(next, made)
            while True:
                batch, state = coming.result()
                coming = ahead.submit(next, made)
                self.state = state
                yield batch

    def _start_of(self, epoch: int) -> dict[str, Any]:
        """`window` counts those of the epoch, from 1; `start` is its first row's number, `source` where that is to be
        found (None: at the start), `offset` how many of its rows were handed out."""
        return {"world": self.world, "epoch": epoch, "window": 1, "start": 0, "source": None, "offset": 0}

    def _make(self, batch_size: int, pin_memory: bool) -> Iterator[tuple[dict, dict]]:
        """Batches without end, each with the state after it."""
        rows, state = self._shuffled(), self.state
        good_until = state["epoch"]  # the last epoch with a good row
        threads = self.config.dataloader_num_workers
        with ThreadPoolExecutor(max(1, threads)) as pool:
            while True:
                items, bad = [], []
                while len(items) < batch_size:
                    drawn, states = zip(*itertools.islice(rows, batch_size - len(items)), strict=True)
                    for item in (pool.map if threads else map)(self._item, drawn):
                        (bad if isinstance(item, str) else items).append(item)
                    state = states[-1]
                    if items:
                        good_until = state["epoch"]
                    elif state["epoch"] > good_until + 1:
                        word = modality(self.config).word
                        raise UserError(f"no {word} of an epoch could be read; the first: {bad[0]}")
                batch = collate(items)
                if pin_memory:
                    batch = {k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
                yield batch | {"bad": bad}, state

    def _shuffled(self) -> Iterator[tuple[tuple[int, int, dict], dict]]:
        """(epoch, number, row) without end, each with the state after it. The number of a row in an epoch is unique
        among all processes."""
        state = self.state
        seed, size = self.config.seed, self.config.shuffle_buffer_size
        while True:
            epoch, source, start, skipped = state["epoch"], state["source"], state["start"], state["offset"]
            # datasets draws an order of the files for every epoch but number 0: keys, not numbers, make it ours
            self.rows.set_epoch(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]) + 1)
            self.rows.load_state_dict(source)
            reading = self._read(epoch, start)
            window = list(itertools.islice(reading, size))
            if not window and start == 0:
                raise UserError(f"the set must have a row for every process: got none for process {self.rank}")
            for number in itertools.count(state["window"]):
                if not window:
                    break
                after = {"start": window[-1][1] // self.world + 1, "source": self.rows.state_dict()}
                coming = []
                order = np.random.default_rng([seed, epoch, self.rank, number]).permutation(len(window))
                for offset, place in enumerate(order.tolist(), start=1):
                    row, window[place] = window[place], None
                    coming.extend(itertools.islice(reading, 1))
                    if offset > skipped:
                        at = {"window": number, "start": start, "source": source, "offset": offset}
                        yield row, {"world": self.world, "epoch": epoch, **at}
                skipped, window, start, source = 0, coming, after["start"], after["source"]
            state = self._start_of(epoch + 1)

    def _read(self, epoch: int, start: int) -> Iterator[tuple[int, int, dict]]:
        """The rows of an epoch from `rows`' state on, in the order of the files."""
        place = start
        try:
            for row in self.rows:
                if _identity(row[self.column]) not in self.held_out:
                    yield epoch, place * self.world + self.rank, row
                place += 1
        except Exception as error:  # see `load_splits`
            message = f"the set cannot be read from row {place * self.world + self.rank} of epoch {epoch} on"
            raise UserError(f"{message}: {one_line(error)}") from None

    def _item(self, drawn: tuple[int, int, dict]) -> dict | str:
        """A row as `make_item` makes it, or what is wrong with it under `on_bad_row=skip`."""
        epoch, index, row = drawn
        cell, texts = row[self.column], [read(row) for read in self.readers]
        path = cell.get("path") if isinstance(cell, dict) else None
        captions, got = choices(texts, self.config), texts if len(texts) > 1 else texts[0]
        where = ": ".join(x for x in (row.get("__url__"), path) if x)
        where = f"row {index} of epoch {epoch} ({where or f'captioned {str(got)[:60]!r}'})"
        if not captions:
            message = f"caption in {where} {none_of(self.config, f'must be text: got {got!r}')}"
        else:
            try:
                cells = {name: _fetched(row[name]) for name in sample_columns(self.config)}
                content = read_content(self.config, cells, self.channels, self.size, self.about)
                item = make_item(self.config, epoch, index, content, captions, self.mean, self.std)
                if self.attributes is not None:
                    item["attributes"] = self.attributes.drawn(row, [self.config.seed, epoch, index, 0])
                return item
            except (ValueError, FileNotFoundError) as error:
                message = f"{modality(self.config).word} in {where} cannot be read: {one_line(error)}"
            except OSError as error:  # of the network: no fault of the row's
                raise UserError(
                    f"{modality(self.config).word} in {where} cannot be fetched: {one_line(error)}"
                ) from None
        if self.config.on_bad_row == "stop":
            raise UserError(f"{message}; --on_bad_row skip goes on without it")
        return message


def _identity(cell: Any) -> Any:
    """What tells a sample from others: the content of its file or its place, or all that its cell holds."""
    if isinstance(cell, dict):
        return cell.get("bytes") or cell.get("path")
    return None if cell is None else bytes_of(cell)


def _fetched(cell: Any) -> Any:
    """A sample's cell, with the content of files that are not on this disk."""
    if isinstance(cell, list):
        return [_fetched(one) for one in cell] if cell and isinstance(cell[0], dict) else cell
    if not isinstance(cell, dict) or cell["bytes"] or "://" not in (cell["path"] or ""):
        return cell
    with fsspec.open(cell["path"], "rb") as file:
        return cell | {"bytes": file.read()}
