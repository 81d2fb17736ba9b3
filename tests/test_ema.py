"""An average of any length from the snapshots of two: against the average itself, taken over every step."""

import os

import numpy as np
import pytest
import torch
from averages_by_hand import average_of, walk
from safetensors.torch import load_file, save_file
from scipy.integrate import quad

from mezzotint import MezzotintPipeline
from mezzotint_training import cli
from mezzotint_training.config.errors import UserError
from mezzotint_training.learning import averages
from mezzotint_training.learning.averages import LENGTHS, PowerFunctionAverages, gamma_of, save_snapshot, snapshots


def snapshots_of(folder, trajectory, every: int) -> PowerFunctionAverages:
    kept = PowerFunctionAverages(trajectory[0])
    for step, place in enumerate(trajectory, 1):
        kept.update(place, step)
        if step % every == 0:
            save_snapshot(folder, step, kept.tensors())
    return kept


def distance(a, b) -> float:
    """Between two sets of tensors, relative to the second."""
    x, y = (torch.cat([t[name].double().flatten() for name in sorted(t)]) for t in (a, b))
    return ((x - y).norm() / y.norm()).item()


def test_inner_products_are_the_integrals():
    for t_a, a, t_b, b in (
        (1.0, 6.94, 1.0, 6.94),
        (0.3, 16.97, 1.0, 0.5),
        (1.0, 0.5, 0.3, 16.97),
        (2.0, 3.0, 7.0, 1.0),
    ):

        def product(t, t_a=t_a, a=a, t_b=t_b, b=b):
            return (a + 1) * t**a / t_a ** (a + 1) * (b + 1) * t**b / t_b ** (b + 1)

        expected = quad(product, 0, min(t_a, t_b))[0]
        assert averages.p_dot_p(t_a, a, t_b, b) == pytest.approx(expected, rel=1e-7)
    table = averages.p_dot_p(np.array([[1.0], [2.0]]), 3.0, np.array([1.0, 2.0]), 3.0)
    assert table.shape == (2, 2) and np.array_equal(table, table.T)
    # late steps of a long run, where t^gamma itself would be infinite
    assert averages.p_dot_p(1e9, 300.0, 1e9, 300.0) == pytest.approx(301**2 / 601 / 1e9)


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15, 0.2])
def test_a_fit_is_the_best_and_its_error_is_told(length):
    """Against the least squares of the profiles themselves on a fine grid."""
    steps, t = list(range(1, 13)), (np.arange(60_000) + 0.5) / 5_000

    def profile(end, sigma):
        gamma = gamma_of(sigma)
        return np.where(t <= end, (gamma + 1) * (t / end) ** gamma / end, 0)

    coefficients, error = averages.fit(steps, length)
    assert coefficients.shape == (12, 2) and coefficients.sum() == pytest.approx(1, abs=1e-5)
    p = np.stack([profile(end, sigma) for end in steps for sigma in LENGTHS], axis=1)
    wanted = profile(12, length)

    def error_of(x):
        return np.linalg.norm(p @ x - wanted) / np.linalg.norm(wanted)

    assert error_of(coefficients.flatten()) == pytest.approx(error, rel=1e-2)
    for nudge in np.random.default_rng(0).normal(size=(20, 24)):
        assert error_of(coefficients.flatten() + 0.01 * (nudge - nudge.mean())) > error
    assert error < 0.1


@pytest.fixture(scope="module")
def long_walk(tmp_path_factory):
    folder, trajectory = tmp_path_factory.mktemp("walk"), walk(640)
    snapshots_of(folder, trajectory, every=20)
    return snapshots(folder), trajectory


@pytest.mark.parametrize("length, bound", [(0.03, 3e-3), (0.07, 1e-3), (0.15, 1e-3), (0.2, 2e-3), (0.25, 5e-3)])
def test_any_length_is_the_average_over_all_steps(long_walk, length, bound):
    paths, trajectory = long_walk
    made, exact = averages.combined(paths, averages.fit(list(paths), length)[0]), average_of(trajectory, length)
    stored = [averages.combined({at: path}, row) for at, path in paths.items() for row in np.eye(2)[:, None]]
    assert len(stored) == 64
    assert distance(made, exact) < bound and distance(made, exact) < min(distance(x, exact) for x in stored) / 5
    assert all(x.dtype == torch.float32 for x in made.values())


