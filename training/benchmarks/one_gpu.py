# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What one GPU can do in a quarter of an hour, unattended: what runs on it, how fast it trains and samples beside
diffusers' own, and the pictures that it draws after the rest of the time.

    python training/benchmarks/one_gpu.py --data path/to/emoji-64 --minutes 15 --out one_gpu/
    python training/benchmarks/one_gpu.py --data path/to/emoji-64 --minutes 10 --out one_gpu/ --device cpu

Each part is a process of its own with a limit of time, so that one that fails or hangs costs no other; what came of it
is in --out/one_gpu.json before the next begins. The parts, in this order, with their shares of the time:

- checks (a quarter): tiny runs of every program and way to run, several at once; whether each ends as it should
- train_speed (a third): images/s, memory and model FLOP utilisation by `train_speed.py`, the largest first
- sampling (a sixth): pictures a second by `on_device.py sampling`, eager, compiled and captured
- pictures (the rest): `train.py` on --data, whose drawings become --out/pictures.png

It ends with 0 whatever came of the parts; with 2, before anything is run, for bad input.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mezzotint_training.config.errors import BAD_INPUT, CANNOT_GO_ON, UserError, exit_code
from mezzotint_training.config.flags import Help
from mezzotint_training.networks.saved import find_device

SHARES = {"checks": 0.25, "train_speed": 0.35, "sampling": 0.16}  # of the time, at most; what is left is `pictures`'
CHECK_SECONDS = 90  # for one check, at most
ENDING_SECONDS = 35  # that `pictures` needs beside its training: to start, to save, to draw
# Of `sampling`, by device
BATCHES = {"cuda": (1, 64), "cpu": (1, 4)}
MODES = {"cuda": ("eager", "compiled", "captured"), "cpu": ("eager", "compiled")}
SAID = 15  # last lines of a process that are kept
PACKAGES = ("mezzotint", "torch", "diffusers", "transformers", "accelerate", "datasets", "peft", "numpy", "pyarrow")
PROMPTS = [
    "red heart", "grinning face", "cat face", "red apple", "rocket", "soccer ball", "flag: Japan", "snowman",
]  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A process to run.

    Args:
        name: in the results.
        command: what follows `python -m`.
        exits: the code that it is to end with.
        figures: JSON lines that it writes.
        last: only the last of them is kept.
    """

    name: str
    command: Sequence[str]
    exits: int = 0
    figures: Path | None = None
    last: bool = False


class Results:
    """What came of each part, in a file that is whole whenever it is read."""

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path, self.content, self.lock = path, {**about, "parts": {}}, threading.Lock()
        self.write()

    def add(self, name: str, outcome: dict[str, Any]) -> None:
        with self.lock:
            self.content["parts"][name] = outcome
            self.write()
            print(f"{outcome['state']:8} {name} ({outcome['seconds']:.0f} s)", flush=True)

    def write(self) -> None:
        aside = self.path.with_suffix(".tmp")
        aside.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, self.path)


def run(part: Part, seconds: float, environment: dict[str, str]) -> dict[str, Any]:
    """Run `part` for `seconds` at most, after which it is killed with all that it has started.

    Returns:
        its `state` (`ok` where it ended as it was to, else `failed` or `stopped`), exit `code`, `seconds`, `figures`,
        and the last lines of `stdout` and `stderr`.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [sys.executable, "-m", *part.command], stdout=out, stderr=err, env=environment, start_new_session=True
        )
        code = None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said = {}
        for name, file in (("stdout", out), ("stderr", err)):
            file.seek(0)
            text = file.read().decode(errors="replace").replace("\r", "\n")
            said[name] = [line[:500] for line in text.splitlines() if line.strip()][-SAID:]
    lines = []
    if part.figures is not None and part.figures.is_file():
        for line in part.figures.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # one that was being written
                lines.append(json.loads(line))
    # bad input and what cannot go on are said in one line, without a traceback
    as_it_should = code == part.exits and (code == 0 or not any(x.startswith("Traceback") for x in said["stderr"]))
    state = "stopped" if code is None else "ok" if as_it_should else "failed"
    outcome = {"state": state, "code": code, "seconds": round(time.monotonic() - began, 1)}
    return outcome | {"figures": lines[-1:] if part.last else lines, **said}


