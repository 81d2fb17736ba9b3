"""The correction of fitted steps' end: learned where the answer is known, kept only where it helps, and by the
program."""

import json

import numpy as np
import pytest
import torch
from test_fitting import FEW, NETWORK, SCHEDULER, ends, noise

from mezzotint import MezzotintPipeline, MezzotintScheduler
from mezzotint.schedulers.scheduling_mezzotint import correction, weights_of
from mezzotint_training import fit_scheduler
from mezzotint_training.few_steps import correction as correcting
from mezzotint_training.few_steps.correction import fit_correction
from mezzotint_training.few_steps.fitting import Ends, ends_and_slopes, fit, read_off, whole_run
from mezzotint_training.few_steps.stock_solvers import sample


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("solver", FEW, ids=str)
def test_a_run_is_what_the_steps_make(solver):
    """The end of a run is that of its copies, and a row's sum of the state and the predictions that come with it."""
    form = read_off(solver.scheduler(SCHEDULER), 4, SCHEDULER)
    x = noise(6, 1)
    end, before, *predictions = whole_run(NETWORK, SCHEDULER, form, x)
    assert len(predictions) == max(len(row) for row in form.rows) - 1
    torch.testing.assert_close(end, ends_and_slopes(NETWORK, SCHEDULER, form, x)[0])
    a, *c = form.rows[-1]
    again = a * before + sum(weight * x_0 for weight, x_0 in zip(c, predictions, strict=False))
    torch.testing.assert_close(end.double(), again.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("axes", "side"), [(1, 16), (2, 8), (3, 4)])
def test_what_is_missing_is_learned_where_neighbours_say_it(axes, side, monkeypatch):
    """The end lacks a product of two predictions and a neighbour's value, which no linear form has: nine tenths of that
    are found, on samples that were not trained on too."""
    seen = randn(300, 4, *[side] * axes, seed=1)
    missing = 0.1 * (seen[:, 2:3] * seen[:, 3:4] + seen[:, 1:2].roll(1, 2))
    end = seen[:, :1] + missing
    known, other = slice(0, 240), slice(240, 300)
    monkeypatch.setattr(correcting, "UPDATES", 300)
    monkeypatch.setattr(correcting, "POSITIONS", 1024)
    written = fit_correction(seen[known], end[known], 0.3)
    left = seen[other, :1] + correction(weights_of(written), seen[other]) - end[other]
    inner = left[:, :, 1:]  # the first row's neighbour is on the other side
    assert inner.square().mean() < 0.1 * missing[other].square().mean()
    monkeypatch.setattr(correcting, "UPDATES", 5)
    first, again, differs = (fit_correction(seen[known], end[known], 0.3, seed=seed) for seed in (0, 0, 1))
    assert first == again != differs


def test_a_fit_is_better_with_a_correction(monkeypatch):
    """On noises that neither was fitted to; what the fit says of itself is what the scheduler then does."""
    monkeypatch.setattr(correcting, "UPDATES", 400)
    train, held_out, many, fresh = ends(), ends(24, 200), ends(480, 400), ends(200, 300)
    plain = fit(NETWORK, SCHEDULER, train, held_out, 3, among=FEW, iterations=6)
    found = fit(NETWORK, SCHEDULER, train, held_out, 3, among=FEW, iterations=6, many=many)
    assert "correction" not in plain.table and found.errors["uncorrected"] == plain.errors["fitted"]
    assert {name: found.table[name] for name in plain.table} == plain.table
    assert found.evaluations > plain.evaluations and found.best_stock == plain.best_stock

    def errors(table: dict, of: Ends) -> torch.Tensor:
        return of.errors(sample(MezzotintScheduler(fitted_schedules=[table]), NETWORK, of.noise, 3)[0])

    assert errors(found.table, held_out).median().item() == found.errors["fitted"][0]
    assert errors(found.table, fresh).median() < 0.8 * errors(plain.table, fresh).median()


def test_a_correction_that_helps_nowhere_else_is_not_kept(monkeypatch):
    """Learned of ends that were dealt to other noises."""
    monkeypatch.setattr(correcting, "UPDATES", 100)
    many = ends(240, 400)
    shuffled = Ends(many.noise, 3 * many.end.roll(1, 0))
    found = fit(NETWORK, SCHEDULER, ends(), ends(24, 200), 3, among=FEW, starts=1, iterations=2, many=shuffled)
    assert "uncorrected" not in found.errors and "correction" not in (found.table or {})


@pytest.mark.parametrize("channels", [1, 32])
def test_weights_are_written_as_half_floats(channels, monkeypatch):
    monkeypatch.setattr(correcting, "UPDATES", 3)
    seen = randn(8, 3 * channels, 4, seed=2)
    written = fit_correction(seen, seen[:, :channels] + randn(8, channels, 4), 1.0)
    assert written["shapes"] == [[32, 3 * channels, 3], [32], [32, 32, 3], [32], [channels, 32, 3], [channels]]
    assert written == json.loads(json.dumps(written))
    for weight in weights_of(written):
        assert weight.dtype == torch.float32 and torch.equal(weight, weight.half().float())
        assert np.isfinite(weight.numpy()).all()
    assert weights_of(written)[4].any()


def test_the_program_corrects(save_pipe, tmp_path, monkeypatch, capsys):
    """The correction learns from as many trajectories as were asked for, rounded up to a multiple of `noises`, and the
    checkpoint that is written draws with it."""
    monkeypatch.setattr(correcting, "UPDATES", 150)
    counts = []

    def counted(run, end, scale):
        counts.append(len(run))
        return fit_correction(run, end, scale)

    monkeypatch.setattr("mezzotint_training.few_steps.fitting.fit_correction", counted)
    folder = save_pipe(tmp_path / "run")
    flags = ["--noises", "16", "--teacher_steps", "12", "--prompts", "a", "b", "--starts", "1", "--guidance_scale", "1"]
    assert fit_scheduler.main([str(folder), *flags, "--steps", "2", "--correction_noises", "150"]) == 0
    assert counts == [160]
    assert "corrected: median error on held-out noises" in capsys.readouterr().out
    (table,) = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_fitted_schedules"]
    pipe = MezzotintPipeline.from_pretrained(folder)

    def drawn(table: dict) -> torch.Tensor:
        pipe.scheduler = MezzotintScheduler.from_config(pipe.scheduler.config, fitted_schedules=[table])
        start = torch.Generator().manual_seed(0)
        return pipe("a", num_inference_steps=2, guidance_scale=1.0, output_type="latent", generator=start).images

    corrected, linear = drawn(table), drawn({name: x for name, x in table.items() if name != "correction"})
    assert "correction" in table and not torch.equal(corrected, linear)
    assert table["provenance"]["correction_trajectories"] == 160
    errors = table["provenance"]["held_out_rmse"]
    assert all(new < old for new, old in zip(errors["fitted"], errors["uncorrected"], strict=True))
