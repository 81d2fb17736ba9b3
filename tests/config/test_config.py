"""Settings: which layer wins, what is refused and in which words, and that what is written down is what was set."""

import dataclasses
import json

import pytest
import yaml

from mezzotint_training.config import recipe as recipe_files
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import parse_args
from mezzotint_training.config.recipe import read_recipe
from mezzotint_training.config.settings import OF_MODALITIES, TrainConfig
from mezzotint_training.config.tasks import MODALITIES

DEFAULT = TrainConfig(dataset_name="digits")


def parse(*argv: str) -> TrainConfig:
    return parse_args(list(argv), description="")


def refused(*argv: str) -> str:
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """`recipe(name, text)` adds to a folder of recipes that takes the place of the package's."""
    monkeypatch.setattr(recipe_files, "RECIPES", tmp_path / "recipes")
    (tmp_path / "recipes").mkdir()

    def write(name: str, text: str) -> None:
        (tmp_path / "recipes" / f"{name}.yaml").write_text(text, encoding="utf-8")

    return write


@pytest.fixture
def file(tmp_path):
    """`file(text)` is the path of a YAML file."""

    def write(text: str) -> str:
        (tmp_path / "settings.yaml").write_text(text, encoding="utf-8")
        return str(tmp_path / "settings.yaml")

    return write


# ------------------------------------------------------------------------------------------------------------- layers


def test_each_layer_is_over_the_one_before(recipe, file):
    recipe("mine", "dataset_name: digits\nseed: 1\ntrain_batch_size: 1\nlearning_rate: 1")
    path = file("train_batch_size: 2\nlearning_rate: 2")
    settings = parse("--recipe", "mine", "--config", path, "--learning_rate", "3")
    assert settings == dataclasses.replace(DEFAULT, seed=1, train_batch_size=2, learning_rate=3.0)
    settings = parse("--learning_rate", "3", "--config", path, "--recipe", "mine")  # their order is not the order typed
    assert (settings.seed, settings.train_batch_size, settings.learning_rate) == (1, 2, 3.0)


def test_mappings_are_merged_name_by_name(recipe, file):
    recipe("mine", "dataset_name: digits\nunet: {dropout: 0.1, layers_per_block: 1}\ntext_encoder: {d_model: 1}")
    path = file("unet: {layers_per_block: 2, norm_num_groups: 2}\ntext_encoder: {d_kv: 2}")
    settings = parse("--recipe", "mine", "--config", path, "--unet", "{norm_num_groups: 3}")
    assert settings.unet == {"dropout": 0.1, "layers_per_block": 2, "norm_num_groups": 3}
    assert settings.text_encoder == DEFAULT.text_encoder | {"d_model": 1, "d_kv": 2}


def test_a_data_source_replaces_the_one_below_with_what_was_said_of_it(recipe, file):
    recipe("mine", "dataset_name: digits\ndataset_config_name: small\ndataset_license: CC BY 4.0\nlicense: mit")
    settings = parse("--recipe", "mine", "--train_data_dir", "pictures")
    assert (settings.dataset_name, settings.train_data_dir) == (None, "pictures")
    assert (settings.dataset_config_name, settings.dataset_license, settings.license) == (None, None, "mit")
    path = file("train_data_dir: pictures\ndataset_license: CC0")
    settings = parse("--recipe", "mine", "--config", path)
    assert (settings.dataset_name, settings.train_data_dir, settings.dataset_license) == (None, "pictures", "CC0")
    settings = parse("--config", path, "--dataset_name", "user/set")
    assert (settings.dataset_name, settings.train_data_dir, settings.dataset_license) == ("user/set", None, None)
    recipe("licence", "dataset_license: CC0")  # of data that are still to be named
    assert parse("--recipe", "licence", "--train_data_dir", "pictures").dataset_license == "CC0"


