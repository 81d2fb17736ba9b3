# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How well a two-tower encoder tells which caption a picture has."""

from typing import Any

import torch

from mezzotint.pipelines.embeddings_mezzotint import embed_pictures, embed_texts
from mezzotint_training.metrics.copies import retrieved
from mezzotint_training.networks.towers import Towers

CHOICES = 32


@torch.no_grad()
def picked(towers: Towers, items: list[dict[str, Any]], batch_size: int) -> dict[str, float]:
    """The share of pictures of which the right caption is picked out of `choices`, the others drawn at random from the
    captions of the same pictures; empty where there are fewer than two.

    Args:
        towers: in evaluation mode.
        items: `sample` (C, H, W) in [-1, 1] and `caption` of each.
        batch_size: of the forward passes.
    """
    texts = list(dict.fromkeys(item["caption"] for item in items))
    if len(texts) < 2:
        return {}
    device, pictures, read = next(towers.model.parameters()).device, [], []
    for start in range(0, len(items), batch_size):
        pixels = torch.stack([item["sample"] for item in items[start : start + batch_size]]).to(device)
        pictures.append(embed_pictures(towers.model, pixels, towers.image_mean, towers.image_std).cpu())
    for start in range(0, len(texts), batch_size):
        some, limit = texts[start : start + batch_size], towers.limit
        tokens = towers.tokenizer(some, padding="longest", truncation=True, max_length=limit, return_tensors="pt")
        read.append(embed_texts(towers.model, tokens.to(device)).cpu())
    own, choices = torch.tensor([texts.index(item["caption"]) for item in items]), min(CHOICES, len(texts))
    hits = retrieved(torch.cat(pictures), torch.cat(read), own, choices, 0)
    return {"picked": float(hits.float().mean()), "choices": float(choices)}
