"""Training runs that take half a second, in this process: a small U-Net and text encoder, a few pictures, few steps."""

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import datasets
import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from mezzotint_training import distill, train, train_classifier
from mezzotint_training.data import rows

# `transformer_layers_per_block` is the recipe's; the drop-out makes every run sensitive to stray random numbers
UNET = {
    "block_out_channels": [16, 32],
    "transformer_layers_per_block": [0, 1],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 16,
    "dropout": 0.1,
}
TEXT_ENCODER = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
TINY = {
    "recipe": "digits",
    "max_train_samples": 40,
    "num_validation_samples": 2,
    "unet": UNET,
    "text_encoder": TEXT_ENCODER,
    "max_text_length": 32,
    "train_batch_size": 8,
    "max_train_steps": 3,
    "lr_warmup_steps": 2,
    "logging_steps": 1,
    "validation_prompts": [],
    "report_to": "none",
    "load_back": False,  # in a process of its own, which takes as long as twenty such runs
}
digits = functools.cache(rows.digits)
# Six updates of two micro-steps, with a checkpoint after every other one and a line in the log after every third
LONG = {
    "train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_train_steps": 6,
    "checkpointing_steps": 2,
    "checkpoints_total_limit": "null",
    "logging_steps": 3,
}


@dataclass
class Run:
    code: int
    out: str
    err: str  # as it stands on a screen: what a carriage return overwrites is gone


def flags(**settings) -> list[str]:
    """Settings as they are typed, over `TINY`; `...` leaves one of those out."""
    argv = []
    for name, value in (TINY | settings).items():
        if value is True or value is False:
            argv.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            argv += [f"--{name}", *map(str, value)]
        elif value is not ...:
            argv += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return argv


def run(*argv: str, **settings) -> Run:
    """`mezzotint train` with `flags(**settings)` and `argv`."""
    return called(train, *flags(**settings), *argv)


def reset_accelerate() -> None:
    """Forget what accelerate keeps of a process: one trains once, but here the next run must not find the last one's
    state."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def called(program: ModuleType, *argv: str) -> Run:
    """A training program with `argv`."""
    out, err = io.StringIO(), io.StringIO()
    loggers = [logging.getLogger(name) for name in ("datasets", "diffusers", "transformers", "accelerate")]
    handlers = [h for logger in loggers for h in logger.handlers if isinstance(h, logging.StreamHandler)]
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(mock.patch.object(datasets.config, "HF_DATASETS_CACHE", cache))
        stack.enter_context(mock.patch.object(rows, "digits", digits))
        stack.enter_context(mock.patch.object(os, "fsync"))  # no test cuts the power
        # where runs repeat bit for bit
        stack.enter_context(mock.patch.dict(os.environ, {"ACCELERATE_USE_CPU": "true"}))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        for handler in handlers:
            stack.enter_context(mock.patch.object(handler, "stream", err))
        reset_accelerate()  # of a test that made an accelerator itself
        try:
            code = program.main(list(argv))
        finally:
            reset_accelerate()
    lines = [line.split("\r")[-1].rstrip() for line in err.getvalue().split("\n")]
    return Run(code, out.getvalue(), "\n".join(line for line in lines if line))


def trained(output_dir: Path, *argv: str, **settings) -> Path:
    """The folder of a run that must succeed."""
    result = run(*argv, output_dir=output_dir, **settings)
    assert result.code == 0, result.err
    return output_dir


def distilled(teacher: Path | str, output_dir: Path, *argv: str, **settings) -> Run:
    """`mezzotint distill` in four updates, with checkpoints after every other one."""
    settings = {
        "report_to": "none", "train_batch_size": 4, "teacher_steps": 4, "max_train_steps": 4, "checkpointing_steps": 2,
        "logging_steps": 2, "checkpoints_total_limit": "null",
    } | settings  # fmt: skip
    flags = [text for name, value in settings.items() if value is not ... for text in (f"--{name}", str(value))]
    return called(distill, str(teacher), "--output_dir", str(output_dir), *flags, *argv)


def steered(folder: Path, output_dir: Path, **settings) -> tuple[list[float], Any]:
    """A pipeline of any modality with a classifier that `mezzotint train-classifier` trains in a few updates: the mean
    log-probability of class 1 in what it draws without the classifier and steered by it; and the classifier."""
    settings = {"max_train_steps": 20, "train_batch_size": 16, "learning_rate": 5e-3, "lr_warmup_steps": 1,
                "validation_split": "test"} | settings  # fmt: skip
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    result = called(train_classifier, "--pipeline", str(folder), "--output_dir", str(output_dir), *flags)
    assert result.code == 0, result.err
    pipe: Any = DiffusionPipeline.from_pretrained(str(output_dir), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    found = []
    for labels in (None, 1):
        (drawn, *_) = pipe(
            [""] * 8, num_inference_steps=8, guidance_scale=1.0, class_labels=labels, classifier_scale=3.0,
            generator=torch.Generator().manual_seed(0), output_type="latent", return_dict=False,
        )  # fmt: skip
        with torch.no_grad():
            found.append(float(pipe.classifier(drawn, 0).logits.log_softmax(1)[:, 1].mean()))
    return found, pipe.classifier


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its content, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def logged(folder: Path, name: str = "loss") -> dict[int, float]:
    """One column of metrics.jsonl, by step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: line[name] for line in lines if name in line}


def saved(folder: Path, step: int, name: str = "weights") -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoint-{step}" / f"{name}.safetensors")


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of tensors, which must have the same names."""
    assert a.keys() == b.keys()
    return max((a[key].double() - b[key].double()).abs().max().item() for key in a)


def pictures(folder: Path, count: int = 10, size=(8, 8), mode="RGB", captions=None) -> Path:
    """A folder of random pictures 0.png, 1.png, ... with a metadata.jsonl, and captions `picture 0`, ... by default;
    `captions=False` leaves that file out."""
    folder.mkdir(parents=True)
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)):
        Image.fromarray(pixels).convert(mode).save(folder / f"{index}.png")
    if captions is not False:
        texts = captions or [f"picture {index}" for index in range(count)]
        lines = [json.dumps({"file_name": f"{index}.png", "text": text}) for index, text in enumerate(texts)]
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