def run_all(
    parts: Sequence[Part], until: float, at_once: int, results: Results, environment: dict[str, str], most: float = 1e9
) -> None:
    """Run `parts`, so many at once, each for `most` seconds at most, and all of them till `until` of the monotonic
    clock; those that come too late are noted as such."""

    def one(part: Part) -> None:
        left = until - time.monotonic()
        if left < 1:
            results.add(part.name, {"state": "no time", "code": None, "seconds": 0.0, "figures": []})
        else:
            results.add(part.name, run(part, min(left, most), environment))

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, parts))  # which raises what was raised in them


def checks(data: Path, work: Path, device: str) -> list[list[Part]]:
    """Rounds of tiny runs; those of a round may run side by side, and need those before."""
    unet = {"block_out_channels": [16, 32], "transformer_layers_per_block": [0, 1], "layers_per_block": 1}
    unet |= {"norm_num_groups": 8, "attention_head_dim": 16}
    text = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4}
    base: dict[str, Any] = {
        "train_data_dir": data, "resolution": 16, "max_train_samples": 256, "num_validation_samples": 32,
        "unet": json.dumps(unet), "text_encoder": json.dumps(text), "max_text_length": 48, "train_batch_size": 16,
        "max_train_steps": 60, "lr_warmup_steps": 5, "checkpointing_steps": 20, "logging_steps": 20,
        "validation_steps": 30, "num_inference_steps": 4, "num_validation_images": 1, "report_to": "none",
        "mixed_precision": "no",
    }  # fmt: skip

    def flags(**changes: Any) -> list[str]:
        words = []
        for name, value in (base | changes).items():
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            else:
                words += [f"--{name}", str(value)]
        return [*words, "--validation_prompts", "red heart", "rocket"]

    def trained(name: str, **changes: Any) -> Part:
        folder = work / name.replace(" ", "_")
        command = ["mezzotint_training.train", *flags(**changes), "--output_dir", str(folder)]
        return Part(f"train: {name}", command, figures=folder / "metrics.jsonl", last=True)

    def program(name: str, *words: str | Path, exits: int = 0) -> Part:
        return Part(f"{name}: {words[0]}", [f"mezzotint_training.{name}", *map(str, words[1:])], exits)

    def drawn(how: str) -> Part:
        figures = work / f"draw-{how}.jsonl"
        words = ["draw", made, "--how", how, "--device", device, "--output", figures]
        return Part(f"draw: {how}", ["mezzotint_training.benchmarks.on_device", *map(str, words)], figures=figures)

    def repeated(name: str, *how: str) -> Part:
        figures = work / f"{name}.jsonl"
        words = ["again", made, "--work", work / name, "--output", figures, *how, "--", *flags()]
        return Part(f"train: {name}", ["mezzotint_training.benchmarks.on_device", *map(str, words)], figures=figures)

    made, gpu = work / "float32", device != "cpu"
    ways = ["bfloat16", "compiled", *(["float16", "model_offload", "sequential_offload"] if gpu else [])]
    optimizers: dict[str, tuple[str, dict[str, Any]]] = {
        "schedule_free": ("schedulefree", {"use_ema": False}), "prodigy": ("prodigyopt", {"learning_rate": 1.0}),
        "adamw_8bit": ("bitsandbytes", {}), "muon": ("torch", {}),
    }  # fmt: skip
    first = [
        trained("float32"),
        trained("bf16", mixed_precision="bf16"),
        *([trained("fp16", mixed_precision="fp16")] if gpu else []),
        trained("no channels_last", channels_last=False),
        trained("gradient_checkpointing", gradient_checkpointing=True),
        trained("frozen text encoder", train_text_encoder=False),
        trained("streaming", streaming=True),
        trained("workers", dataloader_num_workers=2),
        *(trained(name, optimizer=name, **changes)
          for name, (package, changes) in optimizers.items() if importlib.util.find_spec(package)),
        trained("posthoc_ema", posthoc_ema_steps=20),
        trained("augmented", augment_probability=0.2, random_flip=True),
    ]  # fmt: skip
    at = ("--device", device)
    second = [
        # Compiling takes longest, and nothing else needs these. What the networks of `sampling` are compiled to stays
        # in inductor's cache for it
        *(Part(f"sample: {mode}, batch {batch}", _sampling(device, (batch,), (mode,)))
          for mode in MODES[device][1:] for batch in BATCHES[device]),
        trained("compile", compile=True),
        trained("bf16 all at once", mixed_precision="bf16", compile=True, gradient_checkpointing=True,
                train_text_encoder=False, gradient_accumulation_steps=2),
        repeated("again"),
        repeated("killed", "--kill"),
        trained("lora", pretrained_model_name_or_path=made, adapter="lora"),
        program("sample", "two prompts", made, "red heart", "rocket", *at, "--output", work / "sample.png"),
        program("evaluate", "in small", made, "--train_data_dir", data, "--count", "40", "--judge_steps", "50",
                "--num_inference_steps", "4", *at),
        program("fit_scheduler", "in small", made, "--steps", "4", "--noises", "8", "--teacher_steps", "12",
                "--starts", "1", "--output_dir", work / "fitted", *at),
        program("ema", "of a run", work / "posthoc_ema", "--length", "0.1", "--output", work / "averaged"),
        *map(drawn, ways),
        program("sample", "device 99", made, "rocket", "--device", "cuda:99", exits=BAD_INPUT),
    ]  # fmt: skip
    # what takes all of the device's memory runs alone
    side = ("--height", "16384", "--width", "16384", "--output", work / "large.png")
    large = program("sample", "too large", made, "rocket", *side, *at, exits=CANNOT_GO_ON)
    return [first, *([[large]] if gpu else []), second]


