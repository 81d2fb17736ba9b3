"""What a run learns, against the same steps by hand: it goes on from a checkpoint bit for bit, skips an update that is
not finite, and is as it was after it was looked at."""

import math

import pytest
import torch
from accelerate import Accelerator

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.engine import checkpoint
from mezzotint_training.learning.learner import Learner
from mezzotint_training.learning.optimizers import optimizer_state


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture
def a_run(accelerator):
    """`a_run(**settings)`: a network of two layers and what trains it."""

    def make(**settings) -> tuple[torch.nn.Module, Learner]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        given = {"learning_rate": 0.1, "lr_scheduler": "cosine", "lr_warmup_steps": 2, "max_train_steps": 20}
        given |= {"ema_decay": 0.5, "posthoc_ema_steps": 1}
        return model, Learner(TrainConfig(dataset_name="digits", **given | settings), {"net": model}, accelerator)

    return make


def update(model, learner: Learner, i: int, scale: float = 1.0) -> float:
    (scale * model(torch.full((2, 3), 0.1 * i)).square().sum()).backward()
    return learner.step(i + 1)


def bits(*states: dict) -> list[bytes]:
    return [x.detach().contiguous().numpy().tobytes() for state in states for _, x in sorted(state.items())]


def everything(model, learner: Learner) -> list[bytes]:
    tensors, _ = learner.state()
    assert set(tensors) == {"weights", "optimizer", "ema", "averages"}
    return bits(*tensors.values(), dict(model.named_parameters()))


def test_a_run_goes_on_where_it_was(tmp_path, a_run):
    model, learner = a_run()
    for i in range(3):
        update(model, learner, i)
    tensors, state = learner.state()
    folder = checkpoint.save(tmp_path, 3, tensors, state | {"loss": 0.25})
    assert {path.stem for path in folder.glob("*.safetensors")} == {"weights", "optimizer", "ema", "averages"}
    for i in range(3, 6):
        update(model, learner, i)

    other, resumed = a_run()
    loaded, state = checkpoint.latest(tmp_path)
    assert state["loss"] == 0.25
    resumed.restore(loaded, state)
    assert resumed.optimizer.param_groups[0]["lr"] == resumed.learning_rate < 0.1
    for i in range(3, 6):
        update(other, resumed, i)
    assert everything(model, learner) == everything(other, resumed)
    assert bits(optimizer_state(learner.optimizer)[0]) == bits(optimizer_state(resumed.optimizer)[0])
    assert learner.ema.optimization_step == resumed.ema.optimization_step == 6
    assert learner.learning_rate == resumed.learning_rate


def test_another_model_is_refused(tmp_path, a_run):
    _, learner = a_run()
    checkpoint.save(tmp_path, 1, *learner.state())
    loaded, state = checkpoint.latest(tmp_path)
    _, other = a_run()
    other.parameters["net.0.weight"] = torch.nn.Parameter(torch.zeros(4, 5))
    with pytest.raises(UserError, match="^the checkpoint to resume from holds other weights than this run trains$"):
        other.restore(loaded, state)


def test_steps_are_those_of_torch_with_the_gradient_clipped(a_run):
    model, learner = a_run(max_grad_norm=0.01)
    by_hand, _ = a_run()
    weights = list(by_hand.parameters())
    optimizer = torch.optim.AdamW(
        weights, lr=0.0, betas=(0.9, 0.99), weight_decay=learner.optimizer.param_groups[0]["weight_decay"], fused=True
    )
    optimizer.param_groups[0]["betas"] = learner.optimizer.param_groups[0]["betas"]
    average = [w.detach().clone() for w in weights]
    for i in range(3):
        optimizer.param_groups[0]["lr"] = learner.learning_rate
        by_hand(torch.full((2, 3), 0.1 * i)).square().sum().backward()
        expected = torch.nn.utils.clip_grad_norm_(weights, 0.01).item()
        optimizer.step()
        optimizer.zero_grad()
        assert update(model, learner, i) == expected > 0.01
        decay = min(0.5, (1 + i) / (10 + i))  # diffusers' warm-up of the average
        average = [decay * a + (1 - decay) * w.detach() for a, w in zip(average, weights, strict=True)]
    assert bits(dict(model.named_parameters())) == bits(dict(by_hand.named_parameters()))
    with learner.averaged():
        for a, p in zip(average, model.parameters(), strict=True):
            torch.testing.assert_close(p.detach(), a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_an_update_without_a_finite_gradient_changes_no_weights(a_run, scale):
    model, learner = a_run(lr_warmup_steps=0)
    for i in range(2):
        update(model, learner, i)
    before, rate = everything(model, learner), learner.learning_rate
    weights = bits(learner.state()[0]["weights"], learner.state()[0]["optimizer"], learner.state()[0]["ema"])
    assert not math.isfinite(update(model, learner, 2, scale))
    after = learner.state()[0]
    assert bits(after["weights"], after["optimizer"], after["ema"]) == weights
    assert learner.learning_rate < rate  # the schedule goes by updates, skipped ones too
    assert everything(model, learner) != before  # and so do the power-function averages


def test_gradients_gather_until_the_last_micro_step(accelerator, a_run, monkeypatch):
    (model, learner), (whole, at_once) = a_run(lr_warmup_steps=0), a_run(lr_warmup_steps=0)
    before = bits(dict(model.named_parameters()))
    for last in (False, True):
        monkeypatch.setattr(accelerator.gradient_state, "sync_gradients", last)
        (model(torch.full((2, 3), 0.1)).square().sum() / 2).backward()
        norm = learner.step(1)
        assert math.isfinite(norm) == last and (bits(dict(model.named_parameters())) != before) == last
    whole(torch.full((2, 3), 0.1)).square().sum().backward()
    assert norm == at_once.step(1)
    assert everything(model, learner) == everything(whole, at_once)


def test_looking_leaves_no_trace(a_run):
    model, learner = a_run()
    for i in range(3):
        update(model, learner, i)
    before = everything(model, learner)
    with pytest.raises(KeyError), learner.averaged():
        assert not model.training
        assert all(map(torch.equal, model.parameters(), learner.ema.shadow_params))
        raise KeyError
    with learner.evaluated():
        assert not model.training and everything(model, learner) == before
    assert model.training and everything(model, learner) == before
