"""The optimizers: each is the library's own, minimises a quadratic, obeys a schedule, and goes on from a file bit for
bit where it was."""

import importlib.metadata
import importlib.util
import json
import sys

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from diffusers.optimization import get_scheduler
from safetensors.torch import load_file, save_file

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.learning.optimizers import (
    NOT_HIDDEN,
    MuonWithAdamW,
    evaluation_weights,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
)

CPU = torch.device("cpu")
LIBRARIES = {"adamw_8bit": "bitsandbytes", "schedule_free": "schedulefree", "prodigy": "prodigyopt"}
KINDS = ["adamw", "adamw_8bit", "muon", "schedule_free", "prodigy"]
ADAM = {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_weight_decay": 0.1, "adam_epsilon": 1e-7}


def config_of(kind: str, **settings) -> TrainConfig:
    if kind in LIBRARIES:
        pytest.importorskip(LIBRARIES[kind])
    rate = 1.0 if kind == "prodigy" else 0.01
    return TrainConfig(
        dataset_name="digits", optimizer=kind, use_ema=False, **{"learning_rate": rate, **ADAM, **settings}
    )


def parameters(channels_last: bool = False) -> dict[str, torch.nn.Parameter]:
    """One of each sort: tables, kernels, matrices, vectors, zeros, and one that never gets a gradient."""
    shapes = {
        "unet.conv_in.weight": (6, 3, 3, 3),
        "unet.time_embedding.linear_1.weight": (8, 4),
        "unet.down.conv.weight": (4, 6, 3, 3),
        "unet.down.conv.bias": (4,),
        "unet.down.shortcut.weight": (4, 6, 1, 1),
        "unet.down.embedding_proj.weight": (70, 70),
        "unet.down.norm.weight": (6,),
        "unet.scale": (1, 6, 1, 1),
        "unet.unused.weight": (5, 5),
        "unet.zero.weight": (5, 7),
        "text_encoder.shared.weight": (9, 4),
    }
    generator = torch.Generator().manual_seed(0)
    named = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    named["unet.zero.weight"].zero_()
    if channels_last:
        named = {k: x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for k, x in named.items()}
    return {name: torch.nn.Parameter(x) for name, x in named.items()}


def gradients(named: dict[str, torch.nn.Parameter], step: int) -> None:
    """Noise that is a function of the step, added to the parameter's own value."""
    generator = torch.Generator().manual_seed(step)
    for name, p in named.items():
        if name != "unet.unused.weight":
            p.grad = torch.empty_like(p).copy_(p.detach() + torch.randn(p.shape, generator=generator))


def steps(named, optimizer, scheduler, first: int, last: int) -> None:
    for step in range(first, last):
        gradients(named, step)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()


def made(kind: str, channels_last: bool = False, **settings):
    named = parameters(channels_last)
    optimizer = make_optimizer(config_of(kind, **settings), named, CPU)
    return named, optimizer, get_scheduler("cosine", optimizer, num_warmup_steps=2, num_training_steps=20)


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def through_files(folder, optimizer):
    """The state as it comes back from a file of safetensors and one of JSON."""
    tensors, numbers = optimizer_state(optimizer)
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, folder / "optimizer.safetensors")
    return load_file(folder / "optimizer.safetensors"), json.loads(json.dumps(numbers))


# ------------------------------------------------------------------------------------------------------ the same steps


@pytest.mark.parametrize(
    "kind, make",
    [
        ("adamw", lambda p: torch.optim.AdamW(p, 0.01, (0.8, 0.95), 1e-7, 0.1, fused=True)),
        ("adamw_8bit", lambda p: sys.modules["bitsandbytes"].optim.AdamW8bit(p, 0.01, (0.8, 0.95), 1e-7, 0.1)),
        ("schedule_free", lambda p: sys.modules["schedulefree"].AdamWScheduleFree(p, 0.01, (0.8, 0.95), 1e-7, 0.1)),
        (
            "prodigy",
            lambda p: sys.modules["prodigyopt"].Prodigy(
                p, 1.0, (0.8, 0.95), None, 1e-7, 0.1, use_bias_correction=True, safeguard_warmup=True
            ),
        ),
    ],
)
def test_settings_reach_the_library(kind, make, capsys):
    named, optimizer, scheduler = made(kind)
    assert capsys.readouterr().out == ""
    other = parameters()
    expected = make(other.values())
    if kind == "schedule_free":
        expected.train()
    steps(named, optimizer, scheduler, 0, 18)
    steps(other, expected, get_scheduler("cosine", expected, num_warmup_steps=2, num_training_steps=20), 0, 18)
    assert_same({k: p.detach() for k, p in named.items()}, {k: p.detach() for k, p in other.items()})
    assert not torch.equal(named["unet.down.conv.weight"], parameters()["unet.down.conv.weight"])


