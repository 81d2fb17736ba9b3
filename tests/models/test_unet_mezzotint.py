"""The U-Net against what must hold of it whatever it has learned: invariances, hand-written formulas, and itself with
one thing changed (saved, compiled, checkpointed, in another number of dimensions or another precision)."""

import copy
import functools
import inspect
import itertools
import json
import math
import warnings

import pytest
import scipy.fft
import torch
from conftest import TINY
from diffusers import (
    AutoModel,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    TextKVCacheConfig,
)
from diffusers.models import modeling_utils
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.embeddings import apply_rotary_emb
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from mezzotint import MezzotintUNetModel
from mezzotint.models import blocks_mezzotint
from mezzotint.models.blocks_mezzotint import (
    MezzotintAttention,
    MezzotintBlock,
    MezzotintDropout,
    MezzotintResidualBlock,
    MezzotintRMSNorm,
    MezzotintTransformerLayer,
    depth_to_space,
    space_to_depth,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(batch: int = 2, tokens: int = 5) -> dict:
    """Samples, timesteps and texts that all differ within the batch."""
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    mask[0, tokens // 2 :] = False
    return {
        "sample": randn(batch, 3, 8, 8, seed=1),
        "timestep": torch.linspace(20.5, 900.0, batch),
        "encoder_hidden_states": randn(batch, tokens, 16, seed=2),
        "encoder_attention_mask": mask,
    }


def close(actual: torch.Tensor, expected: torch.Tensor, rel: float = 1e-5) -> None:
    """Equal to `rel` times the largest magnitude, which is what rounding is proportional to."""
    assert expected.isfinite().all() and expected.abs().max() > 0.1
    torch.testing.assert_close(actual, expected, rtol=0, atol=rel * expected.abs().max().item())


# ------------------------------------------------------------------------------------------------- a fresh network


@pytest.mark.parametrize("config", [{}, {"cross_attention_dim": None}, {"dropout": 0.1}])
def test_fresh_network_predicts_exact_zero(config):
    kwargs = inputs()
    if "cross_attention_dim" in config:
        kwargs = {"sample": kwargs["sample"], "timestep": 3}
    output = MezzotintUNetModel(**TINY | config)(**kwargs).sample
    assert torch.equal(output, torch.zeros(2, 3, 8, 8))


def test_fresh_residual_branches_are_the_identity():
    unet = MezzotintUNetModel(**TINY)
    kinds = (MezzotintResidualBlock, MezzotintTransformerLayer)
    blocks = [module for module in unet.modules() if isinstance(module, kinds)]
    assert len(blocks) == 10
    for block in blocks:
        if isinstance(block, MezzotintResidualBlock):
            x = randn(1, block.norm1.num_channels, 4, 4)
            assert torch.equal(block(x, randn(1, 64)), block.shortcut(x))
        else:
            x = randn(1, 6, block.norm1.normalized_shape[0])
            assert torch.equal(block(x, randn(1, 3, 16), None), x)


# ---------------------------------------------------------------------------------------------------- what it reads


def test_tuple_holds_the_same_values(make_unet):
    unet = make_unet()
    output = unet(**inputs(), return_dict=False)
    assert type(output) is tuple and len(output) == 1
    assert torch.equal(output[0], unet(**inputs()).sample)


@pytest.mark.parametrize("timestep", [7.0, torch.tensor(7), torch.tensor([7]), torch.tensor([7.0, 7.0]).double()])
def test_timestep_forms_are_equivalent(make_unet, timestep):
    unet, kwargs = make_unet(), inputs()
    assert torch.equal(unet(**kwargs | {"timestep": timestep}).sample, unet(**kwargs | {"timestep": 7}).sample)


def test_fractional_timestep_is_its_own_sinusoid(make_unet):
    unet, seen = make_unet(), []
    unet.time_embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    outputs = [unet(**inputs() | {"timestep": t}).sample for t in (10, 10.5, 11)]
    frequencies = torch.tensor([10000.0 ** -(i / 8) for i in range(8)])
    close(seen[1], torch.cat([(10.5 * frequencies).cos(), (10.5 * frequencies).sin()]).expand(2, -1))
    assert min((outputs[1] - outputs[i]).abs().max() for i in (0, 2)) > 1e-3


def test_batch_equals_singles(make_unet):
    unet, kwargs = make_unet(), inputs(3)
    singles = [unet(**{k: v[i : i + 1] for k, v in kwargs.items()}).sample for i in range(3)]
    close(unet(**kwargs).sample, torch.cat(singles))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masked_text_equals_truncated_text(make_unet, dtype):
    unet, kwargs = make_unet(), inputs(1, tokens=6)
    full = dict(kwargs, encoder_attention_mask=kwargs["encoder_attention_mask"].to(dtype))
    short = dict(kwargs, encoder_hidden_states=kwargs["encoder_hidden_states"][:, :3], encoder_attention_mask=None)
    close(unet(**full).sample, unet(**short).sample)


def test_every_text_token_counts_and_no_padding(make_unet):
    unet, kwargs = make_unet(), inputs(2, tokens=6)
    text = kwargs["encoder_hidden_states"].requires_grad_()
    unet(**kwargs).sample.square().sum().backward()
    influence = text.grad.abs().sum(-1)  # (B, L)
    assert (influence[kwargs["encoder_attention_mask"]] > 1e-3).all()
    assert (influence[~kwargs["encoder_attention_mask"]] == 0).all()


def test_text_acts_through_attention_and_through_its_mean(make_unet):
    unet, kwargs = make_unet(), inputs()
    expected = unet(**kwargs).sample
    for names in (("encoder_embedding.weight",), ("attn2.to_out.0.weight", "attn2.to_out.0.bias")):
        other = copy.deepcopy(unet)
        for name, parameter in other.named_parameters():
            if name.endswith(names):
                torch.nn.init.zeros_(parameter)
        assert (other(**kwargs).sample - expected).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("what", ["plain", "adapter", "processor", "half"])
def test_text_projected_ahead_gives_the_same_bits_and_is_not_projected_again(make_unet, masked, what):
    unet, kwargs, calls = make_unet(transformer_layers_per_block=(0, 2)), inputs(), []
    mask = kwargs.pop("encoder_attention_mask") if masked else None
    text = kwargs.pop("encoder_hidden_states")
    kwargs.pop("encoder_attention_mask", None)
    if what == "adapter":
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
    if what == "processor":
        unet.set_attn_processor(WrittenOut())
    if what == "half":
        unet, text, kwargs["sample"] = unet.bfloat16(), text.bfloat16(), kwargs["sample"].bfloat16()
    steps = [kwargs | {"timestep": t} for t in (3, 5)]
    expected = [unet(**step, encoder_hidden_states=text, encoder_attention_mask=mask).sample for step in steps]
    projected = unet.project_text(text, mask)
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v", "encoder_norm", "encoder_embedding")):
            module.register_forward_hook(lambda *_: calls.append(1))
    for step, output in zip(steps, expected, strict=True):
        assert torch.equal(unet(**step, encoder_hidden_states=projected).sample, output)
    assert not calls


@torch.no_grad()
def test_text_is_not_projected_ahead_where_layers_are_loaded_as_they_are_reached(make_unet, tmp_path):
    unet, kwargs = make_unet(), inputs()
    expected = unet(**kwargs).sample
    options = {"offload_type": "block_level", "num_blocks_per_group": 1, "offload_to_disk_path": str(tmp_path)}
    unet.enable_group_offload(torch.device("cpu"), **options)
    assert unet.project_text(kwargs["encoder_hidden_states"], kwargs["encoder_attention_mask"]) is None
    assert torch.equal(unet(**kwargs).sample, expected)


@torch.no_grad()
def test_text_is_not_projected_ahead_where_the_weights_are_elsewhere(make_unet):
    unet = make_unet()
    assert unet.project_text(randn(2, 5, 16)) is not None
    unet.mid_block.to("meta")
    assert unet.project_text(randn(2, 5, 16)) is None


def test_residual_block_equals_written_out_formula():
    """conv2(silu(GN(conv1(silu(GN(x)))) (1 + scale) + shift)) + shortcut(x); the embedding gives the scale first."""
    torch.manual_seed(0)
    block = MezzotintResidualBlock(torch.nn.Conv2d, 8, 12, embed_dim=6, groups=4, eps=1e-5, dropout=0.0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    x, embedding = randn(2, 8, 4, 4), randn(2, 6, seed=1)

    def norm(module, y):
        groups = y.unflatten(1, (4, -1))
        variance, mean = torch.var_mean(groups, (2, 3, 4), keepdim=True, correction=0)
        y = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
        return y * module.weight[:, None, None] + module.bias[:, None, None]

    def silu(y):
        return y / (1 + (-y).exp())

    modulation = block.embedding_proj(silu(embedding))[..., None, None]
    residual = norm(block.norm2, block.conv1(silu(norm(block.norm1, x))))
    residual = block.conv2(silu(residual * (1 + modulation[:, :12]) + modulation[:, 12:]))
    close(block(x, embedding), residual + block.shortcut(x))


def test_decoder_units_read_their_twins(make_unet):
    unet = make_unet(layers_per_block=2)
    skips, read = [], []
    for block in unet.down_blocks:
        block.register_forward_hook(lambda _, args, output: skips.append(output))
    for block in unet.up_blocks:
        block.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    unet(**inputs())
    assert len(skips) == len(read) == 4
    for x, skip in zip(read, reversed(skips), strict=True):
        assert torch.equal(x[:, x.shape[1] // 2 :], skip)


def test_unchanged_pictures_and_none_told_of_are_the_same_bit_for_bit(make_unet):
    unet = make_unet(augment_dim=11)
    assert torch.equal(unet(**inputs(), augment_labels=torch.zeros(2, 11)).sample, unet(**inputs()).sample)
    # and the network is that without the input, whose checkpoints hold nothing of it
    plain, state = make_unet(), unet.state_dict()
    assert {name: tuple(state.pop(name).shape) for name in state.keys() - plain.state_dict().keys()} == {
        "time_embedding.cond_proj.weight": (16, 11)
    }
    plain.load_state_dict(state)
    assert torch.equal(plain(**inputs()).sample, unet(**inputs()).sample)


def test_what_was_done_to_a_picture_is_added_to_its_timesteps_sinusoid(make_unet):
    unet, labels = make_unet(augment_dim=11), randn(2, 11, seed=3)
    output = unet(**inputs(), augment_labels=labels).sample
    assert (output - unet(**inputs()).sample).abs().flatten(1).amax(1).min() > 1e-3
    singles = [
        unet(**{k: v[i : i + 1] for k, v in inputs().items()}, augment_labels=labels[i : i + 1]).sample for i in (0, 1)
    ]
    close(output, torch.cat(singles))  # each its own
    embedding = unet.time_embedding
    handle = unet.time_proj.register_forward_hook(lambda _, args, out: out + labels @ embedding.cond_proj.weight.T)
    close(unet(**inputs()).sample, output)
    handle.remove()
    gradient = torch.autograd.grad(output.square().sum(), embedding.cond_proj.weight)[0]
    assert (gradient.abs().amax(0) > 0).all()


# --------------------------------------------------------------------------------------------------- size and axes


@pytest.mark.parametrize("size", [(4, 12), (20, 8), (2, 2)])
def test_transposed_kernels_give_the_transposed_picture(make_unet, size):
    unet = make_unet()
    other = copy.deepcopy(unet)
    for module in other.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data = module.weight.data.transpose(2, 3).contiguous()
    kwargs = inputs() | {"sample": randn(2, 3, *size)}
    expected = unet(**kwargs).sample
    assert expected.shape == (2, 3, *size)
    close(other(**kwargs | {"sample": kwargs["sample"].mT.contiguous()}).sample.mT, expected, rel=2e-5)


@pytest.mark.parametrize("low, depth, axes", [(1, 6, None), (2, 6, None), (2, 3, (1, 2)), (1, 5, (1,))])
def test_middle_slice_of_higher_kernels_is_the_lower_network(make_unet, low, depth, axes):
    """A volume whose slices along the new axis are all the same, through kernels that are zero off the middle slice,
    stays so at every level, and each slice is what the lower-dimensional network makes of it. Attention agrees:
    repeated keys share their weight. Where the new axis is not halved there may be any number of slices, and patches
    and blocks are those of the lower network."""
    more = {} if axes is None else {"patch_size": 2, "linear_skip_size": 4}
    flat = make_unet(spatial_dims=low, **more)
    solid = make_unet(spatial_dims=low + 1, downsample_axes=axes, **more)
    state, weights = flat.state_dict(), {}
    for name, tensor in solid.state_dict().items():
        weights[name] = state[name].reshape(tensor.shape) if tensor.shape[2:].numel() == 1 else torch.zeros_like(tensor)
        if tensor.shape != state[name].shape and tensor.shape[2:].numel() > 1:
            weights[name][:, :, tensor.shape[2] // 2] = state[name]
        elif tensor.shape == state[name].shape:
            weights[name] = state[name]
    solid.load_state_dict(weights)
    kwargs = inputs() | {"sample": randn(2, 3, *(4, 8)[:low])}
    expected = flat(**kwargs).sample
    volume = kwargs["sample"].unsqueeze(2).expand(-1, -1, depth, *[-1] * low)
    output = solid(**kwargs | {"sample": volume}).sample
    close(output, expected.unsqueeze(2).expand_as(output), rel=3e-5)


# --------------------------------------------------------------------------------------------------------- patches


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_patches_are_the_samples_numbers_each_at_its_place(dims, patch):
    sample = randn(2, 3, *[patch * n for n in (2, 4, 5)[:dims]])
    patches = space_to_depth(sample, patch)
    assert patches.shape == (2, 3 * patch**dims, *(2, 4, 5)[:dims])
    for channel in range(3):
        for offset in itertools.product(range(patch), repeat=dims):
            number = functools.reduce(lambda n, i: n * patch + i, offset, channel)  # C, then the axes in their order
            assert torch.equal(
                patches[:, number], sample[(slice(None), channel, *(slice(i, None, patch) for i in offset))]
            )
    assert torch.equal(depth_to_space(patches, patch), sample)
    if dims == 2:
        assert torch.equal(patches, torch.nn.functional.pixel_unshuffle(sample, patch))


def no_patches(unet: MezzotintUNetModel) -> MezzotintUNetModel:
    """The network that reads the patches of `unet` as channels, with the same weights."""
    config = {name: unet.config[name] for name in inspect.signature(MezzotintUNetModel).parameters}
    for name in ("in_channels", "out_channels"):
        config[name] *= unet.config.patch_size**unet.config.spatial_dims
    plain = MezzotintUNetModel(**config | {"patch_size": 1}).eval()
    plain.load_state_dict(unet.state_dict())
    return plain


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("patch", [1, 2, 4])
@torch.no_grad()
def test_a_patched_network_is_a_plain_one_of_unshuffled_pixels(make_unet, patch, layout):
    unet = make_unet(patch_size=patch, out_channels=2).to(memory_format=layout)
    plain, kwargs = no_patches(unet).to(memory_format=layout), inputs() | {"sample": randn(2, 3, 8 * patch, 4 * patch)}
    unshuffled = torch.nn.functional.pixel_unshuffle(kwargs["sample"], patch)
    expected = torch.nn.functional.pixel_shuffle(plain(**kwargs | {"sample": unshuffled}).sample, patch)
    output = unet(**kwargs).sample
    assert output.shape == (2, 2, 8 * patch, 4 * patch) and unet.downsample_factor == 2 * patch
    close(output, expected)
    close(unet(**kwargs | {"sample": kwargs["sample"].to(memory_format=torch.channels_last)}).sample, expected)


@pytest.mark.parametrize("dims", [1, 3])
@torch.no_grad()
def test_patches_along_one_and_three_axes(make_unet, dims):
    unet = make_unet(spatial_dims=dims, patch_size=2)
    kwargs = inputs() | {"sample": randn(2, 3, *[8] * dims)}
    patches = space_to_depth(kwargs["sample"], 2)
    close(unet(**kwargs).sample, depth_to_space(no_patches(unet)(**kwargs | {"sample": patches}).sample, 2))


@torch.no_grad()
def test_transposed_patches_and_kernels_give_the_transposed_picture(make_unet):
    """The numbers of a transposed patch are those of the patch in another order, in which the first and the last
    kernels' channels have to stand."""
    unet = make_unet(patch_size=2)
    other = copy.deepcopy(unet)
    for module in other.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data = module.weight.data.transpose(2, 3).contiguous()
    order = torch.arange(12).reshape(3, 2, 2).mT.flatten()
    other.conv_in.weight.data = other.conv_in.weight.data[:, order]
    other.conv_out.weight.data, other.conv_out.bias.data = other.conv_out.weight[order], other.conv_out.bias[order]
    kwargs = inputs() | {"sample": randn(2, 3, 8, 12)}
    expected = unet(**kwargs).sample
    close(other(**kwargs | {"sample": kwargs["sample"].mT.contiguous()}).sample.mT, expected, rel=2e-5)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_the_first_convolution_starts_at_one_variance_whatever_the_patches(patch):
    """Each of the n weights and the bias is uniform, of variance 1 / 3n, so that white noise comes out with 1/3 (1 +
    1/n)."""
    torch.manual_seed(0)
    unet = MezzotintUNetModel(**TINY | {"block_out_channels": (512, 512), "patch_size": patch})
    inner = unet.conv_in(space_to_depth(randn(4, 3, 16 * patch, 16 * patch), patch))[..., 1:-1, 1:-1]
    assert inner.square().mean().item() == pytest.approx((1 + 1 / (27 * patch**2)) / 3, rel=0.05)


# Arguments that older configs do not have
LATER = ["patch_size", "linear_skip_size", "condition", "attributes", "modality", "downsample_axes", "rope_theta"]


def test_a_config_from_before_patches_is_of_a_network_without_them(make_unet):
    unet = make_unet()
    config = {name: value for name, value in unet.config.items() if name not in LATER}
    old = MezzotintUNetModel.from_config(config).eval()
    old.load_state_dict(unet.state_dict())
    assert old.config.patch_size == 1 and torch.equal(old(**inputs()).sample, unet(**inputs()).sample)
    assert old.config.linear_skip_size is None and old.linear_skip is None
    order = list(inspect.signature(MezzotintUNetModel).parameters)
    assert order[-len(LATER) :] == LATER  # what is passed in order stays


@pytest.mark.parametrize("dims, block", [(1, 4), (2, 2), (2, 4), (3, 2)])
@torch.no_grad()
def test_a_linear_skip_can_be_the_optimal_denoiser_of_gaussian_data(dims, block):
    """For data with covariance S in each block, x = a x0 + s e and v = a e - s x0, E[v | x] = a s (1 - S) (a^2 S +
    s^2)^-1 x. With independent cosine coefficients a gain for each is enough; all other layers begin at zero."""
    unet = MezzotintUNetModel(
        **TINY | {"block_out_channels": (8, 8), "patch_size": 2, "spatial_dims": dims, "linear_skip_size": block}
    )
    a, s, numbers = 0.8, 0.6, 3 * block**dims
    variances = torch.rand(numbers, generator=torch.Generator().manual_seed(1)).double() * 2
    basis = unet.linear_skip.analysis.weight.flatten(1).double()
    close(basis @ basis.T, torch.eye(numbers, dtype=torch.float64))
    covariance, eye = basis.T @ variances.diag() @ basis, torch.eye(numbers, dtype=torch.float64)
    optimal = a * s * (eye - covariance) @ torch.linalg.inv(a**2 * covariance + s**2 * eye)
    unet.linear_skip.gain.bias.copy_(a * s * (1 - variances) / (a**2 * variances + s**2))
    kwargs = inputs() | {"sample": randn(2, 3, *[8] * dims)}
    blocks = space_to_depth(kwargs["sample"], block).double()
    expected = torch.einsum("ij,bj...->bi...", optimal, blocks)
    close(unet(**kwargs).sample, depth_to_space(expected, block).float())


@torch.no_grad()
def test_the_basis_of_a_linear_skip_is_the_cosine_transform():
    """The coefficients of a picture are scipy's, along both axes and the three colours."""
    unet = MezzotintUNetModel(**TINY | {"patch_size": 2, "linear_skip_size": 4})
    picture = randn(1, 3, 4, 4)
    expected = scipy.fft.dctn(picture[0].numpy(), norm="ortho")
    close(unet.linear_skip.analysis(space_to_depth(picture, 4)).flatten(), torch.from_numpy(expected).flatten())


@torch.no_grad()
def test_a_linear_skip_hands_on_the_channels_that_are_predicted():
    """Where the gains are one, it is the identity on as many channels as there are in and out, and adds the channels of
    a picture beside the sample to these."""
    for channels in (2, 3, 6):
        unet = MezzotintUNetModel(**TINY | {"in_channels": 4, "out_channels": channels, "linear_skip_size": 2})
        unet.linear_skip.gain.bias.fill_(1)
        kwargs = inputs() | {"sample": randn(2, 4, 8, 8)}
        output = unet(**kwargs).sample
        expected = kwargs["sample"][:, :channels].clone()
        if channels < 4:
            expected[:, : 4 - channels] += kwargs["sample"][:, channels:]
        close(output[:, :4], expected)
        assert not output[:, 4:].any()


@pytest.mark.parametrize("patch, block", [(1, 2), (2, 2), (2, 4)])
@torch.no_grad()
def test_the_last_features_decide_the_gain_at_each_block(patch, block):
    """By hand: what they add at a block is their linear map, of all positions in it."""
    unet = MezzotintUNetModel(**TINY | {"patch_size": patch, "linear_skip_size": block})
    for layer in (unet.linear_skip.gain, unet.linear_skip.local_gain, unet.conv_out):
        layer.weight.normal_(std=0.1), layer.bias.normal_(std=0.1)
    seen = {}
    unet.conv_out.register_forward_hook(lambda module, args, output: seen.update(features=args[0], rest=output))
    unet.time_embedding.register_forward_hook(lambda module, args, output: seen.update(time=output))
    kwargs = inputs() | {"sample": randn(2, 3, 8, 8)}
    output = unet(**kwargs).sample
    embedding = (
        seen["time"] + unet.project_text(kwargs["encoder_hidden_states"], kwargs["encoder_attention_mask"]).embedding
    )
    gain = unet.linear_skip.gain(torch.nn.functional.silu(embedding))[..., None, None]
    local = unet.linear_skip.local_gain
    features = space_to_depth(seen["features"], block // patch).movedim(1, -1)  # a position of each block
    gain = gain + (features @ local.weight.flatten(1).T + local.bias).movedim(-1, 1)
    basis = unet.linear_skip.analysis.weight.flatten(1)
    blocks = torch.einsum("ij,bjhw->bihw", basis, space_to_depth(kwargs["sample"], block)) * gain
    expected = depth_to_space(torch.einsum("ij,bihw->bjhw", basis, blocks), block)
    close(output, expected + depth_to_space(seen["rest"], patch))


def test_the_gains_of_a_linear_skip_are_trained():
    """They are a function of the timestep and begin at zero."""
    unet = MezzotintUNetModel(**TINY | {"linear_skip_size": 2})
    assert not unet(**inputs()).sample.any()
    (unet(**inputs()).sample - inputs()["sample"]).square().mean().backward()
    assert unet.linear_skip.gain.weight.grad.abs().max() > 0 and unet.linear_skip.local_gain.weight.grad.abs().max() > 0
    assert unet.linear_skip.analysis.weight.grad is not None
    with torch.no_grad():
        unet.linear_skip.gain.weight.normal_()
        outputs = [unet(**inputs() | {"timestep": t}).sample for t in (10, 700)]
    assert (outputs[0] - outputs[1]).abs().max() > 0.1


@torch.no_grad()
def test_patches_in_half_precision_and_with_adapters(make_unet):
    unet = make_unet(patch_size=2)
    plain, kwargs = no_patches(unet), inputs() | {"sample": randn(2, 3, 16, 16)}
    patches = kwargs | {"sample": space_to_depth(kwargs["sample"], 2)}
    for network in (unet, plain):
        torch.manual_seed(0)
        lora = LoraConfig(r=2, target_modules=["to_q", "conv_in", "conv_out"], init_lora_weights=False)
        network.add_adapter(lora)
    close(unet(**kwargs).sample, depth_to_space(plain(**patches).sample, 2))
    with torch.autocast("cpu", torch.bfloat16):
        output = unet(**kwargs).sample
        assert output.dtype == torch.bfloat16
        assert torch.equal(output, depth_to_space(plain(**patches).sample, 2))


# ------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # by torch's own
def test_the_norm_is_torchs_bit_for_bit(dtype, autocast):
    ours, stock = MezzotintRMSNorm(16, eps=1e-6), torch.nn.RMSNorm(16, eps=1e-6)
    for norm in (ours, stock):
        torch.nn.init.normal_(norm.weight, 1.0, 1e-3, generator=torch.Generator().manual_seed(0))
        norm.to(torch.float32 if autocast else dtype)
    assert ours.state_dict().keys() == stock.state_dict().keys() == {"weight"}
    results = []
    for norm in (ours, stock):
        x = randn(2, 6, 16).to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = norm(x)
        y.backward(randn(2, 6, 16, seed=1).to(dtype))
        assert y.dtype == x.dtype
        results.append((y, x.grad, norm.weight.grad))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_autocast_warns_of_nothing(make_unet):
    unet = make_unet().train()
    kinds = []
    for name, module in unet.named_modules():
        if name.endswith(("norm_q", "norm_k")):
            module.register_forward_hook(lambda _, args, output: kinds.append((args[0].dtype, output.dtype)))
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with torch.autocast("cpu", torch.bfloat16):
                output = unet(**inputs()).sample
            output.float().square().mean().backward()
    finally:
        torch.set_warn_always(False)
    assert set(kinds) == {(torch.bfloat16, torch.bfloat16)}


@pytest.mark.parametrize("masked", [False, True])
def test_a_cpu_trains_attention_in_float32_under_autocast_and_draws_as_asked(monkeypatch, masked):
    """Whose backward pass is slow in half precision: gradients are those of float32 on the rounded tensors."""
    torch.manual_seed(0)
    attn = MezzotintAttention(32, 8, context_dim=24)
    torch.nn.init.normal_(attn.to_out[0].weight, std=0.2)
    x, text = torch.randn(2, 9, 32, requires_grad=True), torch.randn(2, 5, 24)
    mask = torch.arange(5)[None] < torch.tensor([[5], [3]]) if masked else None
    dispatch, seen = blocks_mezzotint.dispatch_attention_fn, []

    def watched(query, key, value, **rest):
        seen.append({query.dtype, key.dtype, value.dtype, torch.is_autocast_enabled("cpu")})
        return dispatch(query, key, value, **rest)

    monkeypatch.setattr(blocks_mezzotint, "dispatch_attention_fn", watched)
    with torch.autocast("cpu", torch.bfloat16):
        trained = attn(x, text, attention_mask=mask)
        with torch.no_grad():
            drawn = attn(x, text, attention_mask=mask)
    assert seen == [{torch.float32, False}, {torch.bfloat16, True}]
    assert trained.dtype == drawn.dtype == torch.bfloat16
    torch.testing.assert_close(trained, drawn, atol=0.02, rtol=0.02)
    exact = attn(x, text, attention_mask=mask)
    for one, other in zip(
        *(torch.autograd.grad(y.float().square().sum(), [x, *attn.parameters()]) for y in (trained, exact)), strict=True
    ):
        assert (one - other).norm() < 0.02 * other.norm()


def reference_attention(attn, x, context=None, mask=None):
    """softmax(q k^T / sqrt(d)) v with RMS-normalised q and k, written out in float64."""

    def heads(linear, y):
        return (y.double() @ linear.weight.double().T).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, h, N, d)

    def rms(norm, y):
        return y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()

    context = x if context is None else context
    q, k, v = (
        rms(attn.norm_q, heads(attn.to_q, x)),
        rms(attn.norm_k, heads(attn.to_k, context)),
        heads(attn.to_v, context),
    )
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        logits = logits.masked_fill(~mask.bool()[:, None, None], -math.inf)
    out = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return (out @ attn.to_out[0].weight.double().T + attn.to_out[0].bias.double()).float()


@pytest.mark.parametrize("context", [None, (2, 5, 16)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_written_out_softmax(context, masked):
    torch.manual_seed(0)
    attn = MezzotintAttention(24, head_dim=8, context_dim=context and context[-1])
    for parameter in attn.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, context = randn(2, 7, 24), context and randn(*context, seed=1)
    mask = torch.arange(7 if context is None else 5).expand(2, -1) < torch.tensor([[2], [4]]) if masked else None
    close(attn(x, context, mask), reference_attention(attn, x, context, mask))


@pytest.mark.parametrize("spatial, head_dim", [((7,), 8), ((3, 4), 8), ((2, 3, 4), 14)])
def test_rotary_embeddings_turn_the_channels_of_each_axis_by_its_position(spatial, head_dim):
    """Against complex numbers: a pair of channels of axis k is turned by p_k theta^(-2 i / d_k)."""
    pairs, theta = head_dim // 2, 100.0
    shares = [pairs * (k + 1) // len(spatial) - pairs * k // len(spatial) for k in range(len(spatial))]
    assert sum(shares) == pairs and max(shares) - min(shares) <= 1
    x = randn(2, math.prod(spatial), 3, head_dim)
    turned = apply_rotary_emb(x, blocks_mezzotint.rotary_embedding(spatial, head_dim, theta), sequence_dim=1)
    for n, place in enumerate(itertools.product(*map(range, spatial))):
        angles = [p * theta ** (-i / share) for p, share in zip(place, shares, strict=True) for i in range(share)]
        turn = torch.polar(torch.ones(pairs, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64))
        expected = torch.view_as_real(torch.view_as_complex(x[:, n].double().unflatten(-1, (-1, 2))) * turn)
        close(turned[:, n], expected.flatten(-2).float())


def test_with_rotary_embeddings_attention_knows_how_far_apart_and_not_where():
    torch.manual_seed(0)
    attn = MezzotintAttention(24, head_dim=8)
    for parameter in attn.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, (cosines, sines) = randn(2, 5, 24), blocks_mezzotint.rotary_embedding((12,), 8, 100.0)
    here, there = (attn(x, rotary_emb=(cosines[at : at + 5], sines[at : at + 5])) for at in (0, 7))
    close(here, there)
    order = torch.tensor([3, 1, 4, 0, 2])
    close(attn(x[:, order]), attn(x)[:, order])  # without them it knows of no order
    assert (attn(x[:, order], rotary_emb=(cosines[:5], sines[:5])) - here[:, order]).abs().max() > 0.1
    attn.fuse_projections()
    close(attn(x, rotary_emb=(cosines[:5], sines[:5])), here)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_network_with_rotary_embeddings_reads_positions_and_keeps_all_else(make_unet, dims, tmp_path):
    shape = {"spatial_dims": dims, "attention_head_dim": 8}
    plain, rotary = make_unet(**shape), make_unet(**shape, rope_theta=10000.0)
    rotary.load_state_dict(plain.state_dict())  # no weights of their own
    given = inputs() | {"sample": randn(2, 3, *(8,) * dims, seed=1)}
    found = rotary(**given).sample
    assert (found - plain(**given).sample).abs().max() > 1e-4
    rotary.save_pretrained(tmp_path)
    assert MezzotintUNetModel.from_pretrained(tmp_path)(**given).sample.equal(found)
    rotary.set_attn_processor(type(next(iter(rotary.attn_processors.values())))())
    assert rotary(**given).sample.equal(found)
    rotary.enable_gradient_checkpointing()
    close(rotary(**given).sample, found)


class WrittenOut:
    """A processor of one's own."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        return reference_attention(attn, hidden_states, encoder_hidden_states, attention_mask)


@torch.no_grad()
@pytest.mark.parametrize("masked", [True, False])
def test_backends_that_take_no_mask_are_handed_none(make_unet, monkeypatch, masked):
    """A mask without padding is dropped when the text is projected ahead; one with padding needs the native backend."""
    unet, kwargs, used = make_unet(), inputs(), []
    mask = kwargs.pop("encoder_attention_mask") | (not masked)
    text = kwargs.pop("encoder_hidden_states")
    expected = unet(**kwargs, encoder_hidden_states=text, encoder_attention_mask=mask).sample
    # diffusers sets it for all models of a process
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", AttentionBackendName.NATIVE)
    unet.set_attention_backend("_native_flash")
    dispatch = blocks_mezzotint.dispatch_attention_fn
    monkeypatch.setattr(
        blocks_mezzotint,
        "dispatch_attention_fn",
        lambda *a, **k: (used.append(k["backend"].value), dispatch(*a, **k))[1],
    )
    close(unet(**kwargs, encoder_hidden_states=text, encoder_attention_mask=mask).sample, expected)
    assert used == ["_native_flash", "native"] * 5  # self-attention has no mask
    used.clear()
    close(unet(**kwargs, encoder_hidden_states=unet.project_text(text, mask)).sample, expected)
    assert used == ["_native_flash", "native" if masked else "_native_flash"] * 5


@torch.no_grad()
@pytest.mark.parametrize("ahead", [False, True])
def test_fused_projections_give_the_same_and_come_apart_bit_for_bit(make_unet, ahead):
    unet, kwargs = make_unet(), inputs()
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    mask = kwargs.pop("encoder_attention_mask")
    text = kwargs.pop("encoder_hidden_states")

    def output() -> torch.Tensor:
        if ahead:
            return unet(**kwargs, encoder_hidden_states=unet.project_text(text, mask)).sample
        return unet(**kwargs, encoder_hidden_states=text, encoder_attention_mask=mask).sample

    expected, random = output(), torch.get_rng_state()
    unet.fuse_qkv_projections()
    unet.fuse_qkv_projections()
    fused = [name for name, _ in unet.named_parameters() if name.endswith(("to_qkv.weight", "to_kv.weight"))]
    assert len(fused) == 10 and sum(p.numel() for p in unet.parameters()) == sum(x.numel() for x in before.values())
    close(output(), expected)
    unet.unfuse_qkv_projections()
    assert list(unet.state_dict()) == list(before) and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert torch.equal(output(), expected)


def test_fused_projections_are_neither_saved_nor_made_of_adapters(make_unet, tmp_path):
    unet = make_unet()
    for trained in (False, True):
        unet.requires_grad_(trained)
        unet.fuse_qkv_projections()
        assert all(weight.requires_grad == trained for weight in unet.parameters())
        unet.unfuse_qkv_projections()
        assert all(weight.requires_grad == trained for weight in unet.parameters())
    unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match="^projections must be saved one by one: call unfuse_qkv_projections"):
        unet.save_pretrained(tmp_path / "unet")
    assert not (tmp_path / "unet").exists()
    unet.unfuse_qkv_projections()
    unet.save_pretrained(tmp_path / "unet")
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_v"]))
    with pytest.raises(ValueError, match="^projections can be fused where they are plain linear layers: got Linear"):
        unet.fuse_qkv_projections()


def test_processor_of_ones_own_gives_the_same(make_unet):
    unet = make_unet()
    expected = unet(**inputs()).sample
    names = set(unet.attn_processors)
    assert len(names) == 10  # self and cross, in two encoder, one middle and two decoder units
    unet.set_attn_processor(WrittenOut())
    assert {type(p) for p in unet.attn_processors.values()} == {WrittenOut} and set(unet.attn_processors) == names
    close(unet(**inputs()).sample, expected)
    with pytest.raises(ValueError, match="number of processors 1"):
        unet.set_attn_processor({min(names): WrittenOut()})


# -------------------------------------------------------------------------------------------------------- training


def test_checkpointing_recomputes_each_block_and_keeps_the_gradients(make_unet):
    runs = {}
    for checkpointing in (False, True):
        unet = make_unet(dropout=0.2).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        calls = []
        for block in (module for module in unet.modules() if isinstance(module, MezzotintBlock)):
            block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        saved = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x):
            loss = unet(**inputs()).sample.square().mean()
        forward = len(calls)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in unet.named_parameters()}
        runs[checkpointing] = forward, len(calls) - forward, sum(saved), gradients
    assert runs[False][:2] == (5, 0) and runs[True][:2] == (5, 5)
    assert runs[True][2] < runs[False][2] / 4
    for name, expected in runs[False][3].items():
        assert expected.abs().max() > 0, name  # every parameter takes part
        torch.testing.assert_close(runs[True][3][name], expected, rtol=1e-5, atol=1e-7)


def test_dropout_acts_in_training_only(make_unet):
    unet, plain = make_unet(dropout=0.3), make_unet()
    expected = plain(**inputs()).sample
    assert torch.equal(unet(**inputs()).sample, expected)
    assert torch.equal(plain.train()(**inputs()).sample, expected)
    unet.train()
    first, second = (unet(**inputs()).sample for _ in range(2))
    assert (first - expected).abs().max() > 0.05 and (first - second).abs().max() > 0.05


def test_dropout_reaches_every_residual_branch(make_unet):
    """At probability 1 a branch is what its last layer makes of zeros, or zero."""
    unet = make_unet(dropout=1.0).train()
    x, text = randn(2, 6, 16), randn(2, 5, 16)
    layer = unet.down_blocks[0].transformer_layers[0]
    close(layer(x, text, None), x + layer.ff.net[-1].bias)
    block, x = unet.mid_block.residual, randn(2, 32, 4, 4)
    close(block(x, randn(2, 64)), x + block.conv2.bias[:, None, None])


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout_on_a_cpu_drops_as_often_as_it_should(probability, layout):
    """Each number by itself: in each of the four that share a random number, in pairs of neighbours, in each channel.
    What is left is scaled up, and so is its gradient; five standard deviations are allowed."""
    torch.manual_seed(0)
    x = torch.ones(64, 16, 16, 16).to(memory_format=layout).requires_grad_()
    y = MezzotintDropout(probability).train()(x)
    assert y.is_contiguous(memory_format=layout)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    kept = y.detach() != 0
    torch.testing.assert_close(
        y.detach()[kept], torch.full((int(kept.sum()),), 1 / (1 - probability)), rtol=1e-4, atol=0
    )

    def check(some: torch.Tensor, expected: float) -> None:
        assert abs(some.float().mean().item() - expected) < 5 * (expected * (1 - expected) / some.numel()) ** 0.5

    in_memory = (kept if layout == torch.contiguous_format else kept.movedim(1, -1)).flatten()
    for lane in range(4):
        check(in_memory[lane::4], 1 - probability)
        check(in_memory[lane:-1:4] & in_memory[lane + 1 :: 4], (1 - probability) ** 2)
    for channel in range(16):
        check(kept[:, channel], 1 - probability)


def test_dropout_on_a_cpu_is_a_function_of_the_seed_and_torchs_own_at_the_ends():
    x = randn(3, 5, 7)  # 105 numbers, which four do not divide
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(MezzotintDropout(0.5).train()(x))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(MezzotintDropout(0.5).eval()(x), x)
    assert torch.equal(MezzotintDropout(0.0).train()(x), x) and not MezzotintDropout(1.0).train()(x).any()
    for same in (x[..., ::2], x[:, ::2]):  # what does not lie in order is torch's to drop
        torch.manual_seed(3)
        expected = torch.nn.functional.dropout(same, 0.5)
        torch.manual_seed(3)
        assert torch.equal(MezzotintDropout(0.5).train()(same), expected)


@pytest.mark.parametrize("dtype, rel", [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_half_precision_is_close(make_unet, dtype, rel):
    unet, kwargs = make_unet(augment_dim=3), inputs() | {"augment_labels": randn(2, 3)}
    expected = unet(**kwargs).sample
    half = {k: v.to(dtype) if k in ("sample", "encoder_hidden_states") else v for k, v in kwargs.items()}
    output = unet.to(dtype)(**half).sample
    assert output.dtype == dtype
    assert (output.float() - expected).norm() < rel * expected.norm()


def test_layerwise_casting_rounds_the_weights_it_may(make_unet):
    unet, rounded = make_unet(), make_unet()
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stored = {name for name, p in unet.named_parameters() if p.dtype == torch.float8_e4m3fn}
    assert (
        "down_blocks.0.residual.conv1.weight" in stored and "mid_block.transformer_layers.0.attn1.to_q.weight" in stored
    )
    assert not any(part in name for name in stored for part in ("norm", "time_embedding", "conv_in", "conv_out"))
    for name, parameter in rounded.named_parameters():
        if name in stored:
            parameter.data = parameter.data.to(torch.float8_e4m3fn).float()
    close(unet(**inputs()).sample, rounded(**inputs()).sample)


@torch.no_grad()
def test_layerwise_casting_computes_in_another_precision_than_the_models(make_unet):
    unet, rounded, kwargs = make_unet(), make_unet(), inputs()
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    for (_, stored), parameter in zip(unet.named_parameters(), rounded.parameters(), strict=True):
        rounded_to = torch.float8_e4m3fn if stored.dtype == torch.float8_e4m3fn else torch.bfloat16
        parameter.data = parameter.data.to(rounded_to).to(torch.bfloat16)
    half = {k: v.bfloat16() if k in ("sample", "encoder_hidden_states") else v for k, v in kwargs.items()}
    assert unet.dtype == torch.bfloat16
    assert torch.equal(unet(**half).sample, rounded(**half).sample)


@torch.no_grad()
def test_repeated_layers_compile_into_one_graph_for_each_width(make_unet):
    depth = {"block_out_channels": (16, 32, 64), "transformer_layers_per_block": (0, 1, 1), "layers_per_block": 2}
    unet, kwargs, graphs = make_unet(**depth), inputs(), []  # as deep as the default network
    expected = unet(**kwargs).sample
    torch.compiler.reset()
    unet.compile_repeated_blocks(fullgraph=True, backend=lambda graph, _: (graphs.append(graph), graph)[1])
    close(unet(**kwargs).sample, expected)
    assert len(graphs) == 2


@torch.no_grad()
def test_compiles_into_one_graph(make_unet):
    unet, kwargs = make_unet(), inputs()
    expected = unet(**kwargs).sample
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
    close(compiled(**kwargs).sample, expected)


@torch.no_grad()
def test_channels_last_gives_the_same(make_unet):
    unet, kwargs = make_unet(), inputs()
    expected = unet(**kwargs).sample
    unet.to(memory_format=torch.channels_last)
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        close(unet(**kwargs | {"sample": kwargs["sample"].to(memory_format=memory_format)}).sample, expected)


def test_lora_starts_as_identity_trains_alone_and_round_trips(make_unet, tmp_path):
    unet, base = make_unet(), make_unet()
    before = base(**inputs()).sample
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    assert torch.equal(unet(**inputs()).sample, before)
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 4 * 10 and all(".lora_" in name for name in trained)

    for name, parameter in unet.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    after = unet(**inputs()).sample
    assert (after - before).abs().max() > 0.05
    unet.save_lora_adapter(tmp_path)
    base.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert torch.equal(base(**inputs()).sample, after)

    unet.fuse_lora()
    close(unet(**inputs()).sample, after)
    unet.unfuse_lora()
    unet.disable_lora()
    close(unet(**inputs()).sample, before)


@torch.no_grad()
@pytest.mark.parametrize("ahead", [False, True])
def test_adapters_are_weighed_call_by_call(make_unet, ahead):
    unet, kwargs = make_unet(), inputs()
    mask = kwargs.pop("encoder_attention_mask")
    text = kwargs.pop("encoder_hidden_states")

    def output(**scale) -> torch.Tensor:
        if ahead:
            return unet(**kwargs, encoder_hidden_states=unet.project_text(text, mask, **scale), **scale).sample
        return unet(**kwargs, encoder_hidden_states=text, encoder_attention_mask=mask, **scale).sample

    plain = output()
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    outputs = {}
    for scale in (0.5, 0.25, 1.0):
        unet.set_adapters("default", scale)
        outputs[scale] = output()
    assert min((outputs[s] - plain).abs().max() for s in outputs) > 0.02
    for scale, expected in (outputs | {0.0: plain}).items():
        assert torch.equal(output(cross_attention_kwargs={"scale": scale}), expected)
        assert torch.equal(output(), outputs[1.0])
    assert torch.equal(output(cross_attention_kwargs={}), outputs[1.0])
    with pytest.raises(ValueError, match=r"^cross_attention_kwargs may hold 'scale' alone: got \['gligen'\]$"):
        output(cross_attention_kwargs={"scale": 0.5, "gligen": {}})
    assert torch.equal(output(), outputs[1.0])


# ---------------------------------------------------------------------------------- what is kept from step to step


def attention_by_step(unet, config) -> tuple[list[torch.Tensor], list[list[torch.Tensor]], int]:
    """Of six calls with other timesteps: the outputs, what each attention gave, and how often one was worked out."""
    unet.enable_cache(config)
    layers = [layer for block in unet._blocks() for layer in block.transformer_layers]
    given, calls = [[] for _ in range(2 * len(layers))], []
    for i, layer in enumerate(layers):
        layer.attn1.register_forward_hook(lambda _, args, output, i=i: given[2 * i].append(output))
        layer.attn2.register_forward_hook(lambda _, args, output, i=i: given[2 * i + 1].append(output))
        layer.attn1.to_q.register_forward_hook(lambda *_: calls.append(1))
    outputs = []
    for t in (900, 700, 500, 300, 200, 100):
        with unet.cache_context("cond"):
            outputs.append(unet(**inputs() | {"timestep": t}).sample)
    return outputs, given, len(calls)


@torch.no_grad()
def test_taylorseer_goes_on_in_a_straight_line_between_the_steps_that_are_worked_out(make_unet):
    settings = {"disable_cache_before_step": 2, "max_order": 1, "taylor_factors_dtype": torch.float32}
    config = TaylorSeerCacheConfig(cache_interval=3, **settings)
    outputs, given, calls = attention_by_step(make_unet(), config)
    assert calls == 3 * 5  # in steps 0, 1 and 3, of five attentions
    for x in given:
        close(x[2], 2 * x[1] - x[0])
        close(x[4], x[3] + (x[3] - x[1]) / 2)
        close(x[5], x[3] + (x[3] - x[1]))
    assert (outputs[5] - outputs[4]).abs().max() > 1e-3
    every_step = TaylorSeerCacheConfig(cache_interval=1, **settings)
    plain = make_unet()
    for output, t in zip(attention_by_step(make_unet(), every_step)[0], (900, 700, 500, 300, 200, 100), strict=True):
        assert torch.equal(output, plain(**inputs() | {"timestep": t}).sample)


@torch.no_grad()
def test_lite_taylorseer_passes_over_the_whole_network(make_unet):
    config = TaylorSeerCacheConfig(
        cache_interval=3, disable_cache_before_step=2, use_lite_mode=True, taylor_factors_dtype=torch.float32
    )
    outputs, given, calls = attention_by_step(make_unet(), config)
    assert calls == 3 * 5 and {len(x) for x in given} == {3}
    close(outputs[2], 2 * outputs[1] - outputs[0])
    close(outputs[5], 2 * outputs[3] - outputs[1])


@torch.no_grad()
def test_pyramid_attention_broadcast_gives_every_second_attention_again(make_unet):
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=3,
        cross_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: 500,
    )
    _, given, calls = attention_by_step(make_unet(), config)
    assert calls == 3 * 5
    for own, text in zip(given[::2], given[1::2], strict=True):
        assert [torch.equal(own[i], own[i + 1]) for i in range(5)] == [True, False, True, False, True]
        assert [torch.equal(text[i], text[i + 1]) for i in range(5)] == [True, True, False, True, True]


@pytest.mark.parametrize(
    "config",
    [FirstBlockCacheConfig(), FasterCacheConfig(), MagCacheConfig(mag_ratios=[1.0]), TextKVCacheConfig(), None],
    ids=lambda config: type(config).__name__,
)
def test_caches_that_do_not_suit_a_unet_are_refused(make_unet, config):
    unet = make_unet()
    with pytest.raises(ValueError, match=f"^a U-Net can keep features by Pyramid.*: got {type(config).__name__}$"):
        unet.enable_cache(config)
    assert not unet.is_cache_enabled


def test_a_cache_of_no_layer_is_refused(make_unet):
    config = TaylorSeerCacheConfig(cache_identifiers=["transformer_blocks.*"])
    unet = make_unet()
    with pytest.raises(ValueError, match="^the settings of a cache must name layers of the network: got none that"):
        unet.enable_cache(config)
    assert not unet.is_cache_enabled
    unet.enable_cache(TaylorSeerCacheConfig())
    unet.disable_cache()
    with torch.no_grad():
        assert torch.equal(unet(**inputs()).sample, make_unet()(**inputs()).sample)
        assert unet.project_text(randn(2, 5, 16)) is not None


# --------------------------------------------------------------------------------------------------------- on disk


@pytest.mark.parametrize(
    "config", [{}, {"cross_attention_dim": None, "sample_std": (0.5, 0.25, 0.125)}, {"augment_dim": 11}]
)
def test_saved_and_loaded_is_bit_equal(make_unet, tmp_path, config):
    unet = make_unet(**config)
    unet.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", WEIGHTS}
    loaded, info = MezzotintUNetModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == unet.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in unet.state_dict().items())
    for name in inspect.signature(MezzotintUNetModel).parameters:
        value = loaded.config[name]  # JSON has lists only
        assert (tuple(value) if isinstance(value, list) else value) == unet.config[name], name


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_loaded_one_by_one_and_side_by_side(make_unet, tmp_path, monkeypatch, variant):
    unet = make_unet()
    unet.save_pretrained(tmp_path, max_shard_size="60KB", variant=variant)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    for parallel in (False, True):
        monkeypatch.setattr(modeling_utils, "HF_ENABLE_PARALLEL_LOADING", parallel)
        state = MezzotintUNetModel.from_pretrained(tmp_path, variant=variant).state_dict()
        assert state.keys() == unet.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in unet.state_dict().items())
    with pytest.raises(OSError, match=r"\.safetensors"):  # and no other format is looked for
        MezzotintUNetModel.from_pretrained(tmp_path, variant="fp8")
    with torch.no_grad():
        next(unet.parameters()).add_(1)
    unet.save_pretrained(tmp_path, variant=variant)  # as one file, and nothing of the shards is in its way
    state = MezzotintUNetModel.from_pretrained(tmp_path, variant=variant).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in unet.state_dict().items())


def test_auto_model_loads_the_network_of_a_saved_pipeline(make_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = AutoModel.from_pretrained(str(tmp_path / "pipe" / "unet"), trust_remote_code=True)
    assert type(loaded).__name__ == "MezzotintUNetModel" and type(loaded) is not MezzotintUNetModel
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in pipe.unet.state_dict().items())
    close(loaded(**inputs()).sample, pipe.unet(**inputs()).sample)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("kind", ["missing", "unexpected"])
def test_checkpoint_with_other_weights_is_refused(make_unet, tmp_path, kind, low_cpu_mem_usage):
    make_unet().save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    if kind == "missing":
        del weights["mid_block.residual.conv1.bias"]
    else:
        weights["mid_block.residual.conv3.bias"] = torch.zeros(1)
    save_file(weights, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"must be those of its config: 1 {kind} \(mid_block\.residual\.conv\d\.bias\)$"
    ):
        MezzotintUNetModel.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)


def test_checkpoint_of_another_shape_is_refused(make_unet, tmp_path):
    make_unet().save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    weights["conv_in.bias"] = torch.zeros(17)
    save_file(weights, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match="conv_in.bias"):
        MezzotintUNetModel.from_pretrained(tmp_path)


def test_a_package_that_is_missing_is_named_in_one_line(make_unet, tmp_path):
    make_unet().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps(config | quantized))
    with pytest.raises(ImportError, match="^[^\n]* cannot be loaded: [^\n]*bitsandbytes[^\n]*$"):
        MezzotintUNetModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "halved", "garbage"])
def test_damaged_weights_are_refused_in_one_line(make_unet, tmp_path, damage):
    make_unet().save_pretrained(tmp_path)
    data = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes({"empty": b"", "halved": data[: len(data) // 2], "garbage": b"\0" * 99}[damage])
    with pytest.raises((ValueError, OSError), match="cannot be loaded: ") as error:
        MezzotintUNetModel.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ['"user/unet"', "[]", "null", "3", "[" * 100_000])
def test_a_config_file_that_is_no_object_is_refused_and_nothing_is_fetched(make_unet, tmp_path, text):
    make_unet().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json must hold a JSON object: got ") as error:
        MezzotintUNetModel.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_nothing_is_pickled(make_unet, tmp_path):
    unet = make_unet()
    unet.save_pretrained(tmp_path, safe_serialization=False)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    torch.save(unet.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(OSError, match="safetensors"):
        MezzotintUNetModel.from_pretrained(tmp_path)


# -------------------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    "config, rule",
    [
        ({"spatial_dims": 4}, "spatial_dims must be a whole number from 1 to 3: got 4"),
        ({"sample_size": (8, 8, 8)}, "sample_size needs one entry, or one for each of 2 axes"),
        ({"layers_per_block": 0}, "layers_per_block must be a whole number from 1 to 1024: got 0"),
        ({"transformer_layers_per_block": (1,)}, "one entry for each of block_out_channels: got 1 for 2"),
        ({"block_out_channels": (16, 30)}, r"multiples of norm_num_groups \(4\).*: got 30"),
        ({"attention_head_dim": 12}, r"of attention_head_dim \(12\): got 16"),
        ({"sample_mean": (0.0, 0.0)}, r"sample_mean needs 1 or out_channels \(3\) values: got 2"),
        ({"sample_std": ()}, r"sample_std needs 1 or out_channels \(3\) values: got 0"),
        ({"sample_std": (1.0, 0.0, 1.0)}, r"sample_std must be positive and at most 1e6: got \(1.0, 0.0, 1.0\)"),
        ({"sample_std": (1e12,)}, "sample_std must be positive and at most 1e6: got"),
        ({"sample_std": (1e-300,)}, r"sample_std must be positive and at most 1e6: got \(1e-300,\)"),
        ({"sample_std": (float("nan"),)}, r"sample_std must be a list of finite numbers: got \(nan,\)"),
        ({"sample_mean": (float("inf"),)}, r"sample_mean must be a list of finite numbers: got \(inf,\)"),
        ({"sample_mean": 0.0}, "sample_mean must be a list of finite numbers: got 0.0"),
        ({"sample_mean": ("0",)}, r"sample_mean must be a list of finite numbers: got \('0',\)"),
        (
            {"block_out_channels": (16, 10**9)},
            r"block_out_channels must be a list of .* 1 to 65536: got \(16, 1000000000\)",
        ),
        (
            {"block_out_channels": (16, 32.0)},
            r"block_out_channels must be a list of whole numbers .*: got \(16, 32.0\)",
        ),
        ({"block_out_channels": 16}, "block_out_channels must be a list of whole numbers .*: got 16"),
        ({"block_out_channels": "16"}, "block_out_channels must be a list of whole numbers .*: got '16'"),
        ({"block_out_channels": ()}, r"block_out_channels must be a list of whole numbers .*: got \(\)"),
        ({"block_out_channels": None}, "block_out_channels must be a list of whole numbers .*: got None"),
        ({"block_out_channels": (16, -16)}, r"block_out_channels must be a list of .*: got \(16, -16\)"),
        ({"transformer_layers_per_block": (0, True)}, r"transformer_layers_per_block must be a .*: got \(0, True\)"),
        ({"norm_num_groups": 0}, "norm_num_groups must be a whole number from 1 to 65536: got 0"),
        ({"norm_num_groups": (4,)}, r"norm_num_groups must be a whole number .*: got \(4,\)"),
        ({"attention_head_dim": None}, "attention_head_dim must be a whole number .*: got None"),
        ({"in_channels": -3}, "in_channels must be a whole number .*: got -3"),
        ({"out_channels": 0}, "out_channels must be a whole number .*: got 0"),
        ({"cross_attention_dim": 16.5}, "cross_attention_dim must be a whole number .*: got 16.5"),
        ({"time_embed_dim": "wide"}, "time_embed_dim must be a whole number .*: got 'wide'"),
        ({"augment_dim": {}}, "augment_dim must be a whole number .*: got {}"),
        ({"sample_size": (8, 0)}, r"sample_size must be a whole number .*: got \(8, 0\)"),
        ({"layers_per_block": 10**6}, "layers_per_block must be a whole number .*: got 1000000"),
        ({"spatial_dims": "2"}, "spatial_dims must be a whole number .*: got '2'"),
        ({"sample_mean": (10**400,)}, r"sample_mean must be a list of finite numbers: got \(1000"),
        ({"norm_eps": float("nan")}, "norm_eps must be a positive number: got nan"),
        ({"norm_eps": "1e-5"}, "norm_eps must be a positive number: got '1e-5'"),
        ({"dropout": 1.5}, r"dropout must be in \[0, 1\]: got 1.5"),
        ({"patch_size": 0}, "patch_size must be a whole number from 1 to 1024: got 0"),
        ({"patch_size": 10**6}, "patch_size must be a whole number from 1 to 1024: got 1000000"),
        ({"patch_size": (2, 2)}, r"patch_size must be a whole number from 1 to 1024: got \(2, 2\)"),
        ({"patch_size": "4"}, "patch_size must be a whole number from 1 to 1024: got '4'"),
        ({"rope_theta": 0}, "rope_theta must be a positive number, or none: got 0"),
        ({"rope_theta": "10k"}, "rope_theta must be a positive number, or none: got '10k'"),
        (
            {"rope_theta": 1e4, "attention_head_dim": 2, "block_out_channels": (8, 8)},
            "with rope_theta, attention_head_dim must be even and 4 or more, a pair .* each axis: got 2",
        ),
        ({"linear_skip_size": 0}, "linear_skip_size must be a whole number from 1 to 1024: got 0"),
        ({"linear_skip_size": 4}, r"linear_skip_size must be a multiple of patch_size \(1\) and divide 2, .*: got 4"),
        (
            {"linear_skip_size": 2, "patch_size": 4},
            r"linear_skip_size must be a multiple of patch_size \(4\) .*: got 2",
        ),
    ],
)
def test_config_that_does_not_fit_is_refused(config, rule):
    with pytest.raises(ValueError, match=rule) as error:
        MezzotintUNetModel(**TINY | config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, rule",
    [
        ({"sample": torch.zeros(2, 4, 8, 8)}, r"must have 4 axes and 3 channels: got shape \(2, 4, 8, 8\)"),
        ({"sample": torch.zeros(2, 3, 8)}, r"must have 4 axes and 3 channels: got shape \(2, 3, 8\)"),
        ({"sample": torch.zeros(2, 3, 8, 7)}, r"must be multiples of 2: got \(8, 7\)"),
        ({"encoder_hidden_states": None}, "exactly when the model has a cross_attention_dim: got none"),
        ({"encoder_hidden_states": torch.zeros(2, 5, 17)}, r"must have shape \(2, tokens, 16\): got \(2, 5, 17\)"),
        ({"encoder_hidden_states": torch.zeros(1, 5, 16)}, r"must have shape \(2, tokens, 16\): got \(1, 5, 16\)"),
        ({"encoder_attention_mask": torch.ones(2, 4)}, r"must have shape \(2, 5\), one entry for each token"),
        ({"augment_labels": torch.zeros(2, 11)}, r"\(2, augment_dim\), which is None: got \(2, 11\)"),
    ],
)
def test_input_that_does_not_fit_is_refused(make_unet, change, rule):
    with pytest.raises(ValueError, match=rule) as error:
        make_unet()(**inputs() | change)
    assert "\n" not in str(error.value)


def test_a_size_that_does_not_fit_the_patches_is_refused(make_unet):
    unet = make_unet(patch_size=4)
    for size in ((4, 8), (8, 12), (8, 9)):
        with pytest.raises(ValueError, match=rf"^spatial sizes must be multiples of 8: got \({size[0]}, {size[1]}\)$"):
            unet(**inputs() | {"sample": torch.zeros(2, 3, *size)})


@torch.no_grad()
def test_projected_text_for_other_samples_is_refused(make_unet):
    unet, kwargs = make_unet(), inputs()
    text = unet.project_text(kwargs["encoder_hidden_states"][:1])
    with pytest.raises(ValueError, match="one entry for each of 2 samples: got 1"):
        unet(kwargs["sample"], 3, text)


@pytest.mark.parametrize(
    "text, mask, rule",
    [
        (randn(2, 5, 17), None, r"must have shape \(batch_size, tokens, 16\): got \(2, 5, 17\)"),
        (randn(5, 16), None, r"must have shape \(batch_size, tokens, 16\): got \(5, 16\)"),
        (randn(2, 5, 16), torch.ones(1, 5), r"must have shape \(2, 5\), one entry for each token: got \(1, 5\)"),
        (None, None, "exactly when the model has a cross_attention_dim: got none"),
    ],
)
def test_text_that_does_not_fit_is_not_projected(make_unet, text, mask, rule):
    with pytest.raises(ValueError, match=rule):
        make_unet().project_text(text, mask)


def test_text_for_a_network_without_text_is_refused(make_unet):
    with pytest.raises(ValueError, match="got some, cross_attention_dim is None"):
        make_unet(cross_attention_dim=None)(**inputs())
