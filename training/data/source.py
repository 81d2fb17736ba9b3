# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The data of a run as the loop takes it, whether it is at hand or streamed: its size and kind, what is held out, and
batches from any step on. Where rows come from is said in `rows.py`, what is made of them in `data.py` and
`streaming.py`."""

import contextlib
import hashlib
import inspect
import itertools
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from mezzotint import MezzotintUNetModel
from mezzotint.models.encoder_mezzotint import downsample_factor
from mezzotint.pipelines.latents_mezzotint import vae_factor
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.rules import PATCH, number
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.config.sizes import Derived, Facts, applied, derive
from mezzotint_training.config.tasks import TASKS, downsample_axes, modality, picture_channels, reader
from mezzotint_training.data import balance
from mezzotint_training.data.attributes import Attributes, attribute_columns, specification
from mezzotint_training.data.batches import KeyedBatches, size_buckets
from mezzotint_training.data.conditions import condition_of, sample_of
from mezzotint_training.data.dataset import CaptionedSamples, collate, of_channels, sample_columns
from mezzotint_training.data.lint import lint
from mezzotint_training.data.rows import bytes_of, cells, column, held_out, load_splits
from mezzotint_training.data.streaming import CaptionedStream, Stream, load_stream

# Samples that a fingerprint is made of, at the most, and bytes of them
FINGERPRINTED, FINGERPRINTED_BYTES = 100_000, 2**30


class Rows(NamedTuple):
    """A set as it is on disk, nothing of it decoded: rows to train on, of a stream its first ones; rows of the held-out
    loss, if there are any; and the stream."""

    known: datasets.Dataset
    held_out: datasets.Dataset | None
    stream: Stream | None = None


def open_rows(config: TrainConfig) -> Rows:
    """The set that `config` names.

    Raises:
        UserError: as `rows.load_splits`, `rows.held_out` and `streaming.load_stream` do.
    """
    if config.streaming:
        stream = load_stream(config)
        return Rows(stream.head, stream.held_out, stream)
    return Rows(*held_out(config, load_splits(config)))


def look_at(rows: Rows, config: TrainConfig, components: dict[str, Any] | None) -> Facts:
    """What is to be known of a set before anything is made for it: the size that it is trained at and its channels, by
    its first readable sample.

    Args:
        components: of the saved pipeline that is fine-tuned, whose size and channels the data are brought to; or an
            autoencoder alone (`vae`), whose channels they are brought to.

    Raises:
        UserError: where no sample can be read, or the saved pipeline is of others.
    """
    saved = components["unet"].config if components and "unet" in components else None
    vae = components.get("vae") if components else None
    known_about = saved.get("modality") if saved else None
    if saved and (was := (known_about or {"name": "image"})["name"]) != (now := config.modality or "image"):
        raise UserError(f"the saved pipeline draws samples of modality {was}: got a set of modality {now}")
    first = first_sample(rows.known, config, known_about)
    asked = config.unet.get("in_channels") if config.task == "text_to_image" else None
    drawn = picture_channels(saved) if saved else asked
    channels = (vae.config.in_channels if vae else drawn) or first.channels
    size, about = settled_size(rows.known, config, components, first)
    known = (tuple(saved.block_out_channels), saved.patch_size) if saved else (None, 1)
    count = None if rows.stream is not None else len(rows.known)
    of_latents = (vae_factor(vae), vae.config.latent_channels) if vae else (1, None)
    axes = saved.get("downsample_axes") if saved else downsample_axes(config)
    return Facts(count, size, channels, *known, *of_latents, about, axes)


def sized(config: TrainConfig, facts: Facts) -> tuple[TrainConfig, list[Derived]]:
    """The settings with those that `size` derives from the data, and a list of these.

    Raises:
        UserError: where they do not go together with what was asked for, or with the size of the samples.
    """
    derived = derive(config, facts.diffused)
    config = applied(config, derived)
    level_factor(config, facts)
    if config.task == "upscale" and any(side % config.scale for side in facts.size):
        raise UserError(
            f"resolution must be a multiple of scale, {config.scale}, for upscaling: got {in_words(facts.size)}"
        )
    if TASKS[config.task].masks and config.augment_probability > 0:
        raise UserError(f"augment_probability would mix the classes of --task {config.task}: leave one of the two out")
    return config, derived


def fingerprint(rows: Rows, config: TrainConfig) -> dict[str, Any]:
    """What a run must find again to go on, wherever it is: how many `rows` there are (of a stream: `parts`, its files
    or their row groups), and digests of the `captions` and of the `pictures`, or of what else the samples are, as they
    are on disk.

    All captions count, and of the samples as many as `FINGERPRINTED` allows, spread over the set: all of a small one.
    Of a stream, its head counts.
    """
    captions, pictures, left = hashlib.sha256(), hashlib.sha256(), FINGERPRINTED_BYTES
    for part in (rows.known, rows.held_out):
        if part is None:
            continue
        for name in config.caption_column:
            _add_texts(captions, column(part, name))
        spread = np.linspace(0, len(part) - 1, min(len(part), FINGERPRINTED)).astype(int)
        spread = np.random.default_rng(0).permutation(spread)  # whatever number of them is read
        for cell in itertools.chain(*(cells(part.select(spread), name) for name in sample_columns(config))):
            content = b""
            with contextlib.suppress(OSError, ValueError):  # of a bad row
                if not isinstance(cell, dict) or cell["bytes"] or Path(cell["path"] or "").is_file():
                    content = bytes_of(cell)
            pictures.update(hashlib.sha256(content).digest())
            left -= len(content)
            if left <= 0:
                break
    size = {"rows": len(rows.known)} if rows.stream is None else {"parts": rows.stream.rows.num_shards}
    found = size | {"captions": captions.hexdigest(), "pictures": pictures.hexdigest()}
    if said := attribute_columns(config).values():
        values = hashlib.sha256()
        for part in (rows.known, rows.held_out):
            for name in said if part is not None else ():
                values.update(f"{name} {part.features.get(name)} {column(part, name).to_pylist()}".encode())
        found["attributes"] = values.hexdigest()
    if config.balance_column is not None:
        values = balance.column_to_balance(rows.known, config).astype("<i8").tobytes()
        found["values to balance"] = hashlib.sha256(values).hexdigest()
    return found


class Source:
    """The data of a run: what is at hand is read when this is made, with a bar on a terminal.

    Attributes:
        data: what is trained on.
        attributes: the set's own specification of them, `None` without any.
        known: rows of it that are at hand: all, or the first of a stream.
        held_out: rows that are not trained on, if there are any.
        bad: a line for each bad row that this process has met so far.

    Args:
        rows: what `open_rows` returned.
        config: the run's settings, those that `size` derives among them.
        facts: what `look_at` returned.
        accelerator: of the run.

    Raises:
        UserError: for bad rows under `on_bad_row=stop`.
    """

    def __init__(self, rows: Rows, config: TrainConfig, facts: Facts, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        size, factor = facts.size, level_factor(config, facts)
        buckets = size_buckets(config, size, factor) if config.aspect_ratio_buckets else [size]
        like = (config, facts.channels, size, buckets, facts.about)
        self.known = self.data = CaptionedSamples(rows.known, *like)
        if rows.stream is not None:
            place = accelerator.process_index, accelerator.num_processes
            self.data = CaptionedStream(rows.stream, config, facts.channels, size, *place, about=facts.about)
        self.held_out = CaptionedSamples(rows.held_out, *like) if rows.held_out is not None else None
        if self.held_out is not None:
            self.held_out.part = "held out"
        for images in (self.known, self.held_out):
            if images is not None:
                images.read_all(progress=accelerator.is_local_main_process)
        self.data.size = self.known.size
        self.attributes = specification(config, rows.known)
        self.bad = set(self.known.bad)
        self.values = None  # of each picture, to be balanced
        if config.balance_column is not None:
            self.values = balance.column_to_balance(rows.known, config)[self.known.good]

    def facts(self, tokenizer: Any) -> dict[str, Any]:
        """What `lint` finds in the rows at hand, as plain data.

        Args:
            tokenizer (*optional*): by whose tokens captions are measured; else by their bytes.
        """
        limits = {} if tokenizer is None else {"count_tokens": lambda text: len(tokenizer(text).input_ids)}
        longest = min(getattr(tokenizer, "model_max_length", self.config.max_text_length), 2**31)
        found = lint(self.known, longest, **limits).facts(len(self.known), self.known.size)
        if TASKS[self.config.task].masks:
            found["columns"]["classes"] = [self.config.mask_column]
        if said := attribute_columns(self.config):
            found["columns"]["attributes"] = list(said.values())
        if self.config.balance_column is not None:
            found["balance"] = balance.facts(self.known.rows, self.config)
        return found

    def texts(self) -> Iterator[str]:
        """All captions of the rows at hand."""
        return itertools.chain.from_iterable(x.texts() for x in (self.known, self.held_out) if x is not None)

    def take(self, latents: Any) -> None:
        """Make items of what `latents` (`networks/latents.py`) reads of a row, in the place of its pixels."""
        for data in (self.known, self.held_out):
            if data is not None:
                data.latents = latents

    def embed(self, embeddings: Any, mean: list[float], std: list[float]) -> None:
        """Give items the embeddings of their pictures, which `embeddings` (`networks/towers.py`) reads, brought to unit
        variance."""
        for data in (self.known, self.held_out):
            if data is not None:
                data.embeddings, data.embeds_scale = embeddings, (torch.tensor(mean), torch.tensor(std))

    def normalise(self, network: Any) -> None:
        """Bring samples to the scale of a network, which a new one has from `data.statistics`.

        Args:
            network: its config: `sample_mean` and `sample_std` of each channel, in [-1, 1] units.

        Raises:
            UserError: for attributes that the network does not read, and a class of the rows at hand.
        """
        for data in (self.data, self.known, self.held_out):
            if data is not None:
                data.mean, data.std = (
                    of_channels(values, data.size) for values in (network.sample_mean, network.sample_std)
                )
                if network.get("attributes") or self.attributes:
                    known = network.get("attributes") or {}
                    data.attributes = Attributes(self.config, known, self.known.rows.features)
                    if isinstance(data, CaptionedSamples):
                        data.attributes.check(data.rows)

    def validation_samples(self) -> tuple[list, list] | None:
        """Held-out samples and as many that are trained on, up to `num_validation_samples`, always the same, as
        `fixed_items` has them; `None` where none are held out."""
        if self.held_out is None:
            return None
        count = min(self.config.num_validation_samples, len(self.held_out))
        return fixed_items(self.held_out, count), fixed_items(self.known, count)

    def usual_batch(self, size: int) -> dict[str, Any]:
        """A batch of so many pictures of the size that most have, some of them several times if there are too few."""
        buckets = self.known.bucket[self.known.good]
        positions = np.flatnonzero(buckets == np.bincount(buckets).argmax())
        return collate([self.known[0, int(positions[i % len(positions)])] for i in range(size)])

    def new_bad_rows(self, batch: dict[str, Any]) -> set[str]:
        """A line for each bad row that was met in making a batch and is not in `bad` yet; now it is."""
        new = set(batch["bad"]) - self.bad
        self.bad |= new
        return new

    def bad_rows(self) -> list[str]:
        """A line for each bad row that any process has met. All processes call this."""
        return sorted(set(gather_object(list(self.bad))))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: where each process stands in a stream, and the bad rows. All processes call
        this."""
        stream = gather_object([self.data.state_dict()]) if isinstance(self.data, CaptionedStream) else []
        return {"stream": stream, "bad": self.bad_rows()}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, to be called before `batches`."""
        self.bad |= set(state["bad"])
        if isinstance(self.data, CaptionedStream):
            places = state["stream"]
            if message := self.data.load_state_dict(places[min(self.accelerator.process_index, len(places) - 1)]):
                self.accelerator.print(message)

    def batches(self, step: int) -> Iterator[dict[str, Any]]:
        """Micro-batches without end: of a set at hand from update `step` on, of a stream from its state on."""
        config, accelerator = self.config, self.accelerator
        on_gpu = accelerator.device.type == "cuda"
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
            None if self.values is None else balance.Balance(self.values, config.balance_power, config.seed),
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


def fixed_items(images: CaptionedSamples, count: int) -> list[dict[str, Any]]:
    """`count` samples, evenly spread over the good ones, each with its first caption: always the same."""
    items = []
    for index in images.spread(count).tolist():
        content = images.diffused(index)
        if content is not None:
            sample = sample_of(images.config, content, images.mean, images.std)
            item: dict[str, Any] = {"sample": sample, "caption": images.captions[index][0]}
            condition = condition_of(images.config, sample, content, [0, 0, index, 0], drop=False)
            if condition is not None:
                item["condition"] = condition
            if images.attributes is not None:
                item["attributes"] = images.attributes.vector(images.said_of(index))
            if images.embeddings is not None:
                item["embeds"] = images.embeds(index)
            items.append(item)
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
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)


def first_sample(rows, config: TrainConfig, about: Mapping[str, Any] | None = None) -> Any:
    """The header of the first readable sample; whether others can be read is not looked at here.

    Args:
        about: what a saved model knows of all samples.

    Raises:
        UserError: where none can be read.
    """
    kind = modality(config)
    probe = CaptionedSamples(
        rows, config, (kind.reader.CHANNELS or (1,))[-1], (1,) * kind.spatial_dims, about=about or {}
    )
    for index, cell in enumerate(cells(rows, probe.column)):
        if probe.content(index) is not None:
            return kind.reader.header(cell, about)
    raise UserError(f"no {kind.word} could be read; the first: {probe.bad[0]}")


def settled_size(
    rows: datasets.Dataset, config: TrainConfig, components: dict | None, first: Any
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The size to train at, as asked, or the saved model's, or as the samples have it; and what else is to be known of
    all samples: both as `settle` of their modality has it."""
    saved = components["unet"].config if components and "unet" in components else None
    size, about, axes = saved and saved.sample_size, saved and saved.get("modality"), modality(config).spatial_dims
    if size:
        factor = vae_factor(components.get("vae")) if components else 1
        size = tuple(factor * side for side in ((size,) * axes if isinstance(size, int) else size))

    def headers() -> Iterator[Any]:
        for cell in cells(rows, sample_columns(config)[0]):
            with contextlib.suppress(ValueError, OSError):  # of a bad row
                yield reader(config).header(cell, about)

    try:
        return reader(config).settle(config, first, headers, size, about)
    except ValueError as error:
        raise UserError(str(error)) from None


