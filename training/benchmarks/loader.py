# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What the loader gives and takes: memory of a streamed set by the set's size, and pictures a second of both loaders.

    python training/benchmarks/loader.py
    python training/benchmarks/loader.py --gigabytes 1 4 --side 128 --resolution 64 --seconds 20

Sets are parquet files of random pictures that cannot be compressed, made in a temporary folder that is removed at the
end. Each is streamed for one epoch in a process of its own, whose peak memory (resident, on Linux) is printed beside
that of a process that has only imported the loader. Rates are of the smallest set, read before (so from the page cache
where that holds it), the rounds of each number of workers (map-style) or threads (streamed) alternating.
"""

import argparse
import io
import itertools
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from mezzotint_training.config.flags import Help
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.batches import KeyedBatches
from mezzotint_training.data.dataset import CaptionedSamples, collate
from mezzotint_training.data.rows import held_out, load_splits
from mezzotint_training.data.streaming import CaptionedStream, load_stream

FEATURES = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
FILE_BYTES, GROUP_ROWS = 2**28, 100


def make(folder: Path, size: int, side: int, kind: str) -> int:
    """Fill a folder with `size` bytes of pictures; how many there are."""
    rng, count = np.random.default_rng(0), 0
    folder.mkdir()
    for part in itertools.count():
        if size <= 0:
            return count
        left = min(size, FILE_BYTES)
        size -= left
        with pq.ParquetWriter(folder / f"{part:04}.parquet", FEATURES.arrow_schema, compression="none") as writer:
            while left > 0:
                rows = []
                for _ in range(GROUP_ROWS):
                    file = io.BytesIO()
                    pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(file, kind, **({"compress_level": 0} if kind == "PNG" else {}))
                    rows.append({"image": {"bytes": file.getvalue(), "path": None}, "text": f"picture {count}"})
                    left -= file.tell()
                    count += 1
                writer.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema))
    raise AssertionError


def peak_memory() -> float:
    """MiB that this process held at most (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def one_epoch(config: TrainConfig, side: int, count: int) -> tuple[float, float]:
    """Stream a set of `count` pictures once: peak memory in MiB, and seconds."""
    torch.set_num_threads(1)
    stream = CaptionedStream(load_stream(config), config, 3, (side, side))
    started = time.perf_counter()
    for _ in itertools.islice(stream.batches(config.train_batch_size), count // config.train_batch_size):
        pass
    return peak_memory(), time.perf_counter() - started


def rate(config: TrainConfig, side: int, seconds: float) -> float:
    """Pictures a second, once the first batches are there."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # more workers than cores are part of the table
    if config.streaming:
        batches = CaptionedStream(load_stream(config), config, 3, (side, side)).batches(config.train_batch_size)
    else:
        images = CaptionedSamples(held_out(config, load_splits(config))[0], config, 3, (side, side))
        keys = KeyedBatches(len(images), config.train_batch_size, 1, 0, 1, config.seed, 0)
        workers = config.dataloader_num_workers
        batches = iter(torch.utils.data.DataLoader(images, batch_sampler=keys, num_workers=workers, collate_fn=collate))
    for _ in range(4):
        next(batches)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        next(batches)
        done += config.train_batch_size
    return done / (time.perf_counter() - started)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 4], help="sizes of the sets in GiB")
    parser.add_argument("--side", type=int, default=128, help="side of the pictures on disk, in pixels")
    parser.add_argument("--kind", choices=["PNG", "JPEG"], default="PNG", help="format of the pictures on disk")
    parser.add_argument("--resolution", type=int, default=64, help="side in pixels that they are brought to")
    parser.add_argument("--shuffle_buffer_size", type=int, default=2000, help="rows that are shuffled among themselves")
    parser.add_argument("--train_batch_size", type=int, default=64, help="pictures in a batch")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[0, 1, 2, 4],
        help="numbers of worker processes; for a stream, of threads",
    )
    parser.add_argument("--seconds", type=float, default=10, help="seconds of each round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each number of workers")
    args = parser.parse_args(argv)

    fresh = multiprocessing.get_context("spawn")

    def apart(function, *arguments):
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            return pool.submit(function, *arguments).result()

    with tempfile.TemporaryDirectory() as root:
        os.environ |= {"HF_DATASETS_CACHE": f"{root}/cache", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}  # of the others

        def config(name: str, **changes) -> TrainConfig:
            return TrainConfig(
                train_data_dir=str(Path(root) / name),
                shuffle_buffer_size=args.shuffle_buffer_size,
                train_batch_size=args.train_batch_size,
                num_validation_samples=0,
                **changes,
            )

        print(f"importing the loader: {apart(peak_memory):.0f} MiB")
        sizes = sorted(args.gigabytes)
        for size in sizes:
            count = apart(make, Path(root) / f"{size:g}", int(size * 2**30), args.side, args.kind)
            peak, seconds = apart(one_epoch, config(f"{size:g}", streaming=True), args.resolution, count)
            print(
                f"{size:g} GiB streamed ({count:,} {args.kind} of {args.side} px, window {args.shuffle_buffer_size}): "
                f"peak {peak:.0f} MiB, {count / seconds:,.0f} pictures/s, {size * 2**10 / seconds:,.0f} MiB/s"
            )

        rates: dict[tuple[bool, int], list[float]] = {}
        for _ in range(args.rounds):
            for streaming, workers in itertools.product((False, True), args.workers):
                settings = config(f"{sizes[0]:g}", streaming=streaming, dataloader_num_workers=workers)
                got = apart(rate, settings, args.resolution, args.seconds)
                rates.setdefault((streaming, workers), []).append(got)
        print(f"pictures/s at {args.resolution} px, median (range) of {args.rounds} rounds of {args.seconds:g} s:")
        for (streaming, workers), got in rates.items():
            name = f"streamed, {workers} threads" if streaming else f"map-style, {workers} workers"
            print(f"{name:>24}: {statistics.median(got):8,.0f} ({min(got):,.0f} to {max(got):,.0f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
