# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What `--plan` predicts against what the run then measures: peak memory, seconds a step, dropped rows.

    python training/benchmarks/plan_accuracy.py
    python training/benchmarks/plan_accuracy.py --steps 300 --only digits small -- --mixed_precision bf16

Each setting is planned and run in processes of their own; flags after `--` are for all of them. Pictures come from
scikit-learn's digits, and for dropped rows from a folder made here, some of whose files are cut short. What the run
measured is in its `metrics.json`. A ratio is predicted over measured.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mezzotint_training.config.flags import Help

SETTINGS = {
    "digits": ["--recipe", "digits"],
    "digits, batches of 256": ["--recipe", "digits", "--train_batch_size", "256"],
    "digits, checkpointed": ["--recipe", "digits", "--train_batch_size", "256", "--gradient_checkpointing"],
    "tiny, 32 px": ["--dataset_name", "digits", "--resolution", "32", "--size", "tiny"],
    "small, 32 px": ["--dataset_name", "digits", "--resolution", "32", "--size", "small", "--train_batch_size", "32"],
    "a folder, 7 files cut short": ["--size", "tiny", "--on_bad_row", "skip", "--train_data_dir"],
}
COMMON = ["--validation_prompts", "--num_validation_samples", "0", "--report_to", "none"]


def broken_folder(folder: Path, count: int = 300, broken: int = 7) -> Path:
    """`count` pictures with captions, of which the first `broken` are cut short."""
    folder.mkdir()
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{index}.png")
        if index < broken:
            (folder / f"{index}.png").write_bytes((folder / f"{index}.png").read_bytes()[:200])
    lines = (json.dumps({"file_name": f"{index}.png", "text": f"picture {index}"}) for index in range(count))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def program(*argv: str) -> str:
    """What `train.py` prints; its own message stops the benchmark where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "mezzotint_training.train", *argv], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"train.py {' '.join(argv)} ended with code {done.returncode}")
    return done.stdout


def predicted(printed: str) -> dict[str, float]:
    """The figures in what `--plan` printed, whose last line of JSON holds them all."""
    facts = json.loads([line for line in printed.splitlines() if line.startswith("{")][-1])
    return {
        "peak memory (MB)": facts["memory"]["peak"] / 1e6,
        "seconds a step": facts["time"]["seconds_per_step"],
        "dropped rows": len(facts["data"]["dropped"]),
    }


def measured(output_dir: Path, update: int) -> dict[str, float]:
    """The same figures of a finished run, with `update` pictures in each step; seconds are the whole run's."""
    metrics: dict[str, Any] = json.loads((output_dir / "metrics.json").read_text(encoding="utf-8"))
    return {
        "peak memory (MB)": metrics["peak_memory"] / 1e6,
        "seconds a step": update / metrics["images_per_second"],
        "dropped rows": metrics["bad_rows"],
    }


def rows(setting: str, before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Lines of the table, one a figure."""
    lines = []
    for name, forecast in before.items():
        ratio = f"{forecast / after[name]:.2f}" if after[name] else "1.00" if not forecast else "inf"
        lines.append(f"| {setting} | {name} | {forecast:.4g} | {after[name]:.4g} | {ratio} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    argv, more = argv[:cut], argv[cut + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--steps", type=int, default=100, help="updates of each run")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="names, or their beginnings, of the settings to try; by default all"
    )
    args = parser.parse_args(argv)

    print("| setting | figure | predicted | measured | ratio |\n|---|---|--:|--:|--:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pictures = broken_folder(Path(folder) / "pictures")
        for number, (setting, flags) in enumerate(SETTINGS.items()):
            if not setting.startswith(tuple(args.only)):
                continue
            output_dir = Path(folder) / str(number)
            flags = [*flags, str(pictures)] if flags[-1] == "--train_data_dir" else flags
            flags = [*flags, *COMMON, "--max_train_steps", str(args.steps), "--output_dir", str(output_dir), *more]
            printed = program(*flags, "--plan")
            program(*flags)
            facts = json.loads((output_dir / "metrics.json").read_text(encoding="utf-8"))["plan"]
            after = measured(output_dir, facts["batches"]["update"])
            print("\n".join(rows(setting, predicted(printed), after)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
