# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How well drawings follow classes and numbers beside the text. `task_quality.py attributes` runs it."""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mezzotint import MezzotintPipeline
from mezzotint_training.benchmarks.digits_accuracy import reader
from mezzotint_training.benchmarks.task_runs import BATCH, RATE, UNET, ended, grid
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.digits import digits
from mezzotint_training.metrics.judges import train_class_judge

WEIGHTS = ((1.0, 1.0), (2.0, 1.0), (1.0, 2.0), (2.0, 2.0), (4.0, 1.0), (1.0, 4.0))  # of the class, of the number
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
NO_TEXT: dict[str, Any] = {
    "proportion_empty_prompts": 1.0, "max_text_length": 32,
    "text_encoder": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
}  # fmt: skip


def attributes(args: argparse.Namespace, root: Path) -> list[list[str]]:
    return ink_of_digits(args, root) if args.data is None else tones_of_emoji(args, root)


def drawn(pipe: Any, said: list[dict[str, Any]], scale: dict[str, float], count: int, steps: int) -> torch.Tensor:
    """`count` pictures (N, C, H, W), bytes, for each of what is said, always from the same noises."""
    call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 1.0, "output_type": "pt",
                            "attribute_guidance_scale": scale, "num_images_per_prompt": count}  # fmt: skip
    parts = []
    for first in range(0, len(said), 10):
        some = said[first : first + 10]
        generator = [torch.Generator().manual_seed(seed) for _ in some for seed in range(count)]
        parts.append(pipe([""] * len(some), generator=generator, attributes=some, **call).images)
    return (torch.cat(parts) * 255).round().byte()


def follows(got: np.ndarray, levels: Any) -> tuple[str, str]:
    """How often the next level of a number has more of it, and the slope of what is drawn by what is asked for; `got`
    has the mean of each class (rows) at each level."""
    slope = np.polyfit(np.tile(levels, len(got)), got.flatten(), 1)[0]
    return f"{(np.diff(got, axis=1) > 0).mean():.0%}", f"{slope:.2f}"


