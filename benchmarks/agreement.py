"""How far DDP, FSDP2 and LoRA are from one process and from the merged model, as relative errors.

torchrun --nproc-per-node 2 benchmarks/agreement.py

Of a small network (64-128-10), in single and in double precision: the largest difference of any
number in a tensor, over the largest number in it, and of those the worst over all tensors, over the
three forms, and over SGD and Adam.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import retain

FORMS = ("gradient", "proximal", "adaptive")
KINDS = (torch.optim.SGD, torch.optim.Adam)
STRENGTH, RATE, STEPS, SAMPLES = 3.0, 0.05, 5, 38


def network(dtype: torch.dtype, seed: int = 0) -> nn.Sequential:
    """The same on every rank."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10)).to(dtype)


def data(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs [n, 64] and labels [n]."""
    torch.manual_seed(1)
    return torch.randn(SAMPLES, 64, dtype=dtype), torch.randint(0, 10, (SAMPLES,))


def error(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """The worst of all pairs: max |a − b| / max |b|."""
    pairs = zip(ours, theirs, strict=True)
    return max(float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in pairs)


def remembered(net: nn.Module, x: Tensor, *, shared: bool = True) -> retain.MAS:
    """A memory of what is seen on all ranks, or on this one."""
    memory = retain.MAS(net, strength=STRENGTH)
    memory.shared = shared
    return memory.observe(x, progress=False).consolidate()


def train(
    net: nn.Module, memory: retain.MAS, form: str, kind: type, part: tuple[Tensor, Tensor]
) -> None:
    """Take a few protected steps."""
    x, y = part
    optimizer = kind(net.parameters(), lr=RATE)
    with memory.attach(optimizer, form=form):
        for _ in range(STEPS):
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()


def omegas(dtype: torch.dtype) -> float:
    """Ω of uneven shards (one in four on rank 0) and of one process."""
    (x, _), rank = data(dtype), dist.get_rank()
    some = x[: SAMPLES // 4] if rank == 0 else x[SAMPLES // 4 :]
    ours = remembered(network(dtype), some).importance
    theirs = remembered(network(dtype), x, shared=False).importance
    return error(ours.values(), theirs.values())


def steps(dtype: torch.dtype, wrap: Callable[[nn.Sequential], nn.Module]) -> float:
    """Weights after protected steps on two ranks and in one process."""
    (x, y), rank, worst = data(dtype), dist.get_rank(), 0.0
    mine = slice(rank, None, 2)
    for form in FORMS:
        for kind in KINDS:
            net, alone = network(dtype), network(dtype)
            memory = remembered(net, x[mine])
            train(wrap(net), memory, form, kind, (x[mine], y[mine]))
            train(alone, remembered(alone, x, shared=False), form, kind, (x, y))
            whole = (getattr(p, "full_tensor", lambda p=p: p)() for p in net.parameters())
            worst = max(worst, error(whole, alone.parameters()))
    return worst


def fully_sharded(net: nn.Sequential) -> nn.Module:
    """FSDP2, layer by layer."""
    for layer in (net[0], net[2], net):
        fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return net


def lora(dtype: torch.dtype, seed: int) -> tuple[float, float]:
    """Of λ Σ Ω (ΔW)² and the memory's own penalty of the merged model; and of their gradients."""
    from peft import LoraConfig, get_peft_model

    from retain.integrations.peft import LoraPenalty

    net = network(dtype, seed)
    memory = remembered(net, data(dtype)[0], shared=False)
    base, twin = copy.deepcopy((net, memory))
    model = get_peft_model(
        net, LoraConfig(r=4, target_modules=["0", "2"]), autocast_adapter_dtype=False
    )
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    penalty = LoraPenalty(memory, model)
    ours = penalty.penalty()
    leaves = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(ours, list(leaves.values()))

    merged = copy.deepcopy(model).merge_and_unload()
    with torch.no_grad():
        for p, q in zip(base.parameters(), merged.parameters(), strict=True):
            p.copy_(q)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it was moved by hand
        theirs = twin.penalty()
    found = torch.autograd.grad(theirs, list(base.parameters()))
    by_weight = dict(zip(dict(base.named_parameters()), found, strict=True))
    expected = []
    for name in leaves:
        layer = name.split("base_model.model.")[1].split(".lora_")[0]
        one = model.get_base_model().get_submodule(layer)
        a, b, s = one.lora_A["default"].weight, one.lora_B["default"].weight, one.scaling["default"]
        g = by_weight[f"{layer}.weight"]
        # ∂/∂A = s Bᵀ G,   ∂/∂B = s G Aᵀ
        expected.append((s * b.T @ g if "lora_A" in name else s * g @ a.T).detach())
    return error([ours.detach()], [theirs.detach()]), error(gradients, expected)


def main() -> None:
    """Print the table."""
    dist.init_process_group("gloo")
    lines: dict[str, list[float]] = {}
    for dtype in (torch.float32, torch.float64):
        value, gradient = map(max, zip(*(lora(dtype, seed) for seed in range(5)), strict=True))
        found = {
            "Ω, uneven shards": omegas(dtype),
            "DDP: weights after 5 protected steps": steps(dtype, DistributedDataParallel),
            "FSDP2: weights after 5 protected steps": steps(dtype, fully_sharded),
            "LoRA: λ Σ Ω (ΔW)² and the penalty of the merged model": value,
            "LoRA: gradients to A and B": gradient,
        }
        for what, one in found.items():
            lines.setdefault(what, []).append(one)
    if dist.get_rank() == 0:
        print("| relative error | float32 | float64 |\n|---|---|---|")
        for what, errors in lines.items():
            print(f"| {what} | {' | '.join(f'{one:.1e}' for one in errors)} |")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
