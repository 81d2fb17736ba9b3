# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What a person waits from a prompt to a picture, ours beside diffusers' own pipeline at equal measured quality.

    pip install -c constraints.txt -e ".[benchmarks]"
    python training/benchmarks/prompt_to_picture.py runs/digits --fitted runs/digits-fitted \\
        --students runs/digits-distilled --output picture.json --plot picture.png
    python training/benchmarks/prompt_to_picture.py model_cards/emoji-64 --train_data_dir path/to/emoji-64 --count 100

Both sides have the same weights. The peer is `StableDiffusionPipeline` without an autoencoder around our text encoder
and U-Net (`stock_pipeline.py`), with schedulers of diffusers in several settings, guided in every step or in none.
Ours is `MezzotintPipeline` with its default sampler, with guidance at some noise levels only, with fitted steps, and
with distilled students.

**Quality** is measured of the pictures of each setting for the same captions from the same noises: the kernel distance
(KID) to held-out pictures in the features of a network with random weights and of what is trained to judge, recall in
the first, and how often a picture is read as asked for. A stock setting is *as good* as one of ours where in both kinds
of features its KID is at most a twentieth greater, and it is read as asked for at most two points less often. KID is
compared by value: captions, noises and held-out pictures are the same, and its interval is mostly of what they share.
A stock setting is *not told to be worse* where, in both kinds, the interval of the difference in KID (a jackknife over
the pictures in pairs) reaches down to zero, and the same of accuracy; that gives stock the benefit of every doubt.

**Time** is that of a whole call for one picture: text encoded, sample denoised, PIL image made. For each setting of
ours, but those of the default sampler alone, the cheapest stock setting that is as good is looked up, by medians of
some calls, and then both are timed by turns on the same prompts; the ratio is ours over stock's, the median of pairs
with an interval of order statistics.

What --output holds is not measured again by the same command, so that a run that was cut off goes on.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.utils import logging

from mezzotint_training.benchmarks.checkpoint_judge import CheckpointJudge
from mezzotint_training.benchmarks.stock_pipeline import StockPictures
from mezzotint_training.benchmarks.train_speed import median_interval
from mezzotint_training.config.errors import UserError, exit_code
from mezzotint_training.config.flags import Help
from mezzotint_training.config.rules import nearest
from mezzotint_training.few_steps.stock_solvers import common_settings, settings, solvers_at
from mezzotint_training.metrics.distances import kernel_distance, precision_recall
from mezzotint_training.metrics.intervals import estimated, interval, left_out
from mezzotint_training.networks.saved import load_pipeline

# What people take, and what comes first or near it at few steps: names in `few_steps/stock_solvers.py`
STOCK = {
    "DDIM": "DDIM trailing set_alpha_to_one=True",
    "DPM-Solver++(2M)": "DPMSolverMultistep dpmsolver++ solver_order=2 trailing final_sigmas_type=zero",
    "DPM-Solver++(2M) Karras": "DPMSolverMultistep dpmsolver++ solver_order=2 karras final_sigmas_type=zero",
    "DPM-Solver++(2M) Lu": "DPMSolverMultistep dpmsolver++ solver_order=2 lu final_sigmas_type=zero",
    "UniPC": "UniPCMultistep bh2 solver_order=2 trailing final_sigmas_type=zero",
    "UniPC exponential": "UniPCMultistep solver_order=2 exponential sigma_min=0.03",
}
SLACK = {"kid": 0.05, "accuracy": 0.02}  # how much greater, as a share, and how much less, a figure may be
MEASURED_OF = ("checkpoint", "train_data_dir", "fitted", "students", "count", "judge_steps", "cpu_time", "device")


