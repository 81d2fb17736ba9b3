# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The guided prediction at one step: the branches of a call, each a network with its rows of the text and what is said
beside it, and how their predictions are combined.

Only this lives here; which steps are taken, and what follows from the output, is `sampling_mezzotint.py`'s. The file
travels inside checkpoints, joined with the pipelines.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from diffusers.hooks import PyramidAttentionBroadcastConfig

from mezzotint.pipelines.conditions_mezzotint import attributes_without
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


class MezzotintGuidedNetwork:
    """The network of a call under its guidance: takes a noisy sample, returns one prediction.

    Args:
        run: the pipeline's copy for one call, of which networks, scheduler and guidance scale are taken.
        latents (`torch.Tensor` of shape `(pictures, channels, *spatial)`): a sample, for its shape.
        text: embeddings and mask as `prepare_conditions` returns them.
        guidance (`MezzotintGuidance`): likewise.
        within: for each step, whether it is guided.
        condition (`torch.Tensor` of shape `(pictures, channels, *spatial)`, *optional*): what the network reads beside
            the sample; by default, for a network that reads something, that nothing is known.
        evaluate (function, *optional*): takes a network with the arguments of its call, and returns its prediction, in
            the place of that call.

    Raises:
        ValueError: for a cache that does not go with the guidance.
    """

    def __init__(
        self,
        run: Any,
        latents: torch.Tensor,
        text: tuple[torch.Tensor | None, torch.Tensor | None],
        guidance: MezzotintGuidance,
        within: Sequence[bool],
        condition: torch.Tensor | None = None,
        evaluate: Callable[..., torch.Tensor] | None = None,
    ):
        self.run, self.guidance, self.within, self.evaluate = run, guidance, within, evaluate
        self.text, self.texts = text, {}
        self.guider = guider = copy.copy(guidance.guider)  # it comes back as it was
        self.guider_enabled = guider is not None and guider.get_state()["enabled"]
        unet, guidance_unet = run.unet, run.guidance_unet
        self.dtype, self.autoguided = unet.dtype, guidance_unet is not None
        self.caches = any(getattr(network, "is_cache_enabled", False) for network in (unet, guidance_unet))
        one_state = isinstance(getattr(unet, "_cache_config", None), PyramidAttentionBroadcastConfig)
        if one_state and (guider is not None or run.do_classifier_free_guidance and not all(within)):
            raise ValueError(
                "pyramid attention broadcast keeps the attention of one batch for all steps: got a guider or a "
                "guidance_interval, under which batches differ; TaylorSeerCacheConfig goes with both"
            )
        if guider is not None and type(guider).prepare_models is not BaseGuidance.prepare_models:  # it changes layers
            unet, guidance_unet = _with_hooks_of_its_own(unet), _with_hooks_of_its_own(guidance_unet)
        # Attributes with a weight of their own come in one after the other, over all that has the usual one
        said, scales = guidance.attributes, guidance.attribute_scale or {}
        nothing = usual = None
        self.rungs: dict[str, tuple[float, torch.Tensor]] = {}
        if said is not None:
            nothing, usual, *more = (
                attributes_without(unet.config.attributes, said, names)
                for names in (unet.config.attributes, *(list(scales)[i:] for i in range(len(scales) + 1)))
            )
            self.rungs = {f"with {name}": (scales[name], vector) for name, vector in zip(scales, more, strict=True)}
        rows, negative_rows = slice(-len(latents), None), slice(len(latents))
        self.branches = {
            "both": (unet, slice(None), None if nothing is None else torch.cat([nothing, usual])),
            "cond": (unet, rows, usual),
            "uncond": (unet, negative_rows, nothing),
            "all": (unet, rows, said),
            **{name: (unet, rows, vector) for name, (_, vector) in self.rungs.items()},
        }
        if self.autoguided:
            self.branches["uncond"] = (guidance_unet, rows, usual)
        self.condition = condition
        if condition is None and unet.config.in_channels > unet.config.out_channels:
            channels = unet.config.in_channels - unet.config.out_channels
            self.condition = latents.new_zeros(len(latents), channels, *latents.shape[2:])
            self.condition[:, -1] = 1  # nothing is known

    def read(self, prompt_embeds: torch.Tensor | None, prompt_attention_mask: torch.Tensor | None) -> None:
        """Take another text from here on."""
        self.text, self.texts = (prompt_embeds, prompt_attention_mask), {}

    def __call__(self, model_input: torch.Tensor, timestep: torch.Tensor, i: int) -> torch.Tensor:
        """The prediction for a sample, as the scheduler scales it, at step `i`, in float32."""
        guided, run = self.within[i], self.run
        if self.guider is not None:
            model_output = cond = self._by_guider(model_input, timestep, i)
        elif guided and run.do_classifier_free_guidance:
            if self.autoguided:
                uncond, cond = (self._predict(branch, model_input, timestep) for branch in ("uncond", "cond"))
            else:  # both branches in one batch
                uncond, cond = self._predict("both", torch.cat([model_input] * 2), timestep).chunk(2)
            # uncond + w (cond - uncond), to the bit, in one piece of memory
            model_output = (cond - uncond).mul_(run.guidance_scale).add_(uncond)
            if self.guidance.rescale > 0:
                model_output = rescale_noise_cfg(model_output, cond, self.guidance.rescale)
        else:
            model_output = cond = self._predict("cond" if guided else "all", model_input, timestep)
        if guided and self.guider is None:
            for branch, (scale, _) in self.rungs.items():
                found = self._predict(branch, model_input, timestep)
                model_output, cond = model_output + scale * (found - cond), found
        if self.guidance.labels is not None and guided:
            gradient = run.classifier.score(model_input, timestep, self.guidance.labels)
            model_output = run.scheduler.guide(model_output, timestep, self.guidance.classifier_scale * gradient)
        return model_output

    def _by_guider(self, model_input: torch.Tensor, timestep: torch.Tensor, i: int) -> torch.Tensor:
        """The prediction as one of diffusers' guiders combines it."""
        guider: Any = self.guider
        if self.guider_enabled:
            guider.enable() if self.within[i] else guider.disable()
        guider.set_state(step=i, num_inference_steps=len(self.within), timestep=timestep)
        batches = guider.prepare_inputs({"branch": ("cond", "uncond")})
        for batch in batches:
            network = self.branches[batch.branch][0]
            guider.prepare_models(network)
            batch.noise_pred = self._predict(batch.branch, model_input, timestep)
            guider.cleanup_models(network)
        return guider(batches)[0]

    def _predict(self, branch: str, model_input: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The prediction of a branch, whose text is read once a call, not once a step."""
        network, rows, attributes = self.branches[branch]
        if self.condition is not None:
            beside = torch.cat([self.condition] * (len(model_input) // len(self.condition)))
            model_input = torch.cat([model_input, beside], dim=1)
        if branch not in self.texts:
            text = (x if x is None else x[rows] for x in self.text)
            self.texts[branch] = self.run._read_text(network, *text)
            if attributes is not None:
                self.texts[branch]["attributes"] = attributes.to(self.dtype)
        with network.cache_context(branch) if self.caches else nullcontext():  # what it keeps is the branch's own
            if self.evaluate is None:
                output = network(model_input.to(self.dtype), timestep, **self.texts[branch], return_dict=False)[0]
            else:
                output = self.evaluate(network, model_input.to(self.dtype), timestep, **self.texts[branch])
        return output.float()  # the steps are taken in float32 whatever the network's precision


def _with_hooks_of_its_own(network: torch.nn.Module | None) -> torch.nn.Module | None:
    """The modules again, around the same weights: what is hooked to them is not hooked to those of other calls."""
    weights = [*network.parameters(), *network.buffers()] if network is not None else []
    return copy.deepcopy(network, {id(tensor): tensor for tensor in weights})
