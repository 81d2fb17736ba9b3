# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How long Mezzotint's recipe takes to the quality that diffusers' own reaches in the end.

    pip install -c constraints.txt -e ".[benchmarks]"
    python training/benchmarks/time_to_quality.py digits --seconds 300
    python training/benchmarks/time_to_quality.py fashion --data path/to/fashion-28 --seconds 600 --output results/
    python training/benchmarks/time_to_quality.py emoji-64 --data path/to/emoji-64 --text path/to/all-MiniLM-L6-v2

The peer is what `train_text_to_image.py` does (`diffusers_recipe.py`): noise prediction with uniform timesteps, AdamW,
EMA, `UNet2DConditionModel`; with every courtesy: cached text, guidance's dropped captions, batch, learning rate and its
course swept for the best final quality. Ours is `train.py`. Both have the same frozen text encoder, the same pictures,
as many parameters and threads; runs of a seed follow each other, peer's and ours by turns. Quality is the kernel
distance (KID) of pictures drawn by one and the same sampler from the same noise, on features of a judge that was
trained on the real training split (`quality.py`). It is taken of the peer's averaged weights as it goes along, of ours
at the end of runs of that length.

Time is processor time of a run with --threads threads, from reading the data to the last update; wall time is shown
beside it. Captions are encoded once for all runs of a side, before the first that counts. The ratio is that of the time
at which ours is as good as the peer at its end, between two runs by interpolation on logarithms, for each seed; its
interval is Student's.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import make_image_grid
from PIL import Image
from scipy import stats

from mezzotint_training.benchmarks.quality import SCALES, Judged, QualityJudge, Run, prepare, run, steps_within
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import Help

# Of the peer, beyond train_text_to_image.py's defaults of 1e-4, batches of 16 and a constant rate
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
BATCHES = (16, 64)
PEER: dict[str, Any] = {"lr_warmup_steps": 0, "ema_decay": 0.9999, "adam_beta2": 0.999}
# Ours: differences from the defaults that `--size` would derive from width, batch and length
OURS: dict[str, Any] = {
    "train_batch_size": 32, "learning_rate": 2e-3, "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 50,
    "ema_decay": 0.99,
}  # fmt: skip
UNKEPT = ("output", "data", "text", "seeds", "shares", "ours")  # of a command, in which its runs may differ
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of --seconds, at which quality is looked at


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("scale", choices=list(SCALES), help="the set and the sizes to train at")
    parser.add_argument("--data", help="folder of the set; digits need none")
    parser.add_argument("--text", help="folder or Hub name of the pretrained text encoder that emoji need")
    parser.add_argument("--seconds", type=float, default=600, help="seconds of each of the peer's runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to run with")
    parser.add_argument("--sweep", type=float, default=0.5, help="length of the sweep's runs, as a share of --seconds")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="batch sizes that the sweep tries")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates that the sweep tries")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES[:-1],
                        help="lengths of our runs, as shares of --seconds")  # fmt: skip
    parser.add_argument("--looks", type=int, default=16, help="times at which the peer is judged as it goes along")
    parser.add_argument("--ours", type=json.loads, default={}, help="settings of ours to change, as JSON")
    parser.add_argument("--count", type=int, default=1000, help="pictures drawn for each verdict")
    parser.add_argument("--sampling_steps", type=int, default=15, help="steps in which pictures are drawn")
    parser.add_argument("--judge_steps", type=int, default=500, help="updates of the classifier that judges")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument(
        "--output", default="time_to_quality", help="a folder for the figures, the plot and the pictures"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    log = Log(output / f"{args.scale}.jsonl", args)
    with tempfile.TemporaryDirectory() as folder:
        measure(args, log, Path(folder), output)
    print(table(log.lines, args))
    plot(log.lines, args, output / f"{args.scale}.png")
    return 0


class Log:
    """Figures of runs in a file of JSON lines; of the same command, what is there need not be run again. Of ours, runs
    of other settings are passed over."""

    def __init__(self, path: Path, args: argparse.Namespace):
        self.path = path
        self.command = {k: v for k, v in vars(args).items() if k not in UNKEPT}
        before = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in map(json.loads, before) if line["command"] == json.loads(json.dumps(self.command))]
        self.lines: list[dict[str, Any]] = [line for line in kept if line.get("settings", args.ours) == args.ours]

    def add(self, run: Run | None, judged: Judged, **what: Any) -> None:
        figures = {
            "kernel_distance": judged.kernel_distance,
            "frechet_distance": judged.frechet_distance,
            "accuracy": judged.accuracy,
        }
        line = {"command": self.command} | what | {k: [v.value, *v.interval] for k, v in figures.items()}
        if run is not None:
            line = {"wall": run.wall, "processor": run.processor} | line
        self.lines.append(json.loads(json.dumps(line)))
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        kid, right = 1000 * judged.kernel_distance.value, judged.accuracy.value
        told = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in what.items() if v != {})
        print(f"{told}: {line.get('processor', 0):.0f} s, KID x 1000 {kid:.2f}, accuracy {right:.1%}", flush=True)

    def of(self, **what: Any) -> list[dict[str, Any]]:
        return [x for x in self.lines if all(x.get(k) == v for k, v in what.items())]


