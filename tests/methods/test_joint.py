import pytest
import torch
from torch.nn.functional import cross_entropy

from .small import backbone, learned, sequence, work


def begun():
    one = work("joint", sequence(3))
    one.learn_next()
    one.learn_next()
    one.network.add_head(2)
    one.method.begin(2, one.stage.sequence)
    return one


def test_starts_again_from_the_first_weights_with_every_head_free():
    one = work("joint", sequence(3))
    first = backbone(one)
    head = one.network.heads[0].weight.clone()
    one.learn_next()
    one.network.add_head(2)
    one.method.begin(1, one.stage.sequence)
    assert torch.equal(backbone(one), first)
    assert torch.equal(one.network.heads[0].weight, head)
    assert all(p.requires_grad for p in one.network.parameters())


def test_an_epoch_holds_every_example_of_every_task_once():
    one = begun()
    batches = list(one.method.batches(2, one.stage.sequence, torch.Generator().manual_seed(0)))
    assert len(batches) == one.method.steps(2, one.stage.sequence, 16) == 11
    inputs = torch.cat([batch.inputs for batch in batches]).flatten(1)
    everything = torch.cat([task.train.inputs for task in one.stage.sequence.tasks]).flatten(1)
    assert torch.equal(inputs.sort(0).values, everything.sort(0).values)


def test_loss_by_hand_each_sample_with_the_head_of_its_task():
    one = begun()
    batch = next(one.method.batches(2, one.stage.sequence, torch.Generator().manual_seed(0)))
    sizes, start, expected = one.method._sizes, 0, torch.zeros(())
    assert sum(sizes) == len(batch.labels)
    assert all(sizes)
    for task, size in enumerate(sizes):
        part = slice(start, start + size)
        outputs = one.network.heads[task](one.network.features(batch.inputs[part]))
        expected = expected + cross_entropy(outputs, batch.labels[part], reduction="sum")
        start += size
    assert one.method.loss(batch).item() == pytest.approx(expected.item() / start, rel=1e-5)


def test_learns_all_tasks():
    assert min(learned("joint", sequence(3, n=128), epochs=10).run.accuracy[-1]) > 0.9


def test_one_shared_head_sees_all_tasks():
    one = learned("joint", sequence(2, scenario="domain-incremental"))
    assert len(one.network.heads) == 1
    assert one.run.complete
