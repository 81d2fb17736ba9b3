# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Compare text encoders by what is drawn for captions whose words nobody trained on: one and the same U-Net learns from
the texts as each of them reads them.

    python training/benchmarks/text_encoders.py --data path/to/emoji-32 --text path/to/all-MiniLM-L6-v2

- bytes: the small T5 of `train.py`, trained along with the U-Net.
- pretrained: the encoder that --text names, frozen.
- distilled: --layers of its layers, the first and the last among them, taught here to give its hidden states of the
  training captions; frozen then.
- untrained: its shape and its tokenizer with random weights, frozen: what tokens alone are worth.

Each has the same processor time, the distillation and the encoding of the captions included. What is drawn for captions
of the test split, whose families nobody trained on, is judged as in `quality.py`, by a two-tower model of real training
pictures with words of its own.
"""

import argparse
import copy
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import mse_loss

from mezzotint_training.benchmarks.cascade_quality import cells, show
from mezzotint_training.benchmarks.quality import SCALES, QualityJudge, encoding_seconds, prepare, run, steps_within
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import Help
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.captions import Captions
from mezzotint_training.data.rows import held_out, load_splits
from mezzotint_training.networks.text import load_text_encoder

ENCODERS = ("bytes", "pretrained", "distilled", "untrained")
GUIDANCE = (1.0, 2.0)
RATE, WARMUP = 1e-3, 20  # of the distillation, and updates in which it rises


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--scale", choices=["emoji-32", "emoji-64"], default="emoji-32", help="the set's size")
    parser.add_argument("--data", required=True, help="folder of the set")
    parser.add_argument("--text", required=True, help="folder or Hub name of the pretrained encoder")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS), help="which of them")
    parser.add_argument("--seconds", type=float, default=600, help="processor seconds of each in all")
    parser.add_argument("--layers", type=int, default=2, help="layers of the distilled encoder")
    parser.add_argument("--distill_steps", type=int, default=200, help="updates of its distillation")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the runs")
    parser.add_argument("--count", type=int, default=320, help="pictures that each row is judged by")
    parser.add_argument("--sampling_steps", type=int, default=10, help="steps in which they are drawn")
    parser.add_argument("--judge_steps", type=int, default=400, help="updates of the network that judges")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", default="text_encoders", help="a folder for runs and figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    place = Path(args.output)
    place.mkdir(parents=True, exist_ok=True)
    shared = prepare(args.scale, args.data, place, args.text)
    recipe = SCALES[args.scale].recipe
    shared = replace(shared, **recipe, lr_warmup_steps=50, num_copy_samples=0, validation_prompts=[], load_back=False)
    told = {}
    for name in args.encoders:
        config, spent = with_encoder(name, shared, args, place)
        for seed in args.seeds:
            told[f"{name}-{seed}"] = train(replace(config, seed=seed), spent, args, place / f"{name}-{seed}")
    judge = QualityJudge(shared, SCALES[args.scale], args.count, args.sampling_steps, args.judge_steps)
    headings = ["encoder", "seed", "parameters", "seconds", "updates"]
    rows = [headings + [f"{what}, guidance {x:g}" for x in GUIDANCE for what in ("read as asked for", "KID x 1000")]]
    for name in args.encoders:
        for seed in args.seeds:
            one = told[f"{name}-{seed}"]
            drawn = [judge.of_ours(place / f"{name}-{seed}", scale, seed) for scale in GUIDANCE]
            one["judged"] = [found._replace(pixels=None)._asdict() for found in drawn]
            numbers = [f"{one[key]:,.0f}" for key in ("parameters", "processor", "updates")]
            rows.append([name, str(seed), *numbers, *(cell for found in drawn for cell in cells(found))])
    rows.append(["real pictures", *[""] * 4, *cells(judge.of_real()), "", ""])
    show(rows)
    (place / "figures.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


def with_encoder(name: str, shared: TrainConfig, args: argparse.Namespace, place: Path) -> tuple[TrainConfig, float]:
    """The settings of a run with one of `ENCODERS`, and the processor seconds that its distillation took."""
    if name == "bytes":
        default = TrainConfig(train_data_dir=shared.train_data_dir)
        small = {name: getattr(default, name) for name in ("text_encoder", "max_text_length")}
        return replace(shared, text_encoder_name_or_path=None, **small), 0.0
    if name == "pretrained":
        return shared, 0.0
    encoder, tokenizer = load_text_encoder(str(shared.text_encoder_name_or_path))
    spent = 0.0
    if name == "untrained":
        torch.manual_seed(0)
        encoder = type(encoder)(encoder.config)
    else:
        settings = replace(shared, validation_split="test", num_validation_samples=10**9)
        sets = [Captions(rows, settings) for rows in held_out(settings, load_splits(settings)) if rows is not None]
        seen, unseen = (sorted({text for row in range(len(one)) for text in one[row]}) for one in sets)
        teacher, began = encoder, time.process_time()
        encoder = distilled(teacher, tokenizer, seen, args.layers, args.distill_steps)
        spent = time.process_time() - began
        with torch.no_grad():
            errors = [
                missed(encoder, teacher, tokenizer, some).item()
                for some in (seen[:: max(1, len(seen) // len(unseen))], unseen)
            ]
        told = "of the variance of hidden states missed, {:.1%} of captions trained on, {:.1%} of the test split"
        print(f"distilled in {spent:.0f} s:", told.format(*errors), flush=True)
    encoder.save_pretrained(place / name)
    tokenizer.save_pretrained(place / name)
    return replace(shared, text_encoder_name_or_path=str(place / name)), spent


def distilled(teacher: Any, tokenizer: Any, captions: list[str], layers: int, steps: int, batch: int = 32) -> Any:
    """An encoder that begins as some of the teacher's layers, evenly spaced from the first to the last (DistilBERT,
    arXiv 1910.01108, section 3, takes every other one), and learns the teacher's hidden states of captions.

    Raises:
        UserError: for more layers than the teacher has, or fewer than two.
    """
    most = teacher.config.num_hidden_layers
    if not 2 <= layers <= most:
        raise UserError(f"--layers must be from 2 to {most}, as many as the encoder has: got {layers}")
    student = copy.deepcopy(teacher)
    student.config.num_hidden_layers = layers
    (stack,) = (part for part in student.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == most)
    for place in reversed(range(most)):
        if place not in {round(number * (most - 1) / (layers - 1)) for number in range(layers)}:
            del stack[place]
    student.eval()  # without dropout, as it will be used
    optimizer = torch.optim.AdamW(student.parameters(), RATE, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / WARMUP) * (1 - step / steps)
        chosen = torch.randint(len(captions), (batch,), generator=generator).tolist()
        with torch.autocast("cpu", torch.bfloat16):
            error = missed(student, teacher.eval(), tokenizer, [captions[i] for i in chosen])
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    return student


def missed(student: Any, teacher: Any, tokenizer: Any, captions: list[str]) -> torch.Tensor:
    """The squared error of the student's hidden states of captions as a share of the variance of the teacher's."""
    tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    kept = tokens.attention_mask.bool()  # (B, L)
    with torch.no_grad():
        aim = teacher(**tokens).last_hidden_state[kept].float()  # (tokens, D)
    return mse_loss(student(**tokens).last_hidden_state[kept].float(), aim) / aim.var(0, correction=0).mean()


def train(config: TrainConfig, spent: float, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Train for what is left of the time, of which `spent` seconds are gone, and say how long it took."""
    config = replace(config, output_dir=str(folder))
    spent += encoding_seconds(config, args.threads)
    (steps,) = steps_within([args.seconds - spent], "ours", config, args.threads)
    ended = run("ours", replace(config, max_train_steps=steps, logging_steps=steps), args.threads)
    encoder, _ = load_text_encoder(str(folder))
    parameters = sum(weight.numel() for weight in encoder.parameters())
    told = {"updates": steps, "processor": spent + ended.processor, "wall": ended.wall, "parameters": parameters}
    print(f"{folder.name}: {steps} updates, {told['processor']:.0f} s of processor time", flush=True)
    return told


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"text_encoders: {error}")
