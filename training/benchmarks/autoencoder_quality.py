# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Measure what each part of an autoencoder's loss does to its reconstructions and to its latents: the recipe beside
itself with one part changed, for as many updates.

    python training/benchmarks/autoencoder_quality.py emoji-64 --data path/to/emoji-64 --updates 400

PSNR and SSIM are of the test split, pictures that were not trained on, and so is the Fréchet distance of
reconstructions to these pictures, on a random network's features: it sees blur that PSNR forgives. The spectrum of the
latents, each channel less its mean, is their variance by the frequency that it lies at, in cycles for each latent: of
white noise 4.9 % lies below 1/8, 14.7 % from there to 1/4 and 80.4 % beyond. That of the pictures themselves, averaged
to the latents' size, stands below. A diffusion model settles low frequencies first and draws the high ones worst
(2502.14831, section 3).
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from mezzotint.pipelines.latents_mezzotint import to_latents, vae_factor
from mezzotint_training.benchmarks.cascade_quality import show
from mezzotint_training.benchmarks.quality import run
from mezzotint_training.config.autoencoder import AutoencoderConfig
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import Help
from mezzotint_training.config.recipe import read_named
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.source import look_at, open_rows
from mezzotint_training.learning.autoencoding import quality, reconstructed
from mezzotint_training.metrics.distances import frechet_distance, gaussian
from mezzotint_training.metrics.features import RandomFeatures
from mezzotint_training.modalities.contents import unit
from mezzotint_training.networks.latents import load_autoencoder

CHANGES = {
    "the recipe": {},
    "L1 alone": {"structure_weight": 0.0},
    "structure, and bands of a pyramid": {"bands_weight": 1.0},
    "no noise in the latents": {"latent_noise": 0.0},
    "no scale equivariance": {"equivariance_weight": 0.0},
    "neither": {"latent_noise": 0.0, "equivariance_weight": 0.0},
    "an adversary": {"adversary_weight": 0.5},
    "an adversary, as strong as the rest": {"adversary_weight": 1.0},
}
EDGES = (1 / 8, 1 / 4)  # cycles for each place
BANDS = ("below 1/8", "to 1/4", "beyond")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("recipe", help="a recipe of train-autoencoder")
    parser.add_argument("--data", help="folder of the set, where the recipe has none of its own")
    parser.add_argument("--updates", type=int, default=400, help="updates of each")
    parser.add_argument("--changes", nargs="+", choices=list(CHANGES), default=list(CHANGES), help="which rows")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", default="autoencoder_quality", help="a folder for runs and figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    recipe = read_named(args.recipe, AutoencoderConfig) | ({"train_data_dir": args.data} if args.data else {})
    rare = {"validation_steps": 10**6, "checkpointing_steps": 10**6, "logging_steps": args.updates}
    recipe |= {"num_validation_samples": 0, "report_to": "none", "load_back": False, "max_train_steps": args.updates}
    shared = AutoencoderConfig(**recipe | rare)
    pictures = unseen(shared)
    stacked = torch.stack(pictures)
    look, told, vae = RandomFeatures(stacked), {}, None
    real = gaussian(look(stacked).double())
    rows = [["", "PSNR", "SSIM", "Fréchet distance", *(f"latents' variance {band}" for band in BANDS), "CPU time"]]
    for name in args.changes:
        folder = output / name.replace(" ", "-").replace(",", "")
        config = replace(shared, output_dir=str(folder), **CHANGES[name])
        seconds = run("ours", config, args.threads).processor
        vae = load_autoencoder(str(folder))
        told[name] = quality(vae, pictures, config.train_batch_size) | {"seconds": seconds}
        made = torch.cat([reconstructed(vae, some) for some in stacked.split(config.train_batch_size)])
        told[name]["frechet_distance"] = frechet_distance(gaussian(look(made).double()), real).item()
        with torch.no_grad():
            told[name]["spectrum"] = spectrum(torch.cat([to_latents(vae, one[None]) for one in pictures]))
        shares = (f"{share:.1%}" for share in told[name]["spectrum"])
        rows.append([name, f"{told[name]['psnr']:.2f} dB", f"{told[name]['ssim']:.3f}"])
        rows[-1] += [f"{told[name]['frechet_distance']:.3f}", *shares, f"{seconds:.0f} s"]
    small = F.avg_pool2d(stacked, vae_factor(vae))
    rows.append(["the pictures, averaged", "", "", "", *(f"{share:.1%}" for share in spectrum(small)), ""])
    show(rows)
    (output / "figures.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


def unseen(config: AutoencoderConfig) -> list[torch.Tensor]:
    """The pictures of the test split: (C, H, W) each, in [-1, 1]."""
    settings = replace(config, validation_split="test", num_validation_samples=10**9)
    rows = open_rows(settings)
    facts = look_at(rows, settings, {"vae": None})
    images = CaptionedSamples(rows.held_out, settings, facts.channels, facts.size)
    found = (images.content(row) for row in range(len(images)))
    return [unit(pixels) for pixels in found if pixels is not None]


def spectrum(maps: torch.Tensor) -> list[float]:
    """Shares of the variance of maps (N, C, H, W), each channel less its mean over all, by the frequency that it lies
    at (`BANDS`); what is the same at every place of a map is of frequency 0. They sum to 1."""
    centred = (maps - maps.mean((0, 2, 3), keepdim=True)).double()
    power = torch.fft.fft2(centred, norm="ortho").abs().square().sum((0, 1))  # (H, W)
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64) for side in maps.shape[2:])
    bands = torch.bucketize(
        (rows[:, None].square() + columns.square()).sqrt(), torch.tensor(EDGES).double(), right=True
    )
    return [(power[bands == band].sum() / power.sum()).item() for band in range(len(BANDS))]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"autoencoder_quality: {error}")
