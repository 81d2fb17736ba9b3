# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Plots a run's log: its losses, and how its drawings did. Needs matplotlib, without which there is no plot."""

import json
from pathlib import Path
from typing import Any

from mezzotint_training.engine.files import aside, sync

FILE = "samples/course.png"
FEWEST = 8  # points of a curve that is worth looking at
PANELS = (
    ("loss", {"loss": "training", "held_out_loss": "held out", "held_out_loss_raw": "held out, weights not averaged"}),
    ("share of drawings", {"copy_rate": "suspiciously near to one training picture"}),
)


def plot(output_dir: Path) -> str | None:
    """Draw `metrics.jsonl` of a run as `samples/course.png`.

    Returns:
        its path, relative to the folder; `None` where there is too little to plot, or no matplotlib.
    """
    curves = [(label, {name: curve(output_dir, key) for key, name in of.items()}) for label, of in PANELS]
    curves = [(label, {name: xy for name, xy in of.items() if len(xy) >= 2}) for label, of in curves]
    curves = [(label, of) for label, of in curves if any(len(xy) >= FEWEST for xy in of.values())]
    if not curves:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(5 * len(curves), 3.2), layout="constrained")
    for axes, (label, of) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        for name, xy in of.items():
            axes.plot(*zip(*xy, strict=True), label=name, linewidth=1.2)
        axes.set(xlabel="update", ylabel=label)
        if label == "loss":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    (output_dir / "samples").mkdir(exist_ok=True)
    new = aside(output_dir, "course.png")
    figure.savefig(new, format="png", dpi=120, metadata={"Software": None})
    sync(new)
    new.replace(output_dir / FILE)
    return FILE


def curve(output_dir: Path, name: str) -> list[tuple[int, float]]:
    """One column of the log, by update; what is not finite is left out."""
    found: list[tuple[int, float]] = []
    path = output_dir / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            entry: Any = json.loads(line)
            if isinstance(entry.get(name), int | float):
                found.append((entry["step"], entry[name]))
        except (ValueError, KeyError, AttributeError):
            continue
    return found