def speed(work: Path, device: str) -> Part:
    figures = work / "train_speed.jsonl"
    shape = (
        "--sizes tiny --resolutions 16 --batch 8 --steps 8 --pictures 64"
        if device == "cpu"
        else "--sizes base small tiny --resolutions 64 32 --batch 64 --steps 100 --workers 4 --mixed_precision bf16"
    )
    command = ["mezzotint_training.benchmarks.train_speed", *shape.split(), "--repeats", "1", "--output", str(figures)]
    return Part("train_speed", command, figures=figures)


def _sampling(device: str, batches: Sequence[int], modes: Sequence[str]) -> list[str]:
    """The command that times these."""
    shape = (
        "--size tiny --resolution 16 --steps 4 --turns 1 --dtype float32"
        if device == "cpu"
        else "--size small --resolution 64 --steps 20 --turns 3"
    )
    words = ["mezzotint_training.benchmarks.on_device", "sampling", "--device", device, *shape.split()]
    return [*words, "--batches", *map(str, batches), "--modes", *modes]


def sampling(work: Path, device: str) -> Part:
    figures = work / "sampling.jsonl"
    command = _sampling(device, BATCHES[device], MODES[device])
    return Part("sampling", [*command, "--output", str(figures)], figures=figures)


def pictures(data: Path, work: Path, device: str, seconds: float) -> Part:
    """Train on `data`, for `seconds` with all that belongs to it. The rate stays where it is, since nobody knows how
    far a device comes, and the average of the weights stands for its fall."""
    folder = work / "pictures"
    shape = "--size tiny --resolution 16" if device == "cpu" else "--size small --mixed_precision bf16"
    minutes = max(seconds - ENDING_SECONDS, seconds / 3) / 60
    command = [
        "mezzotint_training.train", "--train_data_dir", str(data), *shape.split(), "--output_dir", str(folder),
        "--max_train_minutes", f"{minutes:.3f}", "--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", "200",
        "--ema_decay", "0.999", "--checkpointing_steps", str(10**9), "--validation_steps", "500",
        "--logging_steps", "50", "--report_to", "none", "--validation_prompts", *PROMPTS,
    ]  # fmt: skip
    return Part("pictures", command, figures=folder / "metrics.jsonl")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--data", required=True, help="a folder of captioned pictures, as --train_data_dir of train.py")
    parser.add_argument("--minutes", type=float, default=15, help="minutes for all parts together")
    parser.add_argument("--out", required=True, help="a folder for one_gpu.json and pictures.png")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="device to measure; on the CPU all parts run in small"
    )
    args = parser.parse_args(argv)
    return exit_code(lambda: one_gpu(args))


