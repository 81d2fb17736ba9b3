"""The attacks that `test_attacks.py` makes: each function draws a victim and what is done to it, does that in a folder
with a copy of what the victim reads, and says what may become of it."""

import argparse
import copy
import json
import math
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from victims import PYTHON_MARK, SHELL_MARK, VICTIMS

from mezzotint_training.config import TrainConfig


@dataclass
class Attack:
    """What was done.

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

    def lay(self, victim: str) -> str:
        for name in (*VICTIMS[victim].reads, "secrets"):
            copy_one = shutil.copytree if (self.scene / name).is_dir() else shutil.copyfile
            copy_one(self.scene / name, self.folder / name)
        return victim

    def files(self, *endings: str) -> list[Path]:
        """Those that the victim reads, of some endings if any are named."""
        secrets = self.folder / "secrets"
        found = (path for path in self.folder.rglob("*") if path.is_file() and path.parent != secrets)
        return sorted(path for path in found if not endings or path.suffix in endings)

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
    # of a folder with many alike, as of pictures, each kind of file is as likely as another
    endings = sorted({path.suffix for path in ground.files()})
    path = rng.choice(ground.files(rng.choice(endings)))
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
        other = rng.choice([x for x in ground.files() if x != path] or [path])
        shutil.copyfile(other, path)
        how = f"replaced by {ground.name(other)}"
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
    if path.suffix in (".png", ".yaml") and how in ("missing", "a dangling link", "a loop"):
        legal = "value"  # a set of fewer pictures; a checkpoint without its recipe
    return Attack(victim, f"{ground.name(path)} {how}", legal=legal)


# ------------------------------------------------------------------------------------------------------- values in files

DEEP = "deep"  # stands for what the writers of JSON and YAML could not write
VALUES = [
    None, [], {}, "", "text", "1", "nan", "../secrets/token", "é\u0000\u202e", "x" * 100_000, True, False, -1, 0, 1, 7, 0.5, 1.5,
    1e308, -1e308, math.nan, math.inf, -math.inf, 10**12, 2**63, 2**64, 10**400, [None], [[]], list(range(7)), {"a": {"b": 1}}, DEEP,
]  # fmt: skip


def disturb(rng: random.Random, tree: Any) -> tuple[Any, str, str]:
    """Replace, remove or add one value of a tree of plain data: it, what was done, and whether that is `legal`."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
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
    return tree, f"{words} = {shown(new)}", "setting" if _alike(old, new) else ""


def _places(value: Any, at: tuple = ()) -> Iterator[tuple[tuple, Any, Any]]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*at, key), value, key
        yield from _places(inner, (*at, key))


def _alike(old: Any, new: Any) -> bool:
    """Whether one can stand for the other: of the same type, and a number that means something."""
    if old is None or new is None:
        return True
    if isinstance(old, (int, float)) and isinstance(new, (int, float)) and isinstance(old, bool) == isinstance(new, bool):
        return abs(new) < 1e9
    return type(old) is type(new) and new != DEEP


@kind("values in JSON")
def change_json(rng: random.Random, ground: Ground) -> Attack:
    victim = ground.lay(rng.choice(victims("run", "adapter", "data", "encoder")))
    path = rng.choice(ground.files(".json", ".jsonl"))
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
# What a settings file may say, if twice; the others must be refused where all of a file is read
YAML_LEGAL = ("nothing", "a merge", "a long text", "a key that is a number", "a key that is null")


