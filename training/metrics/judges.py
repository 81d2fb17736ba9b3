# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Networks that are trained here, on real pictures alone, to judge drawn ones: a classifier, and a small CLIP."""

import zlib
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from mezzotint_training.engine.progress import progress_bar
from mezzotint_training.learning.contrastive import contrastive_loss, shifted
from mezzotint_training.modalities.contents import unit


class PictureTower(nn.Module):
    """Pictures (N, C, H, W) in [-1, 1] to (N, 7 width), the mean over the picture of what each of three residual blocks
    finds, from strokes to kinds; the pictures are halved twice, or until they have 4 pixels a side, and from 64 pixels
    on once more, at the start."""

    def __init__(self, channels: int, size: tuple[int, int], width: int = 32):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, width, 3, stride=2 if min(size) >= 64 else 1, padding=1)
        widths, strides = (width, 2 * width, 4 * width), (1, *(2 if min(size) >= 4 * 2**i else 1 for i in (1, 2)))
        self.blocks = nn.ModuleList()
        for inner, out, stride in zip((width, *widths), widths, strides, strict=False):
            block = nn.ModuleDict(
                {
                    "norm1": nn.GroupNorm(8, inner),
                    "conv1": nn.Conv2d(inner, out, 3, stride, padding=1),
                    "norm2": nn.GroupNorm(8, out),
                    "conv2": nn.Conv2d(out, out, 3, padding=1),
                    "skip": nn.Conv2d(inner, out, 1, stride),
                }
            )
            self.blocks.append(block)
        self.width = sum(widths)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(pictures)  # (N, width, H, W)
        levels = []
        for block in cast(Any, self.blocks):
            residual = block["conv1"](F.silu(block["norm1"](x)))
            x = block["skip"](x) + block["conv2"](F.silu(block["norm2"](residual)))
            levels.append(F.silu(x).mean((2, 3)))  # (N, width), (N, 2 width), (N, 4 width)
        return torch.cat(levels, dim=1)  # (N, 7 width)


class TextTower(nn.Module):
    """Captions to features (N, width): the mean of a learned vector for each word and each three letters in a row of
    it, found by hash as in fastText (<https://huggingface.co/papers/1607.04606>), and a layer on top."""

    def __init__(self, width: int = 128, rows: int = 2**14):
        super().__init__()
        self.rows = rows
        self.table = nn.EmbeddingBag(rows, width, mode="mean")
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, captions: list[str]) -> torch.Tensor:
        pieces, starts = [], []
        for caption in captions:
            words = [f"<{word}>" for word in caption.lower().split()] or ["<>"]
            grams = [word[i : i + 3] for word in words for i in range(len(word) - 2)]
            starts.append(len(pieces))
            pieces += [zlib.crc32(piece.encode()) % self.rows for piece in (*words, *grams)]
        device = self.table.weight.device
        return self.mix(self.table(torch.tensor(pieces, device=device), torch.tensor(starts, device=device)))


class LearnedFeatures(nn.Module):
    """The features of a picture tower that was trained to tell the training split's classes or captions apart: each of
    the tower's numbers is scaled to unit variance over that split, and the features are their first `count` principal
    directions there, scaled to unit variance too. (A classifier's last layer is no use here, as it holds little but the
    class: distances between two sets would be between how many pictures of each class they have.)"""

    def __init__(self, tower: PictureTower, head: nn.Module):
        super().__init__()
        self.tower, self.head = tower, head
        self.centre, self.axes = torch.zeros(()), torch.ones(0)

    @torch.no_grad()
    def embed(self, pictures: torch.Tensor, batch_size: int = 512) -> torch.Tensor:
        """The tower's own output, where the tower is."""
        device = self.tower.conv_in.weight.device
        return torch.cat([self.tower(unit(some.to(device))) for some in pictures.split(batch_size)])

    def fit(self, pictures: torch.Tensor, count: int = 64) -> None:
        """Find the directions, on real training pictures."""
        seen = self.embed(pictures).double().cpu()
        self.centre, spread = seen.mean(0), seen.std(0).clamp(min=1e-6)
        _, values, axes = torch.linalg.svd((seen - self.centre) / spread, full_matrices=False)
        kept = min(count, int((values > 1e-6 * values[0]).sum()))
        self.axes = axes[:kept].T / spread[:, None] / values[:kept] * (len(seen) - 1) ** 0.5  # (7 width, kept)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return (self.embed(pictures).double().cpu() - self.centre) @ self.axes


