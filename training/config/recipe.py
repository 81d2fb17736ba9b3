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
from mezzotint_training.config.settings import TrainConfig, hints

RECIPES = Path(__file__).parents[1] / "recipes"


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
    settings = {name: value for name, value in hub.public(asdict(config)).items() if name not in config.without}
    return f"{header}\n{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}"
