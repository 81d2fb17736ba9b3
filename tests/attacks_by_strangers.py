"""Checkpoints as a stranger might make them: code, pickles, links, places in the network and templates, where somebody
who samples, trains or publishes would run them, follow them, connect to them or paste them."""

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from attacks import Attack, Ground, kind, shown, victims
from safetensors.torch import load_file
from victims import PYTHON_MARK, SHELL_MARK, VICTIMS

EVIL = f"{PYTHON_MARK}\nclass Evil:\n    pass\n"
PARTS = ("unet", "scheduler", "text_encoder", "tokenizer")
WAYS: list[Callable[[random.Random, Ground], Attack]] = []


def way(times: int = 1):
    """Enter a function as a way to attack, drawn that many times as often as others."""

    def register(function):
        WAYS.extend([function] * times)
        return function

    return register


@kind("strangers' checkpoints")
def be_a_stranger(rng: random.Random, ground: Ground) -> Attack:
    return rng.choice(WAYS)(rng, ground)


def lay_out(rng: random.Random, ground: Ground, adapters: bool = False) -> Path:
    """A pipeline, or with `adapters` perhaps adapters, for a victim that is drawn."""
    victim = ground.lay(rng.choice(victims("run", besides=() if adapters else ("publish adapters",))))
    return ground.folder / ("adapter" if victim == "publish adapters" else "run")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ----------------------------------------------------------------------------------------------------------------- code

ENTRIES: list[Any] = [
    ["transformers", "AutoModel"], ["transformers", "AutoTokenizer"], ["transformers", "pipeline"], ["evil", "Evil"],
    ["unet_evil_v00000000", "Evil"], ["../evil", "Evil"], ["os", "system"], ["subprocess", "Popen"],
    ["builtins", "exec"], ["mezzotint_training.train", "train"], ["diffusers", "StableDiffusionPipeline"],
    ["diffusers", "UNet2DModel"], [None, None], ["diffusers", "DDIMScheduler"], ["torch", "load"], [],
    ["transformers"],
    ["transformers", 3], "transformers", None, 3, {},
]  # fmt: skip


@way(3)
def name_a_class(rng: random.Random, ground: Ground) -> Attack:
    run, part, entry = lay_out(rng, ground), rng.choice(PARTS), rng.choice(ENTRIES)
    key = rng.choice([part, part, "_class_name"])
    edit(run / "model_index.json", **{key: entry})
    for place in (run, run / part):
        for name in ("evil.py", "unet_evil_v00000000.py"):
            (place / name).write_text(EVIL)
    auto = dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), "evil.Evil")
    for path in (run / part).glob("*config.json"):
        edit(path, auto_map=auto, model_type="evil")
    # the installed pipeline's class is loaded whatever that says; a stock scheduler is one; a part may be left out
    allowed = ["diffusers", "DDIMScheduler"], [None, None]
    legal = "setting" if key == "_class_name" or entry in allowed else ""
    return Attack(ground.victim, f"model_index.json {key} = {entry}, with evil.py and an auto_map", legal=legal)


@way()
def mark_all_code(rng: random.Random, ground: Ground) -> Attack:
    run = lay_out(rng, ground, adapters=True)
    for path in ground.folder.rglob("*.py"):
        path.write_text(EVIL + path.read_text())
    (run / "custom_generate").mkdir()
    (run / "custom_generate" / "generate.py").write_text(EVIL)
    for name in ("pipeline", "__init__", "sitecustomize", "torch", "yaml", "json"):  # which Python looks for
        for place in (run, ground.folder):
            (place / f"{name}.py").write_text(EVIL)
    return Attack(ground.victim, "code that leaves a mark wherever Python or diffusers may look for code")


@way()
def pickle_weights(rng: random.Random, ground: Ground) -> Attack:
    class Payload:
        def __reduce__(self):
            return exec, (PYTHON_MARK,)

    run = lay_out(rng, ground)
    name = rng.choice(["unet/diffusion_pytorch_model", "text_encoder/model"])
    (run / f"{name}.safetensors").unlink()
    for ending in ("bin", "pt", "ckpt", "msgpack", "h5"):
        (run / f"{name.replace('/model', '/pytorch_model')}.{ending}").write_bytes(pickle.dumps(Payload()))
    return Attack(ground.victim, f"{name} as a pickle")


# ------------------------------------------------------------------------------------------------------------- settings

