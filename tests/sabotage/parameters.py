"""Parameters: replaced, frozen and freed, tied, grown, renamed, cast."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations, parametrize, prune

from .cases import Ended, ended, sabotage
from .optimizers import begun
from .scene import RATE, ByHand, Network, Scene, learned

case = functools.partial(sabotage, "parameters", make=Network)


@case("a fresh head under the old name", says=r"head \(.*\) was replaced")
def fresh_head(scene):
    memory = scene.memory()
    scene.model.head = nn.Linear(6, 3)
    optimizer = scene.sgd()
    memory.attach(optimizer)
    scene.train(optimizer)


@case(
    "a fresh head of another size under the old name",
    says=r"head\.weight was \(3, 6\) and is \(5, 6\)",
)
def larger_head(scene):
    memory = scene.memory()
    scene.model.head = nn.Linear(6, 5)
    memory.attach(scene.sgd())


@case(
    "a head that nothing holds, in the optimizer", says=r"Trained without importance.*extra\.weight"
)
def new_head(scene):
    memory = scene.memory()
    scene.model.extra = nn.Linear(6, 3)
    optimizer = scene.sgd()
    memory.attach(optimizer)
    scene.train(optimizer)


@case("the same, with penalty() in the loss", says=r"Trained without importance.*extra\.weight")
def new_head_loss(scene):
    memory = scene.memory()
    scene.model.extra = nn.Linear(6, 3)
    scene.train(scene.sgd(), memory=memory)


@case(
    "a layer swapped for a copy, the optimizer not made anew",
    says="was replaced in the model by another parameter",
)
def swapped(scene):
    memory, _start, optimizer = begun(scene)
    scene.model.head = copy.deepcopy(scene.model.head)
    scene.train(optimizer)
    del memory


@case("a layer swapped for a copy before the optimizer is made")
def swapped_before(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)
    scene.model.head = copy.deepcopy(scene.model.head)
    optimizer = scene.sgd()
    memory.attach(optimizer)
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case(
    "load_state_dict(assign=True)",
    says="was replaced in the model by another parameter|no longer holds",
)
def assigned(scene):
    memory, _start, optimizer = begun(scene)
    state = {name: value.clone() for name, value in scene.model.state_dict().items()}
    scene.model.load_state_dict(state, assign=True)
    scene.model.requires_grad_(True)
    scene.train(optimizer)
    del memory


@case("load_state_dict of the same weights")
def loaded(scene):
    memory, start, optimizer = begun(scene)
    scene.model.load_state_dict(copy.deepcopy(scene.model.state_dict()))
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("p.data is replaced")
def data_replaced(scene):
    memory, start, optimizer = begun(scene)
    for p in scene.model.parameters():
        p.data = p.data.clone()
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("an average of weights is swapped in and out (EMA)")
def averaged(scene):
    memory, start, optimizer = begun(scene)
    for x, y in scene.data:
        scene.train(optimizer, data=[(x, y)])
        kept = [p.detach().clone() for p in scene.model.parameters()]
        with torch.no_grad():
            for p in scene.model.parameters():
                p.mul_(0.9)
            scene.model(x)
            for p, old in zip(scene.model.parameters(), kept, strict=True):
                p.copy_(old)
    memory.drift()
    return ended(scene, memory, start=start)


@case("model.to(torch.float64)")
def cast(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model).double()
    scene.model.double()
    optimizer = scene.sgd()
    memory.attach(optimizer)
    scene.data = [(x.double(), y) for x, y in scene.data]
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("model.to(torch.float64) while attached")
def cast_while_attached(scene):
    memory, start, optimizer = begun(scene)
    scene.model.double()
    start.double()
    scene.data = [(x.double(), y) for x, y in scene.data]
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case(
    "model.to(torch.float64) puts new parameters in place (torch.__future__)",
    says="was replaced in the model by another parameter|no longer holds",
)
def overwritten(scene):
    memory, _start, optimizer = begun(scene)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        scene.model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    scene.data = [(x.double(), y) for x, y in scene.data]
    scene.train(optimizer)
    del memory


@case("load_state_dict swaps the parameters' contents (torch.__future__)")
def contents_swapped(scene):
    memory, start, optimizer = begun(scene)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        scene.model.load_state_dict(copy.deepcopy(scene.model.state_dict()))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case(
    "a vector is written over all parameters (vector_to_parameters)",
    says="have moved .* nothing protected",
)
def vector(scene):
    memory, _start, optimizer = begun(scene)
    for x, y in scene.data:
        optimizer.zero_grad()
        cross_entropy(scene.model(x), y).backward()
        parameters = list(scene.model.parameters())
        theta = nn.utils.parameters_to_vector(parameters).detach()
        step = nn.utils.parameters_to_vector([p.grad for p in parameters])
        with scene.step():
            nn.utils.vector_to_parameters(theta - RATE * step, parameters)
    del memory


@case("the best weights are loaded again in between")
def best_again(scene):
    memory, _start, optimizer = begun(scene)
    scene.train(optimizer, data=scene.data[:1])
    best = copy.deepcopy(scene.model.state_dict())
    scene.train(optimizer, data=scene.data[1:])
    scene.model.load_state_dict(best)
    start = copy.deepcopy(scene.model)
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case(
    "frozen while it was observed, freed afterwards",
    says=r"body\.0\.weight.*\(frozen when it was observed\)",
)
def frozen_then_free(scene):
    scene.model.body[0].requires_grad_(False)
    memory = scene.memory()
    scene.model.body[0].requires_grad_(True)
    optimizer = scene.sgd()
    memory.attach(optimizer)
    scene.train(optimizer)


@case(
    "frozen while it was observed, freed while attached",
    says=r"body\.0\.weight.*\(frozen when it was observed\)",
)
def freed_later(scene):
    scene.model.body[0].requires_grad_(False)
    memory = scene.memory()
    optimizer = scene.sgd()
    memory.attach(optimizer)
    scene.model.body[0].requires_grad_(True)
    scene.train(optimizer)


@case("frozen and freed again between steps")
def toggled(scene):
    memory, start, optimizer = begun(scene)
    for x, y in scene.data:
        scene.model.requires_grad_(False)
        scene.model(x)
        scene.model.requires_grad_(True)
        scene.train(optimizer, data=[(x, y)])
    return ended(scene, memory, start=start)


class Tied(nn.Module):
    """Words in, words out: the head may be the embedding."""

    def __init__(self, *, tied=False, words=12):
        super().__init__()
        self.words = nn.Embedding(words, 6)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, words, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens):
        return self.head(self.body(self.words(tokens)).tanh())


def about_words(tied=False):
    """A scene of tokens instead of vectors."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randint(0, 12, (16,), generator=generator),) * 2 for _ in range(3)]
    scene = Scene(Tied(tied=tied), data)
    scene.first = data[:1]
    learned(scene.model, scene.first)
    return scene


