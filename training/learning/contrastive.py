# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The contrastive loss of two towers (CLIP, <https://huggingface.co/papers/2103.00020>, figure 3): which picture and
which caption belong together, among those of a batch."""

from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from mezzotint.pipelines.embeddings_mezzotint import embed_pictures, embed_texts
from mezzotint_training.learning.held_out import HeldOutLoss

# The greatest scale of the products, as CLIP has it (its section 2.5)
LARGEST_SCALE = 4.6


def contrastive_loss(
    seen: torch.Tensor, read: torch.Tensor, log_scale: torch.Tensor, captions: list[str]
) -> torch.Tensor:
    """The mean of the two cross-entropies, of picking a picture's caption and a caption's picture; pairs of the same
    caption are no negatives of each other.

    Args:
        seen (`torch.Tensor` of shape `(B, D)`): unit vectors of pictures.
        read (`torch.Tensor` of shape `(B, D)`): unit vectors of their captions.
        log_scale (`torch.Tensor` of shape `()`): logarithm of what products are multiplied with, at most 100 times.
        captions: of each pair.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    logits = log_scale.clamp(max=LARGEST_SCALE).exp() * seen @ read.T  # (B, B)
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    kinds = torch.tensor([number[caption] for caption in captions], device=seen.device)
    right = (kinds[:, None] == kinds).float()
    right = right / right.sum(1, keepdim=True)
    sides = (F.cross_entropy(x, right, reduction="none") for x in (logits, logits.T))
    return sum(sides) / 2  # pyright: ignore[reportReturnType]


class Pairing(torch.nn.Module):
    """Two towers as one function of a batch, so that what wraps it (DDP) sees all that is called.

    Args:
        two_towers: a two-tower encoder of transformers, with a `logit_scale`.
        image_mean, image_std: by which pixels are normalised.
    """

    def __init__(self, two_towers: Any, image_mean: list[float], image_std: list[float]):
        super().__init__()
        self.two_towers, self.scale = two_towers, (image_mean, image_std)

    def forward(self, pixels: torch.Tensor, tokens: dict[str, torch.Tensor], captions: list[str]) -> torch.Tensor:
        """The loss (B,) of pictures (B, C, H, W) in [-1, 1] and their captions, as text and as the tokenizer's
        tokens."""
        seen = embed_pictures(self.two_towers, pixels, *self.scale)
        return contrastive_loss(seen, embed_texts(self.two_towers, tokens), self.two_towers.logit_scale, captions)


class HeldOutPairing(HeldOutLoss):
    """The loss of held-out pairs, among those of their batch."""

    levels = 1

    def of_batch(self, batch: list[Any], loss: Any) -> torch.Tensor:
        pixels = torch.stack([item["sample"] for _, _, item in batch])
        return loss(pixels, [item["caption"] for _, _, item in batch])


def pairing_loss(
    model: torch.nn.Module, tokenizer: Any, limit: int, accelerator: Accelerator, shift: float = 0.0
) -> Any:
    """The loss (B,) as a function of pictures and captions, in the precision that the run computes in.

    Args:
        model (`Pairing`): wrapped or not.
        tokenizer: of the text tower.
        limit: tokens that it reads.
        accelerator: of the run.
        shift: share of a side by which the pictures are moved at most, all alike, their edges repeated.
    """

    def loss(pixels: torch.Tensor, captions: list[str]) -> torch.Tensor:
        if shift > 0 and model.training:
            pixels = shifted(pixels, shift)
        tokens = tokenizer(captions, padding="longest", truncation=True, max_length=limit, return_tensors="pt")
        tokens = {name: tokens[name].to(accelerator.device) for name in ("input_ids", "attention_mask")}
        with accelerator.autocast():
            return model(pixels.to(accelerator.device), tokens, captions)

    return loss


def shifted(pictures: torch.Tensor, shift: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Pictures (B, C, H, W), all moved by as many pixels, at random up to a share `shift` of each side, which is at
    least one; their edges are repeated."""
    size = pictures.shape[2:]
    reach = [max(1, int(side * shift)) for side in size]
    down, right = (int(torch.randint(-r, r + 1, (), generator=generator)) for r in reach)
    pictures = F.pad(pictures, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    return pictures[..., reach[0] + down :, reach[1] + right :][..., : size[0], : size[1]]
