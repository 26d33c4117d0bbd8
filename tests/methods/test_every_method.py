"""What holds for all methods."""

import dataclasses
import gc
import types

import pytest
import torch

from retain.methods import METHODS, PAPER

from .small import Jittered, backbone, learned, sequence, work

PROTECTING = [name for name in METHODS if name not in ("finetune", "joint")]
QUADRATIC = [name for name in METHODS if METHODS[name].has_form() and "imm" not in name]
# λ at which each of them has something to say on the small tasks
STRONG = {"imm-mean": 0.1, "imm-mode": 0.1, "ewc": 100.0, "online-ewc": 100.0}
# Bytes with which a memory notices that weights moved: a few elements of a few parameters.
KNOWN = 1024


def options(name):
    return {"strength": STRONG.get(name, 10.0)} if METHODS[name].has_strength() else {}


def test_the_papers_eleven_and_what_people_do_instead_are_there():
    assert (
        *("finetune", "joint", "lwf", "ebll", "imm-mean", "imm-mode"),
        *("ewc", "online-ewc", "si", "mas", "local-mas"),
    ) == PAPER
    others = ("l2-sp", "low-lr", "freeze", "replay", "kl", "lora", "wise-ft", "model-soup")
    assert tuple(METHODS) == (*PAPER, *others)


@pytest.mark.parametrize("name", METHODS)
def test_says_what_it_stores_and_has_frozen_defaults(name):
    assert METHODS[name].stores.endswith(".")
    assert METHODS[name].needs
    assert METHODS[name].__doc__
    knob = METHODS[name].knob
    assert knob is None or knob in {f.name for f in dataclasses.fields(METHODS[name].Options)}
    assert dataclasses.is_dataclass(METHODS[name].Options)
    assert METHODS[name].Options.__dataclass_params__.frozen


@pytest.mark.parametrize("name", [name for name in METHODS if name != "finetune"])
def test_ends_elsewhere_than_finetune(name):
    ours = backbone(learned(name, options=options(name)))
    assert torch.isfinite(ours).all()
    assert not torch.allclose(ours, backbone(learned("finetune")), atol=1e-4)


@pytest.mark.parametrize("name", PROTECTING)
def test_first_task_is_learned_as_by_finetune(name):
    ours = backbone(learned(name, tasks=1, options=options(name)))
    assert torch.allclose(ours, backbone(learned("finetune", tasks=1)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [*QUADRATIC, "lwf"])
def test_with_no_strength_it_is_finetune(name):
    ours = backbone(learned(name, options={"strength": 0.0}))
    assert torch.equal(ours, backbone(learned("finetune")))


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].has_form()])
def test_a_stronger_penalty_keeps_the_weights_nearer(name, form):
    def moved(strength):
        one = work(name, form=form, options={"strength": strength}, lr=0.01)
        one.learn_next()
        before = backbone(one)
        one.network.add_head(2)
        batch = next(one.stage.sequence.tasks[1].train.batches(16))
        one.method.begin(1, one.stage.sequence)
        optimizer = torch.optim.SGD(one.network.parameters(), lr=0.01)
        with one.method.protecting(1, optimizer):
            for _ in range(20):
                optimizer.zero_grad()
                one.method.loss(batch).backward()
                optimizer.step()
        return (backbone(one) - before).norm()

    weak, strong = STRONG.get(name, 10.0) / 100, STRONG.get(name, 10.0)
    assert 0 < moved(strong) < moved(weak)


@pytest.mark.parametrize("name", ["lwf", "ebll"])
def test_the_old_answers_enter_the_loss(name):
    one = learned(name, tasks=1)
    plain = learned("finetune", tasks=1)
    for each in (one, plain):
        each.network.add_head(2)
        each.method.begin(1, each.stage.sequence)
    batch = next(one.stage.sequence.tasks[1].train.batches(16))
    assert one.method.loss(batch) > plain.method.loss(batch) + 1e-3


@pytest.mark.parametrize("kind", [None, Jittered])
@pytest.mark.parametrize("name", METHODS)
def test_goes_on_from_a_checkpoint_as_if_nothing_had_been(name, kind):
    of = sequence(3, n=32, **({"kind": kind} if kind else {}))
    one = learned(name, of, tasks=2, options=options(name))
    standing = one.standing()
    copy = work(name, of, options=options(name))
    copy.resume(
        standing._replace(
            run=one.run.model_copy(update={"accuracy": list(one.run.accuracy)}),
            network={k: t.clone() for k, t in standing.network.items()},
            method={k: t.clone() for k, t in standing.method.items()},
        )
    )
    one.learn_next()
    copy.learn_next()
    assert torch.equal(backbone(one), backbone(copy))
    assert one.run.accuracy == copy.run.accuracy


@pytest.mark.parametrize("kind", [None, Jittered])
@pytest.mark.parametrize("name", METHODS)
def test_memory_bytes_are_what_is_really_allocated(name, kind):
    of = sequence(3, **({"kind": kind} if kind else {}))
    one = learned(name, of, options=options(name))
    gc.collect()
    counted = one.method.memory_bytes()
    network = sum(t.nbytes for t in one.network.state_dict().values())
    assert counted["model"] == network
    assert sum(counted.values()) - network == pytest.approx(held_by(one.method), abs=KNOWN)


def held_by(method):
    """Bytes of every tensor that can be reached from the method, but not from its network."""
    skipped = (type, types.ModuleType, types.FunctionType, torch.nn.Module)
    seen, storages = {id(method.setting)}, {}
    own = {p.untyped_storage().data_ptr() for p in method.network.state_dict().values()}
    todo = [method]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or (isinstance(thing, skipped) and not _an_encoder(thing, method)):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
        else:
            todo += gc.get_referents(thing)
    return sum(storages.values())


def _an_encoder(thing, method):
    return isinstance(thing, torch.nn.Module) and thing not in set(method.network.modules())
