# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The space that is diffused in: pixels, or the latents of an autoencoder, which is made or loaded here. A set's
latents are computed once and kept in files; changes to a picture (mirroring, augmentation) come before."""

import math
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
from mezzotint_training.networks.cache import fingerprint
from mezzotint_training.networks.computed import Computed
from mezzotint_training.networks.saved import check_finite

KINDS = ("AutoencoderDC", "AutoencoderKL", "AutoencoderTiny")
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


def check_scale(mean: list[float], std: list[float], what: str = "latents of the vae") -> None:
    """See that what a set is computed to has a scale, by what `CaptionedSamples.statistics` returned.

    Raises:
        UserError: for a channel that is the same everywhere, or is not finite.
    """
    for channel, (at, spread) in enumerate(zip(mean, std, strict=True)):
        if not math.isfinite(at) or not math.isfinite(spread) or spread < CONSTANT:
            raise UserError(
                f"{what} must vary: channel {channel} has mean {at:g} and standard deviation {spread:g}; "
                "its training failed, or it has more channels than it needs"
            )


class Latents(Computed):
    """Reads what is diffused of each row from an autoencoder: all versions of its picture, (versions, channels, height,
    width), the first of the picture as it is.

    Args:
        vae: in evaluation mode; it is moved to the accelerator.
        config: the run's settings.
        accelerator: of the run.
    """

    kind = "latents"

    def __init__(self, vae: Any, config: TrainConfig, accelerator: Accelerator):
        super().__init__(config, accelerator)
        self.vae = vae.to(accelerator.device)

    def fingerprint(self) -> str:
        """A hash of the autoencoder: its class, settings and weights. Where it was loaded from makes no difference."""
        unused = ("scaling_factor", "shift_factor")
        config = {k: v for k, v in self.vae.config.items() if not (k.startswith("_") or k in unused)}
        return fingerprint({"class": type(self.vae).__name__, "config": config}, self.vae).hexdigest()[:32]

    def changes(self) -> list[Any]:
        augmented = self.config.augment_probability > 0
        changes = [self.config.random_flip, self.config.augment_probability, count_versions(self.config)]
        return [*changes, self.config.seed if augmented else None, diffusers.__version__]

    def versions(self, number: int, pixels: torch.Tensor) -> torch.Tensor:
        return versions(self.config, number, pixels)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return to_latents(self.vae, pixels.to(self.vae.device)).cpu()
