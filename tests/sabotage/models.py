"""Models: copied, wrapped, compiled, adapted, in the wrong mode."""

from __future__ import annotations

import copy
import functools
import io

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import retain

from .cases import ended, sabotage
from .optimizers import begun
from .scene import RATE, Network

case = functools.partial(sabotage, "model", make=Network)
WITH_NORM = functools.partial(Network, norm=True)


@case(
    "a copy is trained, with the penalty of the original in its loss",
    says="penalty.. is in the gradient, but this SGD steps none",
)
def copy_with_penalty(scene):
    memory = scene.memory()
    model = copy.deepcopy(scene.model)
    scene.train(scene.sgd(model), model=model, memory=memory)


@case(
    "a copy is trained, the optimizer of the original is attached",
    says="steps a copy of the weights",
)
def copy_with_attachment(scene):
    memory, _start, optimizer = begun(scene)
    model = copy.deepcopy(scene.model)
    scene.train(scene.sgd(model), model=model)
    del memory, optimizer


@case("a copy's optimizer is attached", says="holds none of the protected parameters")
def copy_attached(scene):
    memory = scene.memory()
    memory.attach(scene.sgd(copy.deepcopy(scene.model)))


@case("saved and loaded with torch.save, and trained", says="steps a copy of the weights")
def saved_and_loaded(scene):
    memory, _start, optimizer = begun(scene)
    file = io.BytesIO()
    torch.save(scene.model, file)
    file.seek(0)
    model = torch.load(file, weights_only=False)
    scene.train(scene.sgd(model), model=model)
    del memory, optimizer


@case("model and memory are copied together")
def copied_together(scene):
    memory = scene.memory()
    start = copy.deepcopy(scene.model)
    model, twin = copy.deepcopy((scene.model, memory))
    optimizer = scene.sgd(model)
    twin.attach(optimizer)
    scene.train(optimizer, model=model)
    return ended(scene, memory, model=model, start=start)


@case("wrapped in DataParallel afterwards")
def data_parallel(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)
    model = nn.DataParallel(scene.model)
    optimizer = scene.sgd(model)
    memory.attach(optimizer)
    scene.train(optimizer, model=model)
    return ended(scene, memory, start=start)


@case("compiled afterwards (torch.compile)")
def compiled(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)
    model = torch.compile(scene.model, backend="eager")
    optimizer = scene.sgd(model)
    memory.attach(optimizer)
    scene.train(optimizer, model=model)
    return ended(scene, memory, start=start)


@case("put into another module")
def put_inside(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)
    model = nn.Sequential(scene.model, nn.Identity())
    optimizer = scene.sgd(model)
    memory.attach(optimizer)
    scene.train(optimizer, model=model)
    return ended(scene, memory, start=start)


@case(
    "an adapter is put into it afterwards (PEFT)", says=r"retain\.integrations\.peft\.LoraPenalty"
)
def adapted(scene):
    peft = pytest.importorskip("peft")
    memory = scene.memory()
    model = peft.get_peft_model(scene.model, peft.LoraConfig(target_modules=["head"], r=2))
    memory.attach(scene.sgd(model))


@case(
    "an adapter is put into it while another optimizer is attached",
    says=r"Trained without importance.*lora_A.*LoraPenalty",
)
def adapted_while_attached(scene):
    peft = pytest.importorskip("peft")
    memory, _start, optimizer = begun(scene)
    model = peft.get_peft_model(scene.model, peft.LoraConfig(r=2, target_modules=["body.0"]))
    scene.train(scene.sgd(model), model=model)
    del memory, optimizer


@case(
    "trained through functional_call with weights of its own",
    says="penalty.. is in the gradient, but this SGD steps none",
)
def functional(scene):
    memory = scene.memory()
    own = {n: p.detach().clone().requires_grad_() for n, p in scene.model.named_parameters()}
    optimizer = torch.optim.SGD(own.values(), lr=RATE)
    for x, y in scene.data:
        optimizer.zero_grad()
        loss = cross_entropy(torch.func.functional_call(scene.model, own, (x,)), y)
        (loss + memory.penalty()).backward()
        with scene.step():
            optimizer.step()


@case("activation checkpointing")
def checkpointed(scene):
    class Checkpointed(Network):
        def forward(self, x):
            return self.head(checkpoint(self.body, x, use_reentrant=False))

    memory, start = scene.memory(), copy.deepcopy(scene.model)
    scene.model.__class__ = Checkpointed
    optimizer = scene.sgd()
    memory.attach(optimizer)
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case(
    "batch-norm follows the new data",
    says=r"running statistics.*body\.1.*retain\.frozen_statistics",
    make=WITH_NORM,
)
def batch_norm(scene):
    memory, _start, optimizer = begun(scene)
    scene.train(optimizer)
    del memory


@case(
    "batch-norm put into train mode after attach",
    says=r"running statistics.*body\.1",
    make=WITH_NORM,
)
def batch_norm_later(scene):
    memory = scene.memory()
    scene.model.eval()
    optimizer = scene.sgd()
    memory.attach(optimizer)
    scene.model.train()
    scene.train(optimizer)


