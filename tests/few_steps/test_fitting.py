"""Fitted schedules: on a closed-form denoiser, whose ODE no error of training blurs, and by the program on a
pipeline."""

import json
import os
import shutil

import diffusers
import numpy as np
import pytest
import torch
from conftest import TINY
from mixtures import mixture, randn
from tiny_run import tree

from mezzotint import MezzotintPipeline, MezzotintScheduler, MezzotintUNetModel
from mezzotint_training import fit_scheduler
from mezzotint_training.benchmarks.closed_form import ClosedFormNetwork, GaussianMixture
from mezzotint_training.few_steps.fitting import (
    Ends,
    Form,
    descend,
    ends_and_slopes,
    fit,
    read_off,
    run,
    solve,
    with_history,
)
from mezzotint_training.few_steps.network import PipelineNetwork
from mezzotint_training.few_steps.stock_solvers import common_settings, sample, solvers_at

SCHEDULER = MezzotintScheduler()
NETWORK = ClosedFormNetwork(GaussianMixture(*mixture()), SCHEDULER)
FEW = tuple(s for s in common_settings() if s.scheduler_class in ("UniPCMultistepScheduler", "DDIMScheduler"))


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.set_verbosity_error()
    yield
    diffusers.utils.logging.set_verbosity_warning()


def noise(count: int, seed: int) -> torch.Tensor:
    return randn(count, 1, 2, 2, seed=seed).float()


def ends(count: int = 24, seed: int = 100) -> Ends:
    return solve(NETWORK, SCHEDULER, noise(count, seed), 60)


