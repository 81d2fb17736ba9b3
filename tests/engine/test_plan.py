"""What is said before step 1, against closed forms and against what is then really held, saved and timed."""

import json
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from mezzotint_training.benchmarks import plan_accuracy
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.lint import Lint, Range
from mezzotint_training.engine import plan
from mezzotint_training.learning.averages import PowerFunctionAverages, save_snapshot
from mezzotint_training.learning.optimizers import make_optimizer


def settings(**changes) -> TrainConfig:
    return TrainConfig(**{"dataset_name": "any"} | changes)


class Process:
    """Memory of a process whose batches take `fixed + each * n` bytes, after `before` bytes of something else."""

    def __init__(self, fixed: int, each: int, before: int = 0):
        self.fixed, self.each, self.high, self.tried = fixed, each, before, []

    def step(self, size: int) -> None:
        self.tried.append(size)
        self.high = max(self.high, self.fixed + self.each * size)

    def peak(self) -> int:
        return self.high


# ------------------------------------------------------------------------------------------------------------- memory


def test_peak_and_largest_batch_lie_on_the_line():
    process = Process(fixed=1000, each=10)
    found = plan.memory(process.step, process.peak, 64, still_to_come=500, available=10_000)
    assert process.tried == found["measured_at"] == [8, 16, 32, 64]
    assert found["peak"] == 1000 + 64 * 10 + 500 and found["per_picture"] == 10
    assert found["fits"] == (9000 - 500 - 1000) // 10
    assert process.high <= found["peak"]  # which the measurement itself has not spoiled


def test_a_batch_that_cannot_fit_is_reckoned_and_not_tried():
    process = Process(fixed=1000, each=100)
    found = plan.memory(process.step, process.peak, 64, still_to_come=0, available=4000)
    assert process.tried == [8, 16]  # 32 would take 4,200
    assert found["peak"] == 1000 + 64 * 100 > found["available"] and found["fits"] == 26
    nothing = plan.memory(Process(5000, 100).step, lambda: 5000, 64, still_to_come=0, available=4000)
    assert nothing["fits"] is None
    process = Process(5000, 100)
    assert plan.memory(process.step, process.peak, 64, still_to_come=0, available=4000)["fits"] == 0


@pytest.mark.parametrize("before, fits", [(0, 800), (1300, 800), (1500, None), (9000, None)])
def test_a_peak_from_before_hides_the_batches_and_gives_no_false_slope(before, fits):
    process = Process(fixed=1000, each=10, before=before)  # 1,080 to 1,640 bytes
    found = plan.memory(process.step, process.peak, 64, still_to_come=0, available=10_000)
    assert found["fits"] == fits and found["peak"] == max(before, 1640)


def test_a_plan_goes_on_until_the_slope_is_seen_and_a_run_does_not():
    process = Process(fixed=1000, each=10, before=3000)  # exceeded from 256 on
    found = plan.memory(process.step, process.peak, 64, still_to_come=0, available=10**6, beyond=True)
    assert process.tried[-2:] == [256, 512] and found["per_picture"] == 10
    assert found["peak"] == 3000
    process = Process(fixed=1000, each=10, before=3000)
    plan.memory(process.step, process.peak, 64, still_to_come=0, available=10**6)
    assert process.tried[-1] == 64


def test_processes_stop_together():
    process = Process(fixed=1000, each=10)
    asked = []

    def other_process_is_full(full: bool) -> bool:
        asked.append(full)
        return len(asked) > 2

    found = plan.memory(process.step, process.peak, 64, 0, 10**6, agreed=other_process_is_full)
    assert process.tried == [8, 16] and asked == [False] * 3 and found["peak"] == 1000 + 64 * 10


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 8, 9])
def test_small_batches_are_measured_too(batch_size):
    process = Process(fixed=1000, each=10)
    assert plan.memory(process.step, process.peak, batch_size, 0, 10**6)["peak"] == 1000 + 10 * batch_size
    assert process.tried == sorted(set(process.tried)) and process.tried[-1] == batch_size


def test_a_batch_beyond_sense_is_not_tried_at_an_eighth():
    """65,536 pictures, of which no more than some hundred would fit."""
    process = Process(fixed=1000, each=100)
    found = plan.memory(process.step, process.peak, 65_536, still_to_come=0, available=50_000)
    assert process.tried == [64, 256] and found["fits"] == 440
    assert found["peak"] == 1000 + 65_536 * 100


