"""What a replica passes at once where the config does not say."""

from plait import models
from plait.train.microbatch import auto_microbatch

MLP = models.mlp(input_shape=(4, 4), classes=3, hidden_dim=8, layers=2)
RESNET = models.resnet(input_shape=(8, 8, 1), classes=3, blocks=(1,), width=4)


def test_without_a_pipeline_all_samples_of_a_replica() -> None:
    assert auto_microbatch(MLP, 12, 1, 1) == 12
    assert auto_microbatch(MLP, 13, 4, 1) == 4


def test_a_pipeline_gets_four_microbatches_a_stage() -> None:
    assert auto_microbatch(MLP, 64, 1, 4) == 4
    assert auto_microbatch(MLP, 64, 2, 2) == 4
    assert auto_microbatch(MLP, 3, 1, 4) == 1


def test_batch_norm_sees_one_data_leaf_at_every_layout() -> None:
    assert {auto_microbatch(RESNET, 64, d, p) for d in (1, 2, 8) for p in (1, 2)} == {None}