def measure(args: argparse.Namespace, log: Log, root: Path, output: Path) -> None:
    shared = prepare(args.scale, args.data, root, args.text)
    scale, threads = SCALES[args.scale], args.threads
    judge = QualityJudge(shared, scale, args.count, args.sampling_steps, args.judge_steps)
    if not log.of(side="real"):
        log.add(None, judge.of_real(), side="real")
    ours = replace(shared, **{**OURS, **scale.recipe, **args.ours})
    peer = replace(shared, unet=scale.peer, **PEER)

    def finished(config: Any, **what: Any) -> None:
        """A run of the peer, looked at as it goes along."""
        ended = run("peer", config, threads)
        for folder in sorted(Path(config.output_dir).glob("unet-*"), key=lambda x: int(x.name[5:])):
            wall, processor = json.loads((folder / "seconds.json").read_text())
            step = int(folder.name[5:])
            for guidance in (2.0, 1.0) if step == config.max_train_steps and "seed" in what else (1.0,):
                found = judge.of_peer(folder, guidance, seed=config.seed)
                log.add(ended._replace(wall=wall, processor=processor), found, step=step, guidance=guidance, **what)
        if "seed" in what:
            show(found, judge, output / f"{args.scale}-peer-{config.seed}.png")

    for side, config in (("peer", peer), ("ours", ours)):  # whose captions are encoded here, if they are frozen
        run(side, replace(config, max_train_steps=1, logging_steps=1, output_dir=str(root / f"{side}-first")), threads)

    # 1. The peer's batch and learning rate, by a seed that is used for nothing else; and whether it had better end at
    # zero. A run of any batch has the same time
    steps = {}
    for batch in args.batches:
        config = replace(peer, train_batch_size=batch, output_dir=str(root / f"peer-{batch}"))
        (steps[batch],) = steps_within([args.seconds], "peer", config, threads)

    def swept(**choice: Any) -> None:
        what = {"side": "sweep", **choice}
        if not log.of(**what):
            short = max(1, int(args.sweep * steps[choice["train_batch_size"]]))
            config = replace(peer, **choice, seed=100, max_train_steps=short, logging_steps=short)
            finished(replace(config, output_dir=str(root / "-".join(map(str, choice.values())))), **what)

    for batch in args.batches:
        for rate in args.rates:
            swept(train_batch_size=batch, learning_rate=rate, lr_scheduler="constant")
    swept(**best(log) | {"lr_scheduler": "cosine"})
    choice = best(log)
    most = steps[choice["train_batch_size"]]

    # 2. Both sides by turns
    times = [x * args.seconds for x in args.shares]
    lengths = steps_within(times, "ours", replace(ours, output_dir=str(root / "ours")), threads)
    nearest = min(args.shares, key=lambda share: abs(share - 1 / 4))  # whose pictures are looked at with guidance too
    for seed in args.seeds:
        if not log.of(side="peer", seed=seed):
            config = replace(peer, **choice, seed=seed, max_train_steps=most, logging_steps=most)
            config = replace(config, checkpointing_steps=max(1, most // args.looks))
            finished(replace(config, output_dir=str(root / f"peer-{seed}")), side="peer", seed=seed)
        for share, length in zip(args.shares, lengths, strict=True):
            if log.of(side="ours", seed=seed, share=share):
                continue
            config = replace(ours, seed=seed, max_train_steps=length, logging_steps=length)
            ended = run("ours", replace(config, output_dir=str(root / f"ours-{share}-{seed}")), threads)
            for guidance in (2.0, 1.0) if share == nearest else (1.0,):
                found = judge.of_ours(root / f"ours-{share}-{seed}", guidance, seed=seed)
                log.add(ended, found, side="ours", seed=seed, share=share, step=length, guidance=guidance,
                        settings=args.ours)  # fmt: skip
            show(found, judge, output / f"{args.scale}-ours-{share:g}-{seed}.png")


def best(log: Log) -> dict[str, Any]:
    """The settings of the peer's run of the sweep that ended nearest to real pictures."""
    found = min(log.of(side="sweep", guidance=1.0), key=lambda x: x["kernel_distance"][0])
    return {name: found[name] for name in ("train_batch_size", "learning_rate", "lr_scheduler")}


def show(judged: Judged, judge: QualityJudge, path: Path, columns: int = 10, rows: int = 6) -> None:
    """The first pictures of each class as they came, a column each, larger; without classes the first of all."""
    labels = judge.asked.labels
    if not judge.scale.classes:
        labels = torch.arange(len(labels)) % columns
    of_each = [(labels == label).nonzero()[:, 0] for label in labels.unique()[:columns]]
    rows = min(rows, *map(len, of_each))
    chosen = [some[row] for row in range(rows) for some in of_each]
    pixels = judged.pixels[torch.stack(chosen)].permute(0, 2, 3, 1).squeeze(-1).numpy()
    factor = max(1, 56 // pixels.shape[1])
    pictures = [Image.fromarray(x).convert("RGB") for x in pixels]
    pictures = [x.resize((factor * x.width, factor * x.height), Image.Resampling.NEAREST) for x in pictures]
    make_image_grid(pictures, rows=rows, cols=len(chosen) // rows).save(path)


# ------------------------------------------------------------------------------------------------- what comes out of it


def crossing(seconds: list[float], values: list[float], goal: float) -> tuple[float, str]:
    """When a curve first is at `goal` or below, linear between its points on logarithms; and `"<"` where it is so from
    its first point on, `">"` where it never is."""
    points = sorted(zip(np.log(seconds), np.log(np.clip(values, 1e-5, None)), strict=True))
    level = math.log(max(goal, 1e-5))
    if points[0][1] <= level:
        return math.exp(points[0][0]), "<"
    for (t0, y0), (t1, y1) in zip(points, points[1:], strict=False):
        if y1 <= level:
            return math.exp(t0 + (t1 - t0) * (level - y0) / (y1 - y0)), ""
    return math.exp(points[-1][0]), ">"


def ratios(lines: list[dict[str, Any]], clock: str) -> Iterator[tuple[float, str]]:
    """For each seed the time that ours took to the peer's final quality, over the peer's time."""
    for seed in sorted({x["seed"] for x in lines if x.get("side") == "peer"}):
        peer = [x for x in lines if x.get("side") == "peer" and x["seed"] == seed and x["guidance"] == 1.0]
        ours = [x for x in lines if x.get("side") == "ours" and x["seed"] == seed and x["guidance"] == 1.0]
        last = max(peer, key=lambda x: x["step"])
        if ours:
            found, mark = crossing([x[clock] for x in ours], [x["kernel_distance"][0] for x in ours],
                                   last["kernel_distance"][0])  # fmt: skip
            yield found / last[clock], mark


def geometric(values: list[float]) -> str:
    """The geometric mean with Student's interval."""
    logs = np.log(np.clip(values, 1e-5, None))
    if len(logs) < 2:
        return f"{values[0]:.3g}"
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
    return f"{math.exp(logs.mean()):.3g} ({math.exp(logs.mean() - half):.3g} to {math.exp(logs.mean() + half):.3g})"


def table(lines: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Markdown: quality by time on both sides, and the ratio."""
    rows = ["| | seconds | wall | updates | KID x 1000 | Fréchet distance | accuracy | accuracy, guidance 2 |",
            "|---|--:|--:|--:|---|---|--:|--:|"]  # fmt: skip
    shown: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for x in lines:
        if x.get("side") in ("peer", "ours"):
            shown.setdefault((x["side"], x.get("share", x["step"])), []).append(x)
    for (side, _), some in sorted(shown.items(), key=lambda item: item[1][0]["processor"]):
        plain, guided = ([x for x in some if x["guidance"] == g] for g in (1.0, 2.0))
        accuracies = [f"{np.mean([x['accuracy'][0] for x in xs]):.1%}" if xs else "" for xs in (plain, guided)]
        cells = [
            side,
            *(f"{np.mean([x[k] for x in plain]):.0f}" for k in ("processor", "wall")),
            f"{some[0]['step']:,}",
        ]
        cells += [geometric([1000 * x["kernel_distance"][0] for x in plain])]
        cells += [geometric([x["frechet_distance"][0] for x in plain]), *accuracies]
        rows.append(f"| {' | '.join(cells)} |")
    (real,) = [x for x in lines if x.get("side") == "real"]
    kid, frechet, right = (real[k][0] for k in ("kernel_distance", "frechet_distance", "accuracy"))
    rows.append(f"| real | | | | {1000 * kid:.3g} | {frechet:.3g} | {right:.1%} | |")
    for clock in ("processor", "wall"):
        found = list(ratios(lines, clock))
        if found:
            each = ", ".join(f"{mark}{value:.3f}" for value, mark in found)
            rows.append(f"\nTime to the peer's final KID over the peer's, {clock}: {geometric([x for x, _ in found])}; "
                        f"by seed {each}")  # fmt: skip
    swept = [x for x in lines if x.get("side") == "sweep" and x["guidance"] == 1.0]
    told = [
        f"{x['train_batch_size']} at {x['learning_rate']:g} {x['lr_scheduler']} {1000 * x['kernel_distance'][0]:.1f}"
        for x in swept
    ]
    rows.append(f"\nThe peer's sweep, batch at rate with its KID x 1000: {', '.join(told)}")
    return "\n".join(rows)


def plot(lines: list[dict[str, Any]], args: argparse.Namespace, path: Path) -> None:
    """KID against seconds, a line for each seed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    looks = (("peer", "tab:gray", "-", "diffusers' recipe"), ("ours", "tab:red", "--", "Mezzotint, each point a run"))
    for side, colour, style, label in looks:
        for seed in sorted({x["seed"] for x in lines if x.get("side") == side}):
            some = [x for x in lines if x.get("side") == side and x["seed"] == seed and x["guidance"] == 1.0]
            some.sort(key=lambda x: x["processor"])
            points = [x["processor"] for x in some], [max(1000 * x["kernel_distance"][0], 0.01) for x in some]
            axes.plot(*points, style, color=colour, marker="o", markersize=3, label=label if seed == 0 else None)
    (real,) = [x for x in lines if x.get("side") == "real"]
    title = f"{args.scale} (real pictures: {1000 * real['kernel_distance'][0]:.1f})"  # about 0, where no logarithm is
    axes.set(xscale="log", yscale="log", xlabel="seconds, one thread", ylabel="KID x 1000", title=title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"time_to_quality: {error}")
