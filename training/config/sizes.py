# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The dial `--size`: model, batch, learning rate and length of a run from one word and the data, each with its reason.

What is derived is a function of the settings and of `Facts` alone, never of the machine: a run that goes on elsewhere
derives the same. A setting that was asked for (`config.given`) is never touched; the rest follows from it.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mezzotint import MezzotintUNetModel
from mezzotint.models.encoder_mezzotint import downsample_factor
from mezzotint_training.config import tasks
from mezzotint_training.config.errors import UserError, one_line
from mezzotint_training.config.rules import PATCH, at_least, at_most, known_arguments, number, shown
from mezzotint_training.config.settings import TrainConfig


@dataclass(frozen=True)
class Facts:
    """What the derivation knows of the data, and of the model if there is one already.

    Args:
        pictures: in the set, or other samples; `None` for a streamed one, whose length nobody knows.
        size: that is trained at: height and width in pixels, of another modality its axes.
        channels: of a sample, 1 for grey pictures, 3 for colour.
        block_out_channels: of the saved U-Net that is fine-tuned, `None` for one from scratch.
        patch_size: of the saved U-Net that is fine-tuned.
        latent_factor: pixels along each axis that make one latent; 1 where pixels are diffused.
        latent_channels: of the latents, `None` where pixels are diffused.
        about: what else is to be known of all samples, as `settle` of their modality has it.
        downsample_axes: the axes along which the network halves them; `None` is all.
    """

    pictures: int | None
    size: tuple[int, ...]
    channels: int
    block_out_channels: tuple[int, ...] | None = None
    patch_size: int = 1
    latent_factor: int = 1
    latent_channels: int | None = None
    about: dict[str, Any] = field(default_factory=dict)
    downsample_axes: tuple[int, ...] | None = None

    @property
    def halved(self) -> tuple[int, ...]:
        """The size along the axes that the network halves."""
        axes = range(len(self.size)) if self.downsample_axes is None else self.downsample_axes
        return tuple(self.size[axis] for axis in axes)

    @property
    def diffused(self) -> "Facts":
        """The same of latents as if they were pixels, where latents are diffused."""
        if self.latent_channels is None:
            return self
        size = tuple(side // self.latent_factor for side in self.size)
        return replace(self, size=size, channels=self.latent_channels, latent_factor=1, latent_channels=None)


@dataclass(frozen=True)
class Derived:
    """One derived setting, `name` with a dot for an argument of a component; `str` is a line of the plan."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.value} ← {self.reason}"


@dataclass(frozen=True)
class Size:
    parameters: int  # of the U-Net
    unet: dict[str, int]  # arguments of MezzotintUNetModel; 64 channels a head are ADM's (2105.05233, table 3)
    transformer_layers: int  # in each unit with attention
    text: dict[str, int]  # arguments of T5Config
    batch: int  # pictures an update
    seen: float  # pictures seen in a run from scratch, where the set is large enough
    # Pixels a side from which on the first level holds patches. At 32 px ADM and DDPM do well without, in long runs; in
    # ten minutes of a core the size tiny came to a held-out loss of 0.38 with patches of 2, and of 0.42 with pixels
    patched: int = 64


SIZES = {
    "tiny": Size(
        1_000_000,
        {"layers_per_block": 1, "attention_head_dim": 16, "norm_num_groups": 8},
        1,
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1, "num_heads": 4},
        batch=64,
        seen=2e5,
        patched=32,
    ),
    "small": Size(
        10_000_000,
        {"layers_per_block": 2, "attention_head_dim": 32, "norm_num_groups": 16},
        1,
        {"d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 3, "num_heads": 4},
        batch=128,
        seen=4e6,
    ),
    "base": Size(
        100_000_000,
        {"layers_per_block": 2, "attention_head_dim": 64, "norm_num_groups": 32},
        1,
        {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 4, "num_heads": 8},
        batch=256,
        seen=3e7,
    ),
    "large": Size(
        300_000_000,
        {"layers_per_block": 3, "attention_head_dim": 64, "norm_num_groups": 32},
        2,
        {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 12},
        batch=256,
        seen=1e8,
    ),
}
# Channels of each level in units of the first's, by the number of levels. From four on these are ADM's (2105.05233, its
# code's defaults for 64, 128 and 256 px), the shorter ones are the upper ends of its four
MULTIPLES = {1: (1,), 2: (1, 2), 3: (1, 2, 3), 4: (1, 2, 3, 4), 5: (1, 1, 2, 3, 4), 6: (1, 1, 2, 2, 4, 4)}
GRID = 16  # patches a side that are to be left
LINEAR = 4  # pixels, along each axis, of the blocks in which the sample goes past the network, or those of a patch
# Pixels of a patch along each axis, the better first; along another number of axes about as many in a patch
PATCHES = {1: (16, 4), 2: (4, 2), 3: (2,)}
# Positions of the lowest level, and from which down a level has attention; a position is a pixel of the first level, or
# a patch. Of pixels ADM's 8 at every resolution and DDPM's 16 (2006.11239, appendix B; ADM begins at 32); a patch holds
# what several pixels do, and half as many positions of them are enough. Attention costs by the number of positions and
# the lowest level must see the whole, on however many axes: `_sides` has as many as a square
LOWEST, ATTENTION = {"px": 8, "patches": 4}, {"px": 16, "patches": 8}


def derive(config: TrainConfig, facts: Facts) -> list[Derived]:
    """The settings that follow from `config.size`, in an order in which each needs only those before it.

    A reader who wants to know how these are chosen at all: width and depth by the parameters one can afford (EDM2,
    2312.02696, table 2, has width as its only dial), levels by the resolution, the rate by width and batch, the length
    by the pictures, the average by the length.
    """
    if config.size is None:
        return []
    size, tuned = SIZES[config.size], facts.block_out_channels is not None
    found: list[Derived] = []

    def settle(name: str, value: Any, reason: str) -> Any:
        """The value in force: the one that the user set, or else `value`, which is then noted as derived."""
        whole, _, part = name.partition(".")
        if part and part in config.given.get(whole, {}):
            return config.given[whole][part]
        if not part and name in config.given:
            return getattr(config, name)
        found.append(Derived(name, value, reason))
        return value

    # The networks
    if tuned:
        widest = max(facts.block_out_channels)
    else:
        if config.text_encoder_name_or_path is None:
            for name, value in size.text.items():
                settle(f"text_encoder.{name}", value, f"the small T5 of size {config.size}")
        widest = _unet(config, facts, size, settle)
        # Where a picture has more pixels its neighbours tell more of what noise hides: by the theory (simple diffusion,
        # 2301.11093, eq. 4) log sigma is to grow with the log of the side. Pictures of 64 px came out best with about
        # 0.3 of that, and the full shift left a fine grain on what is flat
        area = math.prod(facts.size)
        if len(facts.size) == 2 and area > 32**2 and config.weighting_scheme != "none":
            settle(
                "logit_mean",
                round(0.5 + 0.1 * math.log2(area / 32**2), 2),
                "0.5 + 0.2 log2(side / 32): more noise for more pixels; ln(side / 32), by 2301.11093, drew worse",
            )

    # The batch and how long
    accumulation = config.gradient_accumulation_steps
    batch = settle(
        "train_batch_size",
        max(1, size.batch // accumulation),
        f"{size.batch} pictures an update of size {config.size}, over {accumulation} micro-steps",
    )
    update = batch * accumulation
    seen, passes = (size.seen / 10, 100) if tuned else (size.seen, 1000)
    reason = f"{seen:,.0f} pictures of {config.size}{' in fine-tuning' if tuned else ''}, {update} an update"
    if facts.pictures is not None and seen > passes * facts.pictures:
        seen, reason = passes * facts.pictures, f"each picture {passes:,} times, {update} an update: a small set"
    elif facts.pictures is not None and seen < facts.pictures:
        seen, reason = facts.pictures, f"each picture once, {update} an update: a large set"
    steps = settle("max_train_steps", int(float(f"{max(seen / update, 100):.1e}")), reason)

    # The rate. Adam's goes with the inverse of the width (µP, 2203.03466, table 3) and the square root of the batch
    # (2205.10287; the linear rule of 1706.02677 is SGD's). Anchored at the recipe emoji-32, between DDPM's 2e-4 for
    # 256 channels and batches of 128 and EDM's 1e-3 for 256 channels and batches of 512
    if config.optimizer == "prodigy":
        settle("learning_rate", 1.0, "Prodigy finds the rate itself (2306.06101)")
    else:
        rate = min(5e-4 * (288 / widest) * math.sqrt(update / 128), 2e-3)
        reason = f"5e-4 x 288 / {widest} channels x sqrt({update} / 128 a batch), at most 2e-3"
        if tuned and config.adapter is None:
            rate, reason = rate / 10, f"{reason}, a tenth for weights that are trained already"
        settle("learning_rate", float(f"{rate:.1e}"), reason)
    # 1910.04209: about as long as the second moment takes to settle
    untuned = max(2 / (1 - config.adam_beta2), steps / 50)
    settle(
        "lr_warmup_steps", round(min(untuned, steps / 10)),
        f"2 / (1 - adam_beta2) = {2 / (1 - config.adam_beta2):.0f} or 2 % of {steps} updates, at most 10 %",
    )  # fmt: skip
    # EDM2 (2312.02696, table 2): the best averages have 7 to 13.5 % of the run's length; less where the rate falls to 0
    settle(
        "ema_decay", round(min(max(1 - 20 / steps, 0.9), 0.9999), 5),
        f"an average over 5 % of {steps} updates, at most 10,000",
    )  # fmt: skip
    if not tuned and facts.pictures is not None:
        often = steps * update / facts.pictures
        dropout = 0.1 if often > 100 else 0.0
        settle("unet.dropout", dropout, f"each picture seen {often:,.0f} times; from 100 on 0.1 (DDPM, appendix B)")

    # What is kept and shown
    settle("checkpointing_steps", _rounded(max(steps / 20, 1)), f"20 in {steps} updates")
    settle("validation_steps", max(_rounded(max(steps / 20, 1)), 100), f"20 in {steps} updates, 100 or more apart")
    settle("logging_steps", _rounded(min(max(steps / 400, 1), 100)), f"400 in {steps} updates, at least every 100")
    return found


def _unet(config: TrainConfig, facts: Facts, size: Size, settle) -> int:
    """Settle the U-Net's shape and return the channels of its widest level."""
    given, axes, side = config.given.get("unet", {}), len(facts.halved), min(facts.halved)
    px = {1: "samples", 2: "px"}.get(len(facts.size), "positions")
    for name, least in (("block_out_channels", 1), ("transformer_layers_per_block", 0)):
        values = given.get(name)
        if values is not None and not (isinstance(values, list) and values):
            raise UserError(f"the unet's {name} must be a list of numbers, one a level: got {shown(values)}")
        for value in values or ():
            number(f"the unet's {name}", int, value, at_least(least), at_most(65_536 if least else 1024))
    for name in given.keys() & size.unet.keys():
        most = 1024 if name == "layers_per_block" else 65_536
        number(f"the unet's {name}", int, given[name], at_least(1), at_most(most))
    shape = given.get("block_out_channels") or given.get("transformer_layers_per_block")

    def fits(levels: int, patch: int) -> bool:
        factor = downsample_factor(range(levels), patch)
        return all(side % factor == 0 for side in facts.halved)

    if "patch_size" in given:
        patch = number("the unet's patch_size", int, given["patch_size"], *PATCH)
    else:
        least = 2 if shape is None else len(shape)  # levels
        room = min(side // _sides(LOWEST["patches"], axes) // 2 ** (least - 1), side // _sides(GRID, axes))
        room = room if side >= _sides(size.patched, axes) else 1
        patch = next((p for p in PATCHES[axes] if p <= room and fits(least, p)), 1)
        if patch > 1:
            grid = "x".join(str(side // patch) for side in facts.halved)
            least = _sides(size.patched, axes)
            reason = f"from {least} {px} on, where neighbours say nearly the same: {grid} patches cost less"
            settle("unet.patch_size", patch, reason)
    what, named = ("patches", "patches") if patch > 1 else ("px", px)
    if shape is not None:
        levels = len(shape)
    else:
        levels = min(max(1 + round(math.log2(max(side // patch, 1) / _sides(LOWEST[what], axes))), 2), max(MULTIPLES))
        while levels > 1 and not fits(levels, patch):
            levels -= 1
    sides, low = [side // patch // 2**level for level in range(levels)], _sides(ATTENTION[what], axes)
    fixed = {
        name: settle(f"unet.{name}", value, f"the U-Net of size {config.size}") for name, value in size.unet.items()
    }
    attention = settle(
        "unet.transformer_layers_per_block",
        [size.transformer_layers if s <= low or s == sides[-1] else 0 for s in sides],
        f"attention, cheap from {low} {named} down: levels of {', '.join(map(str, sides))} {named}",
    )
    linear = _sides(LINEAR, axes)
    block = patch if linear % patch else math.gcd(downsample_factor(range(levels), patch), linear)
    if block > 1:
        reason = f"filters blocks of {block} {px} past the network, which learns sooner"
        fixed["linear_skip_size"] = settle("unet.linear_skip_size", block, reason)
    if "block_out_channels" in given:
        return max(given["block_out_channels"])

    axes_of = {"spatial_dims": len(facts.size), "downsample_axes": facts.downsample_axes}
    arguments = {**axes_of, **known_arguments(given, MezzotintUNetModel)} | {
        **tasks.channels(config, facts.channels),
        "cross_attention_dim": {**size.text, **config.given.get("text_encoder", {})}["d_model"],
        **fixed,
        "patch_size": patch,
        "transformer_layers_per_block": attention,
    }
    unit = math.lcm(fixed["attention_head_dim"], fixed["norm_num_groups"])  # which must divide every level
    multiples = MULTIPLES.get(levels, MULTIPLES[6] + (4,) * (levels - 6))
    counts = [0]  # parameters at 0, 1, 2, ... times `unit` channels, up to the first that are too many
    while counts[-1] < size.parameters:
        channels = [len(counts) * unit * multiple for multiple in multiples]
        try:
            with torch.device("meta"):
                counts.append(MezzotintUNetModel(**arguments, block_out_channels=channels).num_parameters())
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
            raise UserError(f"unet got an argument that it cannot take: {one_line(error)}") from None
    over = len(counts) - 1  # of this and the one below the nearer, in proportion
    units = over if over == 1 or counts[over] * counts[over - 1] < size.parameters**2 else over - 1
    shape = settle(
        "unet.block_out_channels",
        [units * unit * multiple for multiple in multiples],
        f"{counts[units] / 1e6:.1f} M parameters, nearest to the {size.parameters / 1e6:.0f} M of size {config.size}",
    )
    return max(shape)


def _sides(side: int, axes: int) -> int:
    """The positions along each of so many axes that together are about as many as those of a square of a side: a power
    of 2."""
    return 2 ** round(math.log2(side) * 2 / axes)


def applied(config: TrainConfig, derived: list[Derived]) -> TrainConfig:
    """The settings with the derived ones in place, checked like any others.

    Raises:
        UserError: where they do not fit with what was asked for.
    """
    changes: dict[str, Any] = {}
    for one in derived:
        whole, _, part = one.name.partition(".")
        if part:
            changes[whole] = {**changes.get(whole, getattr(config, whole)), part: one.value}
        else:
            changes[whole] = one.value
    result = replace(config, **changes)
    result.given, result.argv = config.given, config.argv
    return result


def _rounded(number: float) -> int:
    """`number` rounded to 1, 2 or 5 times a power of ten, whichever is nearest in proportion: such intervals are easier
    to read."""
    scale = 10 ** math.floor(math.log10(number))
    return min((scale, 2 * scale, 5 * scale, 10 * scale), key=lambda n: abs(math.log(number / n)))
