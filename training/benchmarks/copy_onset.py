# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Find when a run begins to copy its training pictures, by how many of them there are.

    python training/benchmarks/copy_onset.py --data path/to/emoji-32 --text path/to/all-MiniLM-L6-v2

One small network learns at a constant rate from 100 and from 200 pictures, the fewer among the more, and is looked at
as every run is (`metrics/onset.py`): copies begin where the share of drawn pictures that pass for copies is larger
than of real ones by more than chance. An update at which that was seen is given with the one at which it was last
looked for. The last line is the slope of a straight line through the logarithms of updates and pictures: 1 where
copies begin after as many passes over any set, as theory has it (2505.17638).
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import torch

from mezzotint_training.benchmarks.cascade_quality import show
from mezzotint_training.benchmarks.quality import SCALES, finished, prepare, run
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import Help
from mezzotint_training.config.settings import TrainConfig

SCALE = "emoji-32"
UNET = SCALES[SCALE].ours | {"block_out_channels": [64, 96, 128], "attention_head_dim": 32}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--data", required=True, help="folder of the set, of 32 px")
    parser.add_argument("--text", required=True, help="folder or Hub name of the frozen text encoder")
    parser.add_argument("--counts", nargs="+", type=int, default=[100, 200], help="pictures to learn from")
    parser.add_argument("--passes", type=int, default=240, help="passes over each of these sets")
    parser.add_argument("--look_every", type=int, default=24, help="passes from one look to the next")
    parser.add_argument("--dropout", type=float, default=0.0, help="of the network")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the runs")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", default="copy_onset", help="a folder for runs and figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    place = Path(args.output)
    place.mkdir(parents=True, exist_ok=True)
    shared = settings(args, place)
    told, rows = [], [["pictures", "seed", "last look without", "copies begin", "passes", "least held-out loss at"]]
    for count in args.counts:
        for seed in args.seeds:
            config = of(shared, count, args, seed, place / f"{count}-{seed}")
            if not (place / f"{count}-{seed}.json").is_file():
                run("ours", config, args.threads)
            found = onset([line for line in finished(config).lines if "copying" in line])
            told.append(found | {"pictures": count, "seed": seed})
            passes = f"{found['seen'] * config.train_batch_size / count:.0f}" if found["seen"] else f"> {args.passes}"
            rows.append([f"{count:,}", str(seed), *(str(found[name]) for name in ("last", "seen")), passes])
            rows[-1].append(f"{found['least'] * config.train_batch_size / count:.0f} passes")
    show(rows)
    seen = [one for one in told if one["seen"]]
    if len({one["pictures"] for one in seen}) > 1:
        x, y = (np.log([float(one[name]) for one in seen]) for name in ("pictures", "seen"))
        print(f"\nupdates to the first copies grow as pictures to the {np.polyfit(x, y, 1)[0]:.2f}")
    (place / "figures.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


def settings(args: argparse.Namespace, place: Path) -> TrainConfig:
    """Settings of all runs, on the set in an order in which its beginning is like the whole."""
    folder, part = place / "set", place / "set-part"
    if not folder.is_dir():
        for name, rows in datasets.load_dataset(args.data).items():
            rows.shuffle(seed=0).to_parquet(part / f"{name}.parquet")
        part.rename(folder)
    unet = UNET | {"dropout": args.dropout}
    shared = prepare(SCALE, str(folder), place, args.text)
    return replace(
        shared, unet=unet, num_validation_samples=198, validation_split="test", validation_prompts=[],
        num_copy_samples=64, train_batch_size=32, learning_rate=1e-3, lr_scheduler="constant", lr_warmup_steps=50,
        ema_decay=0.99, load_back=False,
    )  # fmt: skip


def of(shared: TrainConfig, count: int, args: argparse.Namespace, seed: int, folder: Path) -> TrainConfig:
    """Settings of the run on so many pictures."""
    a_pass = count / shared.train_batch_size  # updates
    looks = max(1, round(args.look_every * a_pass))
    return replace(
        shared, max_train_samples=count, max_train_steps=round(args.passes * a_pass), validation_steps=looks,
        logging_steps=looks, seed=seed, output_dir=str(folder),
    )  # fmt: skip


def onset(lines: list[dict]) -> dict[str, int | None]:
    """Find in a log's lines with looks the update at which copies were `seen` first, the `last` one at which they were
    looked for before, and that of the `least` held-out loss."""
    steps = [line["step"] for line in lines]
    first = next((i for i, line in enumerate(lines) if line["copying"]), None)
    least = min(lines, key=lambda line: line["held_out_loss"])["step"]
    if first is None:
        return {"last": steps[-1], "seen": None, "least": least}
    return {"last": steps[first - 1] if first else 0, "seen": steps[first], "least": least}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"copy_onset: {error}")
