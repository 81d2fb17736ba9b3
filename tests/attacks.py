"""The attacks that `test_attacks.py` makes: each function draws a victim and what is done to it, does that in a folder
with a copy of what the victim reads, and says what may become of it."""

import copy
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from victims import SHELL_MARK, VICTIMS


@dataclass
class Attack:
    """An attack as it was carried out.

    A program may always end with the result of the undisturbed one, or say no. `legal` says why it may end well with
    another: "value" where a number, a text or a pixel that it reads is now another one, "setting" where what it was
    asked for is; "" where nothing may. `local` is whether nothing that the user said is in the network.
    """

    victim: str
    what: str
    argv: list[str] | None = None  # in place of the victim's
    legal: str = ""
    local: bool = True


KINDS: dict[str, Callable[[random.Random, "Ground"], Attack]] = {}


def kind(name: str):
    def register(function):
        KINDS[name] = function
        return function

    return register


@dataclass
class Ground:
    """The folder of a victim, empty until it is laid out."""

    scene: Path
    folder: Path
    victim: str = ""

    def lay(self, victim: str) -> str:
        for name in (*VICTIMS[victim].reads, "secrets"):
            copy_one = shutil.copytree if (self.scene / name).is_dir() else shutil.copyfile
            copy_one(self.scene / name, self.folder / name)
        self.victim = victim
        return victim

    def files(self, *endings: str) -> list[Path]:
        """Those that the victim reads, of some endings if any are named."""
        secrets = self.folder / "secrets"
        found = (path for path in self.folder.rglob("*") if path.is_file() and path.parent != secrets)
        return sorted(path for path in found if not endings or path.suffix in endings)

    def choose(self, rng: random.Random, *endings: str) -> Path:
        """One of those, mostly one that matters to the victim."""
        paths = self.files(*endings)
        heart = [path for path in paths if any(path.match(x) for x in VICTIMS[self.victim].heart)]
        if heart and rng.random() < 0.85:
            return rng.choice(heart)
        # of many alike, such as pictures, all together are as likely as any other file
        ending = rng.choice(sorted({path.suffix for path in paths}))
        return rng.choice([path for path in paths if path.suffix == ending])

    def name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def victims(*parts: str, besides: tuple[str, ...] = ()) -> list[str]:
    """Those that read one of these parts of the scene."""
    return [name for name, victim in VICTIMS.items() if name not in besides and set(parts) & set(victim.reads)]


def shown(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit // 2]}... ({len(text):,} characters)"


# ---------------------------------------------------------------------------------------------------------------- files


@kind("damaged files")
def damage(rng: random.Random, ground: Ground) -> Attack:
    victim = ground.lay(rng.choice(victims("run", "adapter", "data", "table", "encoder", "settings.yaml")))
    path = ground.choose(rng)
    data, legal = path.read_bytes(), ""
    how = rng.choice(
        ["cut", "cut", "flipped", "flipped", "emptied", "garbage", "zeros", "another file", "missing", "a folder",
         "a dangling link", "a loop", "a pipe"]
    )  # fmt: skip
    if how == "cut":
        size = rng.randrange(len(data))
        path.write_bytes(data[:size])
        how = f"cut to {size} of {len(data)} bytes"
        if path.suffix in (".jsonl", ".yaml"):  # which lacks a row or a setting, where it is cut between lines
            legal = "value"
    elif how == "flipped":
        at = rng.randrange(8 * len(data))
        path.write_bytes(data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :])
        how, legal = f"bit {at} flipped", "value"
    elif how == "another file":
        other = rng.choice([x for x in ground.files() if x != path] or [Path(__file__)])
        shutil.copyfile(other, path)
        how = f"replaced by {other.name}"
        legal = "value" if other.suffix == path.suffix != ".json" else ""  # another picture, other weights
    elif how in ("emptied", "garbage", "zeros"):
        path.write_bytes({"emptied": b"", "garbage": rng.randbytes(len(data)), "zeros": bytes(len(data))}[how])
    else:
        path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how == "a pipe":
            os.mkfifo(path)
        elif how != "missing":
            path.symlink_to("nowhere" if how == "a dangling link" else path.name)
    if path.suffix == ".yaml" and how in ("missing", "a dangling link", "a loop"):
        legal = "value"  # a checkpoint without its recipe
    if path.name == "settings.yaml" and how == "a pipe":
        path.unlink()  # which the user may mean, and the program waits for
        path.write_text("")
        legal = "value"
    if path.suffix == ".png" and "skipping" in victim:
        legal = "value"  # of fewer pictures
    return Attack(victim, f"{ground.name(path)} {how}", legal=legal)