def test_an_earlier_step_is_the_average_until_then(long_walk):
    paths, trajectory = long_walk
    paths = {at: path for at, path in paths.items() if at <= 400}
    made = averages.combined(paths, averages.fit(list(paths), 0.15)[0])
    assert distance(made, average_of(trajectory[:400], 0.15)) < 2e-3
    assert distance(made, average_of(trajectory, 0.15)) > 0.02


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_length_that_was_kept_is_its_snapshot(tmp_path, length, count):
    kept = snapshots_of(tmp_path, walk(10 * count), every=10)
    paths = snapshots(tmp_path)
    coefficients, error = averages.fit(list(paths), length)
    made = averages.combined(paths, coefficients)
    assert error < 1e-6 and coefficients[-1, LENGTHS.index(length)] == 1 and np.count_nonzero(coefficients) == 1
    for name, x in kept.averages[length].items():
        assert torch.equal(made[name], x.half().float())


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_weights_that_never_move_come_back_as_they_are(tmp_path, count):
    """However few the snapshots: what the fit lacks in shape it must not lack in size."""
    still = {"unet.a": torch.tensor([1.5, -0.25, 3.0])}
    snapshots_of(tmp_path, [still] * (10 * count), every=10)
    paths = snapshots(tmp_path)
    for length in (0.04, 0.07, 0.12):
        made = averages.combined(paths, averages.fit(list(paths), length)[0])
        torch.testing.assert_close(made["unet.a"], still["unet.a"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.2887, 1.0, float("nan")])
def test_a_length_that_no_average_has_is_refused(length):
    with pytest.raises(UserError, match=f"^length must be above 0 and below 0.2887: got {length:g}$"):
        averages.fit([10, 20], length)


def test_what_too_few_snapshots_can_give_is_said():
    with pytest.raises(
        UserError, match=r"^2 snapshots give lengths from 0\.\d+ to 0\.\d+: got 0.25 \(its profile"
    ) as e:
        averages.fit([10, 20], 0.25)
    words = str(e.value).split()
    low, high = float(words[words.index("from") + 1]), float(words[words.index("to") + 1].rstrip(":"))
    assert 0.01 < low < 0.05 and 0.10 < high < 0.2
    for length in (low, high):
        assert averages.fit([10, 20], length)[1] <= averages.TOLERANCE
    with pytest.raises(UserError):
        averages.fit([10, 20], high + 0.01)
    averages.fit(list(range(1, 60)), 0.25)


# ------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def run_dir(make_pipe, tmp_path):
    """A finished run of 60 steps that trained its U-Net and kept a snapshot of every sixth."""
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path / "run")
    start, trajectory = {f"unet.{name}": p.detach() for name, p in pipe.unet.named_parameters()}, []
    torch.manual_seed(0)
    pull = {name: torch.randn_like(x) for name, x in start.items()}
    for step in range(60):
        trajectory.append({name: x + 0.1 * (step / 60) ** 2 * pull[name] for name, x in start.items()})
    snapshots_of(tmp_path / "run", trajectory, every=6)
    return tmp_path / "run", trajectory


def run(*argv) -> int:
    return cli.main(["ema", *map(str, argv)])


def test_the_pipeline_written_holds_the_average_and_all_else_of_the_run(run_dir, tmp_path, capsys):
    folder, trajectory = run_dir
    (tmp_path / "made").mkdir()  # an empty folder will do
    assert run(folder, "--length", 0.13, "--output", tmp_path / "made") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'made'}: average of length 0.13 at step 60, from 10 snap")
    before, made = MezzotintPipeline.from_pretrained(folder), MezzotintPipeline.from_pretrained(tmp_path / "made")
    weights = {f"unet.{name}": p.detach() for name, p in made.unet.named_parameters()}
    exact = average_of(trajectory, 0.13)
    assert distance(weights, exact) < 1e-3 and distance(trajectory[-1], exact) > 1e-2
    for name, x in before.text_encoder.state_dict().items():
        assert torch.equal(x, made.text_encoder.state_dict()[name])
    for name in ("unet", "scheduler"):
        configs = [
            {k: v for k, v in getattr(pipe, name).config.items() if k != "_name_or_path"} for pipe in (before, made)
        ]
        assert configs[0] == configs[1]
    files = {path.relative_to(folder) for path in folder.rglob("*") if "ema" not in path.parts}
    assert files == {path.relative_to(tmp_path / "made") for path in (tmp_path / "made").rglob("*")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "run"]
    assert made("7", num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images[0].size == (8, 8)


def test_a_folder_of_the_users_beside_the_output_stays(run_dir, tmp_path):
    folder, _ = run_dir
    (tmp_path / ".made.aside").mkdir()
    (tmp_path / ".made.aside" / "notes.txt").write_text("mine")
    assert run(folder, "--length", 0.1, "--output", tmp_path / "made") == 0
    assert (tmp_path / ".made.aside" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".made.aside", "made", "run"]
    assert len({path.stat().st_mode & 0o777 for path in (tmp_path / "made").rglob("*") if path.is_file()}) == 1


def test_step_is_that_of_a_snapshot(run_dir, tmp_path, capsys):
    folder, trajectory = run_dir
    assert run(folder, "--length", 0.1, "--step", 30, "--output", tmp_path / "made") == 0
    assert "at step 30, from 5 snapshots" in capsys.readouterr().out
    made = MezzotintPipeline.from_pretrained(tmp_path / "made")
    weights = {f"unet.{name}": p.detach() for name, p in made.unet.named_parameters()}
    assert distance(weights, average_of(trajectory[:30], 0.1)) < 1e-3


def test_a_trained_text_encoder_is_averaged_too(make_pipe, tmp_path):
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path / "run")
    named = {f"{c}.{k}": p for c in ("unet", "text_encoder") for k, p in getattr(pipe, c).named_parameters()}
    other = {name: p.detach() + 1 for name, p in named.items()}
    snapshots_of(tmp_path / "run", [other] * 4, every=4)
    assert run(tmp_path / "run", "--length", 0.05, "--output", tmp_path / "made") == 0
    made = MezzotintPipeline.from_pretrained(tmp_path / "made")
    for name, x in made.text_encoder.named_parameters():
        torch.testing.assert_close(x.detach(), other[f"text_encoder.{name}"], rtol=1e-3, atol=1e-3)


