"""Several processes: shards are pooled, and every process takes the same protected steps."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.functional import cross_entropy

import retain


def work(rank, store):
    """One of two processes: it sees every other sample."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(16, 5).double(), torch.randint(0, 3, (16,))
    alone = copy.deepcopy(net)
    model = nn.parallel.DistributedDataParallel(net)
    memory = retain.MAS(model, strength=3.0).observe(x[rank::2], progress=False)
    parts = [None, None]
    dist.all_gather_object(parts, memory.observed)
    memory.observed = retain.Importance.pool(parts)
    memory.consolidate()
    expected = retain.MAS(alone, strength=3.0).observe(x, progress=False).consolidate()
    for name, omega in expected.importance.items():
        torch.testing.assert_close(memory.importance[name], omega)
    ours = torch.optim.SGD(model.parameters(), lr=0.1)
    theirs = torch.optim.SGD(alone.parameters(), lr=0.1)
    memory.attach(ours)
    for _ in range(3):
        ours.zero_grad()
        cross_entropy(model(x[rank::2]), y[rank::2]).backward()
        ours.step()
        theirs.zero_grad()
        (cross_entropy(alone(x), y) + expected.penalty()).backward()
        theirs.step()
    for p, q in zip(net.parameters(), alone.parameters()):
        torch.testing.assert_close(p, q)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_two_processes_do_what_one_does(tmp_path):
    mp.spawn(work, args=(tmp_path / "store",), nprocs=2)
