# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How fast `train.py` trains, beside diffusers' recipe (`diffusers_recipe.py`) for the same U-Net, text and pictures.

    python training/benchmarks/train_speed.py
    python training/benchmarks/train_speed.py --sizes small --resolutions 32 --data path/to/emoji-32
    python training/benchmarks/train_speed.py --sizes tiny small base --resolutions 32 64 128 --batch 64 --steps 200 \\
        --mixed_precision bf16 -- --compile --channels_last

Each run is a process of its own, ours and the peer's by turns; flags after `--` are for ours alone. Both write the same
`metrics.jsonl`, five windows of steps of which the first, of warming up, is passed over. What both are asked to do is
the same: the settings that `--size` derives, a text encoder that is frozen as in diffusers' recipe (or not, with
`--train_text_encoder`), as many threads and workers. Ratios are ours over the peer's; each is the median over pairs of
successive runs, with an interval between two of the pairs' ratios and the probability that it covers the median.
"""

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from mezzotint import MezzotintUNetModel
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import Help
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.config.sizes import SIZES, Facts, applied, derive

PROGRAMS = {"ours": "mezzotint_training.train", "peer": "mezzotint_training.benchmarks.diffusers_recipe"}
WINDOWS = 5
# What a run is made to last where the steps are not given: so many seconds at such a share of the peak
SECONDS, UTILISATION = 15, 0.3
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Measured:
    """One run, after its first window."""

    images_per_second: float
    peak_memory: float  # bytes
    data_wait: float  # share of the time


def measured(lines: list[dict], times: list[float], pictures: int) -> Measured:
    """A run from its log.

    Args:
        lines: of `metrics.jsonl`, one for each window.
        times: when each was seen, in seconds. A program's own rate may leave out what it does between its steps.
        pictures: in a window.
    """
    rate = pictures * (len(lines) - 1) / (times[-1] - times[0])
    return Measured(rate, lines[-1]["peak_memory"], statistics.mean(line["data_wait"] for line in lines[1:]))


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float, float, float]:
    """The median with its order-statistic interval, which supposes nothing of the distribution (David and Nagaraja,
    Order Statistics, 2003, eq. 7.1.2).

    Returns:
        median, low, high, and the interval's coverage: the least one of `confidence` or more, or what all values give.
    """
    ordered, count = sorted(values), len(values)
    low, coverage = 0, 1 - 2 / 2**count
    # Between the (k + 1)-th from below and from above: missed where k or fewer of the values are on one side
    for k in range(1, (count + 1) // 2):
        covered = 1 - 2 * sum(math.comb(count, i) for i in range(k + 1)) / 2**count
        if covered < confidence:
            break
        low, coverage = k, covered
    return statistics.median(ordered), ordered[low], ordered[count - 1 - low], coverage


def picture_flops(config: TrainConfig, resolution: int) -> int:
    """Floating-point operations of the U-Net on one picture, forward and backward, by its convolutions and matrix
    products (a multiplication and an addition are two). The text is taken to be one token long: what is read of longer
    ones, and how they are encoded, is not the same on both sides."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        unet = MezzotintUNetModel(**config.unet)
        sample = torch.zeros(1, unet.config.in_channels, resolution, resolution)
        text = torch.zeros(1, 1, unet.config.cross_attention_dim)
        unet(sample, torch.zeros(1), text).sample.sum().backward()
    return counter.get_total_flops()


