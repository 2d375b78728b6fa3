"""The training of the judge: its batches, gradients that reach every weight, and resumption."""

import pytest
import torch
from judges import SMALL_JUDGE, random_judge

from minip2p.tiny import judge_train
from minip2p.tiny.judge import Judge
from minip2p.tiny.judge_data import IGNORE_LABEL, labelled_batch, reconstruct
from minip2p.tiny.judge_train import BATCH, judge_batch, judge_loss, train
from minip2p.tiny.scenes import dataset


def test_every_second_picture_is_decoded_and_most_others_are_corrupted(sprites, cpu_model):
    """The labels are those of the scenes."""
    batch, scenes = judge_batch(2, 0, sprites, cpu_model.vae), list(dataset(0, BATCH, start=2 * BATCH))
    clean = labelled_batch(scenes, sprites, judge_train.JudgeConfig())
    corrupted = labelled_batch(scenes, sprites, judge_train.JudgeConfig(), corrupt_seed=0)
    assert torch.equal(batch.pictures[1::2], corrupted.pictures[1::2])
    decoded = reconstruct(cpu_model.vae, clean.pictures[::2])
    assert (
        (batch.pictures[::2] - decoded).abs().mean() < 0.02 < (batch.pictures[::2] - clean.pictures[::2]).abs().mean()
    )
    assert torch.equal(batch.labels, clean.labels) and torch.equal(batch.present, clean.present)


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


@pytest.fixture
def small_judge(monkeypatch):
    monkeypatch.setattr(judge_train, "JudgeConfig", lambda: SMALL_JUDGE)


def test_a_killed_training_resumes_and_says_whether_it_is_complete(sprites, small_judge, tmp_path):
    """A warm start takes the judge's weights; the checkpoint, once there is one, comes first."""
    drawn = [labelled_batch(list(dataset(3, 2, start=2 * step)), sprites, SMALL_JUDGE) for step in range(2)]

    def run(work, stop_after, **options):
        seen = []

        def batches(step):
            seen.append(step)
            return drawn[step]

        judge, complete = train(tmp_path / work, 0, batches, float("inf"), steps=stop_after, **options)
        return judge.network.state_dict(), complete, seen

    start = random_judge()
    run("killed", 1, warm_start=start)
    resumed, complete, seen = run("killed", 2, warm_start=random_judge(seed=9))
    assert complete and seen == [1]
    expected, _, _ = run("whole", 1, warm_start=start)
    assert sum(float((p - expected[name]).abs().max()) for name, p in resumed.items()) > 0
    for name, p in resumed.items():  # a step of the warm-up is small
        torch.testing.assert_close(p, expected[name], rtol=0, atol=1e-3)


def test_a_training_without_time_is_not_complete_unless_its_end_is_the_time(sprites, small_judge, tmp_path):
    start = random_judge()
    for stop_ends in (False, True):
        judge, complete = train(tmp_path, 0, lambda step: None, 0.0, warm_start=start, stop_ends=stop_ends)
        assert isinstance(judge, Judge) and complete == stop_ends
        for name, tensor in judge.network.state_dict().items():
            assert torch.equal(tensor, start.network.state_dict()[name])


def test_a_training_of_no_steps_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["judge_train", "--steps", "0", "--work", str(tmp_path), "--out", str(tmp_path)])
    assert judge_train.main() == 2
    assert capsys.readouterr().err == "minip2p: error: --steps must be at least 1, not 0\n"
    assert not any(tmp_path.iterdir())