class Plan(NamedTuple):
    """A setting to measure: what draws, and how it is called."""

    series: str  # "stock", "default", "fitted" or "distilled"
    name: str
    pipe: Any
    steps: int
    scale: float
    more: dict[str, Any] = {}

    @property
    def guidance(self) -> str:
        if self.scale == 1:
            return "off"
        low, high = self.more.get("guidance_interval", (None, None))
        return f"{self.scale:g}" if low is None else f"{self.scale:g}, {low:g} < sigma <= {high:g}"

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.series, self.name, self.guidance, self.steps

    def __call__(self, prompt: str, seed: int) -> Any:
        """One picture, as a person has it drawn."""
        generator = torch.Generator().manual_seed(seed)
        how = {"num_inference_steps": self.steps, "guidance_scale": self.scale, **self.more}
        return self.pipe(prompt, generator=generator, **how).images[0]


@dataclass
class Row:
    """What was measured of a setting; figures are value, low and high."""

    series: str
    name: str
    guidance: str
    steps: int
    evaluations: float  # of the network, a picture; a guided step is two
    kid: dict[str, list[float]]  # by the kind of features
    left: dict[str, list[float]]  # the same with a twentieth of the pictures left out at a time
    recall: list[float]
    accuracy: list[float] | None
    seconds: float | None = None  # of a call for one picture

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.series, self.name, self.guidance, self.steps

    @property
    def held_against_stock(self) -> bool:
        """Whether it does what no stock pipeline does. The default sampler alone costs about what a stock one costs in
        as many steps."""
        return self.series in ("fitted", "distilled") or "sigma" in self.guidance

    def __str__(self) -> str:
        return f"{self.name}, {self.steps} steps, guidance {self.guidance}"


# ------------------------------------------------------------------------------------------------- equal quality


def read_as_often(stock: Row, ours: Row) -> bool:
    """Whether a setting is read as asked for as often as another, up to `SLACK`."""
    if stock.accuracy is None or ours.accuracy is None:
        return True
    return stock.accuracy[0] >= ours.accuracy[0] - SLACK["accuracy"] - 1e-9


def as_good(stock: Row, ours: Row) -> bool:
    """Whether a setting has no greater KID in any kind of features, up to `SLACK`, and is read as often."""
    most = {kind: value + SLACK["kid"] * abs(value) for kind, (value, *_) in ours.kid.items()}
    return read_as_often(stock, ours) and all(stock.kid[kind][0] <= most[kind] for kind in ours.kid)


def not_told_worse(stock: Row, ours: Row) -> bool:
    """Whether the pictures cannot tell that a setting has a greater KID in any kind of features, and it is read as
    often."""

    def lowest(kind: str) -> float:
        left = torch.tensor(stock.left[kind]) - torch.tensor(ours.left[kind])
        return interval(stock.kid[kind][0] - ours.kid[kind][0], left, "linear")[0]

    return read_as_often(stock, ours) and all(lowest(kind) <= 0 for kind in ours.kid)


def cheapest(ours: Row, stock: Iterable[Row], good: Callable[[Row, Row], bool] = as_good) -> Row | None:
    """Of the settings that are as good as `ours`, the one whose call is shortest; `None` where there is none."""
    return min((row for row in stock if good(row, ours)), key=lambda row: row.seconds or 0.0, default=None)


# What a setting of ours is held against: which stock settings, and when one is as good
MATCHES: dict[str, tuple[Callable[[Row], bool], Callable[[Row, Row], bool]]] = {
    "as good, guided": (lambda stock: stock.guidance != "off", as_good),
    "as good, guided or not": (lambda stock: True, as_good),
    "not told to be worse, guided or not": (lambda stock: True, not_told_worse),
}


def matches(ours: Row, rows: Iterable[Row]) -> dict[str, Row | None]:
    """The cheapest stock setting for each of `MATCHES`."""
    stock = [row for row in rows if row.series == "stock"]
    return {name: cheapest(ours, filter(chosen, stock), good) for name, (chosen, good) in MATCHES.items()}


def closest(ours: Row, stock: Iterable[Row]) -> Row:
    """Where none is as good, the setting that is least behind in the kind of features in which it is most behind; of
    those that are read as often, if there are any."""
    some = list(stock)

    def behind(row: Row) -> tuple[bool, float]:
        ratios = (max(row.kid[kind][0], 1e-4) / max(ours.kid[kind][0], 1e-4) for kind in ours.kid)
        return not read_as_often(row, ours), max(ratios)

    return min(some, key=behind)