@kind("YAML")
def change_yaml(rng: random.Random, ground: Ground) -> Attack:
    name = rng.choice(sorted(YAML))
    if rng.random() < 0.2:  # of a flag
        victim = ground.lay("train")
        flag = rng.choice(["unet", "scheduler", "text_encoder", "resolution", "seed", "learning_rate", "train_batch_size"])
        value = YAML[name].partition(": ")[2] if flag in ("resolution", "seed", "learning_rate") else YAML[name]
        argv = [*VICTIMS[victim].argv, f"--{flag}={value}"]
        return Attack(victim, f"--{flag} {name}", argv, legal="setting" if name in YAML_LEGAL else "")
    readers = victims("settings.yaml", "adapter") * 2 + ["evaluate", "fit-scheduler", "publish", "go on"]
    victim = ground.lay(rng.choice(readers))
    path = rng.choice(ground.files(".yaml"))
    legal = ""
    if rng.random() < 0.5:
        tree, what, legal = disturb(rng, yaml.safe_load(path.read_text()))
        path.write_text(yaml.safe_dump(tree).replace(DEEP, "[" * 2000 + "]" * 2000))
    else:
        text, alone = path.read_text(), rng.random() < 0.5
        path.write_text(YAML[name] if alone else text + YAML[name])
        what, legal = f"{name}{' alone' if alone else ' at its end'}", "setting" if name in YAML_LEGAL else ""
    return Attack(victim, f"{ground.name(path)} {what}", legal=legal)


