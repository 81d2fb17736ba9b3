# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Settings in YAML files: named recipes, a file of the user (`--config`), and the `recipe.yaml` of a finished run."""

import importlib.metadata
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from mezzotint_training.config import plain_yaml
from mezzotint_training.config.errors import UserError, one_line
from mezzotint_training.config.rules import nearest, shown
from mezzotint_training.config.settings import HINTS, TrainConfig

RECIPES = Path(__file__).parents[1] / "recipes"


def recipes() -> list[str]:
    """The names of the recipes that come along."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_named(recipe: str) -> dict[str, Any]:
    """The settings of a named recipe.

    Raises:
        UserError: for a name that there is not (with the nearest one).
    """
    if recipe not in recipes():
        raise UserError(f"unknown recipe {recipe!r}{nearest(recipe, recipes())}; there are {', '.join(recipes())}")
    return read_yaml(RECIPES / f"{recipe}.yaml")


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, each of which must be a known one.

    Raises:
        UserError: for a missing file, one that is not such YAML, or an unknown setting (with the nearest known one).
    """
    settings = _read_mapping(path)
    for key in settings:
        if key not in HINTS:
            raise UserError(f"unknown setting {shown(key)} in {path}{nearest(str(key), list(HINTS))}")
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


def versions() -> dict[str, str]:
    """Of Python and of the packages that a run depends on."""
    names = ("mezzotint", "torch", "diffusers", "transformers", "accelerate", "datasets")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def recipe_yaml(config: TrainConfig) -> str:
    """Every setting in force, as it is published, with the versions of what ran them."""
    from mezzotint import hub  # late: it brings torch, and a program's help and refusals need none

    header = "# " + ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{header}\n{yaml.safe_dump(hub.public(asdict(config)), sort_keys=False, allow_unicode=True)}"