def test_a_container_has_what_it_was_given(monkeypatch, tmp_path):
    limits = {"memory.max": "5000000000\n", "memory.current": "1000000000\n"}
    for name, text in limits.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(plan, "Path", lambda _: tmp_path)
    free, mine = 8_000_000_000, 300_000_000
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=mine))
    monkeypatch.setattr("psutil.Process", lambda: process)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
    cpu = torch.device("cpu")
    assert plan.available_memory(cpu) == 4_000_000_000 + mine
    assert plan.available_memory(cpu, processes=4) == 1_000_000_000 + mine
    (tmp_path / "memory.max").write_text("max\n")
    assert plan.available_memory(cpu) == free + mine


# --------------------------------------------------------------------------------------------------------------- disk


def parameters() -> dict[str, torch.nn.Parameter]:
    shapes = {"conv_in.weight": (64, 3, 3, 3), "mid.weight": (128, 128), "conv.weight": (64, 64, 3, 3), "bias": (64,)}
    return {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize("optimizer, library", [("adamw", "torch"), ("muon", "torch"), ("prodigy", "prodigyopt"),
                                                ("schedule_free", "schedulefree")])  # fmt: skip
def test_an_optimizer_s_state_is_known_before_its_first_step(optimizer, library):
    pytest.importorskip(library)
    config, named = settings(optimizer=optimizer, use_ema=False, learning_rate=1.0), parameters()
    made = make_optimizer(config, named, torch.device("cpu"))
    before = plan.state_bytes(config, made)
    for p in named.values():
        p.grad = torch.randn_like(p)
    made.step()
    held = sum(x.nbytes for entry in made.state.values() for x in entry.values() if torch.is_tensor(x))
    assert plan.state_bytes(config, made) == held
    assert before == pytest.approx(held, rel=1e-3)


@pytest.mark.parametrize(
    "changes, checkpoints, snapshots",
    [
        ({"checkpoints_total_limit": 2}, 3, 0),
        ({"checkpoints_total_limit": 50}, 10, 0),
        ({"checkpoints_total_limit": None}, 10, 0),
        ({"max_train_steps": 901, "checkpoints_total_limit": None}, 10, 0),  # the last one counts
        ({"posthoc_ema_steps": 250, "use_ema": False}, 3, 4),
    ],
)
def test_the_disk_holds_what_will_be_saved(tmp_path, changes, checkpoints, snapshots):
    config = settings(
        **{"max_train_steps": 1000, "checkpointing_steps": 100, "output_dir": str(tmp_path / "a/b")} | changes
    )
    named = parameters()
    optimizer = make_optimizer(config, named, torch.device("cpu"))
    network = torch.nn.Linear(1000, 100)
    found = plan.disk(config, named, {"unet": network, "tokenizer": object()}, optimizer)

    sum(p.square().sum() for p in named.values()).backward()
    optimizer.step()
    state = {f"{i}.{k}": v for i, e in enumerate(optimizer.state.values()) for k, v in e.items()}
    files = {"weights": dict(named), "optimizer": state} | ({"ema": dict(named)} if config.use_ema else {})
    if config.posthoc_ema_steps:
        averages = PowerFunctionAverages({name: p.detach() for name, p in named.items()})
        files["posthoc_ema"] = averages.tensors()
        snapshot = save_snapshot(tmp_path, 1, averages.tensors())
        assert found["snapshot"] == pytest.approx(snapshot.stat().st_size, rel=0.01)
    assert found["checkpoint"].keys() == files.keys()
    for name, tensors in files.items():
        save_file(dict(tensors), tmp_path / name)
        assert found["checkpoint"][name] == pytest.approx((tmp_path / name).stat().st_size, rel=0.01)
    save_file(network.state_dict(), tmp_path / "pipeline")
    assert found["pipeline"] == pytest.approx((tmp_path / "pipeline").stat().st_size, rel=0.01)

    assert (found["checkpoints"], found["snapshots"]) == (checkpoints, snapshots)
    weights = sum(p.nbytes for p in named.values())
    expected = checkpoints * sum(found["checkpoint"].values()) + snapshots * weights + found["pipeline"]
    assert found["total"] == expected and found["free"] > 0
    assert not (tmp_path / "a").exists()


# --------------------------------------------------------------------------------------------------------------- time


def test_seconds_are_those_of_the_steps_after_the_warm_up():
    config = settings(max_train_steps=1000, train_batch_size=8, gradient_accumulation_steps=2, validation_steps=1000)
    steps = [30.0, 9.0, 9.0] + [1.0] * 8 + [50.0] + [1.0] * 8
    found = plan.seconds(config, steps, [step / 4 for step in steps], step=20, processes=3)
    assert found["seconds_per_step"] == 1.0 and found["measured_over"] == 17
    assert found["images_per_second"] == 8 * 2 * 3 and found["data_wait"] == 0.25
    assert found["parts"] == {"training": 980.0} and found["total"] == 980.0
    assert plan.seconds(config, [2.0, 4.0], [0.0, 0.0], step=2)["seconds_per_step"] == 3.0
    assert plan.seconds(config, [1.0], [0.0], step=1000)["total"] == 0.0


def test_an_end_beyond_the_calendar_is_not_dated():
    (_, line) = plan.time_lines(plan.seconds(settings(max_train_steps=10**9), [1e6] * 8, [0.0] * 8, 0))
    assert line.startswith("time         1.16e+10 days for 1,000,000,000 steps (training ")


def test_drawings_and_held_out_losses_cost_their_forward_passes():
    config = settings(
        max_train_steps=1000, train_batch_size=10, validation_steps=300, validation_prompts=["a", "b"],
        num_validation_images=5, num_inference_steps=20, guidance_scale=2.0,
    )  # fmt: skip
    found = plan.seconds(config, [3.0] * 20, [0.0] * 20, step=20, passes=100)
    forward = 3.0 / 3 / 10  # of one picture
    assert found["parts"]["drawings"] == pytest.approx(4 * (2 * 5 * 20 * 2) * forward)  # at 300, 600, 900 and the end
    assert found["parts"]["held-out losses"] == pytest.approx(4 * 100 * forward)
    assert found["total"] == pytest.approx(sum(found["parts"].values()))
    config.guidance_scale = 1.0
    half = plan.seconds(config, [3.0] * 20, [0.0] * 20, step=20)
    assert half["parts"]["drawings"] == pytest.approx(found["parts"]["drawings"] / 2)
    assert half["cut"] is None
    config.max_train_minutes = 5
    assert plan.seconds(config, [3.0] * 20, [0.0] * 20, step=20)["total"] == 300


def test_a_run_that_the_clock_ends_is_told_how_far_it_comes():
    config = settings(max_train_steps=3000, validation_steps=10**6, max_train_minutes=10)
    found = plan.seconds(config, [3.0] * 20, [0.0] * 20, step=20)
    assert found["total"] == 600 and found["cut"]["left"] == 200
    (_, time) = plan.time_lines(found, now=datetime(2026, 12, 31, 23, 0))
    assert time.split(maxsplit=1)[1] == (
        "10 min for about 200 of 2,980 steps, until 2026-12-31 23:10 (training 2.48 h); max_train_minutes 10 ends it "
        "there, before the learning rate has fallen: max_train_steps 220 lets it fall"
    )
    config.lr_scheduler = "constant_with_warmup"
    (_, time) = plan.time_lines(plan.seconds(config, [3.0] * 20, [0.0] * 20, step=20))
    assert time.endswith("; max_train_minutes 10 ends it there")
    config.max_train_minutes = 150
    assert plan.seconds(config, [3.0] * 20, [0.0] * 20, step=20)["cut"] is None


def test_the_end_is_told_by_the_clock():
    config = settings(max_train_steps=7220, validation_steps=10_000)
    found = plan.seconds(config, [1.0] * 20, [0.1] * 20, step=20)
    speed, time = plan.time_lines(found, now=datetime(2026, 12, 31, 23, 0))
    assert speed.split(maxsplit=1) == [
        "speed", "1 s a step (median of 17), 64 images/s, 10% of the time waiting for data"
    ]  # fmt: skip
    assert time.split(maxsplit=1) == ["time", "2 h for 7,200 steps, until 2027-01-01 01:00 (training 2 h)"]


# -------------------------------------------------------------------------------------------------------------- words


def whole_plan(**changes) -> dict:
    found = Lint(
        use="image", columns=("image", "text"), rows=1030, looked_at=1000,
        dropped=[f"row {n} cannot be read" for n in range(30)],
        measures={"heights": Range(8, 8, 8), "widths": Range(8, 10.5, 640)}, buckets={(8, 8): 900, (8, 16): 100},
        captions_each=Range(3, 3, 3), caption_lengths=Range(1, 20, 63), different_captions=30,
        findings=[("an empty caption", 7, [1, 2, 3, 4, 5])],
    )  # fmt: skip
    unet, text = torch.nn.Linear(10, 10), torch.nn.Linear(5, 5).requires_grad_(False)
    config = settings(train_batch_size=5, max_train_steps=400, gradient_accumulation_steps=2)
    facts = {
        "data": found.facts(1000, (8, 16)),
        "networks": plan.networks({"unet": unet, "text_encoder": text, "tokenizer": object()}),
        "batches": plan.batches(config, 1000, 4),
        "derived": ["unet.dropout 0.1 ← a small set"],
        "problems": ["there is no token"],
        "memory": {"peak": 2_000_000_000, "available": 8e9, "per_picture": 10, "fits": 1234, "measured_at": [8, 16]},
        "disk": {
            "checkpoint": {"weights": 4e6, "optimizer": 8e6}, "checkpoints": 3, "snapshot": 8e6, "snapshots": 0,
            "pipeline": 4e6, "total": 40e6, "free": 1e12,
        },
    }  # fmt: skip
    return facts | changes


def test_the_plan_reads_like_this():
    assert [line.split(maxsplit=1) for line in plan.lines(whole_plan()) if line[0] != " "] == [
        ["columns", "image from 'image', caption from 'text'"],
        ["pictures", "1,000 of 1,030 rows; heights 8, widths 8 to 640 (median 10.5); trained at 8x16"],
        ["buckets", "8x8: 900, 8x16: 100"],
        ["captions", "30 different; 3 a picture; tokens 1 to 63 (median 20)"],
        ["found", "an empty caption: 7 of 1,000 looked at (rows 1, 2, 3, 4, 5, ...)"],
        ["dropped", "30 rows"],
        ["unet", "110 parameters, trained"],
        ["text_encoder", "30 parameters, frozen"],
        ["batch", "40 pictures an update (train_batch_size 5 x 2 micro-steps x 4 processes), 400 updates, "
         "25.0 an epoch: 16.0 epochs"],
        ["derived", "unet.dropout 0.1 ← a small set"],
        ["memory", "2 GB at the peak of 8 GB; fitting is a train_batch_size up to 1,234"],
        ["disk", "40 MB of 1 TB free: 3 checkpoints of 12 MB (weights 4 MB, optimizer 8 MB), pipeline 4 MB"],
        ["hub", "there is no token"],
    ]  # fmt: skip


@pytest.mark.parametrize("every_row, shown", [(False, 20), (True, 30)])
def test_dropped_rows_are_listed_and_none_goes_uncounted(every_row, shown):
    said = [line.strip() for line in plan.lines(whole_plan(), every_row) if line[0] == " "]
    assert said[:shown] == [f"row {n} cannot be read" for n in range(shown)]
    assert said[shown:] == ([] if every_row else ["and 10 more; --plan shows them all"])


def test_what_does_not_fit_is_warned_of():
    facts = whole_plan()
    facts["memory"] |= {"peak": 9e9, "fits": 0}
    facts["disk"] |= {"free": 39e6}
    warnings = [line for line in plan.lines(facts) if line.startswith("warning")]
    assert len(warnings) == 2 and "train_batch_size" in warnings[0] and "disk" in warnings[1]
    assert not [line for line in plan.lines(whole_plan()) if line.startswith("warning")]


def test_what_is_lacking_is_left_out():
    assert plan.lines({}) == []
    only = plan.lines({"batches": plan.batches(settings(), None, 1)})
    assert len(only) == 1 and "epoch" not in only[0]


def test_a_plan_is_plain_data():
    facts = whole_plan(time=plan.seconds(settings(), [1.0] * 20, [0.0] * 20, step=20))
    assert plan.lines(json.loads(json.dumps(facts))) == plan.lines(facts)


@pytest.mark.parametrize("number, words", [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"),
                                           (12e6, "12 MB"), (1.5e9, "1.5 GB"), (3e12, "3 TB")])  # fmt: skip
def test_bytes_are_told_in_units(number, words):
    assert plan._size(number) == words


@pytest.mark.parametrize("number, words", [(0.5, "0.5 s"), (119, "119 s"), (240, "4 min"), (7200, "2 h"),
                                           (86400 * 7, "7 days")])  # fmt: skip
def test_seconds_are_told_in_units(number, words):
    assert plan._span(number) == words


# ---------------------------------------------------------------------------------------------------------- benchmark


def test_the_benchmark_compares_what_was_printed_with_what_was_measured(tmp_path):
    facts = {"memory": {"peak": 900e6}, "time": {"seconds_per_step": 0.5}, "data": {"dropped": ["a", "b"]}}
    printed = f"columns      image from 'image'\n{{not JSON, and not the last\n{json.dumps(facts)}\n"
    before = plan_accuracy.predicted(printed)
    metrics = {"peak_memory": 1000e6, "images_per_second": 160.0, "bad_rows": 2}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    after = plan_accuracy.measured(tmp_path, update=64)
    assert plan_accuracy.rows("digits", before, after) == [
        "| digits | peak memory (MB) | 900 | 1000 | 0.90 |",
        "| digits | seconds a step | 0.5 | 0.4 | 1.25 |",
        "| digits | dropped rows | 2 | 2 | 1.00 |",
    ]
    assert plan_accuracy.rows("x", {"dropped rows": 0}, {"dropped rows": 0})[0].endswith("| 1.00 |")
    assert plan_accuracy.rows("x", {"dropped rows": 1}, {"dropped rows": 0})[0].endswith("| inf |")
