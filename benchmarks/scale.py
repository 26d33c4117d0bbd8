"""Memory and traffic of a rank, for models of 1, 8 and 70 billion weights on 1 to 1,024 GPUs.

python benchmarks/scale.py            prints the tables of docs/scale.md (seconds, no weights made)
torchrun --nproc-per-node 2 benchmarks/scale.py --measure     measures what the formulas say, here

Bytes are those of `memory.footprint()`, of models without storage (the meta device) that have the
shapes of published ones. A rank of N has ⌈rows / N⌉ rows of every parameter, as `fully_shard` cuts
them. What is sent is measured: the bytes that the sockets of a process say they have sent.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import struct
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import retain
from retain.memory.footprint import Footprint
from retain.memory.storage import Storage

# hidden size, size of the MLP, layers, heads, heads of keys and values, tied head
SHAPES = {
    "1 B": (2048, 8192, 16, 32, 8, True),
    "8 B": (4096, 14336, 32, 32, 8, False),
    "70 B": (8192, 28672, 80, 64, 8, False),
}
WORDS = 128_256
GPUS = (1, 8, 64, 1024)
TYPES: dict[str, torch.dtype | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "float8_e5m2": torch.float8_e5m2,
}
TRAINING = 16  # bytes per weight that AdamW takes in single precision: θ, g and two means (assumed)
LINK = 50  # GB/s that a GPU can send to others (assumed: 400 Gb/s each)
STEPS = 7  # of which the median is taken
SENT = 200  # where struct tcp_info has tcpi_bytes_sent (Linux 4.19 and later)


def network(size: str) -> nn.Module:
    """A language model of that size, without storage."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, inner, layers, heads, keys, tied = SHAPES[size]
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=keys, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        model: nn.Module = LlamaForCausalLM(config)
    return model