# ------------------------------------------------------------------------------------------------- what is measured


def plans_of(args: argparse.Namespace, judge: CheckpointJudge) -> list[Plan]:
    """Every setting of both sides.

    Raises:
        UserError: for a scheduler's setting that isn't there, and for a checkpoint that is not what its flag says.
    """
    pipe, within = judge.pipe, {"guidance_interval": tuple(args.guidance_interval)}
    if pipe.unet.config.cross_attention_dim is None:
        raise UserError("the checkpoint must read text: got one that draws without a prompt")
    named = {str(setting): setting for setting in settings()}
    named |= {name: named[full] for name, full in STOCK.items()}
    for name in args.stock:
        if name not in named and name != "common":
            hint = nearest(name, list(named))
            raise UserError(
                f"--stock must name settings of few_steps/stock_solvers.py, or be 'common': got {name!r}{hint}"
            )
    common = {str(setting): setting for setting in common_settings()}
    peers = common if "common" in args.stock else {name: named[name] for name in args.stock}
    limit = pipe.tokenizer.model_max_length
    longest = min(limit, max(len(pipe.tokenizer(texts[0]).input_ids) for texts in judge.asked.captions))
    names = {setting: name for name, setting in peers.items()}
    stock = {x: StockPictures(pipe, x.scheduler(pipe.scheduler), longest) for x in names}
    plans = []
    for count in args.counts:
        for setting, steps in solvers_at(count, pipe.scheduler, tuple(names)).steps.items():
            plans += [Plan("stock", names[setting], stock[setting], steps, w) for w in args.guidance_scales]
        for w in args.guidance_scales:
            plans.append(Plan("default", "default sampler", pipe, count, w))
            if w > 1:
                plans.append(Plan("default", "default sampler", pipe, count, w, within))
    if args.fitted:
        fitted: Any = load_pipeline(args.fitted, "fitted", device=args.device)
        ours, its = pipe.unet.state_dict(), fitted.unet.state_dict()
        if ours.keys() != its.keys() or not all(torch.equal(ours[name], its[name]) for name in ours):
            raise UserError("--fitted must be a copy of the checkpoint: got other weights of the U-Net")
        if not fitted.scheduler.fitted_schedules:
            raise UserError("--fitted must have fitted steps, which mezzotint fit-scheduler finds: got none")
        for table in fitted.scheduler.fitted_schedules:
            how = table["num_inference_steps"], table["guidance_scale"]
            plans += [Plan("fitted", "fitted", fitted, *how, more) for more in ({}, within)[: 1 + (how[1] > 1)]]
    for folder in args.students:
        student = load_pipeline(folder, "students", device=args.device)
        if student.distilled_steps is None:
            raise UserError(f"--students must be distilled checkpoints: got {folder}")
        name = "distilled" if len(args.students) == 1 else f"distilled ({Path(folder).name})"
        plans += [Plan("distilled", name, student, n, 1.0) for n in sorted(student.distilled_steps)]
    return plans


def quality(plan: Plan, judge: CheckpointJudge) -> Row:
    """Draw by a setting, and measure what comes out."""
    looked = 0

    def look(_, args) -> None:
        nonlocal looked
        looked += len(args[0])

    hook = plan.pipe.unet.register_forward_pre_hook(look)
    pixels = judge.draw(plan.pipe, plan.steps, plan.scale, **plan.more)
    hook.remove()
    kid, left = {}, {}
    features = {kind: see(pixels) for kind, see in judge.features.items()}
    for kind, some in features.items():
        value, without = left_out(kernel_distance, some, judge.references[kind])
        left[kind] = without[:, 0].tolist()
        kid[kind] = [float(value), *interval(float(value), without[:, 0], "linear")]
    recall = estimated(precision_recall, features["random"], judge.references["random"], "share")[1]
    read = judge.accuracy(pixels)
    return Row(
        *plan.key, looked / len(pixels), kid, left, [recall.value, *recall.interval],
        None if read is None else [read.value, *read.interval],
    )  # fmt: skip


