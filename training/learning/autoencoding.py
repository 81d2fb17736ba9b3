# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""An autoencoder's loss, which needs no pretrained network, and how good its reconstructions are.

L1 and structure (SSIM) at several scales; noise in the latents that the decoder reads, as a diffusion model will leave
some there; and scale equivariance (<https://huggingface.co/papers/2502.14831>): of latents at half the size the decoder
is to make the picture at half the size. Without it high frequencies of the latents hold what a diffusion model
draws worst.
"""

from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from mezzotint.pipelines.latents_mezzotint import to_latents, to_pixels, vae_factor
from mezzotint_training.config.autoencoder import AutoencoderConfig
from mezzotint_training.learning.adversary import followed, told_apart
from mezzotint_training.learning.held_out import HeldOutLoss

# Of the window of SSIM: pixels along each axis, and its standard deviation (Wang et al. 2004, section III.C)
WINDOW, SIGMA = 11, 1.5
# Scales at which structure is compared, each half the one before
SCALES = 3


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity of pictures (Wang et al. 2004, eq. 13, K1 = 0.01, K2 = 0.03), over the places where the
    window lies within the picture; it is smaller for a picture that is.

    Args:
        a, b (`torch.Tensor` of shape `(B, C, H, W)`): in [-1, 1].

    Returns:
        `torch.Tensor` of shape `(B,)`: 1 for equal pictures.
    """
    size = min(WINDOW, *(side - 1 + side % 2 for side in a.shape[2:]))
    places = torch.arange(size, device=a.device, dtype=a.dtype) - size // 2
    row = torch.softmax(-places.square() / (2 * SIGMA**2), 0)
    window = (row[:, None] * row).expand(a.shape[1], 1, -1, -1)

    def mean(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, window, groups=a.shape[1])

    of_a, of_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - of_a**2, mean(b * b) - of_b**2, mean(a * b) - of_a * of_b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # [-1, 1] spans 2
    found = (2 * of_a * of_b + c1) * (2 * cov + c2) / ((of_a**2 + of_b**2 + c1) * (var_a + var_b + c2))
    return found.mean((1, 2, 3))


def reconstruction_loss(config: AutoencoderConfig, output: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """How far reconstructions are from their pictures.

    Args:
        config: the run's settings, for the weights.
        output, pixels (`torch.Tensor` of shape `(B, C, H, W)`): in [-1, 1], in float32.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    loss = (output - pixels).abs().mean((1, 2, 3))
    if config.structure_weight > 0:
        a, b, found = output, pixels, []
        for scale in range(SCALES):
            if scale and min(a.shape[2:]) < 2 * WINDOW:
                break
            a, b = (a, b) if scale == 0 else (F.avg_pool2d(x, 2) for x in (a, b))
            found.append(1 - ssim(a, b))
        loss = loss + config.structure_weight * torch.stack(found).mean(0)
    if config.bands_weight > 0:
        difference, bands = output - pixels, []
        while min(difference.shape[2:]) > 1 and len(bands) < SCALES:
            small = F.avg_pool2d(difference, 2, ceil_mode=True)
            large = F.interpolate(small, difference.shape[2:], mode="bilinear", align_corners=False)
            bands.append((difference - large).abs().mean((1, 2, 3)))
            difference = small
        loss = loss + config.bands_weight * torch.stack(bands).sum(0)
    return loss


class Reconstruction(torch.nn.Module):
    """An autoencoder as one function of a picture, so that what wraps it (DDP) sees all that is called.

    Args:
        vae (`AutoencoderKL`, `AutoencoderTiny` or `AutoencoderDC`): the autoencoder.
    """

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae

    def forward(
        self, pixels: torch.Tensor, noise: torch.Tensor, half: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Make pictures again from their latents, to which noise is added.

        Args:
            pixels (`torch.Tensor` of shape `(B, C, H, W)`): in [-1, 1].
            noise (`torch.Tensor` of shape `(B,)`): its deviation in the latents, in those of a picture's latents.
            half: whether the picture at half the size is made too.

        Returns:
            the picture; its latents, without noise; the picture at half the size, or `None`; the latents' divergence
            from a standard normal in nats a latent, (B,), or `None` where they are no distribution.
        """
        found, divergence = self.vae.encode(pixels, return_dict=False)[0], None
        if not isinstance(found, torch.Tensor):
            latents = found.mode()
            divergence = found.kl() / latents[0].numel()
        else:
            latents = found
        scale = noise.to(latents) * latents.detach().flatten(1).std(1)  # (B,)
        drawn = torch.randn(latents.shape).to(latents)  # drawn on the CPU, alike on all devices
        noisy = latents + scale[:, None, None, None] * drawn
        output = self.vae.decode(noisy, return_dict=False)[0].float()
        small = None
        if half:
            small = self.vae.decode(F.avg_pool2d(latents, 2), return_dict=False)[0].float()
        return output, latents, small, divergence


def autoencoding_loss(
    config: AutoencoderConfig,
    model: torch.nn.Module,
    pixels: torch.Tensor,
    uniform: torch.Tensor,
    accelerator: Accelerator,
    adversary: torch.nn.Module | None = None,
    late: bool = False,
) -> torch.Tensor:
    """The loss of each picture of a batch, in the precision that the run computes in.

    Args:
        config: the run's settings.
        model (`Reconstruction`): wrapped or not.
        pixels (`torch.Tensor` of shape `(B, C, H, W)`): in [-1, 1].
        uniform (`torch.Tensor` of shape `(B,)`): in [0, 1), how much of `latent_noise` there is.
        accelerator: of the run.
        adversary (`Adversary`, *optional*): that learns from the reconstructions, wrapped or not.
        late: whether the autoencoder follows it; see `followed`.

    Returns:
        `torch.Tensor` of shape `(B,)`, in float32.
    """
    pixels = pixels.to(accelerator.device, non_blocking=True)
    # Latents of an odd size have no half
    half = config.equivariance_weight > 0 and all(side % 2 == 0 for side in latent_size(model, pixels))
    with accelerator.autocast():
        output, latents, small, divergence = model(pixels, config.latent_noise * uniform, half)
    loss = reconstruction_loss(config, output, pixels)
    if adversary is not None:
        with accelerator.autocast():
            weight = config.adversary_weight if late else 0.0
            loss = followed(adversary, pixels, output, latents, loss, weight)
    if small is not None:
        loss = loss + config.equivariance_weight * reconstruction_loss(config, small, F.avg_pool2d(pixels, 2))
    if divergence is not None:
        loss = loss + config.kl_weight * divergence.float()
    return loss


def latent_size(model: torch.nn.Module, pixels: torch.Tensor) -> list[int]:
    """Height and width of the latents of such pictures."""
    factor = vae_factor(getattr(model, "module", model).vae)
    return [side // factor for side in pixels.shape[2:]]


class HeldOutReconstruction(HeldOutLoss):
    """The loss of held-out pictures, without noise in their latents."""

    levels = 1

    def of_batch(self, batch: list[Any], config: AutoencoderConfig, model: torch.nn.Module) -> torch.Tensor:
        pixels = torch.stack([item["sample"] for _, _, item in batch])
        return autoencoding_loss(config, model, pixels, torch.zeros(len(pixels)), self.accelerator)


@torch.no_grad()
def quality(
    vae: Any, pictures: list[torch.Tensor], batch_size: int, adversary: torch.nn.Module | None = None
) -> dict[str, float]:
    """Measure reconstructions, as pictures of 8 bits: the means over pictures of PSNR in dB and of SSIM, and the share
    that an adversary tells from their pictures.

    Args:
        vae: in evaluation mode.
        pictures: (C, H, W) each, in [-1, 1]; neighbours of one size go through together.
        adversary (`Adversary`, *optional*): in evaluation mode.
    """
    found: dict[str, list[torch.Tensor]] = {}
    for start in range(0, len(pictures), batch_size):
        some = pictures[start : start + batch_size]
        groups = [torch.stack(some)] if len({x.shape for x in some}) == 1 else [x[None] for x in some]
        for pixels in groups:
            latents = to_latents(vae, pixels.to(vae.device))
            made = _as_files_hold_it(vae, latents)
            error = ((made - pixels) / 2).square().mean((1, 2, 3))  # of a span of 1
            of_these = {"psnr": -10 * error.clamp(min=1e-10).log10(), "ssim": ssim(made, pixels)}
            if adversary is not None:
                seen = (x.to(vae.device) for x in (pixels, made))
                told = told_apart(adversary, *seen, latents)
                of_these["told_apart"] = told.float().cpu()
            for name, values in of_these.items():
                found.setdefault(name, []).append(values)
    return {name: torch.cat(values).mean().item() for name, values in found.items()}


@torch.no_grad()
def reconstructed(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What becomes of pictures (B, C, H, W) in [-1, 1], as files hold it, on the CPU."""
    return _as_files_hold_it(vae, to_latents(vae, pixels.to(vae.device)))


def _as_files_hold_it(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """The pictures of latents, rounded to 8 bits, on the CPU."""
    made = to_pixels(vae, latents).clamp(-1, 1).cpu()
    return ((made + 1) * 127.5).round() / 127.5 - 1
