"""Two processes, started by torchrun on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import retain
from tests.integrations.distributed import run

RUN = Path(run.__file__)

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


def torchrun(folder, *scenarios, processes=2):
    here = f"--nproc-per-node {processes} --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:0"
    command = [sys.executable, "-m", "torch.distributed.run", *here.split(), str(RUN), str(folder)]
    done = subprocess.run(
        [*command, *scenarios], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in scenarios:
        assert done.stdout.count(f"{name} done") == processes, done.stdout + done.stderr


def test_two_processes_do_what_one_does(tmp_path):
    torchrun(tmp_path, *(scenario.__name__ for scenario in run.SCENARIOS))
    # Another number of processes: this one.
    memory = retain.load(tmp_path / "sharded.safetensors", run.network(7))
    assert memory.importance["0.weight"].shape == (7, 5)
    assert memory.strength == 3.0


def test_trainer_and_lora_with_a_sharded_model(tmp_path):
    for needed in ("transformers", "peft"):
        pytest.importorskip(needed, reason="the extra for trainers is not installed")
    torchrun(tmp_path, *(scenario.__name__ for scenario in run.OF_TRAINERS))


@pytest.mark.slow
def test_a_rank_that_died(tmp_path):
    torchrun(tmp_path, "died")


def test_a_hundred_devices_pooled_are_one():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    counts = [1 + (7 * device) % 5 for device in range(100)]
    data = torch.randn(sum(counts), 4).double()
    whole = retain.MAS(net).observe(data, progress=False).observed
    parts = [
        retain.MAS(net, check=False).observe(part, progress=False).observed
        for part in data.split(counts)
    ]
    pooled = retain.Importance.pool(parts)
    assert pooled.samples == whole.samples
    for name, omega in whole.items():
        torch.testing.assert_close(pooled[name], omega)