def peak_flops(dtype: torch.dtype, device: str) -> float:
    """Floating-point operations a second of a large matrix product: the best of several."""
    size = 2048 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = math.inf
    for _ in range(10):
        started = time.perf_counter()
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def make_pictures(folder: Path, resolution: int, count: int) -> None:
    """A parquet file of PNGs, coloured clouds with some grain, and captions of 20 to 60 bytes."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    pictures, captions = [], []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        cloud = np.asarray(coarse.resize((resolution, resolution), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = generator.integers(-8, 9, cloud.shape)
        pictures.append(Image.fromarray((cloud + grain).clip(0, 255).astype(np.uint8)))
        words = generator.integers(0, 1000, generator.integers(2, 8))
        captions.append("a picture of " + " ".join(f"thing{word}" for word in words))
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": pictures, "text": captions}, features=features)
    rows.to_parquet(folder / "train.parquet")


def settings(args: argparse.Namespace, size: str, resolution: int, data: Path) -> TrainConfig:
    """Of both programs, for one size and resolution; what is not said here is a default or derived from the size."""
    config = TrainConfig(
        size=size,
        train_data_dir=str(data),
        resolution=[resolution],
        train_batch_size=args.batch,
        train_text_encoder=args.train_text_encoder,
        max_text_length=77,  # as CLIP's, which the recipe was written for
        mixed_precision=args.mixed_precision,
        dataloader_num_workers=args.workers,
        num_validation_samples=0,
        report_to="none",
    )
    derived = applied(config, derive(config, Facts(None, (resolution, resolution), channels=3)))
    shape = {"in_channels": 3, "out_channels": 3, "cross_attention_dim": derived.text_encoder["d_model"]}
    return replace(derived, size=None, unet={**derived.unet, **shape})


def run(name: str, config: TrainConfig, flags: list[str], threads: int) -> Measured:
    """Train in a process of its own, and take away what it leaves.

    Raises:
        UserError: if it fails, with the last that it said.
    """
    output = Path(config.output_dir)
    settings_file, said, log = output.with_suffix(".yaml"), output.with_suffix(".txt"), output / "metrics.jsonl"
    settings_file.write_text(config.to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", PROGRAMS[name], "--config", str(settings_file), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_DATASETS_CACHE": str(output.parent / "cache")}
    times: list[float] = []
    with said.open("w") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as process:
        while process.poll() is None:
            time.sleep(0.02)
            lines = log.read_bytes().count(b"\n") if log.is_file() else 0
            times += [time.perf_counter()] * (lines - len(times))
    if process.returncode != 0:
        raise UserError(
            f"{' '.join(command)} failed with code {process.returncode}: {said.read_text()[-2000:].strip()}"
        )
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    shutil.rmtree(output)
    return measured(lines, times, config.train_batch_size * config.logging_steps)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small", "base"], choices=list(SIZES), metavar="SIZE",
                        help="sizes of --size")  # fmt: skip
    parser.add_argument(
        "--resolutions", nargs="+", type=int, default=[16, 32, 64], help="sides of the pictures in pixels"
    )
    parser.add_argument("--data", help="a folder of parquet files; by default pictures are made at each resolution")
    parser.add_argument("--pictures", type=int, default=2048, help="number of pictures that are made")
    parser.add_argument("--batch", type=int, default=8, help="pictures in a batch")
    parser.add_argument("--steps", type=int, help=f"timed steps of a run; by default what takes about {SECONDS} s")
    parser.add_argument("--repeats", type=int, default=6, help="pairs of runs; 95 %% intervals need 6")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that load data; 0 is the default of both programs"
    )
    parser.add_argument("--mixed_precision", choices=list(DTYPES), default="no", help="precision of the arithmetic")
    parser.add_argument("--train_text_encoder", action="store_true", help="train the text encoder too")
    parser.add_argument("--cached_text", action="store_true", help="let the peer, too, encode each caption only once")
    parser.add_argument("--output", help="a file of JSON lines to which each row is appended as it is measured")
    parser.add_argument("ours", nargs="*", help="after --: further flags of train.py")
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads)
    datasets.disable_progress_bars()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peak = peak_flops(DTYPES[args.mixed_precision], device)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    print(
        f"{name}, {args.threads} threads, {platform.platform()}, torch {torch.__version__}, precision "
        f"{args.mixed_precision}, {peak / 1e9:,.0f} GFLOP/s in matrix products; batches of {args.batch}, "
        f"{args.workers} workers, text encoder {'trained' if args.train_text_encoder else 'frozen'}"
        f"{', its output cached by the peer too' if args.cached_text else ''}; {args.repeats} pairs of runs\n"
    )
    flags = {"ours": args.ours, "peer": ["--cached_text"] if args.cached_text else []}
    table, failed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for resolution in args.resolutions:
            data = Path(args.data).absolute() if args.data else Path(folder) / f"data-{resolution}"
            if args.data is None:
                make_pictures(data, resolution, args.pictures)
            for size in args.sizes:
                config = settings(args, size, resolution, data)
                flops = picture_flops(config, resolution)
                steps = args.steps or SECONDS * UTILISATION * peak / (flops * args.batch)
                window = max(1, math.ceil(min(steps, 1000) / (WINDOWS - 1)))
                never = WINDOWS * window + 1
                config = replace(
                    config, max_train_steps=WINDOWS * window, logging_steps=window, checkpointing_steps=never,
                    validation_steps=never, lr_warmup_steps=0,
                )  # fmt: skip
                runs: dict[str, list[Measured]] = {"ours": [], "peer": []}
                try:
                    for repeat in range(args.repeats):
                        for program, results in runs.items():
                            output = str(Path(folder) / f"{program}-{size}-{resolution}-{repeat}")
                            one = replace(config, output_dir=output)
                            results.append(run(program, one, flags[program], args.threads))
                            print(f"{size}, {resolution} px, {program}: {results[-1]}", flush=True)
                except UserError as error:  # which costs this row and no other
                    print(f"train_speed: {size}, {resolution} px: {error}", file=sys.stderr, flush=True)
                    failed += 1
                    continue
                table.append(row(size, resolution, config, flops / peak, runs))
                if args.output:
                    figures = {"size": size, "resolution": resolution, "batch": args.batch, "peak_flops": peak}
                    figures |= {program: medians(results, flops / peak) for program, results in runs.items()}
                    with open(args.output, "a", encoding="utf-8") as file:
                        file.write(json.dumps(figures) + "\n")
    print("\n" + HEADER + "\n".join(table))
    if failed:
        raise UserError(f"{failed} of {failed + len(table)} rows failed, as said above")
    return 0


HEADER = (
    "| size | parameters | px | images/s: ours | peer | ratio | memory, MB: ours | peer | ratio "
    "| data wait: ours | peer | model FLOP utilisation: ours | peer |\n" + "|---" * 13 + "|\n"
)


def medians(runs: list[Measured], seconds: float) -> dict[str, float]:
    """Each figure's median over the runs, and the share of the peak that they reached, `utilisation`, where a picture
    would take so many seconds at the peak."""
    figures = {field.name: statistics.median(getattr(one, field.name) for one in runs) for field in fields(Measured)}
    return figures | {"utilisation": seconds * figures["images_per_second"]}


def row(size: str, resolution: int, config: TrainConfig, seconds: float, runs: dict[str, list[Measured]]) -> str:
    """A line of the table; `seconds` are what a picture would take at the peak."""
    with torch.device("meta"):
        parameters = MezzotintUNetModel(**config.unet).num_parameters()

    middle = {program: medians(results, seconds) for program, results in runs.items()}

    def ratio(name: str) -> str:
        pairs = zip(runs["ours"], runs["peer"], strict=True)
        median, low, high, coverage = median_interval([getattr(a, name) / getattr(b, name) for a, b in pairs])
        return f"{median:.2f} ({low:.2f} to {high:.2f}, {100 * coverage:.0f} %)"

    cells = [size, f"{parameters / 1e6:.1f} M", str(resolution)]
    cells += [f"{one['images_per_second']:.4g}" for one in middle.values()] + [ratio("images_per_second")]
    cells += [f"{one['peak_memory'] / 1e6:,.0f}" for one in middle.values()] + [ratio("peak_memory")]
    cells += [f"{100 * one['data_wait']:.1f} %" for one in middle.values()]
    cells += [f"{100 * one['utilisation']:.0f} %" for one in middle.values()]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"train_speed: {error}")