@pytest.mark.parametrize("channels_last", [False, True])
def test_muon_is_torchs_on_flattened_kernels_and_adamw_on_the_rest(channels_last):
    named, optimizer, scheduler = made("muon", channels_last)
    hidden = {"unet.down.conv.weight", "unet.down.shortcut.weight", "unet.down.embedding_proj.weight"}
    hidden |= {"unet.zero.weight", "unet.unused.weight"}
    others = parameters(channels_last)

    def flat(x):  # columns in the order of memory, which rounding depends on
        return x.detach().permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 and channels_last else x.detach().flatten(1)

    matrices = {name: torch.nn.Parameter(flat(p).clone()) for name, p in others.items() if name in hidden}
    rest = {name: p for name, p in others.items() if name not in hidden}
    muon = torch.optim.Muon(matrices.values(), 0.01, 0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest.values(), 0.01, (0.8, 0.95), 1e-7, 0.1, fused=True)
    for step in range(5):
        gradients(named, step)
        gradients(others, step)
        for name, p in matrices.items():  # the gradient of this one, which has moved
            p.grad = None if others[name].grad is None else flat(named[name].grad).clone()
        rate = scheduler.get_last_lr()[0]
        for group in (muon.param_groups[0], adamw.param_groups[0]):
            group["lr"] = rate
        for o in (optimizer, muon, adamw):
            o.step()
        scheduler.step()
    assert_same({name: flat(named[name]) for name in hidden}, {k: v.detach() for k, v in matrices.items()})
    assert_same({name: named[name].detach() for name in rest}, {k: v.detach() for k, v in rest.items()})


def test_muons_update_is_as_large_as_adamws():
    for shape in ((64, 64), (128, 32), (32, 16, 3, 3)):
        sizes = []
        for kind in ("muon", "adamw"):
            p = torch.nn.Parameter(torch.zeros(shape))
            optimizer = make_optimizer(config_of(kind, adam_weight_decay=0.0, learning_rate=1.0), {"x.weight": p}, CPU)
            p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            optimizer.step()
            sizes.append(p.detach().square().mean().sqrt().item())
        # Liu et al., Section 2.2: AdamW's root mean square is 0.2 to 0.4 in training (and 1 in its very first step)
        assert 0.15 < sizes[0] < 0.25 and sizes[1] == pytest.approx(1, abs=1e-3)


def test_what_is_hidden_is_told_by_name():
    hidden = [
        "unet.down_blocks.0.residual.embedding_proj.weight", "unet.mid_block.transformer_layers.0.attn1.to_q.weight",
        "text_encoder.encoder.block.0.layer.0.SelfAttention.q.weight", "unet.up_blocks.0.upsample.weight",
        "unet.down_blocks.1.attn1.to_q.lora_A.default.weight",
    ]  # fmt: skip
    other = [
        "unet.conv_in.weight", "conv_out.weight", "unet.time_embedding.linear_1.weight",
        "unet.encoder_embedding.weight", "text_encoder.shared.weight", "text_encoder.embeddings.word_embeddings.weight",
        "text_encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "text_encoder.text_model.embeddings.token_embedding.weight", "text_encoder.encoder.embed_tokens.weight",
    ]  # fmt: skip
    assert [name for name in hidden + other if NOT_HIDDEN.search(name)] == other


@pytest.mark.parametrize("names", [["unet.down.conv.weight"], ["unet.down.conv.bias"]])
def test_muon_takes_matrices_alone_and_none(names):
    named = {name: parameters()[name] for name in names}
    optimizer = make_optimizer(config_of("muon"), named, CPU)
    before = named[names[0]].detach().clone()
    gradients(named, 0)
    optimizer.step()
    assert len(optimizer.param_groups) == 1 and not torch.equal(named[names[0]], before)


def test_muon_refuses_flattened_matrices():
    named = {"x.weight": torch.nn.Parameter(torch.ones(4, 3))}
    optimizer = make_optimizer(config_of("muon"), named, CPU)
    optimizer.param_groups[0]["params"] = [torch.nn.Parameter(torch.ones(12))]
    optimizer.param_groups[0]["params"][0].grad = torch.ones(12)
    with pytest.raises(UserError, match="^optimizer muon needs whole matrices"):
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_a_quadratic_is_minimised(kind):
    named = parameters()
    count = 400 if kind == "prodigy" else 200
    rate = {"prodigy": 1.0, "muon": 0.25}.get(kind, 0.05)
    optimizer = make_optimizer(config_of(kind, learning_rate=rate, adam_weight_decay=0.0), named, CPU)
    schedule = "constant_with_warmup" if kind == "schedule_free" else "cosine"
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=10, num_training_steps=count)

    def loss():
        return sum((p - 0.3).square().mean() for name, p in named.items() if "unused" not in name)

    first = loss().item()
    for _ in range(count):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    with evaluation_weights(optimizer):
        assert loss().item() < 1e-3 * first


