# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Likelihoods of held-out samples to a network without guidance: bits per dimension, by the probability-flow ODE and
by the variational bound, with and without the caption.

The noise level is counted in lambda = log(sigma_t / alpha_t). The flow of the variance-preserving process
(<https://huggingface.co/papers/2011.13456>, eq. 13) moves along the velocity that the network implies, and the density
changes with its divergence (eq. 39):

    dx / dlambda = alpha_t sigma_t v      log p_0(x_0) = log N(x_T; 0, I) + int alpha_t sigma_t div v dlambda

The schedule ends at a noise above 0, below which no network is trained and there is no flow. The density is therefore
that of samples with this least noise, divided by alpha_0; a sample is looked up in it as it is.

Bytes, and the 16 bits of a sound, are dequantised uniformly, the whole number k to [k - 1/2, k + 1/2), so that the
density of numbers bounds their probability (<https://huggingface.co/papers/1511.01844>, section 3.1). From normalised
data, of standard deviation s in [-1, 1] units, to bytes there is a factor of 127.5 s in each dimension.

Channels of single bits (a token's, or whether there is a voxel) are -1 or 1 and stay as they are: at the least noise
sigma_0 / alpha_0 their value is beyond doubt. The bound's reconstruction is 0 there, and the density at the value is
that of a normal distribution of this width times the probability.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from scipy.integrate import solve_ivp

from mezzotint import MezzotintScheduler
from mezzotint_training.config.errors import UserError
from mezzotint_training.data.dataset import of_channels
from mezzotint_training.engine.progress import progress_bar
from mezzotint_training.metrics.accuracy import figure
from mezzotint_training.metrics.intervals import average
from mezzotint_training.metrics.pictures import Real
from mezzotint_training.modalities.contents import spacing, unit

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # x_t and its timesteps (B,) to the network's output

LEVELS = 64  # noise levels at which the bound looks at a sample
# The channels of single bits, by modality
BITS = {"audio": slice(-1, None), "voxels": slice(-1, None), "molecules": slice(None)}
QUARTERS = 4  # of the noise levels, in which its diffusion term is told


def flow_log_density(
    network: Network,
    scheduler: MezzotintScheduler,
    samples: torch.Tensor,
    probes: torch.Tensor | None,
    tolerance: float = 1e-4,
    method: Literal["RK45", "DOP853"] = "RK45",
) -> torch.Tensor:
    """log p(x_0) in nats of each sample, by the probability-flow ODE from the least noise to the most.

    Args:
        network: of whatever `prediction_type` the scheduler has.
        scheduler (`MezzotintScheduler`): owns the noise levels.
        samples (`torch.Tensor` of shape `(B, C, *spatial)`): x_0, normalised and dequantised.
        probes (`torch.Tensor` of shape `(P, B, C, *spatial)`, *optional*): of Hutchinson's estimate of the trace,
            entries of mean 0 and variance 1, the same along the whole flow; `None` takes the exact trace, at the cost
            of as many backward passes as a sample has dimensions.
        tolerance: of the solver, absolute and relative, for the coordinates and for nats per dimension.
        method: of `scipy.integrate.solve_ivp`.

    Returns:
        `torch.Tensor` of shape `(B,)`, in float64.

    Raises:
        ValueError: where the flow cannot be followed to its end.
    """
    count, size = len(samples), samples[0].numel()
    weight = 1.0
    if probes is None:
        basis = torch.eye(size, device=samples.device).reshape(size, 1, *samples.shape[1:])
        probes = basis.expand(size, *samples.shape)
    else:
        weight = 1 / len(probes)
    probes = probes.to(samples)

    def slope(level: float, state: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(state[:-count]).to(samples).reshape(samples.shape).requires_grad_()
        timesteps = scheduler.sigmas_to_timesteps(torch.full((count,), np.exp(level))).to(samples.device)
        with torch.enable_grad():
            output = network(x, timesteps)
            x_0, eps = (f(output, timesteps, x) for f in (scheduler.predict_original_sample, scheduler.predict_noise))
            v = scheduler.get_velocity(x_0, eps, timesteps)
        trace = torch.zeros(count, dtype=torch.float64)
        for e in probes:  # e^T (dv/dx) e
            (product,) = torch.autograd.grad(v, x, e, retain_graph=True)
            trace += weight * (product * e).flatten(1).sum(1).double().cpu()
        flow = torch.cat([v.detach().double().cpu().flatten(), trace / size])
        if not flow.isfinite().all():
            raise ValueError(f"the network's velocity or its divergence is not finite at sigma {np.exp(level):.3g}")
        return flow.numpy() / (2 * np.cosh(level))  # alpha_t sigma_t

    least, most = _ends(scheduler)
    alpha = 1 / np.hypot(1, np.exp(least))
    start = np.concatenate([alpha * samples.double().cpu().flatten().numpy(), np.zeros(count)])
    found = solve_ivp(slope, (least, most), start, method, t_eval=[most], rtol=tolerance, atol=tolerance)
    if not found.success:
        raise ValueError(f"the probability flow cannot be followed to its end: {found.message}")
    end = found.y[:, -1]
    x = torch.from_numpy(end[:-count]).reshape(count, size)
    prior = -0.5 * (x**2 + np.log(2 * np.pi)).sum(1)
    return prior + size * (torch.from_numpy(end[-count:]) + np.log(alpha))


def variational_bound(
    network: Network,
    scheduler: MezzotintScheduler,
    samples: torch.Tensor,
    generators: list[torch.Generator],
    levels: int = LEVELS,
) -> dict[str, torch.Tensor]:
    """The terms of a bound above -log p(x_0) in nats (<https://huggingface.co/papers/2107.00630>, eq. 11), in forward
    passes only:

        prior            KL(q(x_T | x_0) || N(0, I))
        reconstruction   E[-log p(x_0 | x_t)] at the least noise, where x_0 ~ N(x_t / alpha_t, sigma_t^2 / alpha_t^2)
        diffusion        E int |eps - eps_hat|^2 dlambda over all noise levels between, in continuous time (eq. 17)

    Of a perfect network their sum is E[-log p_0(x_0 + sigma_0 / alpha_0 eps)], by the density that the flow has: what
    the least noise costs on average is how far the bound lies above.

    Args:
        network, scheduler, samples: as of `flow_log_density`.
        generators: of the noise of each sample.
        levels: at which each sample is looked at, evenly spread from a random one on.

    Returns:
        `prior` and `reconstruction` of shape `(B,)`, and `diffusion` `(B, levels)`, from little noise to much, whose
        sum over the levels is the term; in float64.
    """
    least, most = _ends(scheduler)
    wide, shape = samples.double().flatten(1), samples.shape[1:]
    a = 1 / (1 + np.exp(2 * most))
    prior = 0.5 * (a * wide**2 - a - np.log1p(-a)).sum(1)
    reconstruction = torch.full_like(prior, wide.shape[1] * (least + 0.5 * np.log(2 * np.pi * np.e)))
    offsets = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
    diffusion = []
    for i in range(levels):
        ratios = (least + (most - least) * (i + offsets) / levels).exp().to(samples.device)
        timesteps = scheduler.sigmas_to_timesteps(ratios)
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(samples)
        noisy = scheduler.add_noise(samples, noise, timesteps)
        with torch.no_grad():
            eps = scheduler.predict_noise(network(noisy, timesteps), timesteps, noisy)
        diffusion.append((noise - eps).double().square().flatten(1).sum(1) * (most - least) / levels)
    return {"prior": prior, "reconstruction": reconstruction, "diffusion": torch.stack(diffusion, dim=1)}


def likelihood(
    pipe: Any, pictures: Real, probes: int, tolerance: float, batch_size: int, seed: int, progress: bool = True
) -> dict[str, Any]:
    """Bits per dimension of samples, as plain data with 95 % intervals over the samples: `with_caption` and
    `without_caption` (the empty text), each by the `flow` and by the `bound` with its terms, and what the caption saves
    in bits a sample. A network that reads no text has the second only.

    Args:
        pipe: a pipeline of text to samples, of whatever modality, that knows no latents.
        pictures: samples of its size as they are, with the captions of each, of which the first is given.
        probes: of Hutchinson's estimate, for each sample; 0 takes the exact trace.
        tolerance: of the solver.
        batch_size: samples at a time.
        seed: of what is random, which is the same with and without the caption.

    Raises:
        UserError: where the flow cannot be followed.
    """
    scheduler = MezzotintScheduler.from_config(pipe.scheduler.config)
    size = pictures.pixels[0].numel()
    to_numbers = nats_of_numbers(pipe, scheduler, pictures.pixels[0])
    texts = {"without_caption": [""] * len(pictures.captions)}
    if pipe.unet.config.cross_attention_dim is not None:
        texts = {"with_caption": [captions[0] for captions in pictures.captions]} | texts
    nats: dict[str, dict[str, list[torch.Tensor]]] = {name: {} for name in texts}
    starts = range(0, len(pictures.pixels), batch_size)
    work = [(start, name) for start in starts for name in texts]
    for start, name in progress_bar(work, "likelihood", len(work), progress):
        pixels = pictures.pixels[start : start + batch_size]
        network = conditioned(pipe, *encoded(pipe, texts[name][start : start + batch_size]))
        generators = generators_of(range(start, start + len(pixels)), seed)
        samples = dequantised(pipe, pixels, generators)
        signs = _probes(generators, pixels.shape[1:], probes)
        try:
            found = {"flow": -flow_log_density(network, scheduler, samples, signs, tolerance) + to_numbers["flow"]}
        except ValueError as error:
            raise UserError(f"likelihood: {error}") from None
        found |= variational_bound(network, scheduler, samples, generators)
        found["reconstruction"] += to_numbers["bound"]
        for term, value in found.items():
            nats[name].setdefault(term, []).append(value.cpu())
    bits = {name: {k: torch.cat(v) / np.log(2) for k, v in terms.items()} for name, terms in nats.items()}
    results: dict[str, Any] = {"pictures": len(pictures.pixels), "dimensions": size}
    for name, terms in bits.items():
        diffusion = terms["diffusion"].unflatten(1, (QUARTERS, -1)).sum(2)
        terms["bound"] = terms["prior"] + terms["reconstruction"] + diffusion.sum(1)
        results[name] = {term: figure(average(terms[term] / size)) for term in ("flow", "bound")} | {
            term: float(terms[term].mean() / size) for term in ("prior", "reconstruction")
        }
        results[name]["diffusion"] = (diffusion.mean(0) / size).tolist()  # by quarter of the noise levels
    if "with_caption" in bits:
        saved = [bits["without_caption"][term] - bits["with_caption"][term] for term in ("flow", "bound")]
        results["caption_saves"] = dict(zip(("flow", "bound"), (figure(average(x)) for x in saved), strict=True))
    return results


def _ends(scheduler: MezzotintScheduler) -> tuple[float, float]:
    """The least and the most lambda of the schedule; the most with any signal."""
    return float(scheduler.log_sigmas[0]), float(scheduler.log_sigmas[-1 if scheduler.betas[-1] < 1 else -2])


def encoded(pipe: Any, captions: list[str]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Embeddings and mask of captions, a row each; `None` of a pipeline that reads no text."""
    if pipe.unet.config.cross_attention_dim is None:
        return None, None
    with torch.no_grad():
        text, _, mask, _ = pipe.encode_prompt(captions, pipe.device, do_classifier_free_guidance=False)
    return text, mask


def conditioned(pipe: Any, text: torch.Tensor | None, mask: torch.Tensor | None) -> Network:
    """The pipeline's network for texts that are `encoded`, without guidance."""
    unet = pipe.unet.eval()

    def network(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        output = unet(x.to(unet.dtype), timesteps, text, encoder_attention_mask=mask, return_dict=False)[0]
        return output.to(x.dtype)

    return network


def dequantised(pipe: Any, pixels: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
    """Whole numbers (B, C, *S), each with noise of its width from its sample's generator, normalised as the network's
    data are: a sample x_0. Single bits have no noise."""
    mean, std = (of_channels(getattr(pipe.unet.config, f"sample_{x}"), pixels.shape[2:]) for x in ("mean", "std"))
    data = unit(pixels)
    noise = torch.stack([torch.rand(pixels.shape[1:], generator=g) for g in generators]) - 0.5
    if (channels := BITS.get(pipe.modality)) is not None:
        noise[:, channels], data[:, channels] = 0, data[:, channels].sign()
    return ((data + noise * spacing(pixels.dtype) - mean) / std).to(pipe.device)


def generators_of(samples: range, seed: int) -> list[torch.Generator]:
    """A generator for each sample by its number, whatever the batch."""
    return [torch.Generator().manual_seed(seed * 10**6 + i) for i in samples]


def nats_of_numbers(pipe: Any, scheduler: MezzotintScheduler, content: torch.Tensor) -> dict[str, float]:
    """Nats to be added to a sample's -log p, by the flow and by the bound, to have that of its whole numbers, which
    `content` (C, *S) are: the log-determinant, and for single bits the height of the density at their value."""
    std = torch.tensor(pipe.unet.config.sample_std, dtype=torch.float64).expand(len(content))  # (C,)
    nats = {name: (std / spacing(content.dtype)).log() for name in ("flow", "bound")}
    if (channels := BITS.get(pipe.modality)) is not None:
        least, _ = _ends(scheduler)
        for name, entropy in (("flow", np.log(2 * np.pi) / 2), ("bound", np.log(2 * np.pi * np.e) / 2)):
            nats[name][channels] = -(least + entropy)
    return {name: float(value.mean()) * content.numel() for name, value in nats.items()}


def _probes(generators: list[torch.Generator], shape: torch.Size, probes: int) -> torch.Tensor | None:
    """Signs (probes, B, *shape) of each sample's generator, which probe its trace."""
    if probes == 0:
        return None
    signs = [torch.randint(2, (probes, *shape), generator=g) * 2.0 - 1 for g in generators]
    return torch.stack(signs, dim=1)