# ------------------------------------------------------------------------------------------------------ values in files

DEEP = "deep"  # stands for what the writers of JSON and YAML could not write
VALUES = [
    None, [], {}, "", "text", "1", "nan", "../secrets/token", "é\u0000\u202e", "x" * 100_000, True, False, -1, 0, 1,
    7, 0.5, 1.5,
    1e308, -1e308, math.nan, math.inf, -math.inf, 10**12, 2**63, 2**64, 10**400, [None], [[]], list(range(7)),
    {"a": {"b": 1}}, DEEP,
]  # fmt: skip


def disturb(rng: random.Random, tree: Any) -> tuple[Any, str, str]:
    """Replace, remove or add one value of a tree of plain data: it, what was done, and whether that is `legal`."""
    tree = copy.deepcopy(tree)
    places = [place for place in _places(tree) if place[2] != "max_train_steps"]  # by which a run takes hours
    flat = [place for place in places if len(place[0]) <= 2]  # not one of a thousand tokens, mostly
    at, holder, key = rng.choice(flat if flat and rng.random() < 0.8 else places)
    words, new, how = "".join(f"[{key!r}]" for key in at), rng.choice(VALUES), rng.random()
    if how < 0.15:
        del holder[key]
        return tree, f"{words} removed", "setting"  # which has a default
    old = holder[key]
    if how < 0.25 and isinstance(old, dict):
        old["unheard_of"] = new
        return tree, f"{words}['unheard_of'] = {shown(new)}", "setting"
    holder[key] = new
    told = at[-1] == "_diffusers_version"  # and read by nobody
    return tree, f"{words} = {shown(new)}", "setting" if told or _alike(old, new) else ""