def shard(model: nn.Module, ranks: int) -> dict[str, Tensor]:
    """The largest share that one of N ranks has of a model's parameters."""
    return {n: p.new_empty(-(-len(p) // ranks), *p.shape[1:]) for n, p in model.named_parameters()}


def footprint(weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Footprint:
    """What `memory.footprint()` says of a memory of these weights."""
    return Footprint.of(weights, Storage(dtype))


def allreduced(weights: int, ranks: int) -> float:
    """Bytes that each rank sends for a sum over ranks in single precision: 2 (N − 1)/N · 4 P."""
    return 2 * (ranks - 1) / ranks * 4 * weights


def gathered(held: int, ranks: int) -> float:
    """Bytes that each rank sends so that all have the whole of what each has 1/N of: its own."""
    return (ranks - 1) * held / ranks


def gb(size: float) -> str:
    """Gigabytes, to three figures."""
    size /= 1e9
    return f"{size:,.0f}" if size >= 100 else f"{size:.3g}"


def gpus(count: int) -> str:
    """How many, in words."""
    return f"{count:,} GPU{'s' if count > 1 else ''}"


def tables() -> str:
    """All of them, in Markdown."""
    models = {size: network(size) for size in SHAPES}
    counts = {size: sum(p.numel() for p in model.parameters()) for size, model in models.items()}
    lines = [
        "| weights | Ω and θ\\* kept in | "
        + " | ".join(f"{n:,} GPU{'s' * (n > 1)}" for n in GPUS)
        + " |",
        "|---|---|" + "---|" * len(GPUS),
    ]
    for size, model in models.items():
        shares = [shard(model, n) for n in GPUS]
        full = [TRAINING * sum(t.numel() for t in share.values()) for share in shares]
        lines.append(f"| {size} | (training itself) | " + " | ".join(map(gb, full)) + " |")
        for name, dtype in TYPES.items():
            found = " | ".join(gb(footprint(share, dtype).kept) for share in shares)
            lines.append(f"| | {name} | {found} |")
    lines += [
        "",
        "| weights | bytes each, Ω + θ\\*: float32 | bfloat16 | float8_e5m2 | observing |",
        "|---|---|---|---|---|",
    ]
    for size, model in models.items():
        each = [footprint(shard(model, 1), dtype) for dtype in TYPES.values()]
        said = " | ".join(
            f"{one.importance / counts[size]:.3g} + {one.anchor / counts[size]:.3g}" for one in each
        )
        lines.append(f"| {counts[size]:,} | {said} | {each[0].observing / counts[size]:.3g} |")
    lines += [
        "",
        "| weights | observing, on every rank, GB | `consolidate()`: sent by a rank, GB "
        "| … in seconds | a step | `save()`: sent by a rank, GB | … in seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, model in models.items():
        count = counts[size]
        observing = footprint(shard(model, 1))
        summing = allreduced(count, GPUS[-1])
        saving = gathered(observing.kept, GPUS[-1])
        lines.append(
            f"| {size} | {gb(observing.weights + observing.observing)} | {gb(summing)} "
            f"| {summing / LINK / 1e9:.2g} | 0 | {gb(saving)} | {saving / LINK / 1e9:.2g} |"
        )
    return "\n".join(lines)


# ---- what is measured ----


def sent() -> int:
    """Bytes that all TCP sockets of this process have sent so far."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as one:
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:  # closed meanwhile, or of another kind
            continue
        if len(info) >= SENT + 8:
            total += struct.unpack_from("=Q", info, SENT)[0]
    return total


def during(what: Callable[[], object]) -> int:
    """Bytes that this process sends meanwhile."""
    dist.barrier()
    before = sent()
    what()
    return sent() - before


def measured(width: int = 2048) -> dict[str, tuple[float, float]]:
    """What → (bytes that a rank sends for a weight, what the formula says); on every rank."""

    def made(*, cut: bool) -> nn.Sequential:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        for layer in (net[0], net[2], net) if cut else ():
            fully_shard(layer, mesh=init_device_mesh("cpu", (ranks,)))
        return net

    def step(net: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    ranks = dist.get_world_size()
    plain, x = made(cut=True), torch.randn(4, width)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    step(plain, optimizer)
    free = statistics.median(during(lambda: step(plain, optimizer)) for _ in range(STEPS))

    net = made(cut=False)
    weights = sum(p.numel() for p in net.parameters())
    memory = retain.MAS(net)
    data = torch.randn(8 + dist.get_rank(), width)
    found: dict[str, tuple[float, float]] = {
        "observe()": (during(lambda: memory.observe(data, progress=False)), 0.0),
        "consolidate()": (during(memory.consolidate), allreduced(weights, ranks)),
    }
    for layer in (net[0], net[2], net):
        fully_shard(layer, mesh=init_device_mesh("cpu", (ranks,)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for form in ("gradient", "proximal", "adaptive"):
        with memory.attach(optimizer, form=form):
            step(net, optimizer)
            held = statistics.median(during(lambda: step(net, optimizer)) for _ in range(STEPS))
            found[f"a step, {form} form, beside training's own"] = (held - free, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        written = during(lambda: memory.save(Path(folder) / "memory.safetensors"))
    found["save()"] = (written, gathered(memory.footprint().kept * ranks, ranks))
    return {what: (a / weights, b / weights) for what, (a, b) in found.items()}


def main() -> None:
    """Print the tables, or what is measured."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--measure", action="store_true", help="under torchrun")
    if not parser.parse_args().measure:
        print(tables())
        return
    dist.init_process_group("gloo")
    every: list[Mapping[str, tuple[float, float]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(every, measured())
    if dist.get_rank() == 0:
        print(f"| bytes sent by a rank of {len(every)}, for each weight | measured | formula |")
        print("|---|---|---|")
        for what, (_, expected) in every[0].items():
            most = max(one[what][0] for one in every)
            print(f"| {what} | {round(most, 2) + 0:.2f} | {expected:.2f} |")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
