# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The model card: what a run was told, what it measured, and what `evaluate` did."""

import functools
import importlib.resources
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData

from mezzotint import hub, markdown, samples
from mezzotint.hub import is_path, public, signed
from mezzotint_training.config import tasks
from mezzotint_training.config.errors import UserError, loading
from mezzotint_training.config.recipe import read_recipe
from mezzotint_training.config.settings import EMBEDDED
from mezzotint_training.engine.files import write_text
from mezzotint_training.metrics.table import table
from mezzotint_training.publishing import facts, plots, results

EVALUATION = "evaluation.json"
# Networks that are no pipelines, by kind: the library that loads them, the card's template, and their task on the Hub
NETWORKS = {
    "autoencoder": ("diffusers", "autoencoder.md.jinja", None),
    "two-towers": ("transformers", "two_towers.md.jinja", "zero-shot-image-classification"),
}
GRID = re.compile(r"samples/step-\d+\.png")


def keep(folder: Path, found: dict[str, Any]) -> None:
    """Write what `evaluate` measured into the folder of a finished run, and its card anew. What is published says
    nothing of where things are on this machine."""
    measured = without_paths({name: value for name, value in found.items() if name != "checkpoint"})
    write_text(folder / EVALUATION, json.dumps(measured, indent=1) + "\n")
    name = _on_the_hub(measured["data"].get("dataset_name"))
    if (text := results.eval_results(measured, name)) is not None:
        (folder / results.FILE).parent.mkdir(exist_ok=True)
        write_text(folder / results.FILE, text)
    rewrite(folder)


def drop_evaluation(folder: Path) -> None:
    """Remove what was measured of other weights or other steps."""
    for name in (EVALUATION, results.FILE):
        (folder / name).unlink(missing_ok=True)


def _on_the_hub(dataset: str | None) -> str | None:
    """The name of a data set, if it is one on the Hub."""
    return dataset if dataset and dataset not in EMBEDDED and not is_path(dataset) else None


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
    """Whether `folder` holds all that a card is made of."""
    return all((folder / name).is_file() for name in ("recipe.yaml", "metrics.json"))


def check_trained_on(folder: Path, pictures: int) -> None:
    """Check that a local set is still the run's: its number of training pictures must be the same. That of a streamed
    set is not known.

    Raises:
        UserError: for another number than the run's.
    """
    settings, metrics = _run(folder)
    if pictures != metrics["pictures"] and not settings.get("streaming"):
        raise UserError(f"card needs the very pictures that were trained on, {metrics['pictures']:,}: got {pictures:,}")


def check(folder: Path) -> None:
    """Check that a card can be made from what is in the folder of a finished run.

    Raises:
        UserError: for settings, figures or an evaluation there that are not what was written.
    """
    settings, metrics = _run(folder)
    with loading(f"what the card of {folder} is made of"):
        card_text(folder, settings, metrics, None, _evaluation(folder))


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
    write_text(folder / hub.CARD, card_text(folder, settings, metrics, grid, _evaluation(folder)))


def write_network(
    folder: Path, settings: dict[str, Any], metrics: dict[str, Any], kind: str, grid: str | None = None
) -> None:
    """Write `README.md`, the model card, of a run that made a network and no pipeline.

    Args:
        folder, settings, metrics, grid: as of `card_text`.
        kind: of network, among `NETWORKS`.
    """
    settings, (library, name, tag) = public(settings), NETWORKS[kind]
    head = ModelCardData(
        library_name=library, pipeline_tag=tag, license=settings.get("license"), tags=["mezzotint", "diffusion", kind]
    )
    card = template(name).render(
        card_data=head.to_yaml(),
        name=os.path.basename(os.path.abspath(folder)),
        settings=settings,
        metrics=metrics,
        grid=grid,
        source=_source(settings),
        **{name: getattr(markdown, name) for name in ("plain", "code", "fenced", "literal")},
    )
    write_text(folder / hub.CARD, signed(str(ModelCard(card))))


def _source(settings: dict[str, Any]) -> str:
    """The set that was trained on, by its name or its place."""
    return (settings.get("dataset_name") or settings.get("train_data_dir") or "").removeprefix("./")