class Averaging(Network):
    """A layer of one's own that subtracts a moving average."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ema_mean", torch.zeros(6))

    def forward(self, x):
        h = self.body(x)
        if self.training:
            self.ema_mean.lerp_(h.detach().mean(0), 0.1)
        return self.head(h - self.ema_mean)


@case(
    "a moving average of one's own follows the new data",
    says=r"running statistics of Averaging follow.*retain\.frozen_statistics",
    make=Averaging,
)
def own_average(scene):
    memory, _start, optimizer = begun(scene)
    scene.train(optimizer)
    del memory


@case(
    "batch-norm converted to SyncBatchNorm afterwards",
    says=r"running statistics of body\.1",
    make=WITH_NORM,
)
def converted(scene):
    memory = scene.memory()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(scene.model)
    memory.attach(scene.sgd(model))


@case("traced (torch.fx) afterwards")
def traced(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)
    model = torch.fx.symbolic_trace(scene.model)
    optimizer = scene.sgd(model)
    memory.attach(optimizer)
    scene.train(optimizer, model=model)
    return ended(scene, memory, start=start)


@case("initialised again before the optimizer is attached", says="have moved .* nothing protected")
def initialised_again(scene):
    memory = scene.memory()
    for layer in (*scene.model.body[::2], scene.model.head):
        layer.reset_parameters()
    memory.attach(scene.sgd())


@case("batch-norm, with penalty() in the loss", says=r"running statistics.*body\.1", make=WITH_NORM)
def batch_norm_loss(scene):
    scene.train(scene.sgd(), memory=scene.memory())


@case("batch-norm under retain.frozen_statistics", make=WITH_NORM)
def batch_norm_frozen(scene):
    memory = scene.memory()
    start = copy.deepcopy(scene.model).eval()
    with retain.frozen_statistics(scene.model):
        scene.model.train()
        optimizer = scene.sgd()
        memory.attach(optimizer)
        scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("the new task's head is consolidated before it is trained", says="head: still as initialised")
def fresh_head_consolidated(scene):
    scene.model.head = nn.Linear(6, 3)
    scene.memory()


class Centred(nn.Module):
    """A layer of one's own that keeps averages under names of its own."""

    def __init__(self, *, anew=False):
        super().__init__()
        self.anew = anew
        self.register_buffer("mu", torch.zeros(8))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("scale", torch.ones(8))
        self.register_buffer("cache", torch.zeros(8), persistent=False)

    def forward(self, x):
        self.cache = x.detach()[0]
        if self.training:
            self.calls += 1
            mean = x.detach().mean(0)
            if self.anew:
                self.mu = 0.9 * self.mu + 0.1 * mean
            else:
                self.mu.lerp_(mean, 0.1)
        return (x - self.mu) * self.scale


def centred(**how):
    """A network with such a layer."""
    network = Network()
    network.body[1] = Centred(**how)
    return network


OWN = r"Buffers of body\.1 move .* also=\['body\.1'\]"


@case("averages of one's own, whatever they are called", says=OWN, make=centred)
def own_names(scene):
    memory, _start, optimizer = begun(scene)
    scene.model.train()
    scene.train(optimizer)
    del memory


@case(
    "averages of one's own that are assigned anew, with penalty() in the loss",
    says=OWN,
    make=functools.partial(centred, anew=True),
)
def own_names_anew(scene):
    memory = scene.memory()
    scene.model.train()
    scene.train(scene.sgd(), memory=memory)


@case("averages of one's own under retain.frozen_statistics(…, also=…)", make=centred)
def own_names_frozen(scene):
    memory = scene.memory()
    start = copy.deepcopy(scene.model).eval()
    with retain.frozen_statistics(scene.model, also="body.1"):
        scene.model.train()
        optimizer = scene.sgd()
        memory.attach(optimizer)
        scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("counters and caches move, averages do not", make=centred)
def counters(scene):
    memory = scene.memory()
    scene.model.eval()
    start = copy.deepcopy(scene.model)
    optimizer = scene.sgd()
    memory.attach(optimizer)
    for batch in scene.data:
        scene.model.body[1].calls += 1
        scene.train(optimizer, data=[batch])
    return ended(scene, memory, start=start)


@case("batch-norm with a momentum of 0, in train mode", make=WITH_NORM)
def no_momentum(scene):
    memory = scene.memory()
    scene.model.body[1].momentum = 0.0
    start = copy.deepcopy(scene.model.train())
    optimizer = scene.sgd()
    memory.attach(optimizer)
    scene.train(optimizer)
    return ended(scene, memory, start=start)


def spectral():
    """A network with spectral norm."""
    network = Network()
    nn.utils.parametrizations.spectral_norm(network.head)
    return network


@case("spectral norm, which follows the weights", make=spectral)
def follows_weights(scene):
    memory = retain.MAS(scene.model, strength=1.0)
    ones = {name: torch.ones_like(p) for name, p in scene.model.named_parameters()}
    memory.observed = retain.Importance(ones, 1)
    memory.consolidate()
    scene.model.train()
    start = copy.deepcopy(scene.model)
    optimizer = scene.sgd()
    memory.attach(optimizer)
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("model.compile() in place afterwards")
def compiled_in_place(scene):
    memory, start, optimizer = begun(scene)
    scene.model.compile(backend="eager")
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("penalty() is part of forward(), which is called on other weights in between (MAML)")
def meta(scene):
    class WithPenalty(nn.Module):
        def __init__(self, model, memory):
            super().__init__()
            self.model, self.penalty = model, memory.penalty

        def forward(self, x, y):
            return cross_entropy(self.model(x), y) + self.penalty()

    memory, start = scene.memory(), copy.deepcopy(scene.model)
    network = WithPenalty(scene.model, memory)
    optimizer = scene.sgd(network)
    for x, y in scene.data:
        fast = {name: p.detach() * 1.01 for name, p in network.named_parameters()}
        torch.func.functional_call(network, fast, (x, y))
        optimizer.zero_grad()
        network(x, y).backward()
        with scene.step():
            optimizer.step()
    return ended(scene, memory, start=start)


@case("model and memory are copied together, and both go on")
def both_go_on(scene):
    memory, start, optimizer = begun(scene)
    model, again = copy.deepcopy((scene.model, memory))
    other = scene.sgd(model)
    again.attach(other)
    scene.train(optimizer)
    scene.train(other, model=model)
    return ended(scene, memory, model=model, start=start)