def timed(plans: list[Plan], prompts: list[str], turns: int, clock: Callable[[], float]) -> list[list[float]]:
    """Seconds of each setting's calls, by turns, one prompt after the other; the first turn, of warming up, is passed
    over."""
    found: list[list[float]] = [[] for _ in plans]
    for turn in range(turns + 1):
        for plan, seconds in zip(plans, found, strict=True):
            started = clock()
            plan(prompts[turn % len(prompts)], turn)
            seconds.append(clock() - started)
    return [seconds[1:] for seconds in found]


class Record:
    """The figures so far, in the file of --output if there is one."""

    def __init__(self, args: argparse.Namespace):
        self.path = Path(args.output) if args.output else None
        self.of = {name: getattr(args, name) for name in MEASURED_OF}
        self.rows: dict[tuple[str, str, str, int], Row] = {}
        self.pairs: dict[str, dict[str, Any]] = {}  # of a row of ours and one of stock, with the ratio of their times
        if self.path and self.path.is_file():
            known = json.loads(self.path.read_text(encoding="utf-8"))
            if known["of"] == self.of:
                self.rows = {row.key: row for row in (Row(**fields) for fields in known["rows"])}
                self.pairs = known["pairs"]

    def write(self) -> None:
        if self.path:
            rows = [dataclasses.asdict(row) for row in self.rows.values()]
            text = json.dumps({"of": self.of, "rows": rows, "pairs": self.pairs}, indent=1)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = self.path.with_name(f"{self.path.name}.new")  # a run that is cut off leaves the figures so far
            new.write_text(text + "\n", encoding="utf-8")
            new.replace(self.path)


def measure(args: argparse.Namespace, clock: Callable[[], float]) -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """The rows of a command, and the pairs that were timed by turns; what the record does not have is measured."""
    record = Record(args)
    judge = CheckpointJudge(args.checkpoint, args.train_data_dir, args.count, args.judge_steps, args.device)
    plans = {plan.key: plan for plan in plans_of(args, judge)}
    for key, plan in plans.items():
        if key not in record.rows:
            record.rows[key] = row = quality(plan, judge)
            kids = ", ".join(f"{kind} {x[0]:.4f}" for kind, x in row.kid.items())
            read = "" if row.accuracy is None else f", read {row.accuracy[0]:.1%}"
            print(f"{row}: {row.evaluations:.1f} evaluations, KID {kids}{read}", file=sys.stderr, flush=True)
            record.write()
    rows, prompts = [record.rows[key] for key in plans], [texts[0] for texts in judge.asked.captions]
    if any(row.seconds is None for row in rows):
        for row, seconds in zip(rows, timed(list(plans.values()), prompts, args.calls, clock), strict=True):
            row.seconds = statistics.median(seconds)
        record.write()
    for row in filter(lambda row: row.held_against_stock, rows):
        found = {f"{row} / {x}": x for x in matches(row, rows).values() if x is not None}
        if missing := [name for name in found if name not in record.pairs]:
            some = [plans[row.key], *(plans[found[name].key] for name in missing)]
            ours, *others = timed(some, prompts, args.repeats, clock)
            for name, theirs in zip(missing, others, strict=True):
                ratio = median_interval([a / b for a, b in zip(ours, theirs, strict=True)])
                seconds = [statistics.median(ours), statistics.median(theirs)]
                record.pairs[name] = {"ratio": ratio, "seconds": seconds}
            record.write()
    return rows, record.pairs


# ------------------------------------------------------------------------------------------------- what is shown


def cells(row: Row) -> list[str]:
    """The columns of quality."""
    shown = [f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in row.kid.values()]
    return [*shown, f"{row.recall[0]:.2f}", "" if row.accuracy is None else f"{row.accuracy[0]:.1%}"]


