"""What the dial derives: networks of the size that it names, for any resolution; what was asked for stays."""

import math
from dataclasses import asdict, replace

import pytest
import torch
import transformers

from mezzotint import MezzotintUNetModel
from mezzotint.models.encoder_mezzotint import downsample_factor
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import parse_args
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.config.sizes import Derived, Facts, applied, derive

FACTS = Facts(pictures=50_000, size=(32, 32), channels=3)


def settings(*argv: str) -> TrainConfig:
    return parse_args(["--dataset_name", "any", *argv], description="")


def dialled(*argv: str, facts: Facts = FACTS) -> TrainConfig:
    config = settings(*argv)
    return applied(config, derive(config, facts))


def parameters(config: TrainConfig, channels: int = 3) -> int:
    with torch.device("meta"):
        text = config.text_encoder["d_model"]
        unet = MezzotintUNetModel(in_channels=channels, out_channels=channels, cross_attention_dim=text, **config.unet)
    return sum(p.numel() for p in unet.parameters())


def test_without_the_dial_nothing_is_derived():
    assert derive(settings(), FACTS) == []


@pytest.mark.parametrize("side", [8, 64])
@pytest.mark.parametrize("size, wanted", [("tiny", 1e6), ("small", 1e7), ("base", 1e8), ("large", 3e8)])
def test_a_size_is_a_number_of_parameters_at_any_resolution(size, wanted, side):
    derived = derive(settings("--size", size), Facts(10_000, (side, side), 3))
    count = parameters(applied(settings("--size", size), derived))
    assert wanted / 2 <= count <= wanted * 2
    (said,) = (one.reason for one in derived if one.name == "unet.block_out_channels")
    assert said.startswith(f"{count / 1e6:.1f} M parameters")


