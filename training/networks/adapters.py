# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Low-rank adapters of a saved pipeline: put into its models for training, and written as a LoRA that diffusers loads.

Which layers, which parameters, which file: that lives here. The loop trains adapters as it trains any parameters, and
`MezzotintPipeline.load_lora_weights` reads what is written. Needs peft.
"""

from pathlib import Path

from torch import nn

from mezzotint import MezzotintPipeline
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.rules import nearest
from mezzotint_training.config.settings import TrainConfig

ADAPTER = "default"
ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def add_adapters(config: TrainConfig, unet, text_encoder, train_text: bool) -> dict[str, nn.Parameter]:
    """Freeze both models and give them adapters, whose product starts at zero: the models' outputs stay as they are.

    LoRA (<https://huggingface.co/papers/2106.09685>, eq. 3) turns the weight W of a layer into W + s B A, with
    s = `lora_alpha` / `rank`, A `(rank, in)` and B `(out, rank)`; DoRA (<https://huggingface.co/papers/2402.09353>, eq.
    5) into m (W + s B A) / ||W + s B A||, a learned norm m for each output. A is drawn from torch's global generator.

    Args:
        config: `adapter`, `rank`, `lora_alpha`, `lora_dropout` and, for the U-Net, `lora_layers`.
        unet, text_encoder: changed in place; the latter may be `None`.
        train_text: whether the text encoder gets adapters too, at every linear layer of its attention.

    Returns:
        the parameters to train, by name, `unet.` or `text_encoder.` first: those of the adapters, in float32.

    Raises:
        UserError: without peft, for a name in `lora_layers` that no layer has, or a text encoder without attention.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise UserError("adapter needs peft, which is not installed: pip install peft") from None

    found = {"unet": (unet, _layers(unet, config.lora_layers))}
    if train_text and text_encoder is not None:
        linear = [name for name, layer in text_encoder.named_modules() if isinstance(layer, nn.Linear)]
        # T5's SelfAttention.q, CLIP's self_attn.q_proj, BERT's attention.self.query, ModernBERT's attn.Wqkv, ...
        attention = [name for name in linear if "att" in name.rpartition(".")[0].lower()]
        if not attention:
            raise UserError(f"the text encoder must have attention to adapt: {type(text_encoder).__name__} has none")
        found["text_encoder"] = (text_encoder, attention)
    for model in (unet, text_encoder):
        if model is not None:
            model.requires_grad_(False)

    trained = {}
    for part, (model, layers) in found.items():
        alpha = config.rank if config.lora_alpha is None else config.lora_alpha
        model.add_adapter(
            LoraConfig(
                r=config.rank,
                lora_alpha=alpha,
                lora_dropout=config.lora_dropout,
                target_modules=layers,
                use_dora=config.adapter == "dora",
            ),
            ADAPTER,
        )
        model.train(model.training)  # the adapters' dropout too, which comes in training mode
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
                trained[f"{part}.{name}"] = parameter
    return trained


def save_adapters(folder: str | Path, unet, text_encoder) -> Path:
    """Write what `add_adapters` added and training changed, as diffusers does: `pytorch_lora_weights.safetensors`, with
    the adapters' settings in its header. Returns its path."""
    from peft import get_peft_model_state_dict

    arguments = {}
    for part, model in (("unet", unet), ("text_encoder", text_encoder)):
        if ADAPTER in getattr(model, "peft_config", {}):
            tensors = get_peft_model_state_dict(model, adapter_name=ADAPTER)
            arguments[f"{part}_lora_layers"] = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            settings = model.peft_config[ADAPTER].to_dict()
            settings["base_model_name_or_path"] = None  # a path on this machine is nobody else's business
            arguments[f"{part}_lora_adapter_metadata"] = settings
    MezzotintPipeline.save_lora_weights(folder, **arguments)
    return Path(folder) / "pytorch_lora_weights.safetensors"


def _layers(unet: nn.Module, names: list[str]) -> list[str]:
    """The full names of the layers that end in one of `names`, each of which must be found."""
    there = [name for name, layer in unet.named_modules() if isinstance(layer, ADAPTABLE)]
    for name in names:
        if not any(f".{full}".endswith(f".{name}") for full in there):
            # the last part of a name says which layer it is; a number, only with the part before it
            parts = [full.split(".") for full in there]
            known = sorted({".".join(p[-2:] if p[-1].isdecimal() else p[-1:]) for p in parts})
            raise UserError(
                f"lora_layers must name layers of the U-Net: got {name!r}{nearest(name, known)}; "
                f"there are {', '.join(known)}"
            )
    if not names:
        raise UserError("lora_layers must name at least one layer: got none")
    return [full for full in there if any(f".{full}".endswith(f".{name}") for name in names)]