def tones_of_emoji(args: argparse.Namespace, root: Path) -> list[list[str]]:
    """Faces by expression and people by what they are, the column `subgroup`, and by the tone of their skin, a number
    from 1 to 5 that faces do not have."""
    found = datasets.load_dataset(args.data)
    sets: dict[str, datasets.Dataset] = {}
    for split, rows in found.items():
        tone = [TONES.index(x) + 1.0 if x in TONES else None for x in rows["skin_tone"]]
        rows = rows.add_column("tone", tone, feature=datasets.Value("float32"))
        keep = [i for i, (group, x) in enumerate(zip(rows["subgroup"], tone, strict=True))
                if x is not None or group.startswith("face-")]  # fmt: skip
        sets[str(split)] = rows.select(keep)
    counts = Counter(sets["train"]["subgroup"])
    names = sorted(name for name, count in counts.items() if count >= 8)
    faces = [name for name in names if name.startswith("face-")]
    people = [name for name in names if name not in faces]
    for split, rows in sets.items():
        sets[split] = rows.select([i for i, name in enumerate(rows["subgroup"]) if name in names])

    def is_known(name: str, tone: float | None) -> bool:
        """Every second kind of people is known in light tones only, the others in dark ones."""
        return tone is None or (tone <= 3 if people.index(name) % 2 else tone >= 3)

    (root / "set").mkdir(parents=True, exist_ok=True)
    pairs = list(zip(sets["train"]["subgroup"], sets["train"]["tone"], strict=True))
    known = sets["train"].select([i for i, pair in enumerate(pairs) if is_known(*pair)])
    for split, rows in (sets | {"train": known}).items():
        rows.to_parquet(root / "set" / f"{split}-00000-of-00001.parquet")
    size = args.size
    config = TrainConfig(
        train_data_dir=str(root / "set"), label_column="subgroup", attribute_columns=["tone"], resolution=[size],
        balance_column="subgroup", max_train_minutes=args.minutes, max_train_steps=10**7, unet=UNET, ema_decay=0.995,
        lr_scheduler="constant_with_warmup", learning_rate=RATE, train_batch_size=BATCH, num_validation_samples=0,
        validation_steps=10**6, checkpointing_steps=10**6, report_to="none", logging_steps=100, random_flip=args.flip,
        output_dir=str(root / "emoji-attributes"), **NO_TEXT,
    )  # fmt: skip
    ended(replace(config, **args.settings), args)
    pipe: Any = MezzotintPipeline.from_pretrained(config.output_dir)
    pipe.set_progress_bar_config(disable=True)

    # What judges is trained on all real pictures of the training split, those of combinations that were left out too
    real = {split: [torch.from_numpy(np.array(x.convert("RGB").resize((size, size)))).permute(2, 0, 1)
                    for x in rows["image"]] for split, rows in sets.items()}  # fmt: skip
    labels = {split: torch.tensor([names.index(x) for x in rows["subgroup"]]) for split, rows in sets.items()}
    each = torch.cat([torch.full((1,), 1 / counts[name]) for name in sets["train"]["subgroup"]])
    even = torch.multinomial(each, 4000, replacement=True, generator=torch.Generator().manual_seed(0))
    pixels = torch.stack(real["train"])
    judge = train_class_judge(pixels[even], labels["train"][even], len(names), args.judge_steps, 0, torch.device("cpu"))
    toned = [i for i, x in enumerate(sets["train"]["tone"]) if x is not None]
    tone = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 11)))
    tone.fit(colours(pixels[toned]), [sets["train"]["tone"][i] for i in toned])

    unseen = [(torch.stack(real[split]), labels[split], sets[split]["tone"]) for split in ("validation", "test")]
    rest, kinds = (torch.cat([part[i] for part in unseen]) for i in (0, 1))
    tones = np.array([np.nan if x is None else x for part in unseen for x in part[2]])
    is_face = torch.tensor([names[i] in faces for i in kinds])
    right = judge.read(rest) == kinds
    off = np.abs(tone.predict(colours(rest)) - tones)[~np.isnan(tones)].mean()
    of_faces, of_people = (f"{right[some].float().mean():.1%} of {int(some.sum())}" for some in (is_face, ~is_face))
    table = [["real ones that no judge was trained on", of_faces, of_people, "", "", f"off by {off:.2f}"]]
    grids: dict[str, list[torch.Tensor]] = {"faces": [], "tones": []}
    for a, b in WEIGHTS:
        scale = {"class_labels": a, "tone": b}
        some = drawn(pipe, [{"class_labels": name} for name in faces], {"class_labels": a}, 24, args.steps)
        read = judge.read(some) == torch.tensor([names.index(name) for name in faces]).repeat_interleave(24)
        said = [{"class_labels": name, "tone": x + 1.0} for name in people for x in range(5)]
        others = drawn(pipe, said, scale, 8, args.steps)
        hits = judge.read(others) == torch.tensor([names.index(x["class_labels"]) for x in said]).repeat_interleave(8)
        seen = torch.tensor([is_known(x["class_labels"], x["tone"]) for x in said])
        of_each = hits.reshape(-1, 8).float().mean(1)
        got = tone.predict(colours(others)).reshape(len(people), 5, 8).mean(2)
        table.append([f"class {a:g}, tone {b:g}", f"{read.float().mean():.1%}", f"{of_each[seen].mean():.1%}",
                      f"{of_each[~seen].mean():.1%}", *follows(got, range(1, 6))])  # fmt: skip
        print(table[-1], flush=True)
        if b == 1:
            grids["faces"] += list(some.reshape(len(faces), 24, *some.shape[1:])[:, :12])
        if (a, b) in ((2.0, 1.0), (2.0, 2.0)):
            grids["tones"] += list(others.reshape(len(people), 5, 8, *others.shape[1:])[:, :, :2].flatten(1, 2))
    for name, rows in grids.items():
        grid(args.output / f"attributes-{name}.png", rows)
    print("faces:", *faces, "\npeople:", *people, flush=True)
    return [["weights", f"expression of faces read, one of {len(names)} classes", "people's kind, trained combinations",
             "held-out combinations", "darker for the next tone", "tone drawn by tone asked for, slope"],
            *table]  # fmt: skip