# ------------------------------------------------------------------------------------------------- stopped and resumed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, kind, channels_last):
    named, optimizer, scheduler = made(kind, channels_last)
    steps(named, optimizer, scheduler, 0, 5)
    tensors, numbers = through_files(tmp_path, optimizer)
    weights = {name: p.detach().clone(memory_format=torch.contiguous_format) for name, p in named.items()}
    schedule = scheduler.state_dict()
    steps(named, optimizer, scheduler, 5, 10)

    other, resumed, rescheduled = made(kind, channels_last)
    with torch.no_grad():
        for name, p in other.items():
            p.copy_(weights[name])
    load_optimizer_state(resumed, tensors, numbers)
    rescheduled.load_state_dict(schedule)
    for group, rate in zip(resumed.param_groups, rescheduled.get_last_lr(), strict=True):
        group["lr"] = rate
    steps(other, resumed, rescheduled, 5, 10)
    assert_same({k: p.detach() for k, p in named.items()}, {k: p.detach() for k, p in other.items()})
    (a, b), (c, d) = optimizer_state(optimizer), optimizer_state(resumed)
    assert_same(a, c)
    assert b == d


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_steps_change_is_in_the_state(kind):
    """Nothing moving is forgotten, whatever a library's next version keeps where."""
    named, optimizer, scheduler = made(kind)
    before = [dict(group) for group in optimizer.param_groups]
    steps(named, optimizer, scheduler, 0, 5)
    tensors, numbers = optimizer_state(optimizer)
    for index, (old, new) in enumerate(zip(before, optimizer.param_groups, strict=True)):
        moved = {entry for entry in new if entry != "params" and (entry not in old or new[entry] != old[entry])}
        moved -= {"lr", "initial_lr"}  # the scheduler's
        assert {f"group.{index}.{entry}" for entry in moved} <= {*tensors, *numbers}
    names = {id(p): name for name, p in named.items()}
    kept = {f"{names[id(p)]}.{entry}" for p, entries in optimizer.state.items() for entry in entries}
    assert kept == {key for key in (*tensors, *numbers) if not key.startswith("group.")}
    assert not any("unused" in key for key in kept)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_not_restored(tmp_path, kind):
    """A run may branch off with another rate or decay."""
    named, optimizer, scheduler = made(kind)
    steps(named, optimizer, scheduler, 0, 3)
    other = make_optimizer(config_of(kind, learning_rate=0.5, adam_weight_decay=0.7), parameters(), CPU)
    load_optimizer_state(other, *through_files(tmp_path, optimizer))
    assert all(group["lr"] == 0.5 and group["weight_decay"] == 0.7 for group in other.param_groups)


def test_tensors_in_a_group_are_kept_too(tmp_path):
    """As under sharding, where Prodigy's estimates are sums over the ranks."""
    pytest.importorskip("prodigyopt")
    _, optimizer, _ = made("prodigy")
    optimizer.param_groups[0]["d"] = torch.tensor(0.25)
    _, other, _ = made("prodigy")
    load_optimizer_state(other, *through_files(tmp_path, optimizer))
    assert torch.equal(other.param_groups[0]["d"], torch.tensor(0.25))


def test_the_state_of_other_parameters_is_refused():
    named, optimizer, scheduler = made("adamw")
    steps(named, optimizer, scheduler, 0, 1)
    state = optimizer_state(optimizer)
    other = make_optimizer(config_of("adamw"), {"unet.conv_in.weight": parameters()["unet.conv_in.weight"]}, CPU)
    with pytest.raises(
        UserError, match=r"of another optimizer or model: it has unet\.time_embedding\.linear_1\.weight"
    ):
        load_optimizer_state(other, *state)


def test_moments_have_the_shape_of_their_parameter():
    """That is how they are known to be sharded with it."""
    for kind, entries in {"adamw": ("exp_avg", "exp_avg_sq"), "schedule_free": ("z", "exp_avg_sq")}.items():
        if kind in LIBRARIES and importlib.util.find_spec(LIBRARIES[kind]) is None:
            continue
        named, optimizer, scheduler = made(kind)
        steps(named, optimizer, scheduler, 0, 1)
        tensors, _ = optimizer_state(optimizer)
        assert all(tensors[f"unet.down.conv.weight.{entry}"].shape == (4, 6, 3, 3) for entry in entries)
    named, optimizer, scheduler = made("muon")
    steps(named, optimizer, scheduler, 0, 1)
    assert optimizer_state(optimizer)[0]["unet.down.conv.weight.momentum_buffer"].shape == (4, 6, 3, 3)


