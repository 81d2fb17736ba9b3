# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What `evaluate` measured in the Hub's two forms: `model-index` in the card's metadata, which it has always read, and
files in `.eval_results/`, which put a model on the leaderboard of a benchmark data set
(<https://huggingface.co/docs/hub/eval-results>)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from mezzotint_training.metrics.table import ROWS

FILE = ".eval_results/mezzotint.yaml"


class Figure(NamedTuple):
    """One figure: an identifier, its words, its value with a 95 % interval, and the same of real pictures, if any."""

    type: str
    name: str
    value: float
    interval: tuple[float, float]
    real: float | None


def figures(evaluation: dict[str, Any]) -> Iterator[Figure]:
    """The figures of the contents of `evaluation.json`."""

    def made(type: str, name: str, found: dict[str, Any]) -> Figure:
        low, high = found["interval"]
        real = found.get("real")
        return Figure(type, name, found["value"], (low, high), None if real is None else real["value"])

    for kind, measured in evaluation["features"].items():
        for metric, found in measured.items():
            words = ROWS[metric].removesuffix(" x 1000")
            yield made(f"{metric}-{kind}", f"{words}, {kind} features", found)
    for kind, found in evaluation["prompt_accuracy"].items():
        yield made(f"prompt_accuracy-{kind}", f"prompt accuracy ({kind})", found)
        if "unseen" in found:
            words = f"prompt accuracy ({kind}), captions that were not trained on"
            yield made(f"prompt_accuracy_unseen-{kind}", words, found["unseen"])
    yield made("copy_rate", f"copy rate ({evaluation['copy_rate']['features']})", evaluation["copy_rate"])
    for quarter, found in enumerate(evaluation["held_out_loss"], 1):
        yield made(f"held_out_loss-{quarter}", f"held-out loss, quarter {quarter} of the noise levels", found)


def model_index(evaluation: dict[str, Any], task: str, dataset: str | None, source: str) -> list[EvalResult]:
    """For `ModelCardData(eval_results=...)`; intervals are among a metric's `args`.

    Args:
        task: as the Hub names it.
        dataset: its name on the Hub, if it has one.
        source: the set's name for people.
    """
    settings = evaluation["settings"]
    how = {name: settings[name] for name in ("num_inference_steps", "guidance_scale", "seed") if name in settings}
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset or source,
            dataset_name=source,
            metric_type=figure.type,
            metric_name=figure.name,
            metric_value=figure.value,
            metric_args={"confidence": 0.95, "interval": list(figure.interval), "real": figure.real, **how},
        )
        for figure in figures(evaluation)
    ]


def eval_results(evaluation: dict[str, Any], dataset: str | None) -> str | None:
    """The text of a file in `.eval_results/`. Its form names a data set on the Hub, and the Hub shows what that set's
    `eval.yaml` has as a task: `None` where the set is not there."""
    if dataset is None:
        return None
    entries = [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=figure.type,
            value=figure.value,
            notes=f"{figure.name}; 95 % interval {figure.interval[0]:.4g} to {figure.interval[1]:.4g}"
            + ("" if figure.real is None else f"; real pictures {figure.real:.4g}"),
        )
        for figure in figures(evaluation)
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