def table(rows: list[Row], pairs: dict[str, dict[str, Any]]) -> str:
    """Markdown: the quality of each setting of ours and of those of stock that are cheapest for their own quality; then
    each of ours beside the stock settings that it is held against."""
    stock, kinds = [row for row in rows if row.series == "stock"], list(rows[0].kid)
    quality = [*(f"KID, {kind} features" for kind in kinds), "recall", "read as asked for"]
    head = ["", "guidance", "steps", "evaluations", "ms", *quality]
    lines = [f"| {' | '.join(head)} |", "|---|---" + "|--:" * (len(head) - 2) + "|"]
    own = [row for row in stock if cheapest(row, stock) is row]
    ours = [row for row in rows if row.series != "stock"]
    for row in [*sorted(own, key=lambda row: row.seconds or 0.0), *ours]:
        figures = [row.guidance, str(row.steps), f"{row.evaluations:g}", f"{1000 * (row.seconds or 0):.1f}"]
        lines.append(f"| {' | '.join([row.name, *figures, *cells(row)])} |")
    lines += ["", f"| ours | {' | '.join(f'stock, {name} | ms | ratio' for name in MATCHES)} |"]
    lines.append("|---" + "|---|--:|---" * len(MATCHES) + "|")
    for row in filter(lambda row: row.held_against_stock, ours):
        beside = []
        for name, other in matches(row, rows).items():
            if other is None:
                best = closest(row, filter(MATCHES[name][0], stock))
                kid = " and ".join(f"{values[0]:.3f}" for values in best.kid.values())
                beside += [f"none; closest {best} (KID {kid})", f"{1000 * (best.seconds or 0):.1f}", ""]
            else:
                median, low, high, _ = pairs[f"{row} / {other}"]["ratio"]
                mine, theirs = pairs[f"{row} / {other}"]["seconds"]
                beside += [str(other), f"{1000 * mine:.1f} / {1000 * theirs:.1f}"]
                beside += [f"{median:.2f} ({low:.2f} to {high:.2f})"]
        lines.append(f"| {' | '.join([str(row), *beside])} |")
    return "\n".join(lines)


FLOOR = 1e-3  # of the plot's logarithmic axis: about no distance it is noise, and can be below zero
LOOKS = {"default": ("tab:blue", "o", 4), "fitted": ("tab:orange", "D", 4), "distilled": ("tab:red", "*", 8)}