@pytest.mark.parametrize("argv, got", [([], "neither"), (["--dataset_name", "x", "--train_data_dir", "y"], "both")])
def test_there_is_one_data_source(argv, got):
    assert refused(*argv) == f"exactly one of dataset_name and train_data_dir must be given: got {got}"


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("number", ["1e-3", "1.0e-3", "0.001", ".001"])
def test_numbers_are_read_as_people_write_them(file, number):
    for settings in (
        parse("--config", file(f"dataset_name: digits\nlearning_rate: {number}\nmax_train_steps: 1e4")),
        parse("--dataset_name", "digits", "--learning_rate", number, "--max_train_steps=1e4"),
    ):
        assert (settings.learning_rate, settings.max_train_steps) == (1e-3, 10_000)
        assert (type(settings.learning_rate), type(settings.max_train_steps)) == (float, int)


def test_values_keep_their_types():
    argv = "--dataset_name digits --no-use_ema --random_flip --resolution 24 32 --max_train_minutes 5 --hub_model_id 1"
    settings = parse(*argv.split(), "--validation_prompts", "yes", "1", "--checkpoints_total_limit", "null")
    assert (settings.use_ema, settings.random_flip, settings.resolution) == (False, True, [24, 32])
    assert (settings.max_train_minutes, type(settings.max_train_minutes)) == (5.0, float)
    assert (settings.hub_model_id, settings.validation_prompts) == ("1", ["yes", "1"])
    assert settings.checkpoints_total_limit is None
    assert parse("--dataset_name", "digits", "--seed", str(2**63 - 1)).seed == 2**63 - 1  # no float holds that
    assert parse("--dataset_name", "digits", "--resolution", "32").resolution == [32]


def test_prompts_of_a_recipe_can_be_taken_away(recipe):
    recipe("mine", "dataset_name: digits\nvalidation_prompts: [a, b]")
    assert parse("--recipe", "mine").validation_prompts == ["a", "b"]
    assert parse("--recipe", "mine", "--validation_prompts").validation_prompts == []


COUNTS = [
    *("train_batch_size", "gradient_accumulation_steps", "max_train_steps", "checkpointing_steps", "validation_steps"),
    *("num_validation_images", "logging_steps", "num_inference_steps", "max_text_length", "checkpoints_total_limit"),
]
WRONG = [
    *((name, "0", "at least 1") for name in COUNTS),
    *((name, "2.5", "of type int") for name in ["seed", *COUNTS]),
    *((name, "-1", "at least 0") for name in ["seed", "dataloader_num_workers", "lr_warmup_steps"]),
    *((name, value, "in [0, 1]") for name in ["proportion_empty_prompts", "ema_decay"] for value in ("-0.1", "1.1")),
    *((name, value, "in [0, 1)") for name in ["adam_beta1", "adam_beta2"] for value in ("-0.1", "1", ".nan")),
    *(("learning_rate", value, "a number above 0") for value in ("0", "-1", ".inf", ".nan")),
    *((name, "-1", "a number from 0") for name in ["adam_weight_decay", "adam_epsilon"]),
    *(("max_train_steps", value, "of type int") for value in (".inf", ".nan", "many", "true", "[1]")),
    *(("max_train_minutes", value, "a number from 0") for value in ("-1", ".inf", ".nan")),
    *(("logit_mean", value, "a finite number") for value in (".inf", ".nan")),
    *(("guidance_scale", value, "a number from 0") for value in ("-1", ".inf", ".nan")),
    *(("logit_std", value, "a number above 0") for value in ("0", ".nan")),
    *(("seed", value, "below 2^63") for value in (str(2**63), str(2**64), "9" * 400)),
    *((name, str(10**12), "at most ") for name in COUNTS),
    *((name, value, "at least 1") for name in ["max_train_samples", "rank", "resolution"] for value in ("0", "-8")),
    ("resolution", "100000", "at most 8,192"),
    ("train_batch_size", "65537", "at most 65,536"),
    ("dataloader_num_workers", "100000", "at most 1,024"),
    *((name, "", "") for name in ["output_dir", "train_data_dir", "caption_column", "hub_model_id"]),
    ("learning_rate", "fast", "of type float"),
    ("lr_scheduler", "cosin", "one of linear, cosine, "),
    ("mixed_precision", "fp8", "one of no, fp16, bf16"),
    ("on_bad_row", "go", "one of stop, skip"),
    ("resolution", "big", "of type int"),
    ("unet", "[1]", "a mapping of names to values"),
    ("unet", "{1: 2}", "a mapping of names to values"),
    ("unet", "{", "YAML"),
    ("unet", "{a: &a [*a]}", "YAML"),
]