def spoil_pipeline(folder):
    (folder / "model_index.json").unlink()


def spoil_weights(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")


def spoil_snapshot(folder):
    path = snapshots(folder)[12]
    path.write_bytes(path.read_bytes()[:-10])


def thin_snapshot(folder):
    path = snapshots(folder)[60]
    tensors = load_file(path)
    del tensors["0.1/unet.conv_in.bias"]
    save_file(tensors, path)


def pipe_for_snapshot(folder):
    path = snapshots(folder)[12]
    path.unlink()
    os.mkfifo(path)


def spoil_numbers(folder):
    path = snapshots(folder)[60]
    tensors = load_file(path)
    tensors["0.1/unet.conv_in.bias"][0] = float("nan")
    save_file(tensors, path)


def empty_snapshots(folder):
    for path in snapshots(folder).values():
        save_file({}, path)


def remove_snapshots(folder):
    for path in snapshots(folder).values():
        path.unlink()


@pytest.mark.parametrize(
    "spoil, argv, words",
    [
        (remove_snapshots, [], "run_dir must hold snapshots, of a run with --posthoc_ema_steps: {tmp}/run has none"),
        (None, ["--length", "0.3"], "length must be above 0 and below 0.2887: got 0.3"),
        (None, ["--length", "0.004"], "10 snapshots give lengths from"),
        (None, ["--step", "7"], "step must be that of a snapshot: got 7, possible are 6, 12, ... 60"),
        (None, ["--output", "{tmp}/run"], "output must be a new or an empty folder: got {tmp}/run"),
        (None, ["--output", "{tmp}/run/model_index.json"], "output must be a new or an empty folder"),
        (spoil_pipeline, [], "run_dir must hold a finished pipeline: {tmp}/run has no model_index.json"),
        (spoil_weights, [], "run_dir {tmp}/run cannot be loaded: "),
        (spoil_snapshot, [], "snapshot {tmp}/run/ema/step-000012.safetensors is damaged"),
        (thin_snapshot, [], "snapshot {tmp}/run/ema/step-000060.safetensors is damaged"),
        (pipe_for_snapshot, [], "snapshot {tmp}/run/ema/step-000012.safetensors is damaged"),
        (spoil_numbers, [], "the snapshots must hold finite numbers: their average of unet.conv_in.bias has others"),
        (empty_snapshots, [], "snapshot {tmp}/run/ema/step-000006.safetensors is damaged"),
        (None, [], "run_dir must hold the pipeline that its snapshots are of: {tmp}/run differs in unet."),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(save_pipe, tmp_path, capsys, spoil, argv, words):
    folder = save_pipe(tmp_path / "run")
    for step in range(6, 61, 6):
        save_snapshot(folder, step, {"0.05/unet.conv_in.bias": torch.ones(16), "0.1/unet.conv_in.bias": torch.ones(16)})
    capsys.readouterr()
    if spoil:
        spoil(folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    argv = ["--length", "0.07", "--output", "{tmp}/made", *argv]
    assert run(folder, *(x.format(tmp=tmp_path) for x in argv)) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and err[0].startswith("mezzotint: " + words.format(tmp=tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