def plot(rows: list[Row], path: Path, title: str) -> None:
    """KID against evaluations of the network, in both kinds of features."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    kinds = list(rows[0].kid)
    figure, panels = pyplot.subplots(1, len(kinds), figsize=(4.8 * len(kinds), 4.8), sharex=True)
    series: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.evaluations):
        series.setdefault((row.series, row.name, row.guidance), []).append(row)

    def levels(values: Iterable[float]) -> list[float]:
        return [max(value, FLOOR) for value in values]

    for kind, axes in zip(kinds, panels, strict=True):
        # 1. Each scheduler faintly, and the best of them at so many evaluations or fewer
        for style, guided in (("-", True), ("--", False)):
            lines = [line for key, line in series.items() if key[0] == "stock" and (key[2] != "off") == guided]
            for line in lines:
                points = [row.evaluations for row in line], levels(row.kid[kind][0] for row in line)
                axes.plot(*points, style, color="0.85", linewidth=0.7, zorder=1)
            some = [row for line in lines for row in line]
            counts = sorted({row.evaluations for row in some})
            best = levels(min(row.kid[kind][0] for row in some if row.evaluations <= n) for n in counts)
            label = f"best stock, {'guided' if guided else 'not guided'}"
            axes.plot(counts, best, style, color="0.25", linewidth=1.6, label=label, zorder=2)
        # 2. Ours, with intervals; weaker guidance is paler
        for look, (colour, marker, size) in LOOKS.items():
            some = {key: line for key, line in sorted(series.items()) if key[0] == look}
            strongest = max((guidance.split(",")[0] for *_, guidance in some if guidance != "off"), default="off")
            for (_, name, guidance), line in some.items():
                style = "--" if guidance == "off" else ":" if "sigma" in guidance else "-"
                style, label = ("-", name) if look == "distilled" else (style, f"{name}, guidance {guidance}")
                alpha = 1.0 if guidance == "off" or guidance.split(",")[0] == strongest else 0.4
                values, lows, highs = (levels(row.kid[kind][i] for row in line) for i in range(3))
                counts = [row.evaluations for row in line]
                axes.plot(
                    counts, values, style, color=colour, alpha=alpha, linewidth=1.2, marker=marker, markersize=size,
                    markerfacecolor=colour if style == "-" else "white", label=label, zorder=4,
                )  # fmt: skip
                axes.vlines(counts, lows, highs, color=colour, linewidth=0.8, alpha=0.3 * alpha, zorder=3)
        axes.set(xscale="log", yscale="log", xlabel="evaluations of the network a picture", title=f"{kind} features")
        ticks = [2**i for i in range(8) if 2**i <= 1.3 * max(row.evaluations for row in rows)]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    panels[0].set_ylabel(f"KID to held-out pictures (lower ones at {FLOOR:g})")
    figure.suptitle(title, fontsize=11)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.05 * math.ceil(len(labels) / 3), 1, 1))
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("checkpoint", help="folder of a finished run")
    parser.add_argument("--train_data_dir", help="its set; digits need none")
    parser.add_argument("--fitted", help="a copy of the checkpoint whose scheduler is fitted (mezzotint fit-scheduler)")
    parser.add_argument("--students", nargs="+", default=[], help="checkpoints distilled from it (mezzotint distill)")
    parser.add_argument("--stock", nargs="+", default=list(STOCK), help="settings of stock schedulers, by these names, "
                        "those in few_steps/stock_solvers.py, or 'common': what comes out best there")  # fmt: skip
    parser.add_argument("--counts", type=int, nargs="+", default=[3, 4, 5, 6, 8, 10, 15, 20, 30, 50],
                        help="steps of stock schedulers and of the default sampler")  # fmt: skip
    parser.add_argument("--guidance_scales", type=float, nargs="+", default=[1.0, 2.0],
                        help="weights of the guidance on both sides; 1 turns it off")  # fmt: skip
    parser.add_argument("--guidance_interval", type=float, nargs=2, default=[0.5, 5.0], metavar=("LOW", "HIGH"),
                        help="noise levels at which ours is guided, in the rows where it is not at all")  # fmt: skip
    parser.add_argument("--count", type=int, default=600, help="pictures drawn for each setting")
    parser.add_argument("--judge_steps", type=int, default=300, help="updates of what is trained to judge")
    parser.add_argument("--calls", type=int, default=5, help="calls of each setting, to find the cheapest")
    parser.add_argument("--repeats", type=int, default=21, help="pairs of calls for each ratio")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--cpu_time", action="store_true", help="take the time of one processor thread, not the "
                        "clock's: where other programs run too")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="device of the networks")
    parser.add_argument("--output", help="a JSON file for all figures, which are taken from it where they are there")
    parser.add_argument("--plot", help="a PNG file for KID against evaluations")
    args = parser.parse_args(argv)

    def run() -> None:
        if args.plot and importlib.util.find_spec("matplotlib") is None:
            raise UserError("--plot needs matplotlib; pip install 'mezzotint[benchmarks]' brings it")
        torch.set_num_threads(1 if args.cpu_time else args.threads)
        logging.set_verbosity_error()  # a stock scheduler names the settings that it has no use for
        logging.disable_progress_bar()
        rows, pairs = measure(args, time.thread_time if args.cpu_time else time.perf_counter)
        print(table(rows, pairs))
        if args.plot:
            plot(rows, Path(args.plot), f"{Path(args.checkpoint).name}: steps against quality")

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
