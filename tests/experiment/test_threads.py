import pytest
import torch
from torch import nn

from retain.experiment.machine import operations, worthwhile_threads
from retain.models import TaskNetwork


def network(width):
    return TaskNetwork(nn.Sequential(nn.Flatten(), nn.Linear(16, width)), width)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_operations_of_a_linear_layer():
    # a multiplication and an addition per weight
    assert operations(network(100), (1, 4, 4)) == 2 * 16 * 100


@pytest.mark.parametrize(("width", "batch_size", "threads"), [(100, 16, 1), (4000, 128, 2)])
def test_little_work_gets_one_thread(two_threads, width, batch_size, threads):
    with worthwhile_threads(network(width), (1, 4, 4), batch_size):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


def test_threads_come_back_after_an_exception(two_threads):
    with pytest.raises(KeyError), worthwhile_threads(network(1), (1, 4, 4), 1):
        raise KeyError
    assert torch.get_num_threads() == 2


def test_the_network_stays_as_it_was():
    one = network(3).train()
    operations(one, (1, 4, 4))
    assert one.training
