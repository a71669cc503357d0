"""The tape alone, on plain numbers: fan-in, several outputs, readiness, recompute, strictness."""

import pytest

from plait.autograd import Function, Tape, Tensor, recompute


class Weight:
    is_parameter = True

    def __init__(self, value):
        self.value, self.grad = value, 0.0


class Scale(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save(x, w)
        return x * w.value

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved
        ctx.later(lambda: setattr(w, "grad", w.grad + grad * x))
        return grad * w.value


class SumAndProduct(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save(x, y)
        return x + y, x * y

    @staticmethod
    def backward(ctx, grad_sum, grad_product):
        x, y = ctx.saved
        s, p = grad_sum or 0.0, grad_product or 0.0
        return s + p * y, s + p * x


def test_several_outputs_and_fan_in():
    with Tape() as tape:
        x, y = tape.input(3.0), tape.input(5.0)
        s, p = SumAndProduct.apply(x, y)
        out, _ = SumAndProduct.apply(s, p)  # (x + y) + x y
    assert out.array == 23.0
    assert tape.backward(out, 1.0) == (6.0, 4.0)


def test_unused_output_gives_none_and_unused_branch_is_skipped():
    with Tape() as tape:
        x, y = tape.input(3.0), tape.input(5.0)
        _, p = SumAndProduct.apply(x, y)
    assert tape.backward(p, 2.0) == (10.0, 6.0)


def test_parameters_are_ready_after_their_last_use():
    w, v = Weight(2.0), Weight(4.0)
    ready = []
    with Tape() as tape:
        x = tape.input(1.0)
        y = Scale.apply(Scale.apply(Scale.apply(x, w), v), w)
    (grad,) = tape.backward(y, 1.0, ready.append)
    assert (grad, w.grad, v.grad) == (16.0, 8.0 + 8.0, 4.0)
    assert ready == [v, w]


def test_no_gradient_is_computed_for_inputs_that_need_none():
    seen = []

    class Probe(Function):
        @staticmethod
        def forward(ctx, x, y):
            seen.append(ctx.needs_input_grad)
            return x + y

        @staticmethod
        def backward(ctx, grad):
            return grad, grad

    with Tape() as tape:
        out = Probe.apply(tape.input(1.0, grad=False), tape.input(1.0))
    assert seen == [(False, True)]
    assert tape.backward(out, 1.0) == (None, 1.0)


class TwoScales:
    def __init__(self):
        self.w, self.v = Weight(2.0), Weight(3.0)

    def parameters(self):
        return [self.w, self.v]

    def __call__(self, x):
        return Scale.apply(Scale.apply(x, self.w), self.v)


def test_recompute_gives_the_same_gradients():
    layer, ready = TwoScales(), []
    with Tape() as tape:
        x = tape.input(7.0)
        y = recompute(layer, x)
    (grad,) = tape.backward(y, 1.0, ready.append)
    assert (y.array, grad, layer.w.grad, layer.v.grad) == (42.0, 6.0, 21.0, 14.0)
    assert ready == [layer.w, layer.v]


def test_recompute_refuses_a_captured_tensor():
    class Captures(TwoScales):
        def __call__(self, x):
            return SumAndProduct.apply(x, self.outside)[0]

    layer = Captures()
    with Tape() as tape:
        layer.outside = tape.input(1.0)
        with pytest.raises(ValueError, match="neither given nor made"):
            recompute(layer, tape.input(2.0))


def test_evaluation_records_nothing_but_hands_out_the_position():
    positions = []

    class Probe(Function):
        @staticmethod
        def forward(ctx, x):
            positions.append(ctx.position)
            return x

    with Tape("here", recording=False) as tape:
        Probe.apply(tape.input(1.0))
    assert positions == ["here"]
    assert not tape._nodes


def test_work_is_waited_for_after_the_weight_gradient():
    order = []

    class Work:
        def wait(self):
            order.append("wait")
            return 5.0

    class Overlaps(Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, grad):
            ctx.later(lambda: order.append("weight"))
            return Work()

    with Tape() as tape:
        y = Overlaps.apply(tape.input(1.0))
    assert tape.backward(y, 1.0) == (5.0,)
    assert order == ["weight", "wait"]


@pytest.mark.parametrize("under_way", [False, True])
def test_weight_gradients_come_after_the_inputs_that_somebody_waits_for(under_way):
    order = []

    class Work:
        def test(self):
            raise AssertionError("what is put off may not hang on how far a Work is")

        def wait(self):
            order.append("wait")
            return 5.0

    class Weighted(Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save(w)
            return x

        @staticmethod
        def backward(ctx, grad):
            name = ctx.saved[0].name
            order.append(f"backward {name}")
            ctx.later(lambda: order.append(f"weight {name}"))
            return Work() if under_way and name == "b" else grad

    a, b = Weight(1.0), Weight(1.0)
    a.name, b.name = "a", "b"
    with Tape() as tape:
        y = Weighted.apply(Weighted.apply(tape.input(1.0), a), b)
    result = tape.backward(
        y, 5.0, lambda p: order.append(f"ready {p.name}"),
        early=lambda grads: order.append(grads),
    )  # fmt: skip
    assert result == (5.0,)
    ends = ["weight a", "ready a"]
    if under_way:
        begins = ["backward b", "weight b", "wait", "ready b", "backward a", (5.0,)]
    else:
        begins = ["backward b", "backward a", (5.0,), "weight b", "ready b"]
    assert order == begins + ends


def test_tensor_shape_is_the_arrays():
    class Fake:
        shape = (2, 3)

    assert Tensor(Fake()).shape == (2, 3)
