"""Adapters of the pipeline: against weights changed by hand, against what peft computes, against themselves saved and
loaded elsewhere."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, ByT5Tokenizer, CLIPTextConfig, CLIPTextModel

from mezzotint import MezzotintPipeline

SHAPE = {"vocab_size": 384, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SHAPE |= {"num_attention_heads": 2, "max_position_embeddings": 48}
ENCODERS = {
    "t5": (None, ["q", "k", "v", "o"]),
    "clip": (
        lambda: CLIPTextModel(CLIPTextConfig(**SHAPE, bos_token_id=0, eos_token_id=1)),
        ["q_proj", "k_proj", "v_proj", "out_proj"],
    ),
    "bert": (lambda: BertModel(BertConfig(**SHAPE)), ["query", "key", "value", "attention.output.dense"]),
}


@pytest.fixture
def make(make_pipe):
    """`make(kind)`: a pipeline with that text encoder, always with the same weights."""

    def make(kind: str = "t5") -> MezzotintPipeline:
        encoder = ENCODERS[kind][0]
        if encoder is None:
            return make_pipe()
        torch.manual_seed(0)
        return make_pipe(text_encoder=encoder().eval(), tokenizer=ByT5Tokenizer(model_max_length=48))

    return make


def adapt(pipe, kind: str = "t5", seed: int = 1, unet=True, **config) -> dict:
    """Give both models adapters with random products; what `save_lora_weights` takes."""
    torch.manual_seed(seed)
    arguments = {}
    for name, layers in (("unet", ["to_q", "to_out.0", "conv1"]), ("text_encoder", ENCODERS[kind][1])):
        if name == "unet" and not unet:
            continue
        model = getattr(pipe, name)
        model.add_adapter(LoraConfig(**{"r": 2, "lora_alpha": 3.0, "target_modules": layers} | config), "default")
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora" in key:
                    parameter.add_(torch.rand_like(parameter), alpha=0.4)
        arguments[f"{name}_lora_layers"] = get_peft_model_state_dict(model)
        arguments[f"{name}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    return arguments


def draw(pipe) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a red boot", num_inference_steps=3, generator=generator, output_type="pt").images


def away(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference of two pictures, neither of which is empty."""
    assert min(a.std(), b.std()) > 0.05
    return (a - b).abs().max().item()


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_saved_and_loaded_adapters_draw_the_same_bits(make, tmp_path, kind, dora):
    base, pipe = draw(make(kind)), make(kind)
    arguments = adapt(pipe, kind, use_dora=dora, lora_dropout=0.3)
    for model in (pipe.unet, pipe.text_encoder):
        model.eval()
    pipe.save_lora_weights(tmp_path, **arguments)
    loaded = make(kind)
    loaded.load_lora_weights(tmp_path)
    assert loaded.get_list_adapters() == {"unet": ["default_0"], "text_encoder": ["default_0"]}
    assert torch.equal(draw(loaded), draw(pipe)) and away(draw(pipe), base) > 0.05
    for name in ("unet", "text_encoder"):  # each part counts
        half = make(kind)
        part = {key: value for key, value in arguments.items() if key.startswith(name)}
        half.save_lora_weights(tmp_path / name, **part)
        half.load_lora_weights(tmp_path / name)
        assert list(half.get_list_adapters()) == [name]
        assert away(draw(half), base) > 1e-3 and away(draw(half), draw(pipe)) > 1e-3


