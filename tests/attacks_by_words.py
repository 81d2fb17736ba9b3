"""Words that no program should take, at each flag that it has, and values that no call in Python should."""

import argparse
import contextlib
import math
import os
import random
from importlib import import_module
from unittest import mock

from attacks import Attack, Ground, kind, shown
from victims import VICTIMS

from mezzotint_training.config.settings import TrainConfig

WORDS = [
    "", " ", "-1", "0", "1", "2", "-1.5", "0.5", "nan", "inf", "-inf", "1e308", "-1e308", "1e-320", str(10**12),
    str(10**30), str(2**63),
    str(2**64), "9" * 5000, "0x10", "1_000", "1,2;3", "true", "null", "None", "[]", "{}", "[1, 2]", "{a: 1}", "[",
    "{a: [", "text", "quantum",
    "é", "\udcff", "a\nb", "-", "..", ".", "~", "/", "missing", "missing/at/all", "secrets", "secrets/token",
    "secrets/token/x", "run",
    "data", "data/0.png", "user/name", "a/b/c", "loop", "pipe", "dangling", "x" * 300, "x" * 100_000,
    "$(touch $ATTACK_MARK)", "*", "%s%n",
    "\\", '"', "made", "made.txt", "settings.yaml", "cuda", "cuda:99", "mps", "meta", "cpu:7",
    "http://localhost:1/x", "digits",
]  # fmt: skip
ENDLESS = {"max_train_steps", "judge_steps", "dataloader_num_workers"}  # a huge number is work, or processes, for ever
SIGNED = {"seed", "logit_mean", "guidance_rescale"}  # numbers that may be negative
UNBOUNDED = {"max_train_minutes"}  # one that may be infinite


def parameters(program: str) -> list[argparse.Action]:
    """The flags that a program takes, by its own parser."""
    found: list[argparse.ArgumentParser] = []

    class Found(BaseException):
        pass

    def find(parser, *_):
        found.append(parser)
        raise Found

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", find), contextlib.suppress(Found):
        import_module(f"mezzotint_training.{program.replace('-', '_')}").main([])
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


# -------------------------------------------------------------------------------------------------------------- the API

NUMBERS = [
    "'2'", "float('nan')", "float('inf')", "-float('inf')", "[]", "{}", "2j", "object()", "torch.ones(2)", "np.ones(3)",
    "b'1'", "None",
]  # fmt: skip
WRONG = {  # expressions that no argument of these names may be
    "height": [*NUMBERS[:-1], "True", "0", "-8", "8.5", "10**9", "10**30"],
    "width": [*NUMBERS[:-1], "True", "0", "-8", "8.5", "10**9", "10**30"],
    "num_inference_steps": [*NUMBERS, "True", "0", "-1", "2.5", "1001", "10**30"],
    "num_images_per_prompt": [*NUMBERS, "True", "0", "-1", "1.5", "10**12"],
    "guidance_scale": NUMBERS,
    "guidance_rescale": NUMBERS,
    "eta": [*NUMBERS, "-1.0"],
    "classifier_scale": NUMBERS,
    "guidance_interval": ["(1.0,)", "()", "(1.0, 2.0, 3.0)", "(2.0, 1.0)", "(float('nan'), 1.0)", "('a', 'b')", "3.0",
                          "'ab'", "(-1.0, 1.0)"],
    "prompt": ["3", "[]", "[3]", "[None]", "None", "b'x'", "('a', 3)", "{'a': 1}", "float('nan')", "torch.ones(3)",
               "['\\ud800']", "'\\ud800'"],
    "negative_prompt": ["3", "[]", "[3]", "b'x'", "['a', 'b', 'c']", "torch.ones(3)"],
    "generator": ["3", "'x'", "[3]", "[]", "[torch.Generator()] * 7", "torch", "np.random.default_rng(0)"],
    "latents": ["3", "'x'", "torch.ones(3)", "torch.full((1, 1, 8, 8), float('nan'))", "torch.ones(1, 1, 8, 9)",
                "[[1.0]]", "np.ones((1, 1, 8, 8))",
                "torch.full((1, 1, 8, 8), float('inf'))", "torch.zeros(0, 1, 8, 8)"],
    "prompt_embeds": ["3", "torch.ones(3)", "torch.full((1, 4, 16), float('nan'))", "torch.ones(1, 4, 17)",
                      "torch.ones(1, 0, 16)", "torch.ones(0, 4, 16)", "np.ones((1, 4, 16))",
                      "torch.ones(1, 4, 16, dtype=torch.int64)"],
    "prompt_attention_mask": ["torch.ones(1, 4)", "3"],
    "timesteps": ["[]", "[0, 999]", "['a']", "[float('nan')]", "3", "[-1]", "[10**9]", "[5, 5]", "torch.ones(2, 2)",
                  "'ab'"],
    "sigmas": ["[]", "[1.0, 2.0]", "['a']", "[float('nan')]", "3", "[-1.0]", "[0.0]"],
    "class_labels": ["0", "[0]", "'x'", "torch.zeros(1)"],
    "output_type": ["3", "'jpeg'", "None", "[]", "''"],
    "guider": ["3", "'x'", "object()", "pipe.unet"],
    "callback_on_step_end": ["3", "'x'", "lambda *a: 3", "lambda *a: {'latents': 3}",
                             "lambda *a: {'latents': torch.full((1, 1, 8, 8), float('nan'))}"],
    "callback_on_step_end_tensor_inputs": ["3", "'latents'", "['stranger']", "[3]"],
}  # fmt: skip
PLACES = [
    "'run/unet/config.json'", "'secrets/token/x'", "''", "3", "'dangling'", "'loop'", "'pipe'", "'x' * 300", "'a\\0b'",
    "'run/samples'", "'run/samples/deep/er'", "'run/unet'", "'.'", "'made/of/more'",
]  # fmt: skip
LOADING = [
    "'missing'", "'secrets'", "'run/unet'", "''", "3", "None", "'run/model_index.json'", "'user/name'", "'loop'",
    "'pipe'", "'a/b/c'", "'a\\0b'",
    "'run', unet=3", "'run', unet=None", "'run', scheduler='x'", "'run', text_encoder=None",
    "'run', tokenizer=None", "'run', variant='x'",
    "'run', dtype='float33'", "'run', subfolder='unet'", "'run', classifier=3",
    "'run', guidance_unet=pipe.scheduler",
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
        expression = f"MezzotintPipeline.from_pretrained({rng.choice(LOADING)}).save_pretrained('made')"
        legal = "setting" if "=None" in expression else ""
        if how < 0.85:
            expression, legal = f"pipe.save_pretrained({rng.choice(PLACES)})", "value"
    return Attack(victim, expression, [expression], legal, local=victim == "call")