@case("weights tied afterwards", says=r"head\.weight.* is now the same parameter as words\.weight")
def tied_later(scene):
    words = about_words()
    memory = words.memory()
    words.model.head.weight = words.model.words.weight
    memory.attach(words.sgd())


@case("weights untied afterwards", says=r"Trained without importance.*head\.weight")
def untied_later(scene):
    words = about_words(tied=True)
    memory = words.memory()
    words.model.head.weight = nn.Parameter(words.model.words.weight.detach().clone())
    optimizer = words.sgd()
    memory.attach(optimizer)
    words.train(optimizer)


@case(
    "a vocabulary grows (resize_token_embeddings)",
    says=r"words\.weight from \(12, 6\) to \(14, 6\)",
)
def grown(scene):
    words = about_words()
    memory = words.memory()
    for module, name in ((words.model, "words"), (words.model, "head")):
        old = getattr(module, name)
        new = nn.Embedding(14, 6) if name == "words" else nn.Linear(6, 14, bias=False)
        with torch.no_grad():
            new.weight[:12] = old.weight
        setattr(module, name, new)
    optimizer = words.sgd()
    memory.attach(optimizer)
    words.train(optimizer)


@case("a parametrisation renames weights (weight_norm)", says=r"head\.weight.* is gone")
def weight_norm(scene):
    memory, _start, optimizer = begun(scene)
    parametrizations.weight_norm(scene.model.head)
    memory.attach(scene.sgd())
    del optimizer