@kind("weights")
def change_weights(rng: random.Random, ground: Ground) -> Attack:
    victim = ground.lay(rng.choice(victims("run", "adapter", "encoder")))
    path = rng.choice(ground.files(".safetensors"))
    tensors, legal = load_file(path), ""
    name = rng.choice(sorted(tensors))
    x = tensors[name]
    how = rng.choice(
        ["renamed", "missing", "added", "with an axis more", "doubled", "transposed", "float16", "float64", "int64",
         "bool", "NaN at one place", "infinite at one place", "NaN", "swapped with another", "one of none", "all zero",
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
    elif how in ("float16", "float64"):
        tensors[name], legal = x.to(getattr(torch, how)), "value"
    elif how in ("int64", "bool"):
        tensors[name] = x.to(getattr(torch, how))
    elif how.endswith("at one place") and x.is_floating_point():
        x.view(-1)[rng.randrange(x.numel())] = math.nan if "NaN" in how else math.inf
    elif how == "NaN":
        tensors = {k: torch.full_like(v, math.nan) if v.is_floating_point() else v for k, v in tensors.items()}
    elif how == "swapped with another":
        other = rng.choice([k for k, v in sorted(tensors.items()) if v.shape == x.shape and v.dtype == x.dtype])
        tensors[name], tensors[other], legal = tensors[other], x, "value"
    elif how == "one of none":
        tensors = {}
    elif how == "all zero":
        tensors, legal = {k: torch.zeros_like(v) for k, v in tensors.items()}, "value"
    save_file(tensors, path, metadata={"format": "pt"})
    if how.endswith("header"):
        size = 60_000 if how == "of a long header" else 2 ** rng.choice([30, 62]) + 1
        path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
    return Attack(victim, f"{ground.name(path)}: {name} {how}", legal=legal)


# ------------------------------------------------------------------------------------------------------------ arguments

WORDS = [
    "", " ", "-1", "0", "1", "2", "-1.5", "0.5", "nan", "inf", "-inf", "1e308", "-1e308", "1e-320", str(10**12), str(10**30), str(2**63),
    str(2**64), "9" * 5000, "0x10", "1_000", "1,2;3", "true", "null", "None", "[]", "{}", "[1, 2]", "{a: 1}", "[", "{a: [", "text", "quantum",
    "é", "\udcff", "a\nb", "-", "..", ".", "~", "/", "missing", "missing/at/all", "secrets", "secrets/token", "secrets/token/x", "run",
    "data", "data/0.png", "user/name", "a/b/c", "loop", "pipe", "dangling", "x" * 300, "x" * 100_000, "$(touch $ATTACK_MARK)", "*", "%s%n",
    "\\", '"', "made", "made.txt", "settings.yaml", "cuda", "cuda:99", "mps", "meta", "cpu:7", "http://localhost:1/x", "digits",
]  # fmt: skip
ENDLESS = {"max_train_steps", "judge_steps", "dataloader_num_workers"}  # a huge number is work, or processes, for ever
SIGNED = {"seed", "logit_mean", "guidance_rescale"}  # numbers that may be negative
UNBOUNDED = {"max_train_minutes"}  # one that may be infinite


def parameters(program: str) -> list[argparse.Action]:
    """What a program takes, by its own parser."""
    found: list[argparse.ArgumentParser] = []

    def find(parser, *_):
        found.append(parser)
        raise KeyboardInterrupt

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", find):
        try:
            import_module(f"mezzotint_training.{program.replace('-', '_')}").main([])
        except KeyboardInterrupt:
            pass
    return [action for action in found[0]._actions if action.dest != "help"]


def _sensible(action: argparse.Action, word: str) -> bool:
    """Whether a word may be taken at a flag: a number in range where one is asked for."""
    example = getattr(TrainConfig, action.dest, None)
    if action.type not in (int, float) and (isinstance(example, bool) or not isinstance(example, (int, float))):
        return True
    try:
        number = float(word)
    except ValueError:
        return word in ("null", "None")
    return math.isfinite(number) and (number >= 0 or action.dest in SIGNED) or (number > 0 and action.dest in UNBOUNDED)


@kind("arguments")
def change_arguments(rng: random.Random, ground: Ground) -> Attack:
    programs = sorted({victim.program for victim in VICTIMS.values()} - {"api"})
    program = rng.choice(programs)
    victim = ground.lay(rng.choice([name for name, victim in VICTIMS.items() if victim.program == program]))
    (ground.folder / "loop").symlink_to("loop")
    (ground.folder / "dangling").symlink_to("nowhere")
    os.mkfifo(ground.folder / "pipe")
    argv, said, sensible = list(VICTIMS[victim].argv), [], True
    actions = [action for action in parameters(program) if action.dest != "compile"]
    for action in rng.sample(actions, rng.choice([1, 1, 2])):
        word, flag = rng.choice(WORDS), action.option_strings[0] if action.option_strings else None
        while action.dest in ENDLESS and len(word) > 6:
            word = rng.choice(WORDS)
        sensible = sensible and _sensible(action, word)
        if flag is None:
            at = [x for x in actions if not x.option_strings].index(action)
            argv[at] = word
            said.append(f"{action.dest} {shown(word)}")
        elif isinstance(action, argparse.BooleanOptionalAction) or action.nargs == 0:
            argv.append(flag if rng.random() < 0.5 else f"{flag}={word}")
            said.append(shown(argv[-1]))
        elif action.nargs is None:
            argv.append(f"{flag}={word}")
            said.append(shown(argv[-1]))
        else:
            words = [word] if rng.random() < 0.5 else [rng.choice(WORDS), word]
            argv += [flag, *words]
            said.append(f"{flag} {' '.join(map(shown, words))}")
    return Attack(victim, "; ".join(said), argv, legal="setting" if sensible else "", local=False)


# --------------------------------------------------------------------------------------------------------------- strangers


class Payload:
    """What leaves a mark where it is unpickled."""

    def __reduce__(self):
        return exec, (PYTHON_MARK,)


ENTRIES: list[Any] = [
    ["transformers", "AutoModel"], ["transformers", "AutoTokenizer"], ["transformers", "pipeline"], ["evil", "Evil"],
    ["unet_evil_v00000000", "Evil"], ["../evil", "Evil"], ["os", "system"], ["subprocess", "Popen"], ["builtins", "exec"],
    ["mezzotint_training.train", "train"], ["diffusers", "StableDiffusionPipeline"], ["diffusers", "UNet2DModel"], [None, None],
    ["diffusers", "DDIMScheduler"], ["torch", "load"], [], ["transformers"], ["transformers", 3], "transformers", None, 3, {},
]  # fmt: skip
PROMPTS = [
    f'x"); import os; os.system({SHELL_MARK!r}) #', "'''", '"""', "\\", "\\N{x}", "```\n\n```python\nimport os\n```", "a\nb", "---\n", "{{ 7 * 7 }}",
    "{% for x in range(10**9) %}{% endfor %}", "<script>alert(1)</script>", "![x](file:///etc/passwd)", "\u202e", "| a | b |", "- a: b", "x" * 20_000,
]  # fmt: skip


def _edit(path: Path, change: Callable[[dict], Any]) -> None:
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(change(tree) or tree))


@kind("strangers' checkpoints")
def be_a_stranger(rng: random.Random, ground: Ground) -> Attack:
    how = rng.choice(
        ["entry", "entry", "class", "code", "pickle", "config", "config", "text for a config", "index", "link", "link",
         "link", "recipe", "prompt", "prompt", "adapter", "aside"]
    )  # fmt: skip
    besides = () if how in ("link", "recipe", "prompt", "code") else ("publish adapters",)
    victim = ground.lay(rng.choice(victims("run", besides=besides)))
    run, legal = ground.folder / "run", ""
    parts = ("unet", "scheduler", "text_encoder", "tokenizer")
    part = rng.choice(parts)
    evil = PYTHON_MARK + "class Evil:\n    pass\n"
    if how in ("entry", "class"):
        entry = rng.choice(ENTRIES)
        key = part if how == "entry" else "_class_name"
        _edit(run / "model_index.json", lambda index: index.update({key: entry}))
        for place in (run, run / part):
            for name in ("evil.py", "unet_evil_v00000000.py"):
                (place / name).write_text(evil)
        for name in ("config.json", "tokenizer_config.json"):
            if (run / part / name).is_file():
                auto = dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), "evil.Evil")
                _edit(run / part / name, lambda config, auto=auto: config.update(auto_map=auto, model_type="evil"))
        what = f"model_index.json {key} = {entry}, with evil.py and an auto_map"
        if key == "_class_name" or entry == ["diffusers", "DDIMScheduler"]:
            legal = "setting"
    elif how == "code":
        for path in run.rglob("*.py"):
            path.write_text(evil + path.read_text())
        # what a folder holds is its owner's to publish
        what, legal = "a mark in all code", "value" if victim.startswith("publish") else ""
    elif how == "pickle":
        name = rng.choice(["unet/diffusion_pytorch_model", "text_encoder/model"])
        (run / f"{name}.safetensors").unlink()
        for other in ("bin", "pt", "ckpt", "msgpack", "h5"):
            (run / f"{name.replace('/model', '/pytorch_model')}.{other}").write_bytes(pickle.dumps(Payload()))
        what = f"{name} as a pickle"
    elif how == "config":
        name, change = rng.choice([
            ("text_encoder/config.json", {"_attn_implementation": "user/kernel", "attn_implementation": "user/kernel"}),
            ("text_encoder/config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
            ("text_encoder/config.json", {"quantization_config": {"quant_method": "unheard of"}}),
            ("text_encoder/config.json", {"dtype": f"__import__('os').system({SHELL_MARK!r})"}),
            ("text_encoder/config.json", {"auto_map": {"AutoModel": "user/evil--evil.Evil"}, "model_type": "evil"}),
            ("text_encoder/config.json", {"transformers_weights": "../../secrets/token"}),
            ("text_encoder/config.json", {"architectures": ["os.system"], "model_type": "t5"}),
            ("text_encoder/config.json", {"_name_or_path": "user/name", "base_model_name_or_path": "user/name"}),
            ("unet/config.json", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}),
            ("unet/config.json", {"auto_map": {"AutoModel": "evil.Evil"}, "_class_name": "Evil"}),
            ("unet/config.json", {"_name_or_path": "user/name", "_use_default_values": ["dropout"]}),
            ("scheduler/scheduler_config.json", {"_class_name": "os.system"}),
            ("scheduler/scheduler_config.json", {"fitted_schedules": [{"num_inference_steps": 2, "guidance_scale": 2.0}]}),
            ("tokenizer/tokenizer_config.json", {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
            ("tokenizer/tokenizer_config.json", {"name_or_path": "user/name", "vocab_file": "../../secrets/token"}),
            ("tokenizer/tokenizer_config.json", {"chat_template": "{{ cycler.__init__.__globals__.os.system('id') }}"}),
        ])  # fmt: skip
        for place in (run, run / part, run / Path(name).parent):
            (place / "evil.py").write_text(evil)
        _edit(run / name, lambda config: config.update(change))
        what = f"{name} with {change}"
    elif how == "text for a config":
        path = rng.choice([run / "model_index.json", *(x for p in parts for x in (run / p).glob("*config.json"))])
        text = rng.choice(["user/name", "../secrets", "https://huggingface.co/user/name"])
        path.write_text(json.dumps(text))
        what = f"{ground.name(path)} = {text!r}"
    elif how == "index":
        name = rng.choice(["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
        target = rng.choice(["../../secrets/token", "/etc/hostname", "https://localhost:1/x", "", 3])
        keys = load_file(run / name)
        (run / f"{name}.index.json").write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(keys, target)})
        )
        if rng.random() < 0.5:
            (run / name).unlink()
        what = f"{name}.index.json of {target!r}"
    elif how == "link":
        target, name = rng.choice([
            ("secrets/token", "LICENSE"), ("secrets/token", "README.md"), ("secrets", "samples/more"),
            ("secrets/token", "samples/picture.png"), ("secrets", "samples"), ("secrets", "unet/more"),
            ("secrets/token", "unet/notes.md"), ("secrets", "extra"), ("secrets/token", "scheduler/evil.py"),
            ("secrets/token", "metrics.json"), ("secrets/token", "evaluation.json"), ("secrets/token", "NOTICE"),
            ("nowhere", "LICENSE"), ("nowhere", "samples/x.png"), ("run", "samples/loop"), ("run/samples", "samples/loop"),
        ])  # fmt: skip
        place = ground.folder / VICTIMS[victim].argv[0] if victim == "publish adapters" else run
        path = place / name
        path.parent.mkdir(exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(ground.folder / target)
        # without them it is what it was, but for what was in their place
        what, legal = f"{ground.name(path)} -> {target}", "value"
    elif how in ("recipe", "prompt"):
        path = ground.folder / ("adapter" if victim == "publish adapters" else "run") / "recipe.yaml"
        recipe = yaml.safe_load(path.read_text())
        if how == "recipe":
            change = rng.choice([
                {"dataset_name": "user/evil"}, {"dataset_name": "../secrets"}, {"dataset_name": None, "train_data_dir": "secrets"},
                {"dataset_name": None, "train_data_dir": "/"}, {"dataset_name": "https://localhost:1/x"},
                {"text_encoder_name_or_path": "user/evil"}, {"pretrained_model_name_or_path": "user/evil"},
                {"cache_dir": "../secrets"}, {"output_dir": "secrets"}, {"push_to_hub": True}, {"report_to": "wandb"},
            ])  # fmt: skip
            # adapters name the pipeline that they are of
            local = victim != "publish adapters"
        else:
            change, legal, local = {"validation_prompts": [rng.choice(PROMPTS)]}, "setting", True
        path.write_text(yaml.safe_dump(recipe | change))
        argv = list(VICTIMS[victim].argv)
        if victim == "go on" and how == "prompt":  # and typed
            argv += ["--validation_prompts", *change["validation_prompts"]]
        return Attack(victim, f"{ground.name(path)} with {shown(change, 120)}", argv, legal, local)
    elif how == "adapter":  # which transformers would load with the encoder
        config = {"base_model_name_or_path": "user/name", "peft_type": "LORA", "r": 2, "target_modules": ["q"]}
        (run / part / "adapter_config.json").write_text(json.dumps(config))
        what = f"{part}/adapter_config.json of another repository"
    else:
        (run / "custom_generate").mkdir()
        (run / "custom_generate" / "generate.py").write_text(evil)
        for name in ("pipeline.py", "__init__.py", "sitecustomize.py", "conftest.py", "torch.py", "yaml.py", "json.py"):
            (run / name).write_text(evil)
            shutil.copyfile(run / name, ground.folder / name)
        what, legal = "files of names that Python imports", "value" if victim == "publish" else ""
    return Attack(victim, what, legal=legal)


# ----------------------------------------------------------------------------------------------------------------- the API

NUMBERS = ["True", "'2'", "float('nan')", "float('inf')", "-float('inf')", "[]", "{}", "2j", "object()", "torch.ones(2)", "np.ones(3)", "b'1'"]
WRONG = {  # expressions that no argument of these names may be
    "height": [*NUMBERS, "0", "-8", "8.5", "10**9", "10**30"],
    "width": [*NUMBERS, "0", "-8", "8.5", "10**9", "10**30"],
    "num_inference_steps": [*NUMBERS, "None", "0", "-1", "2.5", "1001", "10**30"],
    "num_images_per_prompt": [*NUMBERS, "None", "0", "-1", "1.5", "10**12"],
    "guidance_scale": [*NUMBERS, "None"],
    "guidance_rescale": [*NUMBERS, "None"],
    "eta": [*NUMBERS, "None", "-1.0"],
    "classifier_scale": ["float('nan')", "'2'", "None"],
    "guidance_interval": ["(1.0,)", "()", "(1.0, 2.0, 3.0)", "(2.0, 1.0)", "(float('nan'), 1.0)", "('a', 'b')", "3.0", "'ab'", "(-1.0, 1.0)"],
    "prompt": ["3", "[]", "[3]", "[None]", "None", "b'x'", "('a', 3)", "{'a': 1}", "float('nan')", "torch.ones(3)", "['\\ud800']", "'\\ud800'"],
    "negative_prompt": ["3", "[]", "[3]", "b'x'", "['a', 'b', 'c']", "torch.ones(3)"],
    "generator": ["3", "'x'", "[3]", "[]", "[torch.Generator()] * 7", "torch", "np.random.default_rng(0)"],
    "latents": ["3", "'x'", "torch.ones(3)", "torch.full((1, 1, 8, 8), float('nan'))", "torch.ones(1, 1, 8, 9)", "[[1.0]]",
                "np.ones((1, 1, 8, 8))", "torch.full((1, 1, 8, 8), float('inf'))", "torch.zeros(0, 1, 8, 8)"],
    "prompt_embeds": ["3", "torch.ones(3)", "torch.full((1, 4, 16), float('nan'))", "torch.ones(1, 4, 17)", "torch.ones(1, 0, 16)",
                      "torch.ones(0, 4, 16)", "np.ones((1, 4, 16))", "torch.ones(1, 4, 16, dtype=torch.int64)"],
    "prompt_attention_mask": ["torch.ones(1, 4)", "3"],
    "timesteps": ["[]", "[0, 999]", "['a']", "[float('nan')]", "3", "[-1]", "[10**9]", "[5, 5]", "torch.ones(2, 2)", "'ab'"],
    "sigmas": ["[]", "[1.0, 2.0]", "['a']", "[float('nan')]", "3", "[-1.0]", "[float('inf'), 1.0]", "[0.0]"],
    "class_labels": ["0", "[0]", "'x'", "torch.zeros(1)"],
    "output_type": ["3", "'jpeg'", "None", "[]", "''"],
    "guider": ["3", "'x'", "object()", "pipe.unet"],
    "callback_on_step_end": ["3", "'x'", "lambda: None", "lambda *a: 3", "lambda *a: {'latents': 3}",
                             "lambda *a: {'latents': torch.full((1, 1, 8, 8), float('nan'))}", "lambda *a: {'stranger': 1}"],
    "callback_on_step_end_tensor_inputs": ["3", "'latents'", "['stranger']", "[3]"],
}  # fmt: skip
PLACES = ["'run/unet/config.json'", "'missing/' * 200", "'secrets/token/x'", "''", "3", "'dangling'", "'loop'", "'pipe'", "'x' * 300", "'a\\0b'"]
LOADING = [
    "'missing'", "'secrets'", "'run/unet'", "''", "3", "None", "'run/model_index.json'", "'user/name'", "'loop'", "'pipe'", "'a/b/c'", "'a\\0b'",
    "'run', unet=3", "'run', unet=None", "'run', scheduler='x'", "'run', text_encoder=None", "'run', tokenizer=None", "'run', variant='x'",
    "'run', torch_dtype='float33'", "'run', revision=3", "'run', subfolder='unet'", "'run', classifier=3", "'run', guidance_unet=pipe.scheduler",
    "'run', unet=pipe.text_encoder", "'run', scheduler=pipe.unet", "'run', device_map='nowhere'",
]  # fmt: skip


@kind("calls in Python")
def call_wrongly(rng: random.Random, ground: Ground) -> Attack:
    legal, how = "", rng.random()
    if how < 0.7:
        victim, arguments = ground.lay("call"), {"prompt": "'a seven'", "num_inference_steps": "1"}
        for name in rng.sample(sorted(WRONG), rng.choice([1, 1, 2])):
            arguments[name] = rng.choice(WRONG[name])
            if name == "prompt_embeds":
                arguments.pop("prompt", None)
        expression = f"pipe({', '.join(f'{k}={v}' for k, v in arguments.items())})"
    else:
        victim = ground.lay("save")
        (ground.folder / "loop").symlink_to("loop")
        (ground.folder / "dangling").symlink_to("nowhere")
        os.mkfifo(ground.folder / "pipe")
        expression = f"MezzotintPipeline.from_pretrained({rng.choice(LOADING)})"
        if how < 0.85:
            inside = ["'run/samples'", "'run/samples/deep/er'", "'run'", "'run/unet'", "'.'", "'dangling'"]
            if rng.random() < 0.4:
                place, legal = rng.choice(inside), "value"
            else:
                place = rng.choice(PLACES)
            expression = f"pipe.save_pretrained({place})"
    return Attack(victim, expression, [expression], legal, local="user/name" not in expression and "a/b/c" not in expression)


# -------------------------------------------------------------------------------------------------------------- data faults

EPS = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%{SHELL_MARK}) (w) file\nshowpage\n%%EOF\n".encode()


def _png(size: tuple[int, int], mode: str = "RGB", kind: str = "PNG", **options) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, size).save(path, format=kind, **options)


