# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The measurements of `evaluate` as a Markdown table."""

import os
from typing import Any

from mezzotint.markdown import code, plain

# What is measured on each kind of features, as it is shown
ROWS = {
    "kernel_distance": "kernel distance (KID) x 1000",
    "frechet_distance": "Fréchet distance",
    "sliced_wasserstein": "sliced-Wasserstein distance",
    "precision": "precision",
    "recall": "recall",
}


def table(results: dict[str, Any]) -> str:
    """What `evaluate` measured, as Markdown."""
    settings, count, data = results["settings"], results["pictures"], results["data"]
    source = data["dataset_name"] or os.path.basename(os.path.abspath(data["train_data_dir"]))
    word = results.get("word", "picture")
    lines = [
        f"{count['drawn']:d} {word}s in {settings['num_inference_steps']:d} steps, guidance "
        f"{settings['guidance_scale']:g}, seed {settings['seed']:d}, against {count['held_out']:d} held-out ones of "
        f"{code(source)}; the floor is of {count['floor']:d} of {count['train']:d} training {word}s. 95 % intervals.",
        "",
        "| | drawn | real |",
        "|---|---|---|",
    ]

    def line(name: str, figure: dict[str, Any], style: str, factor: float = 1.0) -> None:
        cells = []
        for x in (figure, figure.get("real")):
            numbers = [] if x is None else [factor * v for v in (x["value"], *x["interval"])]
            cells.append("{} ({} to {})".format(*(format(v, style) for v in numbers)) if numbers else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")

    for name, figures in results["features"].items():
        for metric, figure in figures.items():
            within = metric in ("precision", "recall")
            factor = 1000.0 if metric == "kernel_distance" else 1.0
            line(f"{ROWS[metric]}, {plain(name)} features", figure, ".1%" if within else ".3g", factor)
    for kind, found in results["prompt_accuracy"].items():
        how = plain(kind) if kind == "classifier" else f"{plain(kind)}, own caption of {found['choices']:d}"
        line(f"prompt accuracy ({how})", found, ".1%")
        if "unseen" in found:
            line("the same, captions that were not trained on", found["unseen"], ".1%")
    found = results["copy_rate"]
    line(f"copy rate ({plain(found['features'])}, ratio below {found['threshold']:.2f})", found, ".1%")
    for quarter, found in enumerate(results["held_out_loss"], 1):
        line(f"held-out loss, quarter {quarter} of the noise levels", found, ".4f")
    bits = results.get("likelihood", {})
    for key, texts in {"with_caption": ", given the caption", "without_caption": ""}.items():
        if key in bits:
            what = f"bits per dimension of {bits['pictures']} held-out pictures{texts}"
            line(f"{what} (probability flow)", bits[key]["flow"], ".3f")
            line(f"{what} (variational bound)", bits[key]["bound"], ".3f")
    if "caption_saves" in bits:
        line("bits that its caption saves a picture (probability flow)", bits["caption_saves"]["flow"], ".1f")
    return "\n".join(lines)