@case("pruning renames weights", says=r"head\.weight.* is gone")
def pruned(scene):
    memory, _start, optimizer = begun(scene)
    prune.random_unstructured(scene.model.head, "weight", amount=0.5)
    scene.train(optimizer)
    memory.penalty()


@case("a mask is applied after every step")
def masked(scene):
    def masks(model):
        return {n: torch.arange(p.numel()).view_as(p) % 3 > 0 for n, p in model.named_parameters()}

    def apply(model, mask):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.mul_(mask[name])

    memory, _start, optimizer = begun(scene)
    hand, free = ByHand(memory), ByHand(memory)
    mask = masks(scene.model)
    for x, y in scene.data:
        scene.train(optimizer, data=[(x, y)])
        apply(scene.model, mask)
        hand.train([(x, y)])
        apply(hand.model, mask)
        free.train([(x, y)], protect=False)
        apply(free.model, mask)
    return Ended(scene.model, hand.model, free.model)


@case(
    "an unfinished attachment: weights are written in a loop of its own",
    says="have moved .* nothing protected",
)
def by_hand_while_attached(scene):
    memory, _start, optimizer = begun(scene)
    for x, y in scene.data:
        optimizer.zero_grad()
        cross_entropy(scene.model(x), y).backward()
        with torch.no_grad(), scene.step():
            for p in scene.model.parameters():
                p -= RATE * p.grad
    del memory


@case("steps by hand, with penalty() in the loss")
def by_hand_with_penalty(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)
    for x, y in scene.data:
        loss = cross_entropy(scene.model(x), y) + memory.penalty()
        gradients = torch.autograd.grad(loss, list(scene.model.parameters()))
        with torch.no_grad(), scene.step():
            for p, g in zip(scene.model.parameters(), gradients, strict=True):
                p -= RATE * g
    return ended(scene, memory, start=start)


@case("a lazy layer in the place of one that is held", says="has no shape before a batch")
def lazy(scene):
    memory = scene.memory()
    scene.model.head = nn.LazyLinear(3)
    optimizer = scene.sgd()
    memory.attach(optimizer)
    scene.train(optimizer)


@case("a parametrisation is put on and taken off again")
def on_and_off(scene):
    memory, start, optimizer = begun(scene)
    parametrize.register_parametrization(scene.model.head, "weight", nn.Identity())
    parametrize.remove_parametrizations(scene.model.head, "weight")
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("a parametrisation that was there is taken off", says=r"head\.parametrizations.* is gone")
def taken_off(scene):
    parametrizations.weight_norm(scene.model.head)
    memory = scene.memory()
    parametrize.remove_parametrizations(scene.model.head, "weight")
    memory.attach(scene.sgd())


@case("a held layer is put into a Sequential", says=r"head\.weight.* is gone")
def nested(scene):
    _memory, _start, optimizer = begun(scene)
    scene.model.head = nn.Sequential(scene.model.head, nn.Identity())
    scene.train(optimizer)


@case("contents of two parameters are swapped (torch.utils.swap_tensors)")
def contents_exchanged(scene):
    memory, start, optimizer = begun(scene)
    other = nn.Parameter(scene.model.head.weight.detach() + 0.1)
    torch.utils.swap_tensors(scene.model.head.weight, other)
    with torch.no_grad():
        start.head.weight.add_(0.1)
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("a held parameter becomes a buffer", says=r"head\.weight.* is gone")
def made_a_buffer(scene):
    _memory, _start, optimizer = begun(scene)
    weight = scene.model.head.weight.detach()
    del scene.model.head.weight
    scene.model.head.register_buffer("weight", weight)
    scene.train(optimizer)


@case("a vocabulary shrinks", says=r"words\.weight was \(12, 6\) and is \(10, 6\)")
def shrunk(scene):
    words = about_words()
    memory = words.memory()
    words.model.words = nn.Embedding(10, 6)
    memory.attach(words.sgd())


@case("p.data grows in place", says=r"Grown .* head\.weight from \(3, 6\) to \(5, 6\)")
def grown_in_place(scene):
    _memory, _start, optimizer = begun(scene)
    head = scene.model.head
    head.weight.data = torch.cat([head.weight.data, torch.randn(2, 6)])
    head.bias.data = torch.cat([head.bias.data, torch.zeros(2)])
    scene.train(optimizer)
