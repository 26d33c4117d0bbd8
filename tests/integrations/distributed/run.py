"""What two processes do, started by torchrun: `run.py FOLDER SCENARIO …`; a failure is an error."""

from __future__ import annotations

import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import retain
from retain.errors import ModelError, StateError

FORMS = ("gradient", "proximal", "adaptive")


def network(width=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).double()


def samples(count=17):
    torch.manual_seed(1)
    return torch.randn(count, 5).double(), torch.randint(0, 3, (count,))


def of_one_process(x, **settings):
    """What a single process makes of all the data."""
    net = network()
    memory = retain.MAS(net, strength=3.0, **settings)
    memory.shared = False
    return net, memory.observe(x, progress=False).consolidate()


def raised(kind, *words):
    class Expected:
        def __enter__(self):
            return self

        def __exit__(self, found, error, _traceback):
            assert found is not None, f"{kind.__name__} was not raised"
            assert issubclass(found, kind), repr(error)
            assert all(word in str(error) for word in words), error
            return True

    return Expected()


def same(ours, theirs, tolerance=1e-10):
    assert list(ours) == list(theirs)
    for name, omega in theirs.items():
        torch.testing.assert_close(ours[name], omega, rtol=tolerance, atol=1e-12, msg=name)


def shards(rank, folder):
    """Shards of 17 samples: uneven, padded by a sampler, and empty."""
    x, y = samples()
    _, expected = of_one_process(x)
    uneven = retain.MAS(network(), strength=3.0)
    uneven.observe(x[:4] if rank == 0 else x[4:], progress=False).consolidate()
    same(uneven.importance, expected.importance)
    assert uneven.importance.samples == len(x)

    data = TensorDataset(x, y)
    for shuffle in (False, True):
        sampler = DistributedSampler(data, shuffle=shuffle)
        padded = retain.MAS(network(), strength=3.0)
        padded.observe(DataLoader(data, batch_size=4, sampler=sampler), progress=False)
        padded.consolidate()
        assert padded.importance.samples == len(x)
        same(padded.importance, expected.importance)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        empty = retain.MAS(network(), strength=3.0)
        empty.observe([x] if rank == 0 else [], progress=False).consolidate()
        same(empty.importance, expected.importance)
    assert rank != 0 or any("1 observed nothing" in str(one.message) for one in said)
    single = TensorDataset(x[:1])  # the sampler gives rank 1 nothing but what rank 0 has
    one = retain.MAS(network()).observe(
        DataLoader(single, sampler=DistributedSampler(single)), progress=False
    )
    assert one.observed.samples == (1 if rank == 0 else 0)
    one.consolidate()
    assert one.importance.samples == 1


def every_kind(rank, folder):
    """The other memories that observe data add up as well."""
    x, _ = samples()
    for make in (
        lambda net: retain.EWC(net, fisher="exact"),
        lambda net: retain.EWC(net, fisher="exact", online=True),
        lambda net: retain.LocalMAS(net, exclude="2"),
    ):
        alone, ours = make(network()), make(network())
        alone.shared = False
        for part in (x, 2 * x):
            alone.observe(part, progress=False).consolidate()
            ours.observe(part[rank::2], progress=False).consolidate()
        same(ours.importance, alone.importance)


def disagreeing(rank, folder):
    """A message on every rank, and no rank waits for ever."""
    x, _ = samples()
    strength = retain.MAS(network(), strength=1.0 + rank).observe(x, progress=False)
    with raised(StateError, "strength is 1.0 on rank 0 and 2.0 on rank 1"):
        strength.consolidate()
    model = retain.MAS(network(6 + rank)).observe(x, progress=False)
    with raised(StateError, "models of ranks 0 and 1 differ in 0.weight (6, 5) and (7, 5)"):
        model.consolidate()
    merge = retain.MAS(network()).observe(x, progress=False)
    with raised(StateError, "merge is 'sum' on rank 0 and 'pool' on rank 1"):
        merge.consolidate("sum" if rank == 0 else "pool")
    with raised(StateError, "Nothing was observed"):
        retain.MAS(network()).consolidate()
    changed = retain.MAS(network()).observe(x, progress=False)
    if rank == 1:
        changed.model[2] = nn.Linear(6, 4).double()
    words = ("changed since",) if rank == 1 else ("failed on rank 1", "changed since")
    with raised(ModelError if rank == 1 else StateError, *words):
        changed.consolidate()
    assert strength.tasks == 0
    assert strength.observed.samples == len(x)


