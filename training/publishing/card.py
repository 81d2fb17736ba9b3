# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What is said of a checkpoint's pictures: the figures of `evaluate` as a table, and the model card with them."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

from mezzotint import hub
from mezzotint.markdown import code, plain
from mezzotint_training.config.errors import UserError, loading
from mezzotint_training.config.settings import read_recipe
from mezzotint_training.engine.files import write_text

EVALUATION = "evaluation.json"
GRID = re.compile(r"samples/step-\d+\.png")
# What is measured on each kind of features, as it is shown
ROWS = {
    "kernel_distance": "kernel distance (KID) x 1000",
    "frechet_distance": "Fréchet distance",
    "sliced_wasserstein": "sliced-Wasserstein distance",
    "precision": "precision",
    "recall": "recall",
}


def table(results: dict[str, Any]) -> str:
    """What `evaluate` measured, as Markdown."""
    settings, count, data = results["settings"], results["pictures"], results["data"]
    source = data["dataset_name"] or os.path.basename(os.path.abspath(data["train_data_dir"]))
    lines = [
        f"{count['drawn']:d} pictures in {settings['num_inference_steps']:d} steps, guidance "
        f"{settings['guidance_scale']:g}, seed {settings['seed']:d}, against {count['held_out']:d} held-out ones of "
        f"{code(source)}; the floor is of {count['floor']:d} of {count['train']:d} training pictures. 95 % intervals.",
        "",
        "| | drawn | real |",
        "|---|---|---|",
    ]

    def line(name: str, figure: dict[str, Any], style: str, factor: float = 1.0) -> None:
        cells = []
        for x in (figure, figure.get("real")):
            numbers = [] if x is None else [factor * v for v in (x["value"], *x["interval"])]
            cells.append("{} ({} to {})".format(*(format(v, style) for v in numbers)) if numbers else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")

    for name, figures in results["features"].items():
        for metric, figure in figures.items():
            within = metric in ("precision", "recall")
            factor = 1000.0 if metric == "kernel_distance" else 1.0
            line(f"{ROWS[metric]}, {plain(name)} features", figure, ".1%" if within else ".3g", factor)
    for kind, found in results["prompt_accuracy"].items():
        how = plain(kind) if kind == "classifier" else f"{plain(kind)}, own caption of {found['choices']:d}"
        line(f"prompt accuracy ({how})", found, ".1%")
        if "unseen" in found:
            line("the same, captions that were not trained on", found["unseen"], ".1%")
    found = results["copy_rate"]
    line(f"copy rate ({plain(found['features'])}, ratio below {found['threshold']:.2f})", found, ".1%")
    for quarter, found in enumerate(results["held_out_loss"], 1):
        line(f"held-out loss, quarter {quarter} of the noise levels", found, ".4f")
    return "\n".join(lines)


def keep(folder: Path, results: dict[str, Any]) -> None:
    """Write what `evaluate` measured into the folder of a finished run, and its card anew. What is published says
    nothing of where things are on this machine."""
    results = without_paths({name: value for name, value in results.items() if name != "checkpoint"})
    write_text(folder / EVALUATION, json.dumps(results, indent=1) + "\n")
    rewrite(folder)


def without_paths(plain: Any) -> Any:
    """Plain data with the last part of each path that is there in the place of that path."""
    if isinstance(plain, dict):
        return {without_paths(name): without_paths(value) for name, value in plain.items()}
    if isinstance(plain, list):
        return [without_paths(value) for value in plain]
    if isinstance(plain, str) and plain and os.path.exists(plain):
        return os.path.basename(os.path.abspath(plain))
    return plain


def of_a_run(folder: Path) -> bool:
    """Whether all is there that a card is made of."""
    return all((folder / name).is_file() for name in ("recipe.yaml", "metrics.json"))


def check_trained_on(folder: Path, pictures: int) -> None:
    """Of a set that is named by its place, the number of its training pictures tells whether it is the run's; that of a
    streamed set is not known.

    Raises:
        UserError: for another number than the run's.
    """
    settings, metrics = _run(folder)
    if pictures != metrics["pictures"] and not settings.get("streaming"):
        raise UserError(f"card needs the very pictures that were trained on, {metrics['pictures']:,}: got {pictures:,}")


def check(folder: Path) -> None:
    """See that a card can be made of what is in the folder of a finished run.

    Raises:
        UserError: for settings, figures or an evaluation there that are not what was written.
    """
    settings, metrics = _run(folder)
    with loading(f"what the card of {folder} is made of"):
        hub.card_text(folder, settings, metrics, None, _evaluation(folder))


def rewrite(folder: Path) -> None:
    """Write the card of a finished run anew, after something in its folder was.

    Raises:
        UserError: for settings or figures there that are not what a run wrote.
    """
    settings, metrics = _run(folder)
    grids = sorted(name for path in folder.glob("samples/*") if GRID.fullmatch(name := f"samples/{path.name}"))
    with loading(f"what the card of {folder} is made of"):
        write(folder, settings, metrics, grids[-1] if grids else None)


def write(folder: Path, settings: dict[str, Any], metrics: dict[str, Any], grid: str | None) -> None:
    """Write `README.md`, the model card, of a run and of the evaluation that is in its folder: whole, and not through a
    link that is in its place."""
    write_text(folder / hub.CARD, hub.card_text(folder, settings, metrics, grid, _evaluation(folder)))


def _evaluation(folder: Path) -> dict[str, Any] | None:
    """What was measured of a checkpoint, as a card shows it; `None` where nothing was."""
    path = folder / EVALUATION
    if not path.is_file():
        return None
    evaluation = json.loads(path.read_text(encoding="utf-8"))
    return evaluation | {"table": table(evaluation), "command": shlex.join(evaluation["command"])}


def _run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its settings and figures."""
    with loading(f"metrics.json of {folder}"):
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if not isinstance(metrics.get("pictures"), int):
            raise ValueError("pictures must be a number")
    return read_recipe(folder), metrics
