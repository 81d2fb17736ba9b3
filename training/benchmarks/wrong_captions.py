# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How many wrong captions of its training set a network finds, which was trained on them.

    python training/benchmarks/wrong_captions.py --share 0.05 --output results/

Some captions of the embedded digits are exchanged for another digit's; the recipe `digits` is trained on the set, and
`mezzotint outliers` looks at all its rows. Printed are the share of the wrong captions that it reports, and the share
of what it reports that is wrong, each with its 95 % interval.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from mezzotint_training import outliers, train
from mezzotint_training.config.flags import Help
from mezzotint_training.data.digits import DIGIT_NAMES, digits
from mezzotint_training.metrics.intervals import share


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--share", type=float, default=0.05, help="of the training captions that are made wrong")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice")
    parser.add_argument("--output", default="wrong_captions", help="a folder for the set, the run and what is found")
    args = parser.parse_args(argv)
    output = Path(args.output)
    wrong = write_set(output / "digits", args.share, args.seed)
    data = ["--train_data_dir", str(output / "digits")]
    run, found = output / "run", output / "found.json"
    flags = ["--no-push_to_hub", "--no-load_back", "--output_dir", str(run)]
    if code := train.main(["--recipe", "digits", *data, *flags]):
        return code
    if code := outliers.main([str(run), *data, "--count", "2000", "--output", str(found)]):
        return code
    reported = {row["row"] for row in json.loads(found.read_text())["captions"]}
    right = len(reported & wrong)
    for hits, count, what in (
        (right, len(wrong), "wrong captions are reported"),
        (right, len(reported), "reported captions are wrong"),
    ):
        figure = share(hits, max(count, 1))
        print(f"{hits} of {count} {what}: {figure.value:.1%} ({figure.interval[0]:.1%} to {figure.interval[1]:.1%})")
    return 0


def write_set(folder: Path, part: float, seed: int) -> set[int]:
    """Write the digits with wrong captions as parquet files, and return the training rows that have one."""
    splits, rng = digits(), np.random.default_rng(seed)
    labels = np.array(splits["train"]["label"])
    wrong = rng.choice(len(labels), round(part * len(labels)), replace=False)
    other = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    said = labels.copy()
    said[wrong] = other
    texts = [[f"a handwritten {DIGIT_NAMES[i]}", f"the digit {DIGIT_NAMES[i]}", str(i)] for i in said.tolist()]
    train_rows = splits["train"].remove_columns(["text", "mask"]).add_column("text", texts)
    folder.mkdir(parents=True, exist_ok=True)
    train_rows.to_parquet(folder / "train-00000.parquet")
    splits["test"].remove_columns("mask").to_parquet(folder / "test-00000.parquet")
    return set(wrong.tolist())


if __name__ == "__main__":
    sys.exit(main())