@pytest.mark.parametrize("name, value, rule", WRONG)
def test_wrong_values_are_refused_with_rule_and_value(name, value, rule):
    message = refused("--dataset_name", "digits", f"--{name}={value}")
    assert message.startswith(f"{name} must be {rule}" if value else f"{name} must not be empty: got ''")
    assert value.strip("[].")[:150] in message.lower() and len(message) < 500


@pytest.mark.parametrize(
    "text, message",
    [
        ("use_ema: 1", "use_ema must be of type bool: got 1"),
        ("output_dir: 1", "output_dir must be text: got 1"),
        ("validation_prompts: [1]", "validation_prompts must be text: got 1"),
        ("resolution: [1, 2, 3]", "resolution must be one or two positive numbers (height, width): got [1, 2, 3]"),
    ],
)
def test_values_of_a_file_are_checked_alike(file, text, message):
    assert refused("--config", file(f"dataset_name: digits\n{text}")) == message


def test_settings_made_in_python_are_checked_alike():
    with pytest.raises(UserError, match="lr_scheduler must be one of linear, .*: got 'cosin'"):
        TrainConfig(dataset_name="digits", lr_scheduler="cosin")
    assert TrainConfig(dataset_name="digits", learning_rate="1e-3", resolution=32).resolution == [32]
    for seed, got in ((10**5000, "a very long int"), (0.5, "0.5"), ([[]], "[[]]")):
        with pytest.raises(UserError) as error:
            TrainConfig(dataset_name="digits", seed=seed)
        assert str(error.value).startswith("seed must be ") and str(error.value).endswith(f": got {got}")


# --------------------------------------------------------------------------------------------------------------- names


def test_unknown_names_are_refused_with_the_nearest(recipe, file):
    recipe("digits", "")
    recipe("emoji-32", "")
    assert refused("--recipe", "emoji") == "unknown recipe 'emoji'; did you mean emoji-32?; there are digits, emoji-32"
    for flag in ("--learning_rat", "--learning_rat=1", "--learning-rate"):
        assert refused("--dataset_name", "digits", flag) == f"unknown flag {flag}; did you mean --learning_rate?"
    assert refused("--dataset_name", "digits", "--qqqqq") == "unknown flag --qqqqq"
    path = file("train_batchsize: 3")
    assert refused("--config", path) == f"unknown setting 'train_batchsize' in {path}; did you mean train_batch_size?"


