# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The space that is diffused in: pixels, or the latents of an autoencoder, which is made or loaded here. A set's
latents are computed once and kept in files; changes to a picture (mirroring, augmentation) come before."""

import hashlib
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import Accelerator

from mezzotint.pipelines.latents_mezzotint import to_latents
from mezzotint_training.config.autoencoder import AutoencoderConfig
from mezzotint_training.config.errors import UserError, loading, one_line
from mezzotint_training.config.rules import known_arguments
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.augment import count_versions, versions
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.networks.cache import Cache, Recent, fingerprint
from mezzotint_training.networks.saved import check_finite

KINDS = ("AutoencoderDC", "AutoencoderKL", "AutoencoderTiny")
# Bytes of latents that are kept in memory
RECENT_BYTES = 2**28
# Pictures of an accelerator's batches, the last of which are blank where there are fewer
ROWS = 16
# Standard deviation below which a channel of latents is taken for constant
CONSTANT = 1e-4


def new_autoencoder(config: AutoencoderConfig, channels: int, size: tuple[int, int]) -> Any:
    """An untrained autoencoder of diffusers, of the class and for the factor that `config` says.

    By default it is small enough for CPUs. AutoencoderDC does nothing at the full size but put 2x2 pixels together.

    Raises:
        UserError: for arguments that the class does not take, or a size that the factor does not divide.
    """
    factor = config.vae_scale_factor or (2 if min(size) <= 16 else 4 if min(size) < 128 else 8)
    check_size(size, factor)
    levels = int(math.log2(factor)) + 1
    kind = getattr(diffusers, config.autoencoder)
    if config.autoencoder == "AutoencoderDC":
        widths = [32 * 2**level for level in range(levels)]
        arguments: dict[str, Any] = {"in_channels": channels}
        for part in ("encoder", "decoder"):
            arguments |= {
                f"{part}_block_out_channels": widths,
                f"{part}_layers_per_block": [0] + [1] * (levels - 1),
                f"{part}_qkv_multiscales": [[]] * levels,
            }
    elif config.autoencoder == "AutoencoderKL":
        arguments = {
            "in_channels": channels,
            "out_channels": channels,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "block_out_channels": [16 * 2**level for level in range(levels)],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "mid_block_add_attention": False,
        }
    else:
        arguments = {"in_channels": channels, "out_channels": channels}
        arguments |= {f"{part}_block_out_channels": [32] * levels for part in ("encoder", "decoder")}
        arguments |= {"num_encoder_blocks": [1] + [2] * (levels - 1), "num_decoder_blocks": [2] * (levels - 1) + [1]}
    arguments |= {"latent_channels": config.latent_channels} | known_arguments(config.network, kind)
    try:
        vae = kind(**arguments)
        with torch.no_grad():
            shape = tuple(to_latents(vae, torch.zeros(1, channels, *size)).shape[1:])
    except (ValueError, TypeError, ArithmeticError, RuntimeError, LookupError, AssertionError) as error:
        raise UserError(f"{config.autoencoder} cannot be made: {one_line(error)}") from None
    wanted = (arguments["latent_channels"], *(side // factor for side in size))
    if shape != wanted:
        raise UserError(f"network must make latents of {wanted} for vae_scale_factor {factor}: got {shape}")
    return vae


def check_size(size: tuple[int, int], factor: int) -> None:
    """See that an autoencoder can take pictures of a size.

    Raises:
        UserError: for one that its factor does not divide, with the nearest that it does.
    """
    if any(side % factor for side in size):
        possible = "x".join(str(max(factor, round(side / factor) * factor)) for side in size)
        raise UserError(
            f"resolution must be a multiple of {factor}, the autoencoder's factor: got {size[0]}x{size[1]}, possible "
            f"is {possible}"
        )


def load_autoencoder(source: str, name: str = "vae") -> Any:
    """The autoencoder of a folder or a Hub repository, or the `vae` of a pipeline there, in evaluation mode, every
    weight accounted for and finite.

    Args:
        source: a folder or a Hub name.
        name: of the argument that named it, for the message.

    Raises:
        UserError: for one that cannot be loaded, is of another class, or lacks weights.
    """
    diffusers.utils.logging.disable_progress_bar()
    with loading(f"{name} {source}"):
        subfolder = None
        try:
            found = diffusers.AutoencoderKL.load_config(source)
        except (OSError, ValueError):
            subfolder = "vae"
            found = diffusers.AutoencoderKL.load_config(source, subfolder=subfolder)
        if (kind := found.get("_class_name")) not in KINDS:
            raise ValueError(f"it must be one of {', '.join(KINDS)}: got {kind}")
        where = {"subfolder": subfolder} if subfolder else {}
        vae, report = getattr(diffusers, kind).from_pretrained(
            source, use_safetensors=True, output_loading_info=True, torch_dtype=torch.float32, **where
        )
        for fault in ("missing", "unexpected", "mismatched"):
            if keys := report[f"{fault}_keys"]:
                raise ValueError(f"its weights must be those of its config: {len(keys)} {fault} ({keys[0]}, ...)")
    check_finite(name, vae)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def set_scale(vae: Any, pictures: list[torch.Tensor]) -> dict[str, list[float]]:
    """Note the scale of an autoencoder's latents in its config (`scaling_factor`), as diffusers' own pipelines read it,
    and return their mean and standard deviation by channel.

    Args:
        vae: in evaluation mode.
        pictures: (C, H, W) each, in [-1, 1].
    """
    found = [to_latents(vae, one[None].to(vae.device))[0].flatten(1).double().cpu() for one in pictures]
    if not found:
        return {}
    latents = torch.cat(found, 1)  # (C, places)
    vae.register_to_config(scaling_factor=round(1 / max(float(latents.std()), 1e-6), 6))
    return {name: getattr(latents, name)(1).tolist() for name in ("mean", "std")}


def check_scale(mean: list[float], std: list[float]) -> None:
    """See that the latents of a set have a scale, by what `CaptionedSamples.statistics` returned.

    Raises:
        UserError: for a channel that is the same everywhere, or is not finite.
    """
    for channel, (at, spread) in enumerate(zip(mean, std, strict=True)):
        if not math.isfinite(at) or not math.isfinite(spread) or spread < CONSTANT:
            raise UserError(
                f"latents of the vae must vary: channel {channel} has mean {at:g} and standard deviation {spread:g}; "
                "its training failed, or it has more channels than it needs"
            )


class Latents:
    """Reads what is diffused of each row from an autoencoder: all versions of its picture, (versions, channels, height,
    width), the first of the picture as it is. A row's latents depend on the row alone, to the last bit, so they may be
    kept and forgotten at will: on disk after `prepare`, and those used last in memory.

    Attributes:
        estimating: whether a row that is not known yet may have the latents of another of its size, where no more than
            time and memory are asked for (`--plan`).
        seconds: that the latents of a row took when they were last computed.

    Args:
        vae: in evaluation mode; it is moved to the accelerator.
        config: the run's settings.
        accelerator: of the run.
    """

    def __init__(self, vae: Any, config: TrainConfig, accelerator: Accelerator):
        self.vae, self.config, self.accelerator = vae.to(accelerator.device), config, accelerator
        self.recent, self.cache = Recent(RECENT_BYTES), None
        self.estimating, self.known, self.seconds = False, {}, 0.0

    def fingerprint(self) -> str:
        """A hash of the autoencoder: its class, settings and weights. Where it was loaded from makes no difference."""
        unused = ("scaling_factor", "shift_factor")
        config = {k: v for k, v in self.vae.config.items() if not (k.startswith("_") or k in unused)}
        return fingerprint({"class": type(self.vae).__name__, "config": config}, self.vae).hexdigest()[:32]

    def prepare(
        self, sets: Iterable[CaptionedSamples], data: dict[str, Any], folder: Path | str, progress: bool = True
    ) -> None:
        """Compute all latents now, into files below `folder`; what is there already stays. All processes call this.

        The files are in a folder named by a hash of all that they depend on: the autoencoder, the pictures (`data`, by
        `source.fingerprint`), their sizes and the changes to them, and the kind of device.

        Raises:
            UserError: for a folder that cannot be written to, or has no room left.
        """
        sets = [images for images in sets if images is not None]
        augmented = self.config.augment_probability > 0
        settings = {
            "vae": self.fingerprint(),
            "pictures": data["pictures"],
            "sizes": sets[0].buckets,
            "changes": [self.config.random_flip, self.config.augment_probability, count_versions(self.config)],
            "seed": self.config.seed if augmented else None,
            "device": self.accelerator.device.type,
            "versions": [torch.__version__, diffusers.__version__],
        }
        name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
        rows = {self._key(images, index).encode(): (images, index) for images in sets for index in images.good.tolist()}
        self.cache = Cache(Path(folder) / f"latents-{name}", "cache of latents")
        self.cache.build(
            rows,
            lambda keys: self._encoded([rows[key] for key in keys]),
            self.accelerator.process_index,
            self.accelerator.num_processes,
            progress,
        )

    def read(self, images: CaptionedSamples, index: int) -> torch.Tensor | None:
        """The latents of a row; `None` for a bad one, which `images` then knows.

        Raises:
            UserError: for a bad picture under `on_bad_row=stop`.
        """
        key = self._key(images, index)
        found = self.recent.get(key)
        if found is None:
            kept = self.cache.read([key.encode()]) if self.cache is not None else {}
            found = kept.get(key.encode())
            size = images.buckets[images.bucket[index]]
            if found is None and self.estimating and size in self.known:
                return self.known[size]
            if found is None:
                began = time.perf_counter()
                (found,) = self._encoded([(images, index)])
                self.known[size], self.seconds = found, time.perf_counter() - began
            if found.numel() == 0:
                images.content(index)
                return None
            self.recent.put(key, found)
        return found

    def _key(self, images: CaptionedSamples, index: int) -> str:
        return f"{images.part}/{images.numbers[index]}"

    @torch.no_grad()
    def _encoded(self, rows: list[tuple[CaptionedSamples, int]]) -> list[torch.Tensor]:
        """The latents of rows, on the CPU; of a bad one a tensor of nothing.

        How a convolution is rounded depends on its size. So the CPU takes each row by itself, an accelerator batches of
        one size, whatever is in them.
        """
        pictures = []
        for images, index in rows:
            pixels = images.content(index)
            number = int(images.numbers[index])
            pictures.append(None if pixels is None else versions(self.config, number, pixels[: images.channels]))
        found: list[torch.Tensor] = [torch.empty(0, 0, 0, 0)] * len(rows)
        with torch.autocast(self.accelerator.device.type, enabled=False):
            if self.accelerator.device.type == "cpu":
                for place, some in enumerate(pictures):
                    if some is not None:
                        found[place] = to_latents(self.vae, some)
                return found
            sizes: dict[torch.Size, list[tuple[int, torch.Tensor]]] = {}
            for place, some in enumerate(pictures):
                for one in some if some is not None else ():
                    sizes.setdefault(one.shape, []).append((place, one))
            parts: dict[int, list[torch.Tensor]] = {}
            for shape, members in sizes.items():
                for start in range(0, len(members), ROWS):
                    some = members[start : start + ROWS]
                    batch = torch.zeros(ROWS, *shape)
                    batch[: len(some)] = torch.stack([one for _, one in some])
                    latents = to_latents(self.vae, batch.to(self.vae.device)).cpu()
                    for (place, _), one in zip(some, latents, strict=False):
                        parts.setdefault(place, []).append(one)
        for place, some in parts.items():
            found[place] = torch.stack(some)
        return found
