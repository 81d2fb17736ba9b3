# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What a card says of a pipeline beside how good it is, as names and texts in Markdown: what it is made of, what the
data hold, on what it ran, and which settings differ from the defaults. All of it is read from what a run left."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from mezzotint.markdown import code, plain
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import HINTS, checked, default
from mezzotint_training.engine import plan
from mezzotint_training.publishing.plots import curve

# Settings that a card tells of elsewhere, or that say nothing of what was learned
ELSEWHERE = {
    "adapter", "cache_dir", "dataset_license", "dataset_name", "hub_model_id", "hub_private_repo", "license",
    "load_back", "output_dir", "plan", "pretrained_model_name_or_path", "push_to_hub", "report_to",
    "resume_from_checkpoint", "train_data_dir", "validation_prompts",
}  # fmt: skip
LOSSES = 8  # rows of the table of losses
FROM_SCRATCH = {"max_text_length", "scheduler", "text_encoder", "unet"}  # which a saved pipeline brings along
PREDICTS = {"v_prediction": "v", "epsilon": "the noise", "sample": "the picture"}


def architecture(folder: Path) -> list[tuple[str, str]]:
    """The components of a saved pipeline, in words and numbers; of a folder without any nothing."""
    found = []
    for name in ("unet", "unet_2", "unet_3"):  # of a cascade several
        unet = _read(folder / name / "config.json")
        if not (channels := unet.get("block_out_channels")):
            continue
        count = unet.get("layers_per_block")
        depths = unet.get("transformer_layers_per_block") or []
        attention = [str(level) for level, depth in enumerate(depths, 1) if depth]
        reads = "embeddings" if (unet.get("condition") or {}).get("task") == "unclip" else "text"
        parts = [
            f"a U-Net of {len(channels)} levels with {', '.join(map(str, channels))} channels and "
            f"{count} residual block{'s' if count != 1 else ''} each",
            f"attention in levels {', '.join(attention)}" if attention else "",
            f"patches of {_size(unet, unet['patch_size'])}" if unet.get("patch_size", 1) != 1 else "",
            f"reads {reads} of {unet['cross_attention_dim']} channels" if unet.get("cross_attention_dim") else "",
            f"draws {unet.get('out_channels')} channels at {_size(unet)}",
            f"trained for {unet['condition']['task']}" if unet.get("condition") else "",
            f"dropout {unet['dropout']:g}" if unet.get("dropout") else "",
        ]
        found.append((f"network{name.removeprefix('unet').replace('_', ' ')}", "; ".join(filter(None, parts))))
    scheduler = _read(folder / "scheduler" / "scheduler_config.json")
    if kind := scheduler.get("prediction_type"):
        found.append(
            (
                "noise",
                f"{scheduler.get('num_train_timesteps')} timesteps, {scheduler.get('beta_schedule')} betas"
                f"{' up to zero signal' if scheduler.get('rescale_betas_zero_snr') else ''}; predicts "
                f"{PREDICTS.get(kind, kind)}; solver of order {scheduler.get('solver_order', 1)}",
            )
        )
    text = _read(folder / "text_encoder" / "config.json")
    if names := text.get("architectures"):
        width = text.get("d_model") or text.get("hidden_size")
        layers = text.get("num_layers") or text.get("num_hidden_layers")
        found.append(("text encoder", f"{names[0]}, {layers} layers of {width} channels"))
    towers = _read(folder / "two_towers" / "config.json")
    if names := towers.get("architectures"):
        found.append(("two towers", f"{names[0]}, embeddings of {towers.get('projection_dim')} numbers"))
    prior = _read(folder / "prior" / "config.json")
    if layers := prior.get("num_layers"):
        width = prior.get("num_attention_heads", 1) * prior.get("attention_head_dim", 1)
        found.append(("prior", f"{prior.get('_class_name')}, {layers} layers of {width} channels"))
    tokenizer = _read(folder / "tokenizer" / "tokenizer_config.json")
    if name := tokenizer.get("tokenizer_class"):
        most = tokenizer.get("model_max_length")
        cut = f", at most {most} tokens" if isinstance(most, int) and most < 10**6 else ""
        found.append(("tokenizer", f"{name}{cut}"))
    return [(name, plain(words)) for name, words in found]


def about(folder: Path) -> dict[str, Any]:
    """What the network's config says of its samples, where they are no pictures."""
    return _read(folder / "unet" / "config.json").get("modality") or {}


def data(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """What the set holds, as the plan of the run said it."""
    found = (metrics.get("plan") or {}).get("data")
    if not found:
        return []
    lines = plan.lines({"data": found})
    return [(line[:12].strip(), plain(line[12:])) for line in lines if line[:12].strip()]


def changed(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings that differ from their defaults, as `recipe.yaml` has them."""
    found, silent = {}, ELSEWHERE | (FROM_SCRATCH if settings.get("pretrained_model_name_or_path") else set())
    for name, value in settings.items():
        with contextlib.suppress(UserError):  # for what is none of a setting's values
            if name in HINTS and name not in silent and checked(name, value) != default(name):
                found[name] = value
    return [(code(name), code(json.dumps(value, ensure_ascii=False))) for name, value in found.items()]


def losses(folder: Path) -> list[tuple[str, str, str]]:
    """The losses in the log of the run in `folder`, at a few updates, the last among them: of each its number, the
    training loss since the log's line before, and the loss on held-out samples, or nothing where there is none. A
    log of one line has none."""
    training, held_out = (dict(curve(folder, name)) for name in ("loss", "held_out_loss"))
    steps = sorted(held_out.keys() & training.keys() or training)
    if len(steps) < 2:
        return []
    count = min(LOSSES, len(steps))
    chosen = [steps[round((i + 1) * len(steps) / count) - 1] for i in range(count)]
    return [(f"{x:,}", f"{training[x]:.4f}", f"{held_out[x]:.4f}" if x in held_out else "") for x in chosen]


def machine(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """On what the run ran, what it took, and with which versions."""
    found = []
    if hardware := metrics.get("hardware"):
        found.append(("hardware", plain(hardware)))
    energy = metrics.get("energy")
    if isinstance(energy, int | float) and math.isfinite(energy):
        found.append(("energy", f"{energy:.3g} kWh, as codecarbon estimates it"))
    if peak := metrics.get("peak_memory"):
        found.append(("peak memory", f"{peak / 1e9:.3g} GB"))
    if versions := metrics.get("versions"):
        found.append(("versions", plain(", ".join(f"{name} {number}" for name, number in versions.items()))))
    return found


def _size(unet: dict[str, Any], side: Any = None) -> str:
    """The size that a U-Net draws at, or that of a side along each of its axes."""
    axes, size = unet.get("spatial_dims", 2), side or unet.get("sample_size")
    unit = {1: "samples", 2: "pixels"}.get(axes, "positions")
    return f"{'x'.join(map(str, size if isinstance(size, list) else [size] * axes))} {unit}"


def _read(path: Path) -> dict[str, Any]:
    """A component's settings; nothing of a file that is not there, or none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