def test_the_file_has_diffusers_names_and_settings(make, tmp_path):
    pipe = make()
    arguments = adapt(pipe, use_dora=True)
    pipe.save_lora_weights(tmp_path, **arguments, safe_serialization=False)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    path = tmp_path / "pytorch_lora_weights.safetensors"
    layers = {"unet.mid_block.residual.conv1", "unet.mid_block.transformer_layers.0.attn1.to_out.0"}
    layers |= {"text_encoder.encoder.block.0.layer.0.SelfAttention.o"}
    names = {f"{x}.{y}" for x in layers for y in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")}
    assert names <= load_file(path).keys()
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (settings["unet.r"], settings["unet.lora_alpha"], settings["text_encoder.use_dora"]) == (2, 3.0, True)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_tensors_without_settings_have_a_scale_of_one(make, kind, dora):
    pipe, loaded = make(kind), make(kind)
    arguments = adapt(pipe, kind, lora_alpha=2, use_dora=dora)
    parts = {name: arguments[f"{name}_lora_layers"] for name in ("unet", "text_encoder")}
    state_dict = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    keys = list(state_dict)
    loaded.load_lora_weights(state_dict, adapter_name="mine")
    assert list(state_dict) == keys and loaded.get_active_adapters() == ["mine"]
    assert torch.equal(draw(loaded), draw(pipe))


def test_fused_adapters_are_the_sum_of_weights(make, tmp_path):
    pipe, base = make(), make()
    arguments = adapt(pipe)
    pipe.save_lora_weights(tmp_path, **arguments)
    pipe = make()
    pipe.load_lora_weights(tmp_path)
    picture = draw(pipe)
    pipe.fuse_lora()
    assert away(draw(pipe), picture) < 1e-5 and pipe.num_fused_loras == 1
    pipe.unfuse_lora()
    assert away(draw(pipe), picture) < 1e-5 and pipe.num_fused_loras == 0
    for scale in (0.5, 0.0):
        pipe.fuse_lora(lora_scale=scale)
        assert away(draw(pipe), picture) > 1e-3
        pipe.unfuse_lora()
        assert away(draw(pipe), picture) < 1e-5
    pipe.fuse_lora(lora_scale=0.5)
    pipe.unload_lora_weights()
    for name in ("unet", "text_encoder"):
        layers, old, new = (
            arguments[f"{name}_lora_layers"],
            getattr(base, name).state_dict(),
            getattr(pipe, name).state_dict(),
        )
        assert old.keys() == new.keys()
        for key, weight in old.items():
            a, b = (layers.get(key.replace(".weight", f".lora_{x}.weight")) for x in "AB")
            if a is not None:  # W + scale * alpha / r * B A
                weight = weight + 0.5 * 3 / 2 * (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
            torch.testing.assert_close(new[key], weight, rtol=0, atol=1e-6)
    pipe.save_pretrained(tmp_path / "fused")
    assert torch.equal(draw(MezzotintPipeline.from_pretrained(tmp_path / "fused")), draw(pipe))


def test_two_adapters_add_up_by_their_weights(make, tmp_path):
    arguments = [adapt(make(), seed=seed) for seed in (1, 2)]
    pipe, base = make(), make()
    for i, arguments_i in enumerate(arguments):
        pipe.save_lora_weights(tmp_path / str(i), **arguments_i)
        pipe.load_lora_weights(tmp_path / str(i), adapter_name=f"style{i}")
    pipe.set_adapters(["style0", "style1"], [0.7, -0.4])
    picture = draw(pipe)
    with torch.no_grad():
        for name in ("unet", "text_encoder"):
            for key, weight in getattr(base, name).named_parameters():
                for scale, arguments_i in zip((0.7, -0.4), arguments, strict=True):
                    a, b = (
                        arguments_i[f"{name}_lora_layers"].get(key.replace(".weight", f".lora_{x}.weight"))
                        for x in "AB"
                    )
                    if a is not None:
                        weight += scale * 3 / 2 * (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
    assert away(picture, draw(base)) < 1e-5
    alone = make()
    alone.load_lora_weights(tmp_path / "1")
    pipe.set_adapters("style1")
    assert away(draw(pipe), draw(alone)) < 1e-6
    pipe.delete_adapters("style0")
    assert away(draw(pipe), draw(alone)) < 1e-6
    pipe.disable_lora()
    assert torch.equal(draw(pipe), draw(make()))
    pipe.enable_lora()
    assert away(draw(pipe), draw(alone)) < 1e-6
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe), draw(make())) and pipe.get_list_adapters() == {}


def test_names_by_default_are_the_same_in_both_models(make, tmp_path):
    pipe = make()
    pipe.save_lora_weights(tmp_path / "both", **adapt(make()))
    pipe.save_lora_weights(tmp_path / "text", **adapt(make(), unet=False))
    for source in ("text", "both", "text"):
        pipe.load_lora_weights(tmp_path / source)
    expected = {"unet": ["default_1"], "text_encoder": ["default_0", "default_1", "default_2"]}
    assert pipe.get_list_adapters() == expected
    pipe.delete_adapters("default_1")
    pipe.load_lora_weights(tmp_path / "text")
    assert pipe.get_list_adapters()["text_encoder"] == ["default_0", "default_2", "default_1"]
    with pytest.raises(ValueError, match="adapter_name must be new: got 'default_0', in use are"):
        pipe.load_lora_weights(tmp_path / "both", adapter_name="default_0")


def test_what_is_no_lora_of_ours_is_refused(make, tmp_path):
    pipe = make()
    picture = draw(pipe)
    for wrong, got in (
        ({"lora_unet_x.lora_up.weight": torch.ones(1)}, "'lora_unet_x.lora_up.weight'"),
        ({"unet.conv_in.weight": torch.ones(1)}, "'unet.conv_in.weight'"),
        ({}, "no tensors"),
    ):
        with pytest.raises(ValueError, match=f"begin with 'unet.' or 'text_encoder.' and hold 'lora': got {got}"):
            pipe.load_lora_weights(wrong)
    half = dict(list(adapt(make())["unet_lora_layers"].items())[1:])
    with pytest.raises(ValueError, match="each layer of a LoRA must have lora_A and lora_B: .* has no lora_A"):
        pipe.load_lora_weights({f"unet.{key}": x for key, x in half.items()})
    with pytest.raises(ValueError, match="at least one of unet_lora_layers and text_encoder_lora_layers"):
        pipe.save_lora_weights(tmp_path)
    torch.save(adapt(make())["unet_lora_layers"], tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises((OSError, ValueError)):  # nothing pickled is read
        pipe.load_lora_weights(tmp_path)
    assert torch.equal(draw(pipe), picture)


def test_a_pipeline_with_adapters_is_not_saved_by_halves(make, tmp_path):
    pipe = make()
    adapt(pipe)
    with pytest.raises(
        ValueError, match=r"fuse_lora\(\) and then unload_lora_weights\(\).*got .*'unet': \['default'\]"
    ):
        pipe.save_pretrained(tmp_path / "pipe")
    assert not (tmp_path / "pipe").exists()


def test_a_pipeline_without_text_encoder_takes_the_unet_part(make, make_pipe, tmp_path):
    pipe = make()
    arguments = adapt(pipe)
    pipe.save_lora_weights(tmp_path, **arguments)
    bare = MezzotintPipeline(make_pipe().unet, pipe.scheduler, None, None)
    bare.load_lora_weights(tmp_path)
    assert bare.get_list_adapters() == {"unet": ["default_0"]}


def test_an_adapter_takes_the_place_of_another(make, tmp_path):
    """`hotswap` draws what the new adapter alone draws, also with other ranks, after `enable_lora_hotswap`. For a text
    encoder there is none, which is said before the U-Net's is exchanged."""
    for name, rank in (("one", 2), ("other", 4)):
        pipe = make()
        arguments = adapt(pipe, seed=rank, r=rank, lora_alpha=float(rank))
        pipe.save_lora_weights(tmp_path / name, **{k: v for k, v in arguments.items() if k.startswith("unet")})
        pipe.save_lora_weights(tmp_path / "both", **arguments)
    expected = make()
    expected.load_lora_weights(tmp_path / "other")

    pipe = make()
    pipe.enable_lora_hotswap(target_rank=4)
    pipe.load_lora_weights(tmp_path / "one", adapter_name="mine")
    before = draw(pipe)
    with pytest.raises(ValueError, match="text encoder") as error:
        pipe.load_lora_weights(tmp_path / "both", adapter_name="mine", hotswap=True)
    assert "\n" not in str(error.value) and torch.equal(draw(pipe), before)
    pipe.load_lora_weights(tmp_path / "other", adapter_name="mine", hotswap=True)
    assert pipe.get_list_adapters() == {"unet": ["mine"]}
    assert away(draw(pipe), draw(expected)) < 1e-5 and away(draw(pipe), before) > 0.01