def in_words(size: Sequence[int]) -> str:
    """A size, as `16x24`."""
    return "x".join(map(str, size))


def level_factor(config: TrainConfig, facts: Facts) -> int:
    """The number of which all sides must be multiples, since the U-Net takes them apart into patches and halves
    them from level to level.

    Raises:
        UserError: where they are not, with the nearest that are.
    """
    default = inspect.signature(MezzotintUNetModel).parameters["block_out_channels"].default
    levels = facts.block_out_channels or config.unet.get("block_out_channels", default)
    if not isinstance(levels, (list, tuple)) or not levels:
        raise UserError(f"the unet's block_out_channels must be a list of numbers, one a level: got {levels!r}")
    patch = facts.patch_size
    if facts.block_out_channels is None:
        patch = number("the unet's patch_size", int, config.unet.get("patch_size", 1), *PATCH)
    factor = facts.latent_factor * downsample_factor(levels, patch)
    if any(side % factor for side in facts.halved):
        axes = range(len(facts.size)) if facts.downsample_axes is None else facts.downsample_axes
        kind, unit = modality(config), "px" if len(facts.size) == 2 else "positions"
        nearest = [max(factor, round(x / factor) * factor) if axis in axes else x for axis, x in enumerate(facts.size)]
        raise UserError(
            f"{kind.sized_by} must be a multiple of {factor} for a model of {len(levels)} levels"
            f"{f' and patches of {patch} {unit}' if patch > 1 else ''}"
            f"{f' in latents of {facts.latent_factor} px' if facts.latent_factor > 1 else ''}"
            f": got {in_words(facts.size)}, possible is {in_words(nearest)}"
        )
    return factor
