# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Text to molecule: a prompt is encoded, noise is drawn, the U-Net and the scheduler take turns, the bits of tokens
come out, and are read as a string in SELFIES or SMILES.

Only the order of these steps lives here. The file travels inside checkpoints, joined with the shared ones that it
imports; components arrive as arguments.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput

from mezzotint.pipelines.checkpoint_mezzotint import MezzotintCheckpointMixin
from mezzotint.pipelines.conditions_mezzotint import classes_to_bits
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance, _shown
from mezzotint.pipelines.sampling_mezzotint import MezzotintSamplingMixin

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


@dataclass
class MezzotintMoleculePipelineOutput(BaseOutput):
    """Output of a pipeline of molecules.

    Args:
        molecules (`list` of `str`): strings in SELFIES or SMILES; or analog bits, a `torch.Tensor` or `np.ndarray` of
            shape `(molecules, channels, positions)`.
    """

    molecules: Any


class MezzotintMoleculePipeline(MezzotintSamplingMixin, MezzotintCheckpointMixin, DiffusionPipeline):
    """Text-to-molecule generation with classifier-free guidance, or another. Its components are described at
    `MezzotintSamplingMixin`; the U-Net is of one dimension, and its samples are the analog bits
    (<https://huggingface.co/papers/2208.04202>) of tokens, whose `notation`, `vocabulary` and `frequencies` its config
    knows."""

    pipeline_tag = "text-to-molecule"
    title = "Text to molecule"
    summary = "Write what molecule is to be drawn."
    modality = "molecules"
    word = "molecule"
    per_prompt = "num_molecules_per_prompt"
    output_types = ("str", "smiles", "np", "pt", "latent")
    tasks = ("text_to_image",)

    @property
    def notation(self) -> str:
        """`"selfies"` or `"smiles"`, by the U-Net's config."""
        return self.unet.config.modality["notation"]

    @property
    def vocabulary(self) -> dict[str, int]:
        """The code word of each token, a number in base 2, by the U-Net's config; that of `""` fills strings up."""
        return self.unet.config.modality["vocabulary"]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        fragment: str | None = None,
        molecule: str | None = None,
        strength: float | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[float] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        guider: BaseGuidance | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        classifier_scale: float = 1.0,
        attributes: dict[str, Any] | list[dict[str, Any]] | None = None,
        attribute_guidance_scale: dict[str, float] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_molecules_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        output_type: str = "str",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
        cross_attention_kwargs: dict[str, Any] | None = None,
        corrector_steps: int = 0,
        snr: float = 0.16,
    ) -> MezzotintMoleculePipelineOutput | tuple:
        """Draw molecules. Arguments that are not listed here are those of `MezzotintPipeline`.

        Args:
            prompt (`str` or list of `str`, *optional*): what is said of the molecule.
            fragment (`str`, *optional*): tokens that each string begins with, in the notation that the network draws;
                the rest is drawn to go with them.
            molecule (`str`, *optional*): a string in that notation to start from: its bits are noised to the first of
                the steps that are left by `strength` (SDEdit, <https://huggingface.co/papers/2108.01073>).
            strength (`float`, *optional*): the part of the steps that is taken from `molecule` on; by default 0.8.
            num_molecules_per_prompt (`int`): molecules for each prompt, side by side in the result.
            latents (`torch.Tensor` of shape `(molecules, channels, positions)`, *optional*): the starting noise.
            output_type (`"str"`, `"smiles"`, `"np"`, `"pt"` or `"latent"`): strings in the network's own notation;
                in SMILES, for which SELFIES need the package `selfies`; the analog bits, about -1 and 1, as an array or
                a tensor; or the normalised sample itself.
            return_dict (`bool`): whether a `MezzotintMoleculePipelineOutput` or the tuple `(molecules,)` comes back.

        Raises:
            ValueError: for inputs that contradict each other or that the components cannot take, where the result is
                not finite, and for SMILES of SELFIES without the package `selfies`.
        """
        # 1. Check the inputs and settle the size
        guider = self.guider if guider is None else guider
        num_inference_steps, guidance_scale = self.settle_steps(num_inference_steps, guidance_scale)
        guidance = MezzotintGuidance(
            guidance_scale, guidance_rescale, guidance_interval, guider, class_labels, classifier_scale, attributes,
            attribute_guidance_scale,
        )  # fmt: skip
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        steps = (num_inference_steps, timesteps, sigmas)
        corrector = {"corrector_steps": corrector_steps, "snr": snr}
        self.check_inputs(
            *steps, num_molecules_per_prompt, eta, generator, latents, output_type, *callback, **corrector
        )
        strength = self.settle_strength(strength, {"molecule": molecule}, {"mask": None})
        kept = None if fragment is None else self.bits_of("fragment", fragment)
        given = None if molecule is None else self.bits_of("molecule", molecule, self.default_size[0])
        if output_type == "smiles":
            self.to_smiles("")
        self.check_guidance(guidance)
        text = (
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
        )
        self.check_text(*text)

        # 2. What changes in a call is a copy's
        run = self.for_one_call(guidance, cross_attention_kwargs)

        # 3. Encode the text, and that to steer away from where there is guidance by one
        text, guidance, batch_size = run.prepare_conditions(guidance, num_molecules_per_prompt, *text)

        # 4. Choose the timesteps; a fragment is put back after each step, with the step's noise
        schedule = run.choose_timesteps(guidance, *steps, strength)
        noise = run.draw_noise(batch_size, self.default_size, generator, latents)
        start = put_back = None
        if given is not None:
            start = self.drawn_out(given.to(noise), noise.shape[2:]).expand_as(noise)
        if kept is not None:
            drawn = torch.arange(noise.shape[2], device=noise.device) >= kept.shape[2]  # (positions,)
            known = torch.zeros_like(noise)
            known[..., : kept.shape[2]] = kept.to(noise)
            put_back = run.putting_back(known, drawn, noise, schedule)

        # 5. Denoise
        latents = run.denoise(
            run.start_from(start, noise, schedule, strength),
            schedule,
            text,
            guidance,
            eta,
            generator,
            *callback,
            after_step=put_back,
            **corrector,
        )

        # 6. Back to strings
        molecules: Any = latents
        if output_type != "latent":
            molecules = self.decode(latents, self.default_size)
            if output_type == "np":
                molecules = molecules.cpu().numpy()
            elif output_type != "pt":
                molecules = self.strings(molecules)
        if output_type == "smiles":
            molecules = [self.to_smiles(one) for one in molecules]
        return MezzotintMoleculePipelineOutput(molecules=molecules) if return_dict else (molecules,)

    def strings(self, data: torch.Tensor) -> list[str]:
        """The molecules of analog bits (molecules, channels, positions), up to the place up to which tokens and what
        fills up are told apart best. At each place stands the token that is most likely by Bayes' rule, where bits are
        those of a code word and normal noise, whose variance is how far they are from -1 and 1 in the molecule: the
        nearest word's where there is little of it, a frequent token rather than a rare one where there is much."""
        tokens = list(self.vocabulary)
        words = torch.tensor([self.vocabulary[token] for token in tokens], device=data.device)[None, None]
        words = classes_to_bits(words, 2 ** data.shape[1])[0].to(data)  # (channels, tokens)
        # log p(token | x) = log p(token) - |x - word|^2 / (2 variance) + ..., times the variance; |word| is the same
        variance = (data.abs() - 1).square().mean((1, 2), keepdim=True)
        shares = torch.tensor([self.unet.config.modality["frequencies"][token] for token in tokens]).to(data)
        near = torch.einsum("bcp,ct->btp", data, words) + variance * shares.log()[:, None]
        fill, best = tokens.index(""), near.argmax(1)
        others = near.index_fill(1, torch.tensor([fill], device=near.device), -torch.inf).amax(1)
        found = []
        for margins, choice in zip(others - near[:, fill], best, strict=True):  # (positions,)
            sums = margins.cumsum(0)
            end = 1 + int(sums.argmax()) if sums.max() > 0 else 0
            found.append("".join(tokens[token] for token in choice[:end].tolist()))
        return found

    def bits_of(self, name: str, given: Any, length: int | None = None) -> torch.Tensor:
        """The tokens of a string, the argument `name`, normalised, of shape `(1, channels, tokens)`; filled up to a
        length, if there is one.

        Raises:
            ValueError: for a string that the vocabulary has no tokens for, or that leaves no room.
        """
        known = sorted(filter(None, self.vocabulary), key=len, reverse=True)
        tokens = re.findall("|".join(map(re.escape, known)), given) if isinstance(given, str) else []
        if not tokens or "".join(tokens) != given:
            raise ValueError(f"{name} must be tokens that the network knows, in {self.notation}: got {_shown(given)}")
        most = self.default_size[0] - (length is None)  # what is not filled up leaves something to draw
        if len(tokens) > most:
            raise ValueError(f"{name} must have at most {most} tokens: got {len(tokens)}")
        tokens += [""] * (0 if length is None else length - len(tokens))
        words = torch.tensor([self.vocabulary[token] for token in tokens])[None, None]
        bits = classes_to_bits(words, 2**self.unet.config.out_channels)
        mean, std = self._scale(bits)
        return (bits - mean) / std

    def to_smiles(self, molecule: str) -> str:
        """A drawn molecule in SMILES, which is empty for what SELFIES makes no atom of.

        Raises:
            ValueError: where that needs the package `selfies` and it is not installed.
        """
        if self.notation == "smiles":
            return molecule
        try:
            import selfies
        except ImportError:
            raise ValueError("SMILES of SELFIES need the package selfies; pip install selfies brings it") from None
        return str(selfies.decoder(molecule))