def _bytes(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


BOMB = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\x01\0\0\0\0"  # 65,536 x 65,536 pixels, it says
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "is an EPS": (_bytes(EPS), ""),
    "is HTML": (_bytes(b"<html>not found</html>"), ""),
    "is an SVG": (_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ""),
    "claims 65,536 x 65,536 pixels": (_bytes(BOMB), ""),
    "has 20,000 x 9,000 pixels": (_png((20_000, 9_000), "1"), ""),
    "has one pixel": (_png((1, 1)), "value"),
    "is 1 x 4,000": (_png((1, 4000)), "value"),
    "is a palette": (_png((8, 8), "P"), "value"),
    "is CMYK": (_png((8, 8), "CMYK", "TIFF"), "value"),
    "has 16 bits": (_png((8, 8), "I;16"), "value"),
    "has alpha": (_png((8, 8), "RGBA"), "value"),
    "is a GIF": (_png((8, 8), "P", "GIF"), "value"),
    "is a BMP": (_png((8, 8), "RGB", "BMP"), "value"),
    "is a PDF": (_png((8, 8), "RGB", "PDF"), ""),
    "is a TGA": (_png((8, 8), "RGB", "TGA"), ""),
    "is floating-point TIFF of NaN": (lambda path: Image.fromarray(np.full((8, 8), np.nan, "f4")).save(path, "TIFF"), ""),
    "is empty": (_bytes(b""), ""),
    "is a link out of the set": (lambda path: (path.unlink(), path.symlink_to("../secrets/token")), ""),
    "is a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), ""),
    "is a folder": (lambda path: (path.unlink(), path.mkdir()), ""),
}  # fmt: skip
CAPTIONS: list[Any] = [None, 3, 1.5, True, [], [None], ["a", 3], {}, {"a": 1}, "", " ", "\u0000", "\ud800", "x" * 200_000, math.nan, [["a"]]]


