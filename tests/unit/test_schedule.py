"""Schedules and partitions are pure: every action once, gradients in sample order, no stage waits
for ever."""

import pytest

from plait import models, nn
from plait.parallel.partition import partition, stage_bounds
from plait.parallel.schedule import SCHEDULES, Action, validate


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("microbatches", [1, 2, 3, 4, 7, 16])
def test_schedules_are_valid_and_finish(name, stages, microbatches):
    queues = [list(SCHEDULES[name](s, stages, microbatches)) for s in range(stages)]
    for actions in queues:
        validate(tuple(actions), microbatches)
    done = set()
    while any(queues):
        ready = [
            (stage, queue)
            for stage, queue in enumerate(queues)
            if queue and _needs(queue[0], stage, stages) <= done
        ]
        assert ready, f"deadlock with {queues}"
        for stage, queue in ready:
            done.add((stage, queue.pop(0)))


def _needs(action, stage, stages):
    if action.kind == "forward":
        return {(stage - 1, action)} if stage else set()
    needs = {(stage, Action("forward", action.microbatch))}
    return needs | ({(stage + 1, action)} if stage < stages - 1 else set())


def test_one_f_one_b_keeps_few_activations():
    for stage in range(4):
        live = most = 0
        for action in SCHEDULES["one_f_one_b"](stage, 4, 16):
            live += 1 if action.kind == "forward" else -1
            most = max(most, live)
        assert most == 4 - stage


def test_validate_refuses_descending_backwards():
    actions = tuple(Action(k, i) for k, i in
                    [("forward", 0), ("forward", 1), ("backward", 1), ("backward", 0)])  # fmt: skip
    with pytest.raises(ValueError, match=r"backwards run in order \[1, 0\]"):
        validate(actions, 2)


def test_partition_balances_and_never_leaves_a_stage_empty():
    assert partition([1, 1, 1, 1], 2) == [0, 2, 4]
    assert partition([0, 1, 1, 1, 1, 0], 4)[0] == 0
    assert partition([5, 1, 1, 1], 2) == [0, 1, 4]
    bounds = partition([0.0] * 5, 5)
    assert bounds == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"pipeline = 3 .* the model has 2"):
        partition([1, 1], 3)


def test_stages_are_cut_by_memory_as_well_as_flops():
    """GPT-2 124M, one sample of 512 tokens a microbatch, as timed layer by layer: embedding 0.028
    of the step, each block 0.058, head 0.266. By flops alone the first stage had nine blocks."""
    sizes = {"hidden_dim": 768, "heads": 12, "vocabulary": 50257, "sequence_length": 512}
    specs = models.gpt(layers=12, **sizes)
    assert stage_bounds(specs, 2, 1) == [0, 9, 14]
    assert partition([spec.flops for spec in specs], 2) == [0, 10, 14]
    # With many samples a weight counts for less, and nine blocks are the better first stage again.
    assert stage_bounds(specs, 2, 64) == [0, 10, 14]
    untied = models.gpt(layers=12, tied=False, **sizes)
    assert stage_bounds(untied, 2, 1) == stage_bounds(specs, 2, 1)


@pytest.mark.parametrize("samples", [1, 3, 1000])
def test_layers_that_tell_no_costs_are_dealt_out_evenly(samples):
    layers = [nn.LayerSpec(f"layers.{index}", lambda build: nn.Layer()) for index in range(6)]
    assert stage_bounds(layers, 3, samples) == [0, 2, 4, 6]