def one_gpu(args: argparse.Namespace) -> None:
    """Run all parts, one after the other.

    Raises:
        UserError: for bad input.
    """
    until = time.monotonic() + 60 * args.minutes
    if not 0 < args.minutes < float("inf"):
        raise UserError(f"minutes must be above 0: got {args.minutes:g}")
    data, out = Path(args.data).absolute(), Path(args.out).absolute()
    if not data.is_dir():
        raise UserError(f"data must be a folder: got {args.data}")
    if (out / "one_gpu.json").exists():
        raise UserError(f"out must be a folder without one_gpu.json, which is of another run: got {args.out}")
    device = find_device(args.device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out must be a folder to write to: {error}") from None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = min(16, max(1, cores - 1))
    on_gpu = device.type == "cuda"
    about = {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "memory": torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        "cores": cores,
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in PACKAGES},
        "minutes": args.minutes,
        "data": data.name,
    }
    results = Results(out / "one_gpu.json", about)

    def environment(share: int) -> dict[str, str]:
        threads = {"OMP_NUM_THREADS": str(max(1, cores // share))}
        if share > 1:  # or each that compiles would start a process for every core
            threads["TORCHINDUCTOR_COMPILE_THREADS"] = str(min(4, cores))
        where = {} if on_gpu else {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        return os.environ | threads | where | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(work / "datasets")}

    def share(name: str) -> float:
        return min(until, time.monotonic() + 60 * args.minutes * SHARES[name])

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        end = share("checks")
        for parts in checks(data, work, args.device):
            run_all(parts, end, at_once, results, environment(at_once), CHECK_SECONDS)
        run_all([speed(work, args.device)], share("train_speed"), 1, results, environment(1))
        run_all([sampling(work, args.device)], share("sampling"), 1, results, environment(1))
        left = until - time.monotonic()
        run_all([pictures(data, work, args.device, left)], until, 1, results, environment(1))
        for grid in sorted((work / "pictures" / "samples").glob("*.png"))[-1:]:
            shutil.copyfile(grid, out / "pictures.png")
    print(summary(results.content))


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def summary(content: dict[str, Any]) -> str:
    """What was found, in some lines: the parts that failed with the last that they said, then the figures."""
    lines = [f"\n{content['device']}, torch {content['versions']['torch']}"]
    parts = content["parts"]
    counts = collections.Counter(part["state"] for part in parts.values())
    lines.append(f"{len(parts)} parts: {', '.join(f'{count} {state}' for state, count in counts.most_common())}")
    for name, part in parts.items():
        if part["state"] in ("failed", "stopped"):
            said = (part["stderr"] or part["stdout"] or ["nothing was said"])[-1]
            lines.append(f"  {name}: {part['state']}, code {part['code']}: {said[:200]}")
    for name in ("train: again", "train: killed"):
        for x in parts.get(name, {}).get("figures", []):
            lines.append(f"{name}: {'the same bits' if x['identical'] else x['largest_difference']}")
    for x in parts.get("train_speed", {}).get("figures", []):
        ours, peer = x["ours"], x["peer"]
        lines.append(
            f"train {x['size']} {x['resolution']} px: {ours['images_per_second']:.0f} images/s (peer "
            f"{peer['images_per_second']:.0f}), {ours['peak_memory'] / 1e9:.2f} GB ({peer['peak_memory'] / 1e9:.2f}), "
            f"MFU {ours['utilisation']:.1%} ({peer['utilisation']:.1%}), data wait {ours['data_wait']:.0%} "
            f"({peer['data_wait']:.0%})"
        )
    for x in parts.get("sampling", {}).get("figures", []):
        lines.append(f"sample {x['mode']}, batch {x['batch']}, {x['pipeline']}: {x['images_per_second']:.1f} images/s")
    for x in parts.get("pictures", {}).get("figures", [])[-1:]:
        lines.append(f"pictures: {x['step']} steps, loss {x['loss']:.4f}, {x['images_per_second']:.0f} images/s")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