@kind("pictures and captions")
def change_data(rng: random.Random, ground: Ground) -> Attack:
    victim = ground.lay(rng.choice(victims("data", "table", besides=("fine-tune", "train adapters"))))
    skips = "skipping" in victim
    if victim == "train on a table":
        path = ground.folder / "table" / "train.parquet"
        table = pq.read_table(path)
        images, texts = table.column("image").to_pylist(), table.column("text").to_pylist()
        row = rng.randrange(len(texts))
        if rng.random() < 0.6:
            name = rng.choice([x for x in FAULTS if "link" not in x and "pipe" not in x and "folder" not in x])
            (scratch := ground.folder / "scratch").write_bytes(b"")
            FAULTS[name][0](scratch)
            images[row] = {"bytes": scratch.read_bytes(), "path": rng.choice(["x.png", None, "../secrets/token", "/etc/passwd"])}
            scratch.unlink()
            what, legal = f"picture {row} {name}", FAULTS[name][1]
        else:
            change = rng.choice(["no bytes, a path", "null", "null caption", "no captions", "other columns", "numbers", "no rows"])
            what, legal = f"row {row}: {change}", ""
            if change == "no bytes, a path":
                images[row] = {"bytes": None, "path": rng.choice(["../secrets/token", "http://localhost:1/x", "/dev/zero"])}
            elif change == "null":
                images[row] = None
            elif change == "null caption":
                texts[row] = None
            elif change == "no rows":
                images, texts = [], []
            elif change == "numbers":
                texts = list(range(len(texts)))
        columns = {"image": pa.array(images, table.schema.field("image").type), "text": pa.array(texts)}
        if "no captions" in what:
            del columns["text"]
        elif "other columns" in what:
            columns = {f"{k} ": v for k, v in columns.items()}
        made = pa.table(columns)
        pq.write_table(made.replace_schema_metadata(table.schema.metadata) if rng.random() < 0.5 else made, path)
        return Attack(victim, what, legal=legal)
    data = ground.folder / "data"
    number = rng.randrange(12)
    if rng.random() < 0.6:
        name = rng.choice(sorted(FAULTS))
        FAULTS[name][0](data / f"{number}.png")
        return Attack(victim, f"data/{number}.png {name}", legal="value" if skips else FAULTS[name][1])
    lines = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    legal, caption, how = "", rng.choice(CAPTIONS), rng.choice(["caption", "caption", "all captions", "name", "twice", "line"])
    if how == "caption":
        lines[number]["text"], legal = caption, "value" if isinstance(caption, str) and caption.strip() else ""
    elif how == "all captions":
        lines = [line | {"text": caption} for line in lines]
        legal = "value" if isinstance(caption, str) and caption.strip() else ""
    elif how == "name":
        caption = rng.choice(["../secrets/token", "missing.png", "", None, 3, "/etc/passwd", "http://localhost:1/x", "metadata.jsonl"])
        lines[number]["file_name"] = caption
    elif how == "twice":
        lines.append(lines[number])
    text = "\n".join(map(json.dumps, lines)) + "\n"
    if how == "line":
        caption = rng.choice(["{", "null", "[]", "3", "{}", "\x00", "[" * 5000])
        text += caption + "\n"
    (data / "metadata.jsonl").write_text(text)
    return Attack(victim, f"data/metadata.jsonl {how} {number}: {shown(caption)}", legal="value" if skips else legal)