class ClassJudge(LearnedFeatures):
    """Features that tell classes apart."""

    @torch.no_grad()
    def read(self, pictures: torch.Tensor) -> torch.Tensor:
        """The class (N,) that each picture is taken for."""
        return self.head(self.embed(pictures)).argmax(dim=1).cpu()


class CaptionJudge(LearnedFeatures):
    """Features that tell how near pictures and captions are: CLIP (<https://huggingface.co/papers/2103.00020>), small
    enough for a few hundred pictures."""

    def __init__(self, tower: PictureTower, head: nn.Module, texts: TextTower):
        super().__init__(tower, head)
        self.texts, self.temperature = texts, nn.Parameter(torch.tensor(2.0))

    def of_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """Unit vectors (N, 128)."""
        with torch.no_grad():
            return F.normalize(self.head(self.embed(pictures)), dim=1).cpu()

    def of_texts(self, captions: list[str]) -> torch.Tensor:
        """Unit vectors (N, 128)."""
        with torch.no_grad():
            return F.normalize(self.texts(captions), dim=1).cpu()


def train_class_judge(
    pixels: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    steps: int,
    seed: int,
    device: torch.device,
    width: int = 32,
) -> ClassJudge:
    """Train a classifier of the real training split.

    Args:
        pixels (`torch.Tensor` of shape `(N, C, H, W)`): bytes.
        labels (`torch.Tensor` of shape `(N,)`): from 0 to `classes - 1`.
        steps: of 128 pictures.
        width: of the tower.
    """

    def loss(judge: nn.Module, pictures: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(judge.head(judge.tower(pictures)), labels[rows].to(device))

    def make(tower: PictureTower) -> ClassJudge:
        return ClassJudge(tower, nn.Linear(tower.width, classes))

    return _trained(make, loss, pixels, steps, seed, device, width)


def train_caption_judge(
    pixels: torch.Tensor, captions: list[list[str]], steps: int, seed: int, device: torch.device
) -> CaptionJudge:
    """Train a small text-image model contrastively on the real training split (CLIP, figure 3), where pictures of the
    same caption are no negatives of each other.

    Args:
        pixels (`torch.Tensor` of shape `(N, C, H, W)`): bytes.
        captions: one or several of each picture, of which one is drawn each time.
        steps: of 128 pictures.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(judge: nn.Module, pictures: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        draws = torch.rand(len(rows), generator=generator).tolist()
        drawn = [captions[i][int(u * len(captions[i]))] for i, u in zip(rows.tolist(), draws, strict=True)]
        seen = F.normalize(judge.head(judge.tower(pictures)), dim=1)  # (B, 128)
        read = F.normalize(judge.texts(drawn), dim=1)  # (B, 128)
        return contrastive_loss(seen, read, judge.temperature, drawn).mean()

    def make(tower: PictureTower) -> CaptionJudge:
        return CaptionJudge(tower, nn.Linear(tower.width, 128), TextTower())

    return _trained(make, loss, pixels, steps, seed, device)


def _trained(
    make: Callable, loss: Callable, pixels: torch.Tensor, steps: int, seed: int, device: torch.device, width: int = 32
) -> Any:
    """The judge that `make` makes of a tower, after `steps` of AdamW on `loss(judge, pictures, rows)`; pictures are
    shifted at random by up to an eighth of their size, their edges repeated."""
    count, channels, *size = pixels.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # made on the CPU: the same on every device
        judge = make(PictureTower(channels, (size[0], size[1]), width)).to(device).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps + 1)
    for _ in progress_bar(range(steps), "training a judge", steps):
        rows = torch.randint(count, (min(128, count),), generator=generator)
        pictures = shifted(unit(pixels[rows].to(device)), 1 / 8, generator)
        optimizer.zero_grad()
        loss(judge, pictures, rows).backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    judge.eval().requires_grad_(False)
    judge.fit(pixels[torch.randperm(count, generator=generator)[:10_000]])
    return judge