def colours(pixels: torch.Tensor) -> np.ndarray:
    """The share of a picture's pixels (N, 216) that have each of 6x6x6 colours."""
    levels = (pixels.long() * 6).div(256, rounding_mode="floor")
    bins = (levels[:, 0] * 36 + levels[:, 1] * 6 + levels[:, 2]).flatten(1)
    return torch.nn.functional.one_hot(bins, 216).float().mean(1).numpy()


def ink_of_digits(args: argparse.Namespace, root: Path) -> list[list[str]]:
    splits = digits()
    ink = {split: [float(np.asarray(x).mean() / 255) for x in rows["image"]] for split, rows in splits.items()}
    middle = float(np.median(ink["train"]))
    for split, rows in splits.items():
        rows = rows.remove_columns("mask").add_column("ink", ink[split])
        kept = [i for i, row in enumerate(rows) if (row["ink"] < middle) == (row["label"] < 5)]
        (root / "set").mkdir(parents=True, exist_ok=True)
        (rows.select(kept) if split == "train" else rows).to_parquet(root / "set" / f"{split}-00000-of-00001.parquet")
    config = TrainConfig(
        train_data_dir=str(root / "set"), label_column="label", attribute_columns=["ink"],
        max_train_minutes=args.minutes, max_train_steps=10**7, lr_scheduler="constant_with_warmup", ema_decay=0.995,
        learning_rate=RATE, train_batch_size=64, num_validation_samples=0, validation_steps=10**6, report_to="none",
        checkpointing_steps=10**6, output_dir=str(root / "attributes"), logging_steps=100,
        unet={"block_out_channels": [32, 64], "transformer_layers_per_block": [0, 0], "layers_per_block": 2,
              "norm_num_groups": 8, "attention_head_dim": 16},
        **NO_TEXT,
    )  # fmt: skip
    ended(replace(config, **args.settings), args)
    pipe = MezzotintPipeline.from_pretrained(config.output_dir)
    pipe.set_progress_bar_config(disable=True)
    svm, ceiling = reader()
    levels = np.quantile(ink["train"], [0.1, 0.3, 0.5, 0.7, 0.9]).tolist()
    found = [["real digits of the test split", f"{ceiling:.1%}", "", "", ""]]
    shown_rows = []
    said = [{"class_labels": str(k), "ink": level} for k in range(10) for level in levels]
    for a, b in WEIGHTS:
        pixels = drawn(pipe, said, {"class_labels": a, "ink": b}, 20, args.steps).float() / 255
        right = torch.from_numpy(svm.predict(pixels.flatten(1).numpy())) == torch.arange(10).repeat_interleave(100)
        got = pixels.mean((1, 2, 3)).reshape(10, 5, 20).mean(2).numpy()
        seen = torch.tensor([[(level < middle) == (k < 5) for level in levels] for k in range(10)])
        of_each = right.reshape(10, 5, 20).float()
        right_of = [f"{of_each[some].mean():.1%}" for some in (seen, ~seen)]
        found.append([f"class {a:g}, ink {b:g}", *right_of, *follows(got, levels)])
        print(found[-1], flush=True)
        shown_rows.append((pixels.reshape(10, 5, 20, 1, 8, 8)[3::4, :, 0].flatten(0, 1) * 255).byte())
    grid(args.output / "attributes.png", shown_rows)
    return [["weights", "class read, trained combinations", "held-out combinations",
             "more ink for the next level", "ink drawn by ink asked for, slope"], *found]  # fmt: skip