@pytest.mark.parametrize(
    "size, patch, levels, attention",
    [((8192,), 16, 6, 64), ((512,), 1, 4, 256), ((16, 16, 16), 2, 3, 4), ((8, 8, 8), 1, 2, 8)],
)
def test_along_other_numbers_of_axes_as_many_positions_are_few(size, patch, levels, attention):
    """A patch, the lowest level and the first with attention have about as many positions as those of a picture."""
    config = dialled("--size", "tiny", facts=Facts(10_000, size, 2))
    unet, sides = config.unet, [size[0] // patch // 2**level for level in range(levels)]
    assert unet.get("patch_size", 1) == patch and len(unet["block_out_channels"]) == levels
    assert unet["transformer_layers_per_block"] == [int(side <= attention) for side in sides]
    assert config.logit_mean == settings().logit_mean  # the shift for more pixels was found on pictures
    network = MezzotintUNetModel(2, 2, 2, spatial_dims=len(size), cross_attention_dim=64, **unet)
    text = torch.zeros(1, 3, 64)
    assert network(torch.zeros(1, 2, *size), 500, text).sample.shape == (1, 2, *size)
    assert 3e5 < network.num_parameters() < 3e6


@pytest.mark.parametrize(
    "size, height, width, sides",
    [("tiny", 8, 8, [8, 4]), ("tiny", 16, 16, [16, 8]), ("small", 32, 32, [32, 16, 8]), ("tiny", 28, 28, [28, 14, 7]),
     ("small", 32, 128, [32, 16, 8]), ("small", 48, 48, [48, 24, 12, 6]), ("tiny", 30, 30, [30, 15]),
     ("tiny", 17, 17, [17]), ("tiny", 65, 65, [65]), ("tiny", 66, 66, [66, 33])],
)  # fmt: skip
def test_levels_halve_the_picture_down_to_about_eight_pixels(size, height, width, sides):
    config = dialled("--size", size, facts=Facts(1000, (height, width), 1))
    assert "patch_size" not in config.unet
    assert len(config.unet["block_out_channels"]) == len(sides)
    factor = 2 ** (len(sides) - 1)
    assert height % factor == width % factor == 0 and min(height, width) // factor == sides[-1]
    attention = config.unet["transformer_layers_per_block"]
    assert attention == [int(side <= 16 or side == sides[-1]) for side in sides]


@pytest.mark.parametrize(
    "height, width, patch, sides",
    [(32, 32, 2, [16, 8, 4]), (32, 128, 2, [16, 8, 4]), (48, 48, 2, [24, 12, 6, 3]),
     (64, 64, 4, [16, 8, 4]), (128, 128, 4, [32, 16, 8, 4]), (256, 256, 4, [64, 32, 16, 8, 4]), (96, 64, 4, [16, 8, 4]),
     (1024, 1024, 4, [256, 128, 64, 32, 16, 8]), (68, 68, 2, [34, 17]), (100, 64, 2, [32, 16]), (72, 72, 4, [18, 9])],
)  # fmt: skip
def test_from_32_px_on_tiny_levels_halve_the_patches_down_to_about_four(height, width, patch, sides):
    config = dialled("--size", "tiny", facts=Facts(1000, (height, width), 1))
    assert config.unet["patch_size"] == patch and len(config.unet["block_out_channels"]) == len(sides)
    factor = downsample_factor(sides, patch)
    assert height % factor == width % factor == 0 and min(height, width) // factor == sides[-1]
    assert config.unet["transformer_layers_per_block"] == [int(side <= 8 or side == sides[-1]) for side in sides]


@pytest.mark.parametrize(
    "unet, side, patch, sides",
    [("{patch_size: 1}", 64, 1, [64, 32, 16, 8]), ("{patch_size: 1}", 256, 1, [256, 128, 64, 32, 16, 8]),
     ("{patch_size: 2}", 32, 2, [16, 8, 4]), ("{patch_size: 8}", 64, 8, [8, 4]),
     ("{block_out_channels: [16, 16]}", 64, 4, [16, 8]), ("{block_out_channels: [16, 16, 16]}", 64, 4, [16, 8, 4]),
     ("{block_out_channels: [16, 16, 16, 16]}", 64, 2, [32, 16, 8, 4]),
     ("{block_out_channels: [16, 16, 16, 16, 16]}", 64, 1, [64, 32, 16, 8, 4])],
)  # fmt: skip
def test_patches_go_with_the_shape_that_was_asked_for(unet, side, patch, sides):
    config = dialled("--size", "tiny", "--unet", unet, facts=Facts(1000, (side, side), 1))
    assert config.unet.get("patch_size", 1) == patch and len(config.unet["block_out_channels"]) == len(sides)
    high = 16 if patch == 1 else 8
    assert config.unet["transformer_layers_per_block"] == [int(s <= high or s == sides[-1]) for s in sides]


@pytest.mark.parametrize(
    "height, width, block",
    [(8, 8, 2), (32, 32, 4), (64, 64, 4), (48, 48, 4), (72, 72, 4), (68, 68, 4), (17, 17, None), (1024, 1024, 4)],
)
def test_what_is_linear_goes_past_the_network_in_blocks_that_fit(height, width, block):
    config = dialled("--size", "tiny", facts=Facts(1000, (height, width), 1))
    assert config.unet.get("linear_skip_size") == block
    if block is not None:
        assert downsample_factor(config.unet["block_out_channels"], config.unet.get("patch_size", 1)) % block == 0
    asked = dialled("--size", "tiny", "--unet", "{linear_skip_size: null}", facts=Facts(1000, (height, width), 1))
    assert asked.unet["linear_skip_size"] is None
    patched = dialled("--size", "tiny", "--unet", "{patch_size: 8}", facts=Facts(1000, (64, 64), 1))
    assert patched.unet["linear_skip_size"] == 8


@pytest.mark.parametrize(
    "height, width, mean",
    [(16, 16, 0.5), (32, 32, 0.5), (48, 48, 0.62), (64, 64, 0.7), (32, 128, 0.7), (128, 128, 0.9), (1024, 1024, 1.5)],
)
def test_more_noise_for_more_pixels(height, width, mean):
    facts = Facts(1000, (height, width), 3)
    assert mean == pytest.approx(0.5 + max(0.2 * math.log2(math.sqrt(height * width) / 32), 0), abs=0.005)
    assert dialled("--size", "tiny", facts=facts).logit_mean == mean
    assert dialled("--size", "tiny", "--logit_mean", "0.5", facts=facts).logit_mean == 0.5
    assert dialled("--size", "tiny", "--weighting_scheme", "laplace", facts=facts).logit_mean == mean
    for argv in (("--weighting_scheme", "none"), ("--pretrained_model_name_or_path", "some/pipeline")):
        saved = (16, 32) if "some/pipeline" in argv else None
        derived = derive(settings("--size", "tiny", *argv), replace(facts, block_out_channels=saved))
        assert "logit_mean" not in {one.name for one in derived}


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("side", [28, 64])
def test_the_networks_run(size, side):
    config = dialled("--size", size, facts=Facts(1000, (side, side), 1))
    with torch.device("meta"):
        encoder = transformers.T5EncoderModel(transformers.T5Config(vocab_size=384, **config.text_encoder))
        unet = MezzotintUNetModel(
            in_channels=1, out_channels=1, cross_attention_dim=encoder.config.hidden_size, **config.unet
        )
        text = encoder(torch.zeros(2, 5, dtype=torch.long)).last_hidden_state
        assert unet(torch.zeros(2, 1, side, side), torch.zeros(2), text).sample.shape == (2, 1, side, side)


def test_what_was_asked_for_stays_and_the_rest_follows_from_it():
    unet = "{block_out_channels: [64, 64], dropout: 0.3}"
    argv = ("--size", "small", "--unet", unet, "--train_batch_size", "32", "--max_train_steps", "1000")
    config = dialled(*argv)
    assert config.unet["block_out_channels"] == [64, 64] and config.unet["dropout"] == 0.3
    assert config.unet["transformer_layers_per_block"] == [0, 1]  # 32 and 16 px
    assert (config.train_batch_size, config.max_train_steps) == (32, 1000)
    assert config.learning_rate == pytest.approx(5e-4 * (288 / 64) * math.sqrt(32 / 128), rel=0.05)
    assert config.ema_decay == 0.98 and config.lr_warmup_steps == 100 and config.checkpointing_steps == 50
    assert config.validation_steps == 100
    names = {one.name for one in derive(settings(*argv), FACTS)}
    assert not names & {"unet.block_out_channels", "unet.dropout", "train_batch_size", "max_train_steps"}


@pytest.mark.parametrize("value", ["64", "1.0e-3"])
def test_a_value_that_is_asked_for_counts_even_where_it_is_the_default(value):
    name = "train_batch_size" if value == "64" else "learning_rate"
    config = dialled("--size", "large", f"--{name}", value)
    assert getattr(config, name) == getattr(TrainConfig(dataset_name="any"), name)


def test_parts_of_the_text_encoder_are_overridden_one_by_one():
    config = dialled("--size", "base", "--text_encoder", "{num_layers: 1}")
    assert config.text_encoder["num_layers"] == 1 and config.text_encoder["d_model"] == 512
    config = settings("--size", "base", "--text_encoder_name_or_path", "some/encoder")
    assert not any(one.name.startswith("text_encoder") for one in derive(config, FACTS))


@pytest.mark.parametrize("accumulation", [1, 4, 8])
def test_accumulation_divides_the_batch_and_changes_nothing_else(accumulation):
    one = asdict(dialled("--size", "small"))
    other = asdict(dialled("--size", "small", "--gradient_accumulation_steps", str(accumulation)))
    assert other["train_batch_size"] * accumulation == one["train_batch_size"] == 128
    same = one.keys() - {"train_batch_size", "gradient_accumulation_steps"}
    assert {name: one[name] for name in same} == {name: other[name] for name in same}


@pytest.mark.parametrize(
    "pictures, seen, dropout",
    [(1000, 1e6, 0.1), (10_000, 4e6, 0.1), (100_000, 4e6, 0.0), (10_000_000, 1e7, 0.0), (None, 4e6, None)],
)
def test_the_run_is_as_long_as_the_set_allows(pictures, seen, dropout):
    config = dialled("--size", "small", facts=replace(FACTS, pictures=pictures))
    assert config.max_train_steps * config.train_batch_size == pytest.approx(seen, rel=0.05)
    assert config.unet.get("dropout") == dropout


def test_rates_go_with_the_square_root_of_the_batch_and_the_inverse_of_the_width():
    def rate(batch, width):
        argv = ("--train_batch_size", str(batch), "--unet", f"{{block_out_channels: [96, 192, {width}]}}")
        return dialled("--size", "base", *argv).learning_rate

    assert rate(128, 288) == 5e-4  # the recipe emoji-32
    assert rate(512, 288) == 2 * rate(128, 288) == 1e-3
    assert rate(128, 576) == rate(128, 288) / 2
    assert rate(60_000, 288) == 2e-3


def test_the_average_is_as_long_as_a_twentieth_of_the_run():
    config = dialled("--size", "base")
    assert 1 / (1 - config.ema_decay) == pytest.approx(config.max_train_steps / 20, rel=0.05)
    longest = dialled("--size", "base", "--max_train_steps", "1000000")
    assert longest.ema_decay == 0.9999


def test_fine_tuning_derives_batch_rate_and_length_alone():
    argv = ("--size", "base", "--pretrained_model_name_or_path", "some/pipeline")
    facts = replace(FACTS, block_out_channels=(192, 384))
    config = settings(*argv)
    names = {one.name.partition(".")[0] for one in derive(config, facts)}
    assert not names & {"unet", "text_encoder", "scheduler"} and "train_batch_size" in names
    tuned = applied(config, derive(config, facts))
    assert tuned.learning_rate == pytest.approx(5e-4 * 288 / 384 * math.sqrt(2) / 10, rel=0.05)
    adapted = settings(*argv, "--adapter", "lora")
    assert applied(adapted, derive(adapted, facts)).learning_rate == pytest.approx(10 * tuned.learning_rate, rel=0.05)
    assert tuned.max_train_steps * tuned.train_batch_size == pytest.approx(3e6, rel=0.05)


def test_prodigy_is_left_to_find_its_rate():
    assert dialled("--size", "small", "--optimizer", "prodigy").learning_rate == 1.0


@pytest.mark.parametrize("size", ["tiny", "large"])
def test_a_run_from_what_was_written_down_is_the_same_run(tmp_path, size):
    config = dialled("--size", size)
    path = tmp_path / "recipe.yaml"
    path.write_text(config.to_yaml())
    again = parse_args(["--config", str(path)], description="")
    assert derive(again, FACTS) == [] and asdict(again) == asdict(config)


def test_deriving_twice_gives_the_same():
    config = settings("--size", "small")
    derived = derive(config, FACTS)
    assert derive(config, FACTS) == derived
    assert derive(applied(config, derived), FACTS) == derived  # nothing derived counts as asked for


@pytest.mark.parametrize(
    "unet, what",
    [
        ("{dropuot: 0.1}", "did you mean dropout"),
        ("{norm_num_groups: 16, spatial_dims: 7}", "spatial_dims"),
        ("{block_out_channels: 16}", "^the unet's block_out_channels must be a list of numbers, one a level: got 16$"),
        (
            "{block_out_channels: []}",
            r"^the unet's block_out_channels must be a list of numbers, one a level: got \[\]$",
        ),
        ("{block_out_channels: [wide]}", "^the unet's block_out_channels must be of type int: got 'wide'$"),
        (
            "{block_out_channels: [1000000000]}",
            "^the unet's block_out_channels must be at most 65,536: got 1000000000$",
        ),
        (
            "{transformer_layers_per_block: [0, -1]}",
            "^the unet's transformer_layers_per_block must be at least 0: got -1",
        ),
        ("{norm_num_groups: 0}", "^the unet's norm_num_groups must be at least 1: got 0$"),
        ("{patch_size: 0}", "^the unet's patch_size must be at least 1: got 0$"),
        ("{attention_head_dim: 8.5}", "^the unet's attention_head_dim must be of type int: got 8.5$"),
        ("{layers_per_block: 1000000}", "^the unet's layers_per_block must be at most 1,024: got 1000000$"),
    ],
)
def test_arguments_that_the_network_does_not_take_are_named(unet, what):
    with pytest.raises(UserError, match=what):
        derive(settings("--size", "tiny", "--unet", unet), FACTS)


def test_a_derived_setting_reads_as_one_line():
    assert str(Derived("unet.dropout", 0.1, "a small set")) == "unet.dropout 0.1 ← a small set"
    large = replace(FACTS, size=(1024, 1024))
    for one in derive(settings("--size", "small"), FACTS) + derive(settings("--size", "small"), large):
        assert "\n" not in str(one) and len(str(one)) < 140