# ----------------------------------------------------------------------------------------------------- with accelerate


@pytest.mark.parametrize("kind", KINDS)
def test_accelerate_changes_nothing(kind, monkeypatch):
    """Prepared before or after its state is loaded, which copies groups and state."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    named, optimizer, scheduler = made(kind)
    steps(named, optimizer, scheduler, 0, 6)
    try:
        accelerator = Accelerator(step_scheduler_with_optimizer=False)
        other, plain, rescheduled = made(kind)
        steps(other, plain, rescheduled, 0, 2)
        prepared = accelerator.prepare(plain)
        steps(other, prepared, rescheduled, 2, 4)
        tensors, numbers = optimizer_state(prepared)
        load_optimizer_state(prepared, {k: v.clone() for k, v in tensors.items()}, numbers)
        steps(other, prepared, rescheduled, 4, 6)
        with evaluation_weights(optimizer), evaluation_weights(prepared):
            assert_same({k: p.detach() for k, p in named.items()}, {k: p.detach() for k, p in other.items()})
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


# ------------------------------------------------------------------------------------------------------- schedule-free


def test_evaluation_weights_are_the_average_and_leave_no_trace():
    """Against the average x of the iterates z, computed directly (Defazio et al., Eq. 5), under a constant rate."""
    named = parameters()
    optimizer = make_optimizer(config_of("schedule_free"), named, CPU)
    points = []
    for step in range(6):
        gradients(named, step)
        optimizer.step()
        points.append({name: optimizer.state[p]["z"].double() for name, p in named.items() if optimizer.state[p]})
    before = {name: p.detach().clone() for name, p in named.items()}
    with evaluation_weights(optimizer):
        for name in points[0]:
            average = sum(z[name] for z in points) / len(points)
            torch.testing.assert_close(named[name].detach().double(), average, rtol=0, atol=1e-5)
            assert not torch.equal(named[name], before[name])
    assert_same({name: p.detach() for name, p in named.items()}, before)
    with pytest.raises(KeyError), evaluation_weights(optimizer):
        raise KeyError
    assert_same({name: p.detach() for name, p in named.items()}, before)
    gradients(named, 6)
    optimizer.step()  # it is in training mode again


def test_other_optimizers_evaluate_the_weights_they_train():
    named, optimizer, scheduler = made("adamw")
    steps(named, optimizer, scheduler, 0, 2)
    before = {name: p.detach().clone() for name, p in named.items()}
    with evaluation_weights(optimizer):
        assert_same({name: p.detach() for name, p in named.items()}, before)


# --------------------------------------------------------------------------------------------------- what is not there


@pytest.mark.parametrize("kind, library", LIBRARIES.items())
def test_a_missing_library_is_named_with_its_command(monkeypatch, kind, library):
    monkeypatch.setitem(sys.modules, library, None)
    config = config_of(kind)
    with pytest.raises(UserError, match=f"^optimizer {kind} needs {library}: pip install {library}$"):
        make_optimizer(config, parameters(), CPU)


def test_an_old_torch_is_named(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match=f"needs torch 2.9 or later: got {torch.__version__}".replace("+", r"\+")):
        MuonWithAdamW(parameters(), lr=0.1, betas=(0.9, 0.99), weight_decay=0.0, eps=1e-8, fused=False)


def test_the_libraries_are_those_of_the_extra():
    requires = importlib.metadata.requires("mezzotint") or []
    extra = {r.split(";")[0].split(">")[0].strip() for r in requires if "extra == 'optimizers'" in r.replace('"', "'")}
    if not extra:
        pytest.skip("installed before there was the extra")
    assert extra == set(LIBRARIES.values())


@pytest.mark.parametrize(
    "kind, settings, rule",
    [
        ("schedule_free", {"use_ema": True}, "averages by itself: it needs --no-use_ema"),
        ("schedule_free", {"posthoc_ema_steps": 5}, "averages by itself: it needs --no-use_ema"),
        ("prodigy", {"learning_rate": 1e-3}, "needs learning_rate 1: got 0.001"),
    ],
)
def test_settings_that_do_not_go_with_an_optimizer_are_refused(kind, settings, rule):
    config = config_of(kind)
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(UserError, match=rule):
        make_optimizer(config, {"x": torch.nn.Parameter(torch.zeros(2))}, CPU)