@pytest.mark.parametrize(
    "text, rule",
    [("a: [1\nb: 2", "cannot be read as YAML: "), ("- 1", "must hold 'name: value' lines: got list")],
)
def test_a_file_that_holds_no_settings_is_refused(file, text, rule):
    path = file(text)
    assert refused("--config", path).startswith(f"config file {path} {rule}")
    assert refused("--config", path + "x") == f"config file {path}x does not exist"


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
HOSTILE = {
    "aliases": (BOMB, "aliases are not possible here"),
    "recursion": ("unet: &a [*a]", "aliases are not possible here"),
    "brackets": ("unet: " + "[" * 5000, "lists in lists must be at most 32"),
    "braces": ("{" * 5000, "lists in lists must be at most 32"),
    "dashes": ("- " * 5000, "lists in lists must be at most 32"),
    "digits": ("seed: " + "9" * 5000, "numbers must have at most 1,000 digits"),
    "a key twice": ("seed: 1\nseed: 2", "the key 'seed' comes twice"),
    "a key twice within": ("unet: {dropout: 0.1, dropout: 0.2}", "the key 'dropout' comes twice"),
    "a key that is a list": ("? [1]\n: 2", "keys must be names"),
    "an object": ("seed: !!python/object/apply:os.getpid []", "could not determine a constructor"),
    "a set": ("unet: !!set {a}", "could not determine a constructor"),
    "entries": ("resolution: [" + "1," * 10_001 + "]", "entries must be at most 10,000"),
    "length": ("license: " + "x" * 10**6, "settings must be at most 262,144 characters"),
    "two documents": ("seed: 1\n---\nseed: 2", "expected a single document"),
    "a NUL": ("seed: \0", "special characters are not allowed"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_would_take_time_or_memory_is_refused_at_once(file, kind):
    text, rule = HOSTILE[kind]
    path = file(text)
    for message in (
        refused("--config", path),
        refused("--dataset_name", "x", "--unet", text) if "\0" not in text else "",
    ):
        assert rule in message or not message
        assert len(message) < 700


def test_merges_and_dates_are_no_more_than_texts(file):
    assert parse("--config", file("dataset_name: digits\nlicense: 2020-13-45")).license == "2020-13-45"
    assert refused("--config", file("<<: {seed: 1}")).startswith("unknown setting '<<'")


def test_a_recipe_of_another_version_is_read_and_a_broken_one_said_in_one_line(tmp_path):
    assert read_recipe(tmp_path) == {}
    (tmp_path / "recipe.yaml").write_text("seed: text\nof_a_later_version: [1]\n")
    assert read_recipe(tmp_path) == read_recipe(str(tmp_path)) == {"seed": "text", "of_a_later_version": [1]}
    for broken, rule in (("seed: [1", "cannot be read as YAML: "), ("- 1", "must hold 'name: value' lines: got list")):
        (tmp_path / "recipe.yaml").write_text(broken)
        with pytest.raises(UserError) as error:
            read_recipe(tmp_path)
        assert f"{tmp_path / 'recipe.yaml'} {rule}" in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="recipe.yaml cannot be read as YAML: 'utf-8' codec"):
        read_recipe(tmp_path)


def test_a_flag_without_its_value_is_refused():
    assert refused("--learning_rate") == "argument --learning_rate: expected one argument"
    assert refused("--use_ema=1").startswith("argument --use_ema")


def test_help_names_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for f in dataclasses.fields(TrainConfig):
        value = getattr(DEFAULT, f.name) if f.name != "dataset_name" else None
        assert f"--{f.name}" in text and f"{' '.join(f.metadata['help'].split())} (default: {value})" in text, f.name


# ----------------------------------------------------------------------------------------------------------- round trip


def changed(f: dataclasses.Field):
    """A legal value that is not the field's default."""
    special = {
        "dataset_name": None,
        "train_data_dir": "null",  # a folder of that name
        "hub_model_id": "1e-3",
        "validation_prompts": ["yes", "ein rotes Schloß, 赤い城", "a: [b", ""],
        "license": "off",
        "resolution": [24, 32],
        "caption_weights": [2.0, 1.0],
        "unet": {"block_out_channels": [1, 2], "dropout": 0.1},
        "scheduler": {"prediction_type": "epsilon"},
        "text_encoder": DEFAULT.text_encoder | {"d_model": 3},
        "lr_scheduler": "linear",
        "task": "inpaint",
        "weighting_scheme": "laplace",
        "mixed_precision": "bf16",
        "on_bad_row": "skip",
        "checkpoints_total_limit": None,
        "learning_rate": 1e-05,
        "adam_beta1": 0.3,
        "max_train_minutes": 0.1,
        "size": "tiny",
        "adapter": "dora",
        "lora_alpha": 2.5,
        "lora_dropout": 0.25,
        "streaming": False,  # which has no buckets
        "aspect_ratio_buckets": "8,16;16,8",
        "augment_probability": 0.12,
        "optimizer": "muon",
        "modality": "audio",
        "sampling_rate": 8000,
        "audio_length_in_s": 0.3,
        "n_fft": 512,
        "frame_rate": 12.0,
    }
    if f.name in special:
        return special[f.name]
    value = getattr(DEFAULT, f.name)
    kinds = {
        bool: lambda: not value,
        list: lambda: [*value, "x"],
        int: lambda: value + 1,
        float: lambda: value / 3,
        str: lambda: f"{value} x",
    }
    return kinds[type(value)]() if value is not None else {int | None: 7, bool | None: True}.get(f.type, "text")


def test_what_is_written_down_gives_the_same_settings_again(file):
    settings = TrainConfig(
        **{f.name: changed(f) for f in dataclasses.fields(TrainConfig) if f.name not in ("vae", "two_towers")}
    )
    same = {f.name for f in dataclasses.fields(settings) if getattr(settings, f.name) == getattr(DEFAULT, f.name)}
    assert same == {"streaming", "vae", "two_towers"}  # which do not go with others
    text = settings.to_yaml()
    assert parse("--config", file(text)) == settings
    assert yaml.safe_load(text) == json.loads(json.dumps(dataclasses.asdict(settings)))
    assert parse("--config", file(DEFAULT.to_yaml())) == DEFAULT


def test_defaults_are_not_shared_between_runs():
    TrainConfig(dataset_name="digits").text_encoder["d_model"] = 1
    TrainConfig(dataset_name="digits").validation_prompts.append("x")
    assert TrainConfig(dataset_name="digits") == DEFAULT


def test_programs_of_pictures_are_without_the_settings_of_all_other_modalities():
    own = {name for kind in MODALITIES.values() for name in kind.settings} - set(MODALITIES["image"].settings)
    assert own | {"modality", "sample_column"} == OF_MODALITIES


def test_every_setting_says_what_it_may_be_when_a_run_goes_on():
    """Settings of what is learned stay the same when a run goes on; a new setting is among them unless its line says
    otherwise."""
    on_resume = {f.name: f.metadata["on_resume"] for f in dataclasses.fields(TrainConfig)}
    assert {name for name, how in on_resume.items() if how == "same"} == {
        "modality", "sample_column", "sampling_rate", "audio_length_in_s", "n_fft", "num_frames", "frame_rate",
        "random_turn", "molecule_length_in_tokens",
        "task", "scale", "num_classes", "mask_column", "label_column", "attribute_columns",
        "pretrained_model_name_or_path", "revision", "unet", "scheduler", "text_encoder_name_or_path", "text_encoder",
        "max_text_length", "train_text_encoder", "adapter", "rank", "lora_alpha", "lora_dropout", "lora_layers",
        "dataset_name", "dataset_config_name", "dataset_split", "image_column", "caption_column", "balance_column",
            "resolution",
        "aspect_ratio_buckets", "random_flip", "augment_probability", "max_train_samples", "validation_split",
        "num_validation_samples", "streaming", "shuffle_buffer_size", "seed", "optimizer", "use_ema",
        "posthoc_ema_steps", "latent_versions",
    }  # fmt: skip
    assert {name for name, how in on_resume.items() if how == "branch"} == {
        "learning_rate", "lr_scheduler", "lr_warmup_steps", "adam_beta1", "adam_beta2", "adam_weight_decay",
        "adam_epsilon", "max_grad_norm", "mixed_precision", "ema_decay", "proportion_empty_prompts",
        "proportion_empty_conditions", "proportion_empty_attributes",
        "weighting_scheme", "logit_mean", "logit_std", "caption_weights", "balance_power",
    }  # fmt: skip
    assert set(on_resume.values()) == {"same", "branch", "free"}