CONFIGS: list[tuple[str, dict[str, Any]]] = [
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
    ("unet/config.json", {"_name_or_path": "user/name"}),
    ("scheduler/scheduler_config.json", {"_class_name": "os.system"}),
    ("scheduler/scheduler_config.json", {"fitted_schedules": [{"num_inference_steps": 2, "guidance_scale": 2.0}]}),
    ("tokenizer/tokenizer_config.json", {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil"] * 2}}),
    ("tokenizer/tokenizer_config.json", {"name_or_path": "user/name", "vocab_file": "../../secrets/token"}),
    ("tokenizer/tokenizer_config.json", {"chat_template": "{{ cycler.__init__.__globals__.os.system('id') }}"}),
]


@way(2)
def set_what_loads(rng: random.Random, ground: Ground) -> Attack:
    run, (name, changes) = lay_out(rng, ground), rng.choice(CONFIGS)
    (run / name).with_name("evil.py").write_text(EVIL)
    edit(run / name, **changes)
    # the index names the class, and this is put right; a name that means nothing is published as it stands
    legal = "setting" if changes.get("_class_name") == "Evil" else "value" if "_name_or_path" in changes else ""
    return Attack(ground.victim, f"{name} with {changes}", legal=legal)


@way()
def set_a_place_for_a_config(rng: random.Random, ground: Ground) -> Attack:
    run = lay_out(rng, ground)
    path = rng.choice([run / "model_index.json", *sorted(run.glob("[stu]*/*config.json"))])
    place = rng.choice(["user/name", "../secrets", "https://huggingface.co/user/name"])
    path.write_text(json.dumps(place))
    return Attack(ground.victim, f"{ground.name(path)} is {place!r}")


@way()
def set_places_of_weights(rng: random.Random, ground: Ground) -> Attack:
    run, name = lay_out(rng, ground), rng.choice(["unet/diffusion_pytorch_model", "text_encoder/model"])
    target = rng.choice(["../../secrets/token", "/etc/hostname", "https://localhost:1/x", "", 3])
    weights = run / f"{name}.safetensors"
    shards = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(load_file(weights), target)}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(shards))
    if rng.random() < 0.5:
        weights.unlink()
    return Attack(ground.victim, f"an index of {name} in {target!r}{'' if weights.exists() else ' alone'}")


@way()
def bring_adapters(rng: random.Random, ground: Ground) -> Attack:
    """Which transformers would load with the encoder."""
    run, part = lay_out(rng, ground), rng.choice(PARTS)
    config = {"base_model_name_or_path": "user/name", "peft_type": "LORA", "r": 2, "target_modules": ["q"]}
    (run / part / "adapter_config.json").write_text(json.dumps(config))
    return Attack(ground.victim, f"{part}/adapter_config.json of another repository")


RECIPES: list[dict[str, Any]] = [
    {"dataset_name": "user/evil"}, {"dataset_name": "../secrets"}, {"dataset_name": "https://localhost:1/x"},
    {"dataset_name": None, "train_data_dir": "secrets"}, {"dataset_name": None, "train_data_dir": "/"},
    {"text_encoder_name_or_path": "user/evil"}, {"pretrained_model_name_or_path": "user/evil"},
    {"cache_dir": "../secrets"}, {"output_dir": "secrets"}, {"push_to_hub": True}, {"report_to": "wandb"},
]  # fmt: skip


@way(2)
def write_a_recipe(rng: random.Random, ground: Ground) -> Attack:
    path, changes = lay_out(rng, ground, adapters=True) / "recipe.yaml", rng.choice(RECIPES)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return Attack(ground.victim, f"{ground.name(path)} with {changes}", legal="setting")


PROMPTS = [
    f'x"); import os; os.system({SHELL_MARK!r}) #', "'''", '"""', "\\", "\\N{x}", "```\n\n```python\nimport os\n```",
    "a\nb", "---\n", "{{ 7 * 7 }}", "{% for x in range(10**9) %}{% endfor %}", "<script>alert(1)</script>", "- a: b",
    "![x](file:///etc/passwd)", "\u202e", "| a | b |", "x" * 20_000, "%s%n", "]]>", "`id`",
]  # fmt: skip


@way(3)
def write_a_prompt(rng: random.Random, ground: Ground) -> Attack:
    """For the card, which is written anew by those that measure, fit and train."""
    path, prompt = lay_out(rng, ground, adapters=True) / "recipe.yaml", rng.choice(PROMPTS)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"validation_prompts": [prompt]}))
    typed = {"evaluate": ["--card"], "go on": ["--validation_prompts", prompt]}.get(ground.victim, [])
    argv = [*VICTIMS[ground.victim].argv, *typed]
    return Attack(ground.victim, f"{ground.name(path)} with the prompt {shown(prompt)}", argv, legal="setting")


# ---------------------------------------------------------------------------------------------------------------- links

LINKS = [
    ("LICENSE", "secrets/token"), ("NOTICE", "secrets/token"), ("README.md", "secrets/token"), ("extra", "secrets"),
    ("metrics.json", "secrets/token"), ("evaluation.json", "secrets/token"), ("unet/notes.md", "secrets/token"),
    ("unet/more", "secrets"), ("scheduler/evil.py", "secrets/token"), ("samples", "secrets"), ("LICENSE", "nowhere"),
    ("samples/more", "secrets"), ("samples/picture.png", "secrets/token"), ("samples/x.png", "nowhere"),
    ("samples/loop", "run"), ("samples/loop", "run/samples"),
]  # fmt: skip


@way(4)
def link_out(rng: random.Random, ground: Ground) -> Attack:
    run, (name, target) = lay_out(rng, ground, adapters=True), rng.choice(LINKS)
    path = run / name
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(ground.folder / target)
    return Attack(ground.victim, f"{ground.name(path)} -> {target}", legal="value")  # without what was there
