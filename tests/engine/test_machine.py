"""The energy of a run is that of its sessions, as codecarbon counts it, and unknown where one was not counted."""

import sys
from types import SimpleNamespace

import pytest

from mezzotint_training.engine.machine import Energy, processor


class Tracker:
    """Counts two kWh with each look."""

    def __init__(self, **options):
        self._total_energy, self.running = SimpleNamespace(kWh=0.0), False

    def start(self):
        self.running = True

    def flush(self):
        assert self.running
        self._total_energy.kWh += 2.0

    def stop(self):
        self.running = False


@pytest.fixture
def codecarbon(monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", SimpleNamespace(OfflineEmissionsTracker=Tracker))


def test_sessions_add_up(codecarbon):
    first = Energy(main=True)
    assert first.state() == {"energy": 2.0}
    second = Energy(main=True)
    second.restore({"energy": 2.0})
    tracker = second.tracker
    assert second.stop() == 4.0 and not tracker.running and second.kwh is None


def test_what_was_not_counted_is_not_known(codecarbon, monkeypatch):
    energy = Energy(main=True)
    energy.restore({})  # of a checkpoint of before, or of a session without codecarbon
    assert energy.stop() is None
    assert Energy(main=False).state() == {"energy": None}
    monkeypatch.setattr(Tracker, "flush", lambda self: 1 / 0)
    assert Energy(main=True).stop() is None
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    assert Energy(main=True).stop() is None


def test_a_processor_has_a_name():
    assert processor().strip()
