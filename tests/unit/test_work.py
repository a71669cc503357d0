"""What a process spends on communication: once, however deep, and not what it computes between."""

from itertools import count

import numpy as np
import pytest

from plait import Mesh, data, models, optim
from plait.comm import work
from plait.comm.alone import Alone
from plait.comm.work import Work, communication_seconds, finished, progress
from plait.train.trainer import Trainer


def test_only_communication_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(work.time, "perf_counter", lambda: float(next(ticks)))
    before = communication_seconds()
    polls = iter([False, False, True])

    def steps():
        finished(None)  # inside the outer one: counted with it
        yield lambda: next(polls)
        yield lambda: True

    started = Work("test", steps(), 7)
    assert communication_seconds() - before == 1  # from its start to its first poll
    for _ in range(5):
        work.time.perf_counter()  # computing
    progress()
    assert communication_seconds() - before == 2
    assert started.wait() == 7
    waited = communication_seconds() - before
    assert waited > 2
    progress()
    assert started.wait() == 7
    assert communication_seconds() - before == waited


def test_errors_stop_the_clock() -> None:
    def steps():
        raise ValueError("no")
        yield

    with pytest.raises(ValueError, match="no"):
        Work("test", steps())
    assert work._clock._depth == 0


def test_a_step_tells() -> None:
    with Trainer(
        models.mlp(hidden_dim=4, input_shape=(2, 2, 1), classes=3),
        data.synthetic(samples=20, input_shape=(2, 2, 1), classes=3),
        mesh=Mesh(comm=Alone()), optimizer=optim.AdamW(), batch=4,
    ) as trainer:  # fmt: skip
        step = next(trainer.steps(1))
    assert 0 < step.exposed_communication_seconds < step.step_seconds
    assert step.row()["exposed_communication_seconds"] == step.exposed_communication_seconds
    assert np.isfinite(step.loss)


def test_a_step_that_moves_the_others() -> None:
    """As one that waits for a device does: it is not entered again, and the others come along."""
    polls = iter([False, True])

    def other():
        yield lambda: next(polls)

    def steps():
        yield lambda: True
        progress()
        progress()
        assert second.done()
        yield lambda: moved[0]

    moved = [False]
    second = Work("second", other(), 2)
    first = Work("first", steps(), 1)
    assert not first.test()
    moved[0] = True
    assert first.wait() == 1
    assert second.wait() == 2


def test_what_follows_a_result() -> None:
    work_ = finished(3)
    work_.then(lambda result: result + 1)
    assert [work_.wait(), work_.wait()] == [4, 4]
