import pytest
import torch

from retain.errors import ConfigError
from retain.tasks import TensorExamples


@pytest.fixture
def examples() -> TensorExamples:
    return TensorExamples(torch.arange(20.0).view(10, 2), torch.arange(10) % 3)


def test_in_order_without_shuffle(examples):
    batches = list(examples.batches(4))
    assert [len(batch.labels) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), examples.inputs)
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(10))


def test_a_shuffled_epoch_is_a_permutation_that_the_generator_decides(examples):
    def epochs(seed):
        generator = torch.Generator().manual_seed(seed)
        return [list(examples.batches(4, shuffle=generator, train=True)) for _ in range(2)]

    first, second = epochs(0)
    orders = [torch.cat([batch.indices for batch in epoch]) for epoch in (first, second)]
    assert not torch.equal(*orders)
    for order in orders:
        assert order.sort().values.tolist() == list(range(10))
    for batch in first:
        assert torch.equal(batch.inputs, examples.inputs[batch.indices])
        assert torch.equal(batch.labels, examples.labels[batch.indices])
    torch.manual_seed(5)
    assert torch.equal(orders[1], torch.cat([batch.indices for batch in epochs(0)[1]]))


def test_shuffling_leaves_the_global_random_state_alone(examples):
    before = torch.get_rng_state()
    list(examples.batches(4, shuffle=torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.get_rng_state())


def test_select(examples):
    some = examples.select(torch.tensor([7, 1]))
    assert some.labels.tolist() == [1, 1]
    assert some.inputs[:, 0].tolist() == [14, 2]


def test_on_another_device(examples):
    batch = next(examples.batches(4, device="meta"))
    assert batch.inputs.device.type == "meta"
    assert examples.inputs.device.type == "cpu"


def test_inputs_and_labels_must_match():
    with pytest.raises(ConfigError, match="one label for each"):
        TensorExamples(torch.zeros(3, 2), torch.zeros(2))