def ddp(rank, folder):
    """Protected steps under DDP are those of one process."""
    x, y = samples(16)
    for form in FORMS:
        alone, expected = of_one_process(x)
        model = nn.parallel.DistributedDataParallel(network())
        memory = retain.MAS(model, strength=3.0).observe(x[rank::2], progress=False).consolidate()
        ours = torch.optim.Adam(model.parameters(), lr=0.05)
        theirs = torch.optim.Adam(alone.parameters(), lr=0.05)
        memory.attach(ours, form=form)
        expected.attach(theirs, form=form)
        for _ in range(3):
            for net, optimizer, part in (
                (model, ours, slice(rank, None, 2)),
                (alone, theirs, slice(None)),
            ):
                optimizer.zero_grad()
                cross_entropy(net(x[part]), y[part]).backward()
                optimizer.step()
        for p, q in zip(model.parameters(), alone.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def same_check(check, expected):
    assert abs(check.penalty - expected.penalty) <= 1e-5 * expected.penalty
    for row, one in zip(check.rows, expected.rows, strict=True):
        assert (row.name, row.state) == (one.name, one.state)
        assert abs(row.importance - one.importance) <= 1e-5 * one.importance
        assert abs(row.distance.moved - one.distance.moved) <= 1e-5


def fsdp(rank, folder):
    """fully_shard: Ω and θ* are sharded as the weights are; the forms do what one process does."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    x, y = samples(16)
    mesh = init_device_mesh("cpu", (2,))

    def sharded_model():
        net = network(7)  # which two ranks cannot share evenly
        memory = retain.MAS(net, strength=3.0).observe(x[rank::2], progress=False).consolidate()
        for layer in (net[0], net[2], net):
            fully_shard(layer, mesh=mesh)
        assert memory.check().protected
        return net, memory

    def one_process():
        net = network(7)
        memory = retain.MAS(net, strength=3.0)
        memory.shared = False
        return net, memory.observe(x, progress=False).consolidate()

    for form in (*FORMS, "in the loss"):
        for kind in (torch.optim.Adam, torch.optim.SGD):
            alone, expected = one_process()
            net, memory = sharded_model()
            ours, theirs = kind(net.parameters(), lr=0.05), kind(alone.parameters(), lr=0.05)
            if form in FORMS:
                memory.attach(ours, form=form)
                expected.attach(theirs, form=form)
            for _ in range(3):
                for model, optimizer, part, one in (
                    (net, ours, slice(rank, None, 2), memory),
                    (alone, theirs, slice(None), expected),
                ):
                    optimizer.zero_grad()
                    loss = cross_entropy(model(x[part]), y[part])
                    (loss if form in FORMS else loss + one.penalty()).backward()
                    optimizer.step()
            for p, q in zip(net.parameters(), alone.parameters()):
                torch.testing.assert_close(p.full_tensor(), q.detach(), rtol=1e-9, atol=1e-11)
            same_check(memory.check(ours), expected.check(theirs))
    net.unshard()
    net.reshard()
    with torch.no_grad():
        torch.testing.assert_close(memory.penalty(), expected.penalty())
    omega = memory.importance["0.weight"]  # a DTensor
    assert omega.to_local().shape[0] == (4 if rank == 0 else 3)
    assert (
        memory.drift().relative == expected.drift().relative
        or abs(memory.drift().relative - expected.drift().relative) < 1e-9
    )

    memory.save(folder / "sharded.safetensors")
    again = retain.load(folder / "sharded.safetensors", net)
    same_check(again.check(ours), memory.check(ours))
    plain = retain.load(folder / "sharded.safetensors", network(7))
    same(plain.importance, expected.importance)

    with raised(StateError, "sharded over the ranks", "before fully_shard"):
        memory.observe(x, progress=False)

    fresh = torch.optim.Adam(net.parameters(), lr=0.1)
    memory.attach(fresh)
    get_optimizer_state_dict(net, fresh)  # takes a step that is none
    for state in fresh.state.values():
        assert not state["exp_avg"].to_local().any()

    memory.observed = retain.Importance(dict(plain.importance), 16)
    memory.consolidate()  # the next task, observed elsewhere
    torch.testing.assert_close(
        memory.importance["0.weight"].full_tensor(), 2 * expected.importance["0.weight"]
    )
    torch.testing.assert_close(
        memory.anchor["0.weight"].full_tensor(), net[0].weight.detach().full_tensor()
    )


def fsdp_kept_small(rank, folder):
    """fully_shard with Ω and θ* in short types or on disk: as one process that keeps them so."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    x, y = samples(16)
    mesh = init_device_mesh("cpu", (2,))
    disks = folder / f"disk-{rank}", folder / f"alone-{rank}"
    for disk in disks:
        disk.mkdir()
    kept = {
        "bfloat16": {"dtype": torch.bfloat16},
        "8 bits": {"dtype": torch.float8_e5m2},
        "disk": {"offload": disks[0]},
    }
    for what, how in kept.items():
        alone, net = network(7), network(7)
        one = how if what != "disk" else {"offload": disks[1]}
        expected = retain.MAS(alone, strength=3.0, **one)
        expected.shared = False
        expected.observe(x, progress=False).consolidate()
        memory = retain.MAS(net, strength=3.0, **how)
        memory.observe(x[rank::2], progress=False).consolidate()
        for layer in (net[0], net[2], net):
            fully_shard(layer, mesh=mesh)
        ours = torch.optim.Adam(net.parameters(), lr=0.05)
        theirs = torch.optim.Adam(alone.parameters(), lr=0.05)
        memory.attach(ours, form="adaptive")
        expected.attach(theirs, form="adaptive")
        for _ in range(3):
            for model, optimizer, part in (
                (net, ours, slice(rank, None, 2)),
                (alone, theirs, slice(None)),
            ):
                optimizer.zero_grad()
                cross_entropy(model(x[part]), y[part]).backward()
                optimizer.step()
        for p, q in zip(net.parameters(), alone.parameters()):
            torch.testing.assert_close(p.full_tensor(), q.detach(), rtol=1e-6, atol=1e-8, msg=what)
        path = folder / f"{what}.safetensors"
        memory.save(path)
        same(retain.load(path, network(7)).importance, expected.importance, tolerance=1e-6)


def trainer_checkpoints(rank, folder):
    """Trainer with a sharded model: one rank writes the memory whole, and all take part in it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import Trainer

    from retain.integrations.transformers import RetainCallback
    from tests.integrations.transformers import tiny

    class Sharded(Trainer):  # its own way to shard and to save needs an accelerator
        def save_model(self, output_dir=None, _internal_call=False):
            if self.args.should_save:
                Path(output_dir).mkdir(parents=True, exist_ok=True)
            dist.barrier()

    torch.manual_seed(0)
    model, items = tiny.sequence_classification()
    memory = retain.MAS(model.eval(), strength=100.0)
    batch = {k: torch.stack([i[k] for i in items])[rank::2] for k in items[0] if k != "labels"}
    memory.observe([batch], progress=False).consolidate()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (*model.bert.encoder.layer, model):
        fully_shard(layer, mesh=mesh)
    trainer = tiny.trainer(
        model,
        items,
        folder / "run",
        kind=Sharded,
        callbacks=[RetainCallback(memory)],
        optimizers=tiny.sgd(model),
        max_steps=2,
        max_grad_norm=0.0,
        save_strategy="steps",
        save_steps=2,
        save_only_model=True,
    )
    trainer.accelerator.prepare_model = lambda prepared, **_: prepared
    trainer.train()
    written = folder / "run" / "checkpoint-2" / "retain.safetensors"
    dist.barrier()
    unsharded = tiny.sequence_classification()[0]
    again = retain.MAS(unsharded)
    again.load_state_dict(retain.load(written, unsharded).state_dict())
    assert again.importance.samples == len(items)
    for name, omega in again.importance.items():
        assert torch.equal(omega, memory.importance[name].full_tensor()), name


def lora_sharded(rank, folder):
    """Adapters that are sharded are refused by name, made before or after."""
    from peft import LoraConfig, get_peft_model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from retain.integrations.peft import LoraPenalty

    net, (x, _) = network(), samples()
    memory = retain.MAS(net).observe(x[rank::2], progress=False).consolidate()
    model = get_peft_model(net, LoraConfig(r=2, target_modules=["0"])).double()
    before = LoraPenalty(memory, model)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    for refused in (before.penalty, before.drift, lambda: LoraPenalty(memory, model)):
        with raised(StateError, "Adapters are sharded", "on each: 0."):
            refused()


def zero(rank, folder):
    """ZeroRedundancyOptimizer: each rank steps its own part, as one process steps all."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    x, y = samples(16)
    for form in FORMS:
        alone, expected = of_one_process(x)
        model = nn.parallel.DistributedDataParallel(network())
        memory = retain.MAS(model, strength=3.0).observe(x[rank::2], progress=False).consolidate()
        ours = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.05)
        theirs = torch.optim.Adam(alone.parameters(), lr=0.05)
        memory.attach(ours, form=form)
        expected.attach(theirs, form=form)
        for _ in range(3):
            for net, optimizer, part in (
                (model, ours, slice(rank, None, 2)),
                (alone, theirs, slice(None)),
            ):
                optimizer.zero_grad()
                cross_entropy(net(x[part]), y[part]).backward()
                optimizer.step()
        for p, q in zip(model.parameters(), alone.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def died(rank, folder):
    """One rank is gone: the other hears of it within the time of the process group."""
    x, _ = samples()
    memory = retain.MAS(network()).observe(x, progress=False)
    if rank == 0:
        with raised(StateError, "all 2 ranks", "did not come"):
            memory.consolidate()
        assert memory.observed.samples == len(x)


SCENARIOS = (shards, every_kind, disagreeing, ddp, zero, fsdp, fsdp_kept_small)
OF_TRAINERS = (trainer_checkpoints, lora_sharded)


def main():
    folder, wanted = Path(sys.argv[1]), sys.argv[2:]
    sys.path.insert(0, str(Path(__file__).parents[3]))
    dist.init_process_group("gloo", timeout=timedelta(seconds=60 if wanted != ["died"] else 5))
    rank = dist.get_rank()
    chosen = [one for one in (*SCENARIOS, *OF_TRAINERS, died) if one.__name__ in wanted]
    for scenario in chosen:
        scenario(rank, folder)
        print(f"rank {rank}: {scenario.__name__} done", flush=True)
    if wanted != ["died"]:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
