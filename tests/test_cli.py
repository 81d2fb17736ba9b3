"""The `mezzotint` command: it names the programs, hands on to them and loads nothing heavy before that."""

import argparse
import importlib
import importlib.metadata
import inspect
import re
import runpy
import subprocess
import sys
from dataclasses import fields

import pytest

from mezzotint_training import cli, sample
from mezzotint_training.config import arguments
from mezzotint_training.config.flags import Parser
from mezzotint_training.config.settings import TrainConfig


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_lists_the_commands(capsys, argv):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: mezzotint COMMAND")
    for name, purpose in cli.COMMANDS.items():
        assert f"  {name} " in out and purpose in out
    assert "accelerate launch -m mezzotint_training.train" in out


def test_every_command_is_a_program():
    for name in cli.COMMANDS:
        assert callable(importlib.import_module(f"mezzotint_training.{name.replace('-', '_')}").main)


def test_the_version_is_the_packages(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == importlib.metadata.version("mezzotint")


def test_an_unknown_command_is_refused_in_one_line(capsys):
    assert cli.main(["trian", "--recipe", "digits"]) == 2
    err = capsys.readouterr().err
    assert err == f"mezzotint: unknown command 'trian'; there are {', '.join(cli.COMMANDS)}\n"


def test_the_rest_is_handed_on_and_the_exit_code_comes_back(monkeypatch):
    handed = []
    monkeypatch.setattr(sample, "main", lambda argv: (handed.append(argv), 7)[1])
    assert cli.main(["sample", "runs/digits", "a red boot", "--seed", "3"]) == 7
    assert handed == [["runs/digits", "a red boot", "--seed", "3"]]


def test_a_missing_library_is_named(monkeypatch, capsys):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named 'datasets' (for {name})", name="datasets")

    monkeypatch.setattr(cli.importlib, "import_module", import_module)
    assert cli.main(["train", "--recipe", "digits"]) == 2
    assert capsys.readouterr().err == "mezzotint: train needs datasets; pip install 'mezzotint[train]' brings it\n"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_it_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mezzotint", "train", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("mezzotint_training.cli", run_name="__main__")
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"--{f.name}" in out for f in fields(TrainConfig)) and "--recipe" in out and "--config" in out
    assert "accelerate launch training/train.py --recipe digits" in out


def test_help_and_refusals_are_light():
    """They must come at once, of `mezzotint` and of each program: neither torch nor anything that brings it is
    imported."""
    code = """
import contextlib, sys
import mezzotint_training.cli as cli
cli.main([]), cli.main(["x"])
for name in cli.COMMANDS:
    with contextlib.redirect_stderr(sys.stdout):
        assert cli.main([name, "--no_such_flag"]) == 2
        with contextlib.suppress(SystemExit):
            cli.main([name, "--help"])
            sys.exit("there is no help")
print(*sorted(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in cli.COMMANDS:
        assert f"usage: mezzotint {name} " in result.stdout
    assert result.stdout.count("\nmezzotint: ") == len(cli.COMMANDS)
    modules = set(result.stdout.splitlines()[-1].split())
    assert "mezzotint_training.config.arguments" in modules
    assert not modules & {"torch", "diffusers", "transformers", "datasets", "numpy", "PIL", "mezzotint_training.train"}


def test_help_is_what_the_program_says_of_itself(capsys):
    """Read from the text of its file, which is not run for it."""
    for name in arguments.TAKES:
        program = importlib.import_module(f"mezzotint_training.{name.replace('-', '_')}")
        assert arguments.parser_of(name).description == inspect.getdoc(program)


# What each program cannot do without
NEEDED = {
    "train": ["--dataset_name", "digits"],
    "train-classifier": ["--pipeline", "x", "--dataset_name", "digits"],
    "sample": ["x", "a red boot"],
    "fit-scheduler": ["x"],
    "distill": ["x", "--dataset_name", "digits"],
    "evaluate": ["x"],
    "publish": ["x", "--hub_model_id", "user/x"],
    "ema": ["x", "--output", "y", "--length", "0.1"],
    "demo": ["x"],
}


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize(
    "argv, words",
    [
        (["--no_such_flag"], "unknown flag --no_such_flag"),
        (["--outpu=x"], "unknown flag --outpu=x"),
        (["--hel"], "unknown flag --hel; did you mean --help?"),
        (["--seed"], "argument --seed: expected "),
        (["--seed", "-1"], "seed must be at least 0: got -1"),
        (["--seed", "x" * 10**5], "seed must be of type int: got 'xxx"),
        (["a\udcff"], "arguments must be text in UTF-8: got 'a\\udcff'"),
        (["a\0"], "arguments must be text in UTF-8: got 'a\\x00'"),
    ],
)
def test_arguments_that_a_program_does_not_take_are_one_line(capsys, name, argv, words):
    if name in ("demo", "ema", "publish") and "--seed" in argv:
        pytest.skip("there is no such flag")
    assert cli.main([name, *NEEDED[name], *argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mezzotint: {words}") and err.count("\n") == 1 and len(err) < 500


@pytest.mark.parametrize("name", NEEDED)
def test_help_says_of_every_argument_what_it_is(monkeypatch, name):
    """In words that stand alone: with a subject, and with no "(default: None)" but where settings are listed."""
    parsers = []
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda self: parsers.append(self))
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    (parser,) = parsers
    for action in parser._actions:
        words = action.help or ""
        assert re.match(r"(?!(of|its|for|by|at|that|likewise|as)\b)\S+ \S", words), f"{action.dest}: {words!r}"


def test_help_shows_defaults():
    parser = Parser("tidy", "Tidy up.\n\n  as it is", add_help=False)
    parser.number("seed", int, default=0, help="seed of all")
    parser.number("steps", int, nargs="+", default=[4, 5], help="numbers of steps")
    parser.add_argument("--share", default="5 %", help="share of all")
    parser.add_argument("--output", help="file to write")
    parser.add_argument("--prompt", default="", help="text; by default none")
    text = parser.format_help()
    assert "\n\n  as it is\n" in text
    for line in (
        "seed of all (default: 0)\n", "numbers of steps (default: 4 5)\n", "share of all (default: 5 %)\n",
        "file to write\n", "text; by default none\n",
    ):  # fmt: skip
        assert f" {line}" in text, line


@pytest.mark.parametrize("name", [name for name in NEEDED if name != "train"])
def test_what_a_program_cannot_do_without_is_named(capsys, name):
    assert cli.main([name]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mezzotint: the following arguments are required: ") and err.count("\n") == 1
