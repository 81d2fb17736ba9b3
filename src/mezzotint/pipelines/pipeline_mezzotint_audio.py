# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Text to sound: a prompt is encoded, noise is drawn, the U-Net and the scheduler take turns, waveforms come out, each
as long as the network draws it, or as it is told. A sound that is given is varied, filled in or continued. What is
diffused is the waveform itself, or a spectrogram of as many numbers.

Only the order of these steps lives here. The file travels inside checkpoints, joined with the shared ones that it
imports; components arrive as arguments.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.guiders import BaseGuidance
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput, DiffusionPipeline

from mezzotint.pipelines.checkpoint_mezzotint import MezzotintCheckpointMixin
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance, _is_number, _shown
from mezzotint.pipelines.sampling_mezzotint import MezzotintSamplingMixin
from mezzotint.pipelines.spectrograms_mezzotint import from_spectrogram, to_spectrogram

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


class MezzotintAudioPipeline(MezzotintSamplingMixin, MezzotintCheckpointMixin, DiffusionPipeline):
    """Text-to-sound generation with classifier-free guidance, or another. Its components are described at
    `MezzotintSamplingMixin`; the U-Net is of one dimension, and the last channel of its samples says where there is
    sound: above 0 there, below in the silence after it. The others are samples of the waveform, or, where the U-Net's
    `modality` has an `n_fft`, its spectrogram (`to_spectrogram`)."""

    pipeline_tag = "text-to-audio"
    title = "Text to sound"
    summary = "Write what is to be heard."
    modality = "audio"
    word = "sound"
    per_prompt = "num_waveforms_per_prompt"
    output_types = ("np", "pt", "latent")
    tasks = ("text_to_image",)

    @property
    def sampling_rate(self) -> int:
        """Samples of a sound a second, by the U-Net's config."""
        return self.unet.config.modality["sampling_rate"]

    @property
    def n_fft(self) -> int | None:
        """Samples of a window of the spectrogram that is diffused; `None` where waveforms are."""
        return self.unet.config.modality.get("n_fft")

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        audio_length_in_s: float | None = None,
        audio: np.ndarray | torch.Tensor | None = None,
        mask: np.ndarray | torch.Tensor | None = None,
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
        num_waveforms_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
        cross_attention_kwargs: dict[str, Any] | None = None,
        corrector_steps: int = 0,
        snr: float = 0.16,
    ) -> AudioPipelineOutput | tuple:
        """Draw sounds. Arguments that are not listed here are those of `MezzotintPipeline`.

        Args:
            prompt (`str` or list of `str`, *optional*): what is to be heard.
            audio_length_in_s (`float`, *optional*): the seconds of each sound, which the network is told; by default
                each is as long as the network draws it, up to the length trained at. Longer ones than that can be
                asked for.
            audio (`np.ndarray` or `torch.Tensor` of shape `(channels, samples)`, *optional*): a sound in [-1, 1] to
                start from, of `sampling_rate` samples a second: it is noised to the first of the steps that are left
                by `strength` (SDEdit, <https://huggingface.co/papers/2108.01073>). The result is as long, or as
                `audio_length_in_s` says.
            mask (`np.ndarray` or `torch.Tensor` of shape `(samples,)`, *optional*): of `audio`, 1 where it is to be
                drawn and 0 where it stays, to the bit; what `audio_length_in_s` adds to it is drawn. What stays is put
                back after each step, with the step's noise (<https://huggingface.co/papers/2201.09865>, algorithm 1);
                of a spectrogram, the windows that lie in it whole.
            strength (`float`, *optional*): the part of the steps that is taken from `audio` on; by default 0.8, and 1
                with a mask.
            num_waveforms_per_prompt (`int`): sounds for each prompt, side by side in the result.
            latents (`torch.Tensor` of shape `(sounds, channels + 1, samples)`, *optional*): the starting noise.
            output_type (`"np"`, `"pt"` or `"latent"`): a list of arrays or tensors `(channels, samples)` in [-1, 1], of
                `sampling_rate` samples a second, or the normalised sample itself.
            return_dict (`bool`): whether an `AudioPipelineOutput` or the tuple `(audios,)` comes back.

        Raises:
            ValueError: for inputs that contradict each other or that the components cannot take, and where the result
                is not finite.
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
            *steps, num_waveforms_per_prompt, eta, generator, latents, output_type, *callback, **corrector
        )
        sound, drawn, strength = self.read_audio(audio, mask, strength)
        seconds = audio_length_in_s
        if sound is not None and seconds is None:
            seconds = sound.shape[1] / self.sampling_rate
        spatial, length = self.settle_length(seconds)
        if sound is not None and sound.shape[1] > length:
            sound, drawn = sound[:, :length], drawn[:length]
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
        text, guidance, batch_size = run.prepare_conditions(guidance, num_waveforms_per_prompt, *text)

        # 4. Choose the timesteps; what is known is noised to the level of each, always with the same noise
        schedule = run.choose_timesteps(guidance, *steps, strength)
        noise = run.draw_noise(batch_size, (spatial,), generator, latents)
        start, known = self.known(sound, drawn, length, noise)

        # 5. Denoise
        latents = run.denoise(
            run.start_from(start, noise, schedule, strength),
            schedule,
            text,
            guidance,
            eta,
            generator,
            *callback,
            after_step=run.putting_back(start, ~known, noise, schedule) if known.any() else None,
            **corrector,
        )

        # 6. Back to waveforms
        audios: Any = latents
        if output_type != "latent":
            audios = self.cut(self.waves(self.decode(latents, latents.shape[2:]), sound, drawn), length)
            if sound is not None:
                stays = torch.nonzero(~drawn)[:, 0]
                for one in audios:
                    one[:, stays] = sound[:, stays].to(one)
            audios = [audio.cpu().numpy() for audio in audios] if output_type == "np" else audios
        return AudioPipelineOutput(audios=audios) if return_dict else (audios,)

    def settle_length(self, audio_length_in_s: Any) -> tuple[int, int | None]:
        """The samples to draw, and of how many there is sound where that is told.

        Raises:
            ValueError: for a length that is none.
        """
        default = self.default_size[0]
        if audio_length_in_s is None:
            if default is None:
                raise ValueError("audio_length_in_s must be given, as the U-Net's config has no sample_size: got none")
            return default, None
        if not _is_number(audio_length_in_s) or not audio_length_in_s > 0:
            raise ValueError(f"audio_length_in_s must be a number of seconds above 0: got {_shown(audio_length_in_s)}")
        length = max(1, round(audio_length_in_s * self.sampling_rate))
        return max(length, default or 0), length

    def read_audio(self, audio: Any, mask: Any, strength: Any) -> tuple[torch.Tensor | None, torch.Tensor, float]:
        """The sound that is given (channels, samples), where it is to be drawn (samples,), and the strength.

        Raises:
            ValueError: for what is no such thing.
        """
        strength = self.settle_strength(strength, {"audio": audio}, {"mask": mask})
        if audio is None:
            return None, torch.ones(0, dtype=torch.bool), strength
        channels = self.channels - 1
        if not isinstance(audio, (np.ndarray, torch.Tensor, list)):
            raise ValueError(f"audio must have shape ({channels}, samples), of finite numbers: got {_shown(audio)}")
        sound = torch.as_tensor(audio).float().cpu()
        if sound.ndim != 2 or len(sound) != channels or sound.shape[1] == 0 or not sound.isfinite().all():
            got = tuple(sound.shape)
            raise ValueError(f"audio must have shape ({channels}, samples), of finite numbers: got shape {got}")
        drawn = torch.ones(sound.shape[1], dtype=torch.bool)
        if mask is not None:
            given = torch.as_tensor(mask).float().cpu()
            if given.shape != drawn.shape or not ((given >= 0) & (given <= 1)).all():
                got = tuple(given.shape)
                raise ValueError(f"mask must have shape {tuple(drawn.shape)}, between 0 and 1: got shape {got}")
            drawn = given >= 0.5
        return sound, drawn, strength

    def known(
        self, sound: torch.Tensor | None, drawn: torch.Tensor, length: int | None, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The normalised sample that a call starts from, and where it stays as it is, both of the shape of `noise`: the
        last channel where a length is told, and what of a sound is not drawn."""
        data, stays = torch.zeros_like(noise), torch.zeros_like(noise, dtype=torch.bool)
        data[:, -1] = -1
        if length is not None:
            data[:, -1, :length] = 1
            stays[:, -1] = True
        if sound is not None:
            data[:, :-1, : sound.shape[1]] = sound.to(data)
            stays[:, :-1, : sound.shape[1]] = ~drawn.to(stays.device)
        if self.n_fft is not None:
            # A window's numbers are known where all its samples are, half of which belong to those beside it
            hop, kept = self.n_fft // 2, torch.nn.functional.pad(~drawn, (0, noise.shape[2] - len(drawn)))
            whole = kept.unflatten(0, (-1, hop)).all(1)
            whole &= torch.nn.functional.pad(whole, (1, 0), value=True)[:-1]
            data[:, :-1] = to_spectrogram(data[:, :-1], self.n_fft).to(data)
            stays[:, :-1] = whole.repeat_interleave(hop).to(stays.device)
        mean, std = self._scale(noise)
        return (data - mean) / std, stays

    def waves(self, data: torch.Tensor, sound: torch.Tensor | None, drawn: torch.Tensor) -> torch.Tensor:
        """Data (sounds, channels + 1, samples) with waveforms, which agree with what stays of a sound, in the place of
        spectrograms, if these are diffused."""
        if self.n_fft is None:
            return data
        stays = known = None
        if sound is not None:
            missing = (0, data.shape[2] - len(drawn))
            stays = torch.nn.functional.pad(~drawn, missing).to(data.device)
            known = torch.nn.functional.pad(sound, missing).to(data)
        return torch.cat([from_spectrogram(data[:, :-1], self.n_fft, known, stays).to(data), data[:, -1:]], 1)

    @staticmethod
    def cut(data: torch.Tensor, length: int | None) -> list[torch.Tensor]:
        """The sounds of data (sounds, channels + 1, samples): as much of each as there is sound, in [-1, 1]."""
        found = []
        for one in data:
            # Where sound and silence are told apart best: the place up to which the last channel's sum is the greatest
            end = 1 + int(one[-1].cumsum(0).argmax()) if length is None else length
            found.append(one[:-1, :end].clamp(-1, 1))
        return found
