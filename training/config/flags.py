# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The flags of a program, and the settings of a run: from defaults, recipe, YAML file and flags, in that order."""

import argparse
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from mezzotint_training.config import plain_yaml
from mezzotint_training.config.errors import UserError, one_line
from mezzotint_training.config.recipe import read_named, read_yaml, recipes
from mezzotint_training.config.rules import Rule, nearest, number, shown
from mezzotint_training.config.settings import TrainConfig, hints

Config = TypeVar("Config", bound=TrainConfig)


def parse_args(argv: list[str] | None, description: str, kind: type[Config] = TrainConfig) -> Config:
    """Settings of the program whose class is `kind`, from defaults, recipe, YAML file and flags, in that order.

    Raises:
        UserError: for an unknown recipe, key or flag (with the nearest known one) or a value of the wrong type.
    """
    layers, words = layers_of(argv, description, kind)
    found = settled(kind, layers)
    found.argv = words
    return found


def layers_of(
    argv: list[str] | None, description: str, kind: type[TrainConfig]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The layers of settings that a command line names, those of a recipe, a YAML file and flags, and its words.

    Raises:
        UserError: as `parse_args` does, but for values that break a rule.
    """
    parser = Parser(kind.program, description, argument_default=argparse.SUPPRESS)
    parser.add_argument("--recipe", help=f"a named set of differences from the defaults: {', '.join(recipes(kind))}")
    parser.add_argument("--config", help="a YAML file of differences from the defaults and the recipe")
    add_settings(parser, kind)
    flags = vars(parser.parse_args(argv))
    recipe, config = flags.pop("recipe", None), flags.pop("config", None)
    layers = []
    if recipe is not None:
        layers.append(read_named(recipe, kind))
    if config is not None:
        layers.append(read_yaml(Path(config), kind))
    return [*layers, flags_as_values(flags, kind)], sys.argv[1:] if argv is None else list(argv)


def add_settings(parser: "Parser", kind: type[TrainConfig], defaults: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Add a flag for each setting that the program of `kind` has; its help says the default, that of `defaults` before
    its own."""
    for f in (f for f in fields(kind) if f.name not in kind.without):
        default = defaults.get(f.name, f.default if f.default_factory is MISSING else f.default_factory())
        help = f"{f.metadata['help']} (default: {default})".replace("%", "%%")
        plain = _plain(hints(kind)[f.name])
        if plain is bool:
            parser.add_argument(f"--{f.name}", action=argparse.BooleanOptionalAction, help=help)
        else:
            parser.add_argument(f"--{f.name}", nargs="*" if plain is list else None, metavar="", help=help)


def flags_as_values(flags: dict[str, Any], kind: type[TrainConfig]) -> dict[str, Any]:
    """What flags of the settings of `kind` say, as a layer of settings."""
    return {name: _from_text(name, value, hints(kind)[name]) for name, value in flags.items()}


def settled(kind: type[Config], layers: list[dict[str, Any]]) -> Config:
    """The settings of `kind` from layers, each over the one before.

    Raises:
        UserError: for a value of the wrong type, or that breaks its rule.
    """
    settings: dict[str, Any] = {}
    for layer in layers:
        # a data source replaces the one of the layer below, and what that said of it
        source = ("dataset_name", "train_data_dir")
        if any(layer.get(k) for k in source) and any(settings.get(k) for k in source):
            of_it = {*source, "dataset_config_name", "dataset_license", "dataset_split", "validation_split"}
            settings = {k: v for k, v in settings.items() if k not in of_it}
        for key, value in layer.items():
            if isinstance(value, dict) and isinstance(settings.get(key), dict):
                value = {**settings[key], **value}
            settings[key] = value
    given = dict(settings)
    defaults = {f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING}
    for key, value in settings.items():
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            settings[key] = {**defaults[key], **value}
    found = kind(**settings)
    found.given = given
    return found


def _from_text(name: str, value: Any, hint: Any) -> Any:
    """A flag's text as the YAML value that it would be in a file; texts themselves are left alone."""
    if isinstance(value, bool) or _plain(hint) is str:
        return None if value in ("null", "None") else value
    if isinstance(value, list):
        return value if str in get_args(hint) else [parsed(name, item) for item in value]
    return parsed(name, value)


def parsed(name: str, text: str) -> Any:
    """The value of a flag whose text is YAML.

    Raises:
        UserError: for text that is not YAML.
    """
    try:
        return plain_yaml.load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{name} must be YAML: got {shown(text)} ({one_line(error)})") from None


def _plain(hint: Any) -> type:
    """The plain type behind a hint: `int | None` is int, `list[str]` is list, a Literal is str."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = [arg for arg in get_args(hint) if arg is not type(None)]
    return str if get_origin(hint) is Literal else get_origin(hint) or hint


class Help(argparse.RawDescriptionHelpFormatter):
    """Help with the lines of the description as they are, and with the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        words, default = action.help or "", action.default
        if action.const is False:  # a flag that switches off, whose name says what is usual
            return words
        if default is None or default is False or default in ([], {}, argparse.SUPPRESS) or "default" in words:
            return words
        default = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
        return f"{words} (default: {default.replace('%', '%%')})"


class Parser(argparse.ArgumentParser):
    """The flags of a program; whatever is wrong with them is a `UserError`.

    Args:
        program: as `mezzotint` knows it.
        description: the program's docstring.
    """

    def __init__(self, program: str, description: str | None, **options):
        super().__init__(
            prog=f"mezzotint {program}", description=description, allow_abbrev=False,
            formatter_class=Help, **options,
        )  # fmt: skip

    def number(self, name: str, kind: type, *rules: Rule, **options) -> None:
        """Add the flag `--name` of numbers that keep the rules."""
        self.add_argument(f"--{name}", type=lambda text: number(name, kind, text, *rules), **options)

    def parse_args(self, args=None, namespace=None):
        """The arguments by name.

        Raises:
            UserError: for an argument that is not text, an unknown flag (with the nearest known one), or a value that
                is missing or breaks its rule.
        """
        words = sys.argv[1:] if args is None else list(args)
        for word in words:
            if "\0" in word or any("\ud800" <= c <= "\udfff" for c in word):
                raise UserError(f"arguments must be text in UTF-8: got {shown(word)}")
        # Flags may stand anywhere; but what comes after `--` is none, which `intermixed` forgets
        parse = self.parse_known_args if "--" in words else self.parse_known_intermixed_args
        known, unknown = parse(words, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            raise UserError(f"unknown flag {unknown[0]}{nearest(unknown[0].split('=')[0], flags)}")
        return known

    def error(self, message: str):
        raise UserError(message)


def text(value: str) -> str:
    """An argument that must not be blank."""
    if not value.strip():
        raise argparse.ArgumentTypeError(f"must not be empty: got {value!r}")
    return value
