"""The training of the judge: gradients reach every weight."""

from judges import SMALL_JUDGE, random_judge

from minip2p.tiny.judge_data import IGNORE_LABEL, labelled_batch
from minip2p.tiny.judge_train import judge_loss
from minip2p.tiny.scenes import dataset


def test_every_weight_gets_a_gradient(sprites):
    judge = random_judge(seed=1)
    batch = labelled_batch(list(dataset(1, 4, style="photo")), sprites, SMALL_JUDGE, corrupt_seed=0)
    judge_loss(judge.network, batch).backward()
    for name, parameter in judge.network.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_sketches_train_no_colours(sprites):
    batch = labelled_batch(list(dataset(2, 2, style="sketch")), sprites, SMALL_JUDGE)
    judge = random_judge()
    assert (batch.colours == IGNORE_LABEL).all()
    judge_loss(judge.network, batch).backward()
    assert judge.network.paint[0].weight.grad.abs().sum() == 0
