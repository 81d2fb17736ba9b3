# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Which changes to the training recipe pay: each against the same base, in the same time, with several seeds.

    python training/benchmarks/ablations.py digits --updates 500 --seeds 3
    python training/benchmarks/ablations.py fashion --data path/to/fashion-28 --changes muon logit_normal

Every run is `train.py` in a process of its own. A change whose updates may cost more or less is first timed beside the
base, by processor time, and gets as many as fit into the time of the base's. Changes that are settings are named in
`changes.py`; what was tried and is no setting is a context there that replaces a part of the program. The figures go to
a table in `ABLATIONS.md` by hand, failures included. With --results they are kept in a file, and what is in there is
not run again.
"""

import argparse
import json
import math
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mezzotint_training.benchmarks.changes import CHANGES
from mezzotint_training.benchmarks.quality import SCALES, QualityJudge, prepare, ratio, run, update_seconds
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import Help
from mezzotint_training.config.settings import TrainConfig

# The settings that a change is a change to, beyond the defaults
BASE: dict[str, Any] = {
    "weighting_scheme": "logit_normal", "logit_mean": 0.5, "logit_std": 1.2, "channels_last": True,
    "train_batch_size": 32, "learning_rate": 2e-3, "ema_decay": 0.99, "lr_warmup_steps": 50,
}  # fmt: skip


# --------------------------------------------------------------------------------------------------------- the program


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("scale", choices=list(SCALES), help="the set and the sizes to train at")
    parser.add_argument("--data", help="folder of the set; digits need none")
    parser.add_argument(
        "--updates", type=int, default=500, help="updates of the base; a change that costs more gets fewer"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of each change")
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), metavar="CHANGE",
                        help=f"changes to try, by default all: {', '.join(CHANGES)}")  # fmt: skip
    parser.add_argument("--also", type=json.loads, default={}, help="more changes, as JSON: name to settings")
    parser.add_argument("--base", type=json.loads, default={}, help="settings that all runs have besides, as JSON")
    parser.add_argument("--count", type=int, default=512, help="pictures drawn for each verdict")
    parser.add_argument("--sampling_steps", type=int, default=12, help="steps in which they are drawn")
    parser.add_argument("--judge_steps", type=int, default=400, help="updates of the classifier that judges")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("--results", help="a file of JSON lines that keeps the figures; what is in it is not run again")
    args = parser.parse_args(argv)
    for name in args.changes:
        if name not in CHANGES:
            raise UserError(f"a change must be one of {', '.join(CHANGES)}: got {name!r}")
    changes = {name: CHANGES[name] for name in args.changes} | {k: (v, True) for k, v in args.also.items()}

    torch.set_num_threads(args.threads)
    kept = Path(args.results) if args.results else None
    done: list[dict[str, Any]] = []
    if kept is not None and kept.is_file():
        done = [json.loads(line) for line in kept.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shared = prepare(args.scale, args.data, root)
        unet = {**shared.unet, **args.base.get("unet", {})}
        shared = replace(shared, **{**BASE, **args.base, "unet": unet})
        judge = QualityJudge(shared, SCALES[args.scale], args.count, args.sampling_steps, args.judge_steps)
        real = judge.of_real()
        print(f"real pictures: KID x 1000 {1000 * real.kernel_distance.value:.2f}, accuracy {real.accuracy.value:.1%}")

        def settings(name: str) -> TrainConfig:
            differ = changes.get(name, ({}, False))[0]
            differ = {k: {**getattr(shared, k), **v} if isinstance(v, dict) else v for k, v in differ.items()}
            if name == "attention":  # at the lowest level; without, the text comes in with the timestep alone
                above = len(differ["unet"]["block_out_channels"]) - 1
                differ["unet"]["transformer_layers_per_block"] = [0] * above + [1]
            return replace(shared, **differ)

        def length(name: str) -> int:
            """Updates in the time of the base's: the cost of one is taken beside that of the base, twice by turns."""
            config = {x: replace(settings(x), output_dir=str(root / f"{x}-timed")) for x in ("none", name)}
            costs = [update_seconds(x, config[x], args.threads) for x in ("none", name, "none", name)]
            return round(args.updates * sum(costs[::2]) / sum(costs[1::2]))

        lengths = {name: length(name) if costs else args.updates for name, (_, costs) in changes.items()}
        print(f"updates: {lengths}", flush=True)

        def one(job: tuple[str, int]) -> None:
            name, seed = job
            known = {"scale": args.scale, "change": name, "seed": seed, "updates": args.updates, "base": args.base}
            if any(all(line[k] == v for k, v in known.items()) for line in done):
                return
            output_dir = str(root / f"{name}-{seed}".replace(" ", "_"))
            config = replace(settings(name), output_dir=output_dir, seed=seed)
            config = replace(config, max_train_steps=lengths[name], logging_steps=max(1, lengths[name] // 5))
            ended = run(name, config, args.threads)
            found = judge.of_ours(Path(config.output_dir), seed=seed)
            line = known | {
                "steps": lengths[name],
                "wall": ended.wall,
                "processor": ended.processor,
                "kernel_distance": found.kernel_distance.value,
                "frechet_distance": found.frechet_distance.value,
                "accuracy": found.accuracy.value,
                "loss": ended.lines[-1]["loss"],
            }
            done.append(line)
            if kept is not None:
                with kept.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)

        jobs = [(name, seed) for seed in range(args.seeds) for name in changes]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(one, jobs))
    print("\n" + table([x for x in done if x["scale"] == args.scale and x["base"] == args.base], args.updates))
    return 0


def table(lines: list[dict[str, Any]], updates: int) -> str:
    """Markdown, best change first; ratios are to the runs with none."""
    lines = [line for line in lines if line["updates"] == updates]
    by_name: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_name.setdefault(line["change"], []).append(line)

    def column(name: str, key: str) -> list[float]:
        return [max(line[key], 1e-5) for line in by_name[name]]

    rows = []
    for name, some in by_name.items():
        cells = [name, f"{np.mean(column(name, 'processor')):.0f}", f"{some[0]['steps']:,}"]
        cells += [f"{1000 * math.exp(np.mean(np.log(column(name, 'kernel_distance')))):.2f}"]
        value = 1.0
        if name == "none" or len(some) < 2:
            cells += ["", ""]
        else:
            value, low, high = ratio(column(name, "kernel_distance"), column("none", "kernel_distance"))
            other = ratio(column(name, "frechet_distance"), column("none", "frechet_distance"))
            cells += [f"{value:.2f} ({low:.2f} to {high:.2f})", "{:.2f} ({:.2f} to {:.2f})".format(*other)]
        cells += [f"{np.mean(column(name, 'accuracy')):.1%}"]
        rows.append((value, f"| {' | '.join(cells)} |"))
    head = (
        "| change | seconds | updates | KID x 1000 | ratio to none | Fréchet distance, ratio | accuracy |\n"
        + "|---" * 7
    )
    return "\n".join([head + "|", *(row for _, row in sorted(rows))])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"ablations: {error}")
