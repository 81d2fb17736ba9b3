"""What is trained of adapters and what is not, their formulas in closed form, and the file that comes out."""

import json
import sys
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel, DistilBertConfig, DistilBertModel

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.networks.adapters import add_adapters, save_adapters


def config(**settings) -> TrainConfig:
    source = {"dataset_name": "digits", "pretrained_model_name_or_path": "saved"}
    return TrainConfig(**source | {"adapter": "lora", "rank": 2} | settings)


def adapted(make_pipe, text=True, seed=0, **settings):
    pipe = make_pipe()
    torch.manual_seed(seed)
    return pipe, add_adapters(config(**settings), pipe.unet, pipe.text_encoder, text)


def batch():
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 3, 8, 8, generator=generator)
    return sample, torch.tensor([10.0, 700.0]), torch.tensor([[5, 6, 7, 1], [9, 8, 1, 0]])


def predict(pipe) -> torch.Tensor:
    sample, timesteps, tokens = batch()
    return pipe.unet(sample, timesteps, pipe.text_encoder(tokens).last_hidden_state).sample


def learn(pipe, trained, steps: int = 3) -> list[float]:
    optimizer = torch.optim.AdamW(trained.values(), lr=0.05)
    losses = []
    for _ in range(steps):
        loss = (predict(pipe) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def draw(pipe) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a red boot", num_inference_steps=2, generator=generator, output_type="pt").images


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_fresh_adapters_change_no_bit(make_pipe, adapter):
    pipe, trained = adapted(make_pipe, adapter=adapter)
    assert torch.equal(draw(pipe), draw(make_pipe()))
    same, other = adapted(make_pipe, adapter=adapter)[1], adapted(make_pipe, adapter=adapter, seed=1)[1]
    assert all(torch.equal(trained[key], same[key]) for key in trained)
    assert not all(torch.equal(trained[key], other[key]) for key in trained)


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_only_adapters_learn(make_pipe, adapter):
    pipe, trained = adapted(make_pipe, adapter=adapter)
    before = {key: parameter.detach().clone() for key, parameter in trained.items()}
    losses = learn(pipe, trained)
    assert losses[-1] < losses[0]
    for key, parameter in trained.items():  # each of them has learned
        assert key.startswith(("unet.", "text_encoder.")) and ".lora_" in key
        assert parameter.dtype == torch.float32 and not torch.equal(parameter, before[key]), key
    plain = make_pipe()
    for name in ("unet", "text_encoder"):
        base = getattr(plain, name).state_dict()
        now = {key.replace(".base_layer", ""): value for key, value in getattr(pipe, name).state_dict().items()}
        assert base.keys() == {key for key in now if ".lora_" not in key}
        assert all(torch.equal(now[key], value) for key, value in base.items())
        assert {f"{name}.{k}" for k, p in getattr(pipe, name).named_parameters() if p.requires_grad} == {
            key for key in trained if key.startswith(f"{name}.")
        }


@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("alpha, scale", [(None, 1.0), (3.0, 1.5)])
def test_an_adapted_layer_is_its_formula(make_pipe, adapter, alpha, scale):
    layers = ["attn1.to_q", "to_out.0", "conv1"]
    pipe, trained = adapted(make_pipe, adapter=adapter, lora_alpha=alpha, lora_layers=layers)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(torch.rand_like(parameter))
    places = {
        "unet": ("mid_block.transformer_layers.0.attn1.to_q", "mid_block.residual.conv1"),
        "text_encoder": ("encoder.block.0.layer.0.SelfAttention.q",),
    }
    for part, names in places.items():
        for name in names:
            layer = getattr(pipe, part).get_submodule(name)
            a, b = (trained[f"{part}.{name}.lora_{x}.default.weight"] for x in "AB")
            base = layer.base_layer.weight
            product = (b.flatten(1) @ a.flatten(1)).reshape(base.shape)
            weight = base + scale * product
            if adapter == "dora":  # eq. 5; the norm of each output's weights
                magnitude = trained[f"{part}.{name}.lora_magnitude_vector.default.weight"].flatten()
                by_output = (-1, *[1] * (base.ndim - 1))
                norm = weight.flatten(1).norm(dim=1)
                weight = weight * (magnitude / norm).reshape(by_output)
            x = torch.randn(2, base.shape[1], *[8] * (base.ndim - 2))
            function = torch.nn.functional.linear if base.ndim == 2 else torch.nn.functional.conv2d
            expected = function(x, weight, layer.base_layer.bias, **({} if base.ndim == 2 else {"padding": 1}))
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("text", [True, False])
def test_what_was_trained_is_what_loads(make_pipe, tmp_path, adapter, text):
    pipe, trained = adapted(make_pipe, text, adapter=adapter)
    learn(pipe, trained)
    path = save_adapters(tmp_path, pipe.unet, pipe.text_encoder)
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    kept = {key.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector") for key in trained}
    assert names == kept and any(name.startswith("text_encoder.") for name in names) == text
    assert not [key for key, value in settings.items() if "name_or_path" in key and value]
    fresh = make_pipe()
    fresh.load_lora_weights(tmp_path)
    assert torch.equal(draw(fresh), draw(pipe)) and not torch.equal(draw(fresh), draw(make_pipe()))


def test_checkpointed_adapters_learn_the_same_bits(make_pipe):
    plain, checkpointed = (adapted(make_pipe, adapter="dora") for _ in range(2))
    checkpointed[0].unet.train().enable_gradient_checkpointing()
    checkpointed[0].text_encoder.train().gradient_checkpointing_enable()
    for pipe, _ in (plain, checkpointed):
        for model in (pipe.unet, pipe.text_encoder):
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
                elif isinstance(getattr(module, "dropout", None), float):
                    module.dropout = 0.0
    learn(*plain), learn(*checkpointed)
    assert all(torch.equal(value, checkpointed[1][key]) for key, value in plain[1].items())


def test_dropout_is_of_the_adapters_in_training_alone(make_pipe):
    pipe, trained = adapted(make_pipe, text=False, lora_dropout=0.5)
    learn(pipe, trained)
    assert torch.equal(predict(pipe), predict(pipe))
    pipe.unet.train()
    assert not torch.equal(predict(pipe), predict(pipe))


@pytest.mark.parametrize(
    "make, names",
    [
        (lambda c: CLIPTextModel(CLIPTextConfig(**c, bos_token_id=0, eos_token_id=1)), "k_proj out_proj q_proj v_proj"),
        (lambda c: BertModel(BertConfig(**c)), "dense key query value"),
        (lambda c: DistilBertModel(DistilBertConfig(vocab_size=9, dim=8, hidden_dim=8, n_layers=1, n_heads=2)),
         "k_lin out_lin q_lin v_lin"),
    ],
    ids=["clip", "bert", "distilbert"],
)  # fmt: skip
def test_the_text_encoders_layers_are_its_attentions(make_unet, make, names):
    shape = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    encoder = make(shape | {"num_attention_heads": 2, "max_position_embeddings": 8})
    trained = add_adapters(config(), make_unet(), encoder, True)
    found = [key.split(".lora_")[0] for key in trained if key.startswith("text_encoder.") and ".lora_A" in key]
    assert sorted(name.rpartition(".")[2] for name in found) == names.split()
    assert all("att" in name for name in found)


@pytest.mark.parametrize(
    "layers, message",
    [
        (["to_q", "to_qq"], r"got 'to_qq'; did you mean to_q\?; there are .*conv1, .*to_out.0, to_q, "),
        (["to_out"], r"got 'to_out'; did you mean to_out.0\?"),
        (["o_q"], "got 'o_q'"),
        ([], "at least one layer: got none"),
    ],
)
def test_unknown_layers_are_refused(make_pipe, layers, message):
    pipe = make_pipe()
    with pytest.raises(UserError, match=f"^lora_layers must name .*{message}"):
        add_adapters(config(lora_layers=layers), pipe.unet, pipe.text_encoder, True)
    assert all(p.requires_grad for p in pipe.unet.parameters()) and not hasattr(pipe.unet, "peft_config")


def test_a_text_encoder_without_attention_is_refused(make_unet):
    with pytest.raises(UserError, match="must have attention to adapt: Sequential has none"):
        add_adapters(config(), make_unet(), torch.nn.Sequential(torch.nn.Linear(2, 2)), True)


def test_peft_is_asked_for_where_it_is_missing(make_pipe):
    pipe = make_pipe()
    with mock.patch.dict(sys.modules, {"peft": None}), pytest.raises(UserError, match="pip install peft"):
        add_adapters(config(), pipe.unet, pipe.text_encoder, True)
