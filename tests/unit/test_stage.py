"""One stage with neighbours that are scripted: what it sends, and when."""

import numpy as np

from plait.autograd import Function
from plait.comm.tree import Leaves
from plait.comm.work import finished
from plait.nn import Layer
from plait.ops.position import Share
from plait.parallel.schedule import one_f_one_b
from plait.parallel.stage import Stage

SHAPE = (1, 2, 3)


class Last:
    """Rank 1 of 2, along the pipeline; what its neighbour sends is ones."""

    rank, size = 1, 2

    def __init__(self, log):
        self.log = log

    def recv(self, out, source):
        out[...] = 1
        if out.dtype == np.int64:
            out[: len(SHAPE) + 1] = len(SHAPE), *SHAPE

    def send(self, x, dest, blocking):
        if x.dtype == np.float32:
            self.log.append(f"send to {dest}")
        return finished(None)

    def progress(self):
        raise AssertionError("all sends are done")


class Weighted(Function):
    @staticmethod
    def forward(ctx, x, log):
        ctx.save(log)
        return x

    @staticmethod
    def backward(ctx, grad):
        (log,) = ctx.saved
        ctx.later(lambda: log.append("weights"))
        return grad


class Loss(Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        return np.full(SHAPE, grad, np.float32)


class Linear(Layer):
    def __init__(self, log):
        self.log = log

    def __call__(self, x):
        return Weighted.apply(x, self.log)


class NoReduction:
    def begin(self, position, last):
        pass

    def ready(self, p):
        raise AssertionError("there are no parameters")

    def progress(self):
        pass

    def end(self):
        pass


def test_a_gradient_is_sent_before_those_of_the_weights():
    log = []
    stage = Stage([("a", Linear(log)), ("b", Linear(log))], Last(log), np.dtype(np.float32))
    positions = Share(3, Leaves.even(1, 1), 0, 1).microbatches(0, 0)
    inputs = [np.zeros(SHAPE, np.int32)] * 3
    losses = stage.train(
        one_f_one_b(1, 2, 3), positions, inputs, lambda y, index: Loss.apply(y), 1.0, NoReduction()
    )
    assert len(losses) == 3
    assert log == ["send to 0", "weights", "weights"] * 3
