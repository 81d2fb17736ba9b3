# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Settings in YAML files: named recipes, a file of the user (`--config`), and the `recipe.yaml` of a finished run."""

import functools
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from mezzotint_training.config import plain_yaml
from mezzotint_training.config.errors import UserError, one_line
from mezzotint_training.config.rules import nearest, shown
from mezzotint_training.config.settings import EMBEDDED, TrainConfig, checked, default, hints

RECIPES = Path(__file__).parents[1] / "recipes"
PLACES = ("dataset_name", "train_data_dir")


def place(kind: type[TrainConfig] = TrainConfig) -> Path:
    """The folder of a program's recipes: those of `train` stand at the top."""
    return RECIPES if kind is TrainConfig else RECIPES / kind.program


def recipes(kind: type[TrainConfig] = TrainConfig) -> list[str]:
    """The names of the recipes that come along for a program."""
    return sorted(path.stem for path in place(kind).glob("*.yaml"))


def read_named(recipe: str, kind: type[TrainConfig] = TrainConfig) -> dict[str, Any]:
    """The settings of a program's named recipe.

    Raises:
        UserError: for a name that there is not (with the nearest one).
    """
    known = recipes(kind)
    if recipe not in known:
        raise UserError(f"unknown recipe {recipe!r}{nearest(recipe, known)}; there are {', '.join(known)}")
    return read_yaml(place(kind) / f"{recipe}.yaml", kind)


def read_yaml(path: Path, kind: type[TrainConfig] = TrainConfig) -> dict[str, Any]:
    """The settings in a YAML file, each of which must be one of the program's.

    Raises:
        UserError: for a missing file, one that is not such YAML, or an unknown setting (with the nearest known one).
    """
    settings, known = _read_mapping(path), [name for name in hints(kind) if name not in kind.without]
    for key in settings:
        if key not in known:
            raise UserError(f"unknown setting {shown(key)} in {path}{nearest(str(key), known)}")
    return settings


def read_recipe(folder: str | Path) -> dict[str, Any]:
    """What `recipe.yaml` says in the folder of a finished run, of this version or another: settings that are unknown
    here are among them, and no value is checked (`checked`). Empty for a folder without one.

    Whoever made the folder wrote it: what it says of places, on this machine or the Hub, is for the user to confirm.

    Raises:
        UserError: for a file that cannot be read.
    """
    path = Path(folder) / "recipe.yaml"
    return _read_mapping(path) if path.is_file() else {}


def data_of(checkpoint: str | Path, given: dict[str, Any], names: Iterable[str], program: str) -> dict[str, Any]:
    """The settings that the recipe of a finished run has for `names`, and over them those that were `given`, for a
    program that reads the data of the run once more.

    A recipe that came with somebody's checkpoint says nothing here of what is read or fetched: the user names the set,
    unless it is one that comes with mezzotint. Of another set than the recipe's, nothing in it holds.

    Raises:
        UserError: for data that isn't named, or a recipe that cannot be read.
    """
    recipe = read_recipe(checkpoint)
    recipe = {name: checked(name, recipe[name]) for name in (*PLACES, *names) if name in recipe}
    told, asked = _place(recipe), _place(given)
    if (place := asked or told) is None:
        raise UserError(
            f"{program} needs real pictures: --train_data_dir or --dataset_name, or a recipe that names them"
        )
    if asked is None and told not in [("dataset_name", name) for name in EMBEDDED]:
        raise UserError(f"{program} reads the set that the recipe names if you name it too: --{' '.join(told)}")
    if asked and (told is None or Path(told[1]).name != Path(asked[1]).name):  # another set; folders may have moved
        recipe = {}
    settings = {name: value for name, value in recipe.items() if name not in PLACES}
    return {**settings, place[0]: place[1], **given}


def _place(settings: dict[str, Any]) -> tuple[str, str] | None:
    """The setting that says where the data are, and what it says."""
    return next(((name, settings[name]) for name in PLACES if settings.get(name) is not None), None)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            settings = plain_yaml.load(file.read(plain_yaml.LENGTH + 1))
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"config file {path} cannot be read as YAML: {one_line(error)}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise UserError(f"config file {path} must hold 'name: value' lines: got {type(settings).__name__}")
    return settings


@functools.cache
def versions() -> Mapping[str, str]:
    """Of Python and of the packages that a run depends on."""
    names = ("mezzotint", "torch", "diffusers", "transformers", "accelerate", "datasets")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def recipe_yaml(config: TrainConfig) -> str:
    """Every setting in force, as it is published, with the versions of what ran them."""
    from mezzotint import hub  # late: it brings torch, and a program's help and refusals need none

    header = "# " + ", ".join(f"{name} {version}" for name, version in versions().items())
    kind, settings = type(config), hub.public(asdict(config))
    settings = {k: v for k, v in settings.items() if k not in kind.without or v != default(k, kind)}
    return f"{header}\n{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}"