def test_stock_solvers_are_read_off_as_numbers():
    """The linear form of each common solver gives the samples that the solver gives: multistep, singlestep, predictor
    and corrector, of two evaluations a step."""
    x, kinds = noise(8, 1), set()
    found = solvers_at(6, SCHEDULER, common_settings()).steps
    for setting, steps in found.items():
        form = read_off(setting.scheduler(SCHEDULER), steps, SCHEDULER)
        if form is None:
            continue
        kinds.add(setting.scheduler_class)
        expected = sample(setting.scheduler(SCHEDULER), NETWORK, x, steps)[0]
        torch.testing.assert_close(run(NETWORK, SCHEDULER, form, x), expected, rtol=0, atol=3e-3)
    assert kinds >= {
        *("DDIMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
        *("UniPCMultistepScheduler", "SASolverScheduler", "EDMDPMSolverMultistepScheduler", "LMSDiscreteScheduler"),
    }


def test_our_own_steps_are_read_off_too():
    """The default's rows come back, with nothing but zeros beyond its order."""
    ours = MezzotintScheduler()
    form = read_off(ours, 5, SCHEDULER)
    ours.set_timesteps(5)
    for row, (_, _, _, *expected) in zip(form.rows, ours._rows, strict=True):
        np.testing.assert_allclose(row, [*expected, *[0] * (len(row) - len(expected))], rtol=0, atol=2e-5)
    assert [len(row) for row in with_history(form, 2).rows] == [2, 3, 3, 3, 3]
    assert with_history(form, 1) is None


def test_a_form_and_its_table_draw_the_same():
    form = read_off(MezzotintScheduler(solver_order=3), 5, SCHEDULER)
    table = form.table(SCHEDULER) | {"guidance_scale": 1.0}
    ours = MezzotintScheduler(fitted_schedules=[table])
    x = noise(6, 2)
    torch.testing.assert_close(sample(ours, NETWORK, x, 5)[0], run(NETWORK, SCHEDULER, form, x), rtol=0, atol=1e-3)
    # the levels of the states are those of the times, for these steps are a solver's
    np.testing.assert_allclose(table["sigmas"], np.exp(form.log_sigmas), rtol=1e-3)


def test_slopes_are_the_derivatives_of_the_ends():
    """Against central differences of whole samples, in every number of the form."""
    form = read_off(MezzotintScheduler(), 4, SCHEDULER)
    x = noise(3, 3)
    end, slopes = ends_and_slopes(NETWORK, SCHEDULER, form, x)
    torch.testing.assert_close(end, run(NETWORK, SCHEDULER, form, x))
    assert len(slopes) == len(form.vector) == 4 + 2 + 3 + 4 + 5
    h = 2e-3
    for k in range(1, len(slopes)):  # the first time is the schedule's end, beyond which there is none
        up, down = (form.vector + sign * h * (np.arange(len(slopes)) == k) for sign in (1, -1))
        central = (
            run(NETWORK, SCHEDULER, form.with_vector(up), x) - run(NETWORK, SCHEDULER, form.with_vector(down), x)
        ) / (2 * h)
        torch.testing.assert_close(slopes[k], central, rtol=0.05, atol=0.02)


def test_descent_finds_coefficients_that_are_known():
    """Of a linear network the end is a polynomial of the numbers: spoilt coefficients are brought back to the end that
    the unspoilt ones had, on noises that were not fitted on too."""
    linear = ClosedFormNetwork(GaussianMixture(*(x[:1] for x in mixture())), SCHEDULER)
    true = read_off(MezzotintScheduler(), 3, SCHEDULER)
    spoilt = Form(true.log_sigmas, [row * 1.05 for row in true.rows])
    x, other = noise(16, 4), noise(16, 5)
    target = Ends(x, run(linear, SCHEDULER, true, x))
    before = target.errors(run(linear, SCHEDULER, spoilt, x)).median()
    form, _, _ = descend(linear, SCHEDULER, spoilt, target, 1.0, 20)
    after = Ends(other, run(linear, SCHEDULER, true, other)).errors(run(linear, SCHEDULER, form, other)).median()
    assert after < before / 50


def test_fit_beats_every_stock_solver_on_other_noises():
    train, held_out, fresh = ends(), ends(24, 200), ends(64, 300)
    found = fit(NETWORK, SCHEDULER, train, held_out, 5, among=FEW, iterations=8)
    assert found.table is not None and found.best_stock not in ("fitted", "default")
    ours = MezzotintScheduler(fitted_schedules=[found.table])
    error = fresh.errors(sample(ours, NETWORK, fresh.noise, 5)[0]).median()
    for setting, steps in [(None, 5), *solvers_at(5, SCHEDULER, FEW).steps.items()]:
        other = MezzotintScheduler() if setting is None else setting.scheduler(SCHEDULER)
        assert error < fresh.errors(sample(other, NETWORK, fresh.noise, steps)[0]).median() / 2
    assert found.evaluations > 0 and found.seconds > 0
    again = fit(NETWORK, SCHEDULER, train, held_out, 5, among=FEW, iterations=8)
    assert again.table == found.table


def test_a_table_that_is_no_better_is_not_kept():
    """Held-out trajectories of another network: whatever was learned of this one is no good there."""
    train = ends()
    strange = Ends(noise(24, 6), sample(FEW[0].scheduler(SCHEDULER), NETWORK, noise(24, 6), 5)[0])
    found = fit(NETWORK, SCHEDULER, train, strange, 5, among=FEW, starts=1, iterations=2)
    assert found.table is None
    assert found.errors["fitted"][0] > min(e[0] for name, e in found.errors.items() if name != "fitted")


def test_few_outliers_do_not_rule_the_loss():
    target = Ends(torch.zeros(10, 1, 2, 2), torch.zeros(10, 1, 2, 2))
    samples = torch.full((10, 1, 2, 2), 0.1)
    near = target.loss(samples, 1.0)
    assert near == pytest.approx(np.log1p(0.01), rel=1e-5)
    samples[0] = 100
    assert target.loss(samples, 0.1) < 0.01 * np.log1p(1e6)  # and not 1e4 / 10


# ---------------------------------------------------------------------------------------------------- the program


def test_program_writes_tables_and_goes_on(save_pipe, tmp_path, capsys):
    folder = save_pipe(tmp_path / "run")
    flags = ["--noises", "4", "--teacher_steps", "12", "--prompts", "a", "b", "--starts", "1", "--guidance_scale", "2"]
    flags += ["--correction_noises", "0"]
    assert fit_scheduler.main([str(folder), *flags, "--steps", "2", "3"]) == 0
    said = capsys.readouterr().out
    kept = said.count(": kept;")
    assert kept >= 1 and kept + said.count("NOT kept") == 2
    tables = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_fitted_schedules"]
    assert len(tables) == kept
    for table in tables:
        assert table["guidance_scale"] == 2.0
        assert {"prompts", "trajectories", "evaluations", "held_out_rmse", "versions"} <= table["provenance"].keys()
    pipe = MezzotintPipeline.from_pretrained(folder)
    n = tables[0]["num_inference_steps"]
    pipe("a", num_inference_steps=n, guidance_scale=2.0, output_type="np")
    assert pipe.scheduler.fitted_schedule["taus"] == tables[0]["taus"]
    assert pipe.scheduler.timesteps.tolist() == pytest.approx(tables[0]["taus"])

    assert fit_scheduler.main([str(folder), *flags, "--steps", str(n)]) == 0
    assert f"{n} steps, guidance 2: has a table (--refit fits another)" in capsys.readouterr().out
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_fitted_schedules"] == tables


def test_networks_are_fitted_in_whole_float32(save_pipe, tmp_path, monkeypatch):
    save_pipe(tmp_path / "run")
    seen, answer = set(), PipelineNetwork._answer

    def looked_at(*args):
        seen.add(torch.backends.cudnn.allow_tf32)
        return answer(*args)

    monkeypatch.setattr(PipelineNetwork, "_answer", looked_at)
    flags = ["--noises", "2", "--teacher_steps", "4", "--prompts", "a", "--starts", "1", "--guidance_scale", "1"]
    flags += ["--correction_noises", "0"]
    assert fit_scheduler.main([str(tmp_path / "run"), *flags, "--steps", "2"]) == 0
    assert seen == {False} and torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "1"], "steps must be at least 2, one step has nothing to fit: got 1"),
        (["--steps", "4", "1000"], "steps must be at most 100: got 1000"),
        (["--noises", "1"], "noises must be at least 2: got 1"),
        (["--correction_noises", "-1"], "correction_noises must be at least 0: got -1"),
        (["--noises", "1000000000"], "noises must be at most 100,000: got 1000000000"),
        (["--history", "0"], "history must be at least 1: got 0"),
        (["--starts", "0"], "starts must be at least 1: got 0"),
        (["--teacher_steps", "0"], "teacher_steps must be at least 1: got 0"),
        (["--teacher_steps", "12"], "teacher_steps must be at least twice the steps, 20: got 12"),
        (["--guidance_scale", "2", "nan"], "guidance_scale must be a number from 0: got nan"),
        (["--guidance_scale", "inf"], "guidance_scale must be a number from 0: got inf"),
        (["--seed", str(2**63)], f"seed must be below 2^63: got {2**63}"),
        (["--device", "quantum"], "device must be one of this machine's (cpu"),
        (["--device", ""], "device must be one of this machine's (cpu"),
        (["--output_dir", ""], "argument --output_dir: must not be empty: got ''"),
        (["--output_dir", "{tmp}/full"], "output_dir must be a new or an empty folder: got {tmp}/full"),
        (["--output_dir", "{tmp}/full/notes"], "output_dir must be a new or an empty folder: got {tmp}/full/notes"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_loaded(flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(MezzotintPipeline, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("words")
    assert fit_scheduler.main([str(tmp_path), *(flag.format(tmp=tmp_path) for flag in flags)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mezzotint: {message.format(tmp=tmp_path)}") and err.count("\n") == 1


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A saved pipeline without text."""
    folder = tmp_path_factory.mktemp("small") / "pipe"
    unet = MezzotintUNetModel(**TINY | {"cross_attention_dim": None})
    MezzotintPipeline(unet, MezzotintScheduler(), None, None).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("recipe.yaml", "seed: [1", "recipe.yaml cannot be read as YAML"),
        ("recipe.yaml", "a: &a [*a]", "aliases are not possible here"),
        ("recipe.yaml", "validation_prompts: 7", "validation_prompts must be text: got 7"),
        ("recipe.yaml", "guidance_scale: .nan", "guidance_scale must be a number from 0: got nan"),
        ("recipe.yaml", "guidance_scale: strong", "guidance_scale must be of type float: got 'strong'"),
        ("metrics.json", "{", "metrics.json of "),
        ("evaluation.json", "[]", "what the card of "),
    ],
)
def test_what_is_broken_beside_the_pipeline_is_said_before_the_fit(
    small, name, content, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(fit_scheduler, "solve", lambda *args: pytest.fail("fitted"))
    folder = tmp_path / "pipe"
    shutil.copytree(small, folder)
    (folder / "recipe.yaml").write_text("seed: 0\n")
    (folder / "metrics.json").write_text('{"pictures": 1}')
    (folder / name).write_text(content)
    before = tree(folder)
    for output in ([], ["--output_dir", str(tmp_path / "copy")]):
        assert fit_scheduler.main([str(folder), *output]) == 2
        err = capsys.readouterr().err
        assert words in err and err.startswith("mezzotint: ") and err.count("\n") == 1, err
    assert tree(folder) == before and not (tmp_path / "copy").exists()


def test_a_folder_that_takes_no_table_is_said_before_the_fit(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(MezzotintPipeline, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("scheduler"))  # root may write anywhere
    assert fit_scheduler.main([str(small)]) == 2
    message = f"mezzotint: checkpoint must be a folder that may be written to: got {small / 'scheduler'}\n"
    assert capsys.readouterr().err == message


def test_more_steps_than_the_scheduler_has_are_said_before_the_fit(small, capsys, monkeypatch):
    monkeypatch.setattr(fit_scheduler, "solve", lambda *args: pytest.fail("fitted"))
    assert fit_scheduler.main([str(small), "--teacher_steps", "1001", "--device", "cpu"]) == 2
    assert "mezzotint: teacher_steps must be at most 1,000: got 1001\n" in capsys.readouterr().err


def test_what_is_no_checkpoint_is_one_line(tmp_path, capsys):
    assert fit_scheduler.main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