def _evaluation(folder: Path) -> dict[str, Any] | None:
    """What was measured of a checkpoint, as a card shows it; `None` where nothing was."""
    path = folder / EVALUATION
    if not path.is_file():
        return None
    evaluation = json.loads(path.read_text(encoding="utf-8"))
    return evaluation | {"table": table(evaluation), "command": shlex.join(evaluation["command"])}


def _run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and the figures of the finished run in `folder`."""
    with loading(f"metrics.json of {folder}"):
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if not isinstance(metrics.get("pictures"), int):
            raise ValueError("pictures must be a number")
    return read_recipe(folder), metrics


def card_text(
    folder: str | Path,
    settings: dict[str, Any],
    metrics: dict[str, Any],
    grid: str | None,
    evaluation: dict[str, Any] | None = None,
) -> str:
    """The model card, made of what was set and what was measured; no number in it is typed by hand.

    Args:
        folder: of the finished pipeline.
        settings: the run's settings (the fields of `TrainConfig`).
        metrics: what the run measured (the contents of `metrics.json`).
        grid: path of the sample grid, relative to `folder`.
        evaluation: what `mezzotint evaluate` measured (the contents of `evaluation.json`), with `table`, all of it in
            Markdown, and `command`, the line that made it; `None` where nothing was.
    """
    folder, settings = Path(folder), public(settings)
    scheduler, schedules = folder / "scheduler" / "scheduler_config.json", []
    if scheduler.is_file():
        saved = json.loads(scheduler.read_text(encoding="utf-8"))
        schedules = saved.get("_fitted_schedules") or saved.get("fitted_schedules") or []  # its name of before
    prompts, base = settings.get("validation_prompts") or [], settings.get("pretrained_model_name_or_path")
    task = tasks.of(settings)
    name = "lora.md.jinja" if settings.get("adapter") else task.card
    title = os.path.basename(os.path.abspath(folder))
    head = front_matter(settings, grid, evaluation, title)
    card = template(name).render(
        **head.to_dict(),
        card_data=head.to_yaml(),
        name=title,
        settings=settings,
        task=task,
        word=tasks.MODALITIES[settings.get("modality") or "image"].word,
        about=facts.about(folder),
        metrics=metrics,
        grid=grid,
        evaluation=evaluation,
        schedules=[schedule for schedule in schedules if "held_out_rmse" in schedule.get("provenance", {})],
        source=_source(settings),
        made_of=facts.architecture(folder),
        data=facts.data(metrics),
        machine=facts.machine(metrics),
        changed=facts.changed(settings),
        losses=facts.losses(folder),
        course=plots.FILE if (folder / plots.FILE).is_file() else None,
        prompt=prompts[0] if prompts else "",
        base=base,
        base_name=base and base.removeprefix("./"),
        **{name: getattr(markdown, name) for name in ("plain", "code", "fenced", "literal")},
    )
    return signed(str(ModelCard(card)))


@functools.cache
def template(name: str) -> jinja2.Template:
    """One of `model_cards/`, compiled once in a process; those of the tasks fill in the first one's blocks."""
    folder = importlib.resources.files("mezzotint.model_cards")
    loader = jinja2.FunctionLoader(lambda other: folder.joinpath(other).read_text(encoding="utf-8"))
    return jinja2.Environment(loader=loader).get_template(name)


def front_matter(
    settings: dict[str, Any], grid: str | None, evaluation: dict[str, Any] | None = None, name: str | None = None
) -> ModelCardData:
    """The card's front matter, with the figures of an evaluation of the model that is called `name`."""
    prompts, base = settings.get("validation_prompts") or [], settings.get("pretrained_model_name_or_path")
    dataset, task = _on_the_hub(settings.get("dataset_name")), tasks.of(settings)
    source = dataset or _source(settings)
    endings = samples.of(settings.get("modality") or "image").ENDINGS
    first = grid.replace(".png", f"-1{endings[0]}") if grid and endings else grid  # to be heard, not seen
    measured = evaluation is not None and bool(source)
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag=task.tag,
        license=settings.get("license"),
        datasets=[dataset] if dataset else None,
        model_name=name if measured else None,
        eval_results=results.model_index(evaluation, task.tag, dataset, source) if measured else None,
        base_model=base if base and not is_path(base) else None,
        tags=["mezzotint", "diffusion", task.tag, *(["lora"] if settings.get("adapter") else [])],
        widget=[{"text": prompt, "output": {"url": first}} for prompt in prompts[:1]] if first else None,
    )