def _places(value: Any, at: tuple = ()) -> Iterator[tuple[tuple, Any, Any]]:
    """The way to each value within a value, with what holds it and its key there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key), value, key
        yield from _places(inner, (*at, key))


def _alike(old: Any, new: Any) -> bool:
    """Whether one can stand for the other: of the same type, and a number that means something."""
    if old is None or new is None:
        return True
    if isinstance(old, list) and isinstance(new, str):  # of settings: a list of one
        return True
    kinds = {"number" if type(x) in (int, float) else type(x) for x in (old, new)}
    return len(kinds) == 1 and new != DEEP and (kinds != {"number"} or abs(new) < 1e9)


@kind("values in JSON")
def change_json(rng: random.Random, ground: Ground) -> Attack:
    victim = ground.lay(rng.choice(victims("run", "adapter", "data", "encoder")))
    path = ground.choose(rng, ".json", ".jsonl")
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number, legal = rng.randrange(len(lines)), ""
    if rng.random() < 0.1:
        new = rng.choice(VALUES)
        tree, what = new, f"= {shown(new)}"
    else:
        tree, what, legal = disturb(rng, json.loads(lines[number]))
    lines[number] = json.dumps(tree).replace(f'"{DEEP}"', "[" * 5000 + "]" * 5000)
    path.write_text("\n".join(lines))
    where = f"{ground.name(path)}{f' line {number + 1}' if path.suffix == '.jsonl' else ''}"
    return Attack(victim, f"{where} {what}", legal=legal)


LETTERS = "abcdefghi"
YAML = {
    "an alias bomb": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in zip(LETTERS, LETTERS[1:], strict=False))
    + "unet: *i\n",
    "recursion": "unet: &u\n  a: *u\n",
    "brackets": "unet: " + "[" * 5000 + "]" * 5000 + "\n",
    "braces": "unet: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n",
    "5,000 digits": "seed: " + "9" * 5000 + "\n",
    "a key twice": "learning_rate: 0.1\nlearning_rate: 0.001\n",
    "a call": f"unet: !!python/object/apply:os.system ['{SHELL_MARK}']\n",
    "a Python name": "unet: !!python/name:os.system\n",
    "an unknown tag": "unet: !unheard of\n",
    "a tab": "\tseed: 1\n",
    "two documents": "seed: 1\n---\nseed: 2\n",
    "a key that is a list": "? [a, b]\n: 1\n",
    "a key that is a mapping": "? {a: b}\n: 1\n",
    "a key that is a number": "1: 2\n",
    "a key that is null": "~: 2\n",
    "a merge": "<<: {seed: 3}\n",
    "binary": "seed: !!binary aGVsbG8=\n",
    "a date": "seed: 2001-01-01\n",
    "an impossible date": "seed: 2001-99-99\n",
    "base 60": "seed: 190:20:30\n",
    "a set": "unet: !!set {a, b}\n",
    "control characters": "seed: \x01\x02\n",
    "nothing": "",
    "a list": "- a\n- b\n",
    "a text": "hello\n",
    "a long text": "license: " + "x" * 1_000_000 + "\n",
}
# What may be said; the others must be refused, or be where nobody looks
YAML_LEGAL = ("nothing", "a merge", "a long text", "base 60")


@kind("YAML")
def change_yaml(rng: random.Random, ground: Ground) -> Attack:
    name = rng.choice(sorted(YAML))
    if rng.random() < 0.2:  # of a flag
        victim = ground.lay("train")
        flag = rng.choice(
            ["unet", "scheduler", "text_encoder", "resolution", "seed", "learning_rate", "train_batch_size"]
        )
        value = YAML[name].partition(": ")[2] if flag in ("resolution", "seed", "learning_rate") else YAML[name]
        argv = [*VICTIMS[victim].argv, f"--{flag}={value}"]
        return Attack(
            victim, f"--{flag} {name}", argv, legal="setting" if name in YAML_LEGAL or value.strip().isdigit() else ""
        )
    readers = victims("settings.yaml", "adapter") * 2 + ["evaluate", "fit-scheduler", "publish", "go on"]
    victim = ground.lay(rng.choice(readers))
    path = ground.choose(rng, ".yaml")
    legal = ""
    if rng.random() < 0.5:
        tree, what, legal = disturb(rng, yaml.safe_load(path.read_text()))
        path.write_text(yaml.safe_dump(tree).replace(DEEP, "[" * 2000 + "]" * 2000))
    else:
        text, alone = path.read_text(), rng.random() < 0.5
        path.write_text(YAML[name] if alone else text + YAML[name])
        what, legal = f"{name}{' alone' if alone else ' at its end'}", "setting" if name in YAML_LEGAL else ""
    # another name of a set may be one on the Hub
    return Attack(victim, f"{ground.name(path)} {what}", legal=legal, local="dataset_name" not in what)


@kind("weights")
def change_weights(rng: random.Random, ground: Ground) -> Attack:
    victim = ground.lay(rng.choice(victims("run", "adapter", "encoder")))
    path = ground.choose(rng, ".safetensors")
    tensors, legal = load_file(path), ""
    name = rng.choice(sorted(tensors))
    x = tensors[name]
    how = rng.choice(
        ["renamed", "missing", "added", "with an axis more", "doubled", "transposed", "float16", "float64", "int64",
         "bool", "NaN at one place", "infinite at one place", "NaN", "swapped with another", "all gone",
         "all zero",
         "of a long header", "of an endless header"]
    )  # fmt: skip
    if how == "renamed":
        tensors[f"{name}.other"] = tensors.pop(name)
    elif how == "missing":
        del tensors[name]
    elif how == "added":
        tensors["stranger.weight"] = torch.ones(3)
    elif how == "with an axis more":
        tensors[name] = x[None].clone()
    elif how == "doubled":
        tensors[name] = torch.cat([x.flatten(), x.flatten()])
    elif how == "transposed" and x.ndim > 1 and x.shape[0] != x.shape[1]:
        tensors[name] = x.transpose(0, 1).contiguous()
    elif how in ("float16", "float64", "int64", "bool"):
        tensors[name], legal = x.to(getattr(torch, how)), "value"
    elif how.endswith("at one place") and x.is_floating_point():
        x.view(-1)[rng.randrange(x.numel())] = math.nan if "NaN" in how else math.inf
        legal = "value" if victim == "save" else ""  # which draws nothing
    elif how == "NaN":
        tensors = {k: torch.full_like(v, math.nan) if v.is_floating_point() else v for k, v in tensors.items()}
        legal = "value" if victim == "save" else ""  # which draws nothing
    elif how == "swapped with another":
        other = rng.choice([k for k, v in sorted(tensors.items()) if v.shape == x.shape and v.dtype == x.dtype])
        tensors[name], tensors[other], legal = tensors[other], x, "value"
    elif how == "all gone":
        tensors = {}
    elif how == "all zero":
        tensors, legal = {k: torch.zeros_like(v) for k, v in tensors.items()}, "value"
    save_file(tensors, path, metadata={"format": "pt"})
    if how.endswith("header"):
        size = 60_000 if how == "of a long header" else 2 ** rng.choice([30, 62]) + 1
        path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
    return Attack(victim, f"{ground.name(path)}: {name} {how}", legal=legal)
