"""Threads, copies, pickles, order of leaving: whatever happens, answers and counts are right."""

import copy
import io
import multiprocessing
import os
import pickle
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import retain
from retain.errors import StateError
from retain.local_rule.layer_sums import LocalSums
from retain.local_rule.watch import Watch

from .cases import Tokens, Twice, two_layers
from .test_rule import assert_same, sums_of

CALLS = int(os.environ.get("RETAIN_SERVING_CALLS", "40"))  # of each thread; 10000 for a long run
THREADS = 8
UNTOUCHED = vars(two_layers(nn.ReLU())).keys()


def in_threads(work, threads=THREADS):
    """Run `work(index)` in threads that begin together; what one raises is raised here."""
    barrier, failed = threading.Barrier(threads), []

    def run(index):
        try:
            barrier.wait()
            work(index)
        except BaseException as error:
            failed.append(error)

    running = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if failed:
        raise failed[0]


@pytest.fixture
def model():
    return two_layers(nn.ReLU()).double().eval()


@pytest.fixture
def x():
    return torch.randn(6, 5, dtype=torch.float64)


def assert_observed(memory, model, x, samples):
    """Ω of batches that were all `x`."""
    assert memory.observed.samples == samples
    expected = {name: total / len(x) for name, total in sums_of(model, x).items()}
    assert_same(dict(memory.observed), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [lambda: two_layers(nn.ReLU()), lambda: Twice(nn.Tanh())])
@pytest.mark.parametrize("every", [1, 10, 7])
@pytest.mark.parametrize("blocks", ["one around all", "one for each request"])
def test_eight_threads_are_counted_exactly(blocks, every, make, x):
    model = make().double().eval()
    memory = retain.LocalMAS(model)
    answer = model(x)

    def serve(_index):
        with torch.no_grad():
            for _ in range(CALLS):
                if blocks == "one around all":
                    assert torch.equal(model(x), answer)
                else:
                    with memory.observing(every=every):
                        assert torch.equal(model(x), answer)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if blocks == "one around all":
            with memory.observing(every=every):
                in_threads(serve)
        else:
            in_threads(serve)
    due = -(-THREADS * CALLS // every)
    assert_observed(memory, model, x, due * len(x))
    assert vars(model).keys() == vars(make()).keys()


def test_reading_and_saving_beside_requests_loses_nothing(model, x, tmp_path):
    memory = retain.LocalMAS(model)
    path, days, done = tmp_path / "memory.safetensors", [], threading.Event()
    expected = {name: total / len(x) for name, total in sums_of(model, x).items()}

    def work(index):
        if index:
            for _ in range(CALLS):
                model(x)
        else:
            while not done.is_set():
                memory.save(path)
                seen = retain.load(path, model).observed
                assert seen.samples % len(x) == 0
                if seen.samples:
                    assert_same(dict(seen), expected)
                if memory.observed.samples:
                    days.append(memory.observed.samples)
                    with memory.observing():
                        memory.observe(x)
                if len(days) > 3:
                    done.set()

    with memory.observing():
        in_threads(work)
    observes = len(days)
    assert_observed(memory, model, x, (7 * CALLS + observes) * len(x))


def test_consolidating_beside_requests_loses_nothing(model, x):
    memory = retain.LocalMAS(model)
    times = 10

    def work(index):
        if index:
            for _ in range(CALLS):
                model(x)
            return
        for _ in range(times):
            memory.observe(x)
            memory.consolidate("pool")

    with memory.observing():
        in_threads(work)
    if memory.observed:
        memory.consolidate("pool")
    assert memory.importance.samples == (7 * CALLS + times) * len(x)
    expected = {name: total / len(x) for name, total in sums_of(model, x).items()}
    assert_same(dict(memory.importance), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
)
def test_blocks_may_be_left_in_any_order(model, x, order):
    memory, other = retain.LocalMAS(model), retain.LocalMAS(model)
    blocks = [memory.observing(), other.observing(), memory.observing()]
    for block in blocks:
        block.__enter__()
    for place in order:
        model(x)
        blocks[place].__exit__(None, None, None)
    assert vars(model).keys() == UNTOUCHED
    model(x)
    assert_observed(other, model, x, (order.index(1) + 1) * 6)
    assert_observed(memory, model, x, (max(order.index(0), order.index(2)) + 1) * 6)


def test_blocks_of_one_memory_count_a_call_once(model, x):
    memory = retain.LocalMAS(model)
    with memory.observing(), memory.observing():
        model(x)
    model(x)
    assert_observed(memory, model, x, 6)


def test_another_every_at_the_same_time_is_refused(model, x):
    memory = retain.LocalMAS(model)
    with memory.observing(every=3):
        with pytest.raises(StateError, match=r"one call in 3 .*every=5"), memory.observing(every=5):
            pass
        model(x)
    with memory.observing(every=5):
        model(x)
    assert memory.observed.samples == 12


def copies(model):
    yield copy.deepcopy(model)
    yield copy.copy(model)
    yield pickle.loads(pickle.dumps(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    yield torch.load(file, weights_only=False)
    new = type(model)()  # by hand, as classes with a __deepcopy__ of their own do
    new.__dict__.update(copy.deepcopy(vars(model)))
    yield new


@pytest.mark.parametrize("which", range(5))
def test_a_copy_made_meanwhile_is_a_model_of_its_own(model, x, which):
    memory = retain.LocalMAS(model)
    with memory.observing():
        model(x)
        twin = list(copies(model))[which]
        twin(x)
        assert type(twin) is type(model)
    assert memory.observed.samples == 6
    if which != 1:  # which shares its parameters
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        assert twin(x).abs().max() > 0
    assert twin._compiled_call_impl is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.modules())


def test_a_pickle_made_meanwhile_needs_nothing_of_ours(model):
    with pytest.warns(UserWarning, match="not called"), retain.LocalMAS(model).observing():
        assert b"retain" not in pickle.dumps(nn.Sequential(model))


def replaced(model):
    model[2] = copy.deepcopy(model[2])


def followed_by_another(model):
    model[2] = nn.Sequential(model[2], copy.deepcopy(model[1]), nn.Linear(4, 4).double())


@pytest.mark.parametrize("change", [replaced, followed_by_another])
@pytest.mark.parametrize("every", [1, 2])
def test_calls_of_a_layer_that_was_replaced_meanwhile_are_named(model, x, change, every):
    """Ω stays that of the layers that were there, over the samples that they saw."""
    expected = retain.LocalMAS(copy.deepcopy(model)).observe(x, progress=False).observed
    memory = retain.LocalMAS(model)

    def serve():
        with torch.no_grad(), memory.observing(every=every):
            for _ in range(every):
                model(x)
            change(model)
            for _ in range(4):
                model(x)

    with pytest.warns(UserWarning, match=r"calls since 2\.weight, 2\.bias left their place"):
        serve()
    assert memory.observed.samples == len(x)
    for name, omega in expected.items():
        assert torch.allclose(memory.observed[name], omega), name


def test_a_layer_that_is_added_beside_those_that_are_observed_changes_nothing(model, x):
    memory = retain.LocalMAS(model)
    with torch.no_grad(), memory.observing():
        model(x)
        model[1].extra = nn.Linear(2, 2)
        model(x)
    assert memory.observed.samples == 2 * len(x)


def test_calls_of_a_model_that_was_compiled_meanwhile_are_named(model, x):
    memory = retain.LocalMAS(model)
    block = memory.observing()
    block.__enter__()
    model(x)
    model.compile(backend="eager")
    model(x)
    with pytest.warns(UserWarning, match="calls after the model was compiled in the block"):
        block.__exit__(None, None, None)
    with memory.observing():
        model(x)
    assert_observed(memory, model, x, 12)


def _served_in_a_fork(model, x, answer):
    assert torch.equal(model(x), answer)
    os._exit(7)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_a_forked_process_answers_and_does_not_observe(model, x):
    memory, answer = retain.LocalMAS(model), model(x)
    with memory.observing():
        model(x)
        child = multiprocessing.get_context("fork").Process(
            target=_served_in_a_fork, args=(model, x, answer)
        )
        child.start()
        child.join()
    assert child.exitcode == 7
    assert memory.observed.samples == 6


@pytest.mark.parametrize(
    "where",
    [
        (LocalSums, "add"),
        (LocalSums, "result"),
        (Watch, "after"),
        (Watch, "before"),
        (Watch, "finish"),
    ],
)
def test_what_goes_wrong_in_observing_reaches_nobody_who_is_served(model, x, where, monkeypatch):
    def fails(*_args, **_kwargs):
        raise MemoryError("no room for it")

    memory, answer = retain.LocalMAS(model), model(x)
    monkeypatch.setattr(*where, fails)
    block = memory.observing()
    block.__enter__()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model(x), answer)
    monkeypatch.undo()
    model(x)
    with pytest.warns(UserWarning, match=r"Not observed.*MemoryError: no room"):
        block.__exit__(None, None, None)
    assert_observed(memory, model, x, 6)


def test_a_modes_stack_is_left_as_it_was_by_an_interrupt(model, x):
    class Seen(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    def interrupted(*_args):
        raise KeyboardInterrupt

    handle = model[2].register_forward_hook(interrupted)
    depth = torch._C._len_torch_function_stack()
    memory = retain.LocalMAS(model)
    with memory.observing():
        with pytest.raises(KeyboardInterrupt), Seen():
            model(x)
        assert torch._C._len_torch_function_stack() == depth
        handle.remove()
        model(x)
    assert_observed(memory, model, x, 6)


def test_calls_that_run_on_when_the_last_block_is_left_are_named(model, x):
    begun, left = threading.Event(), threading.Event()

    def slowly(*_args):
        begun.set()
        left.wait(10)

    memory = retain.LocalMAS(model)
    handle = model[2].register_forward_hook(slowly)
    thread = threading.Thread(target=model, args=(x,))
    block = memory.observing()
    block.__enter__()
    thread.start()
    assert begun.wait(10)
    with pytest.warns(UserWarning, match="1 calls that were still running"):
        block.__exit__(None, None, None)
    left.set()
    thread.join()
    assert memory.observed.samples == 0
    handle.remove()
    with memory.observing():
        model(x)
    assert_observed(memory, model, x, 6)


def test_no_mode_of_the_model_changes_while_it_is_looked_at():
    model, modes = Tokens("last").train(), []
    model.embed.register_forward_hook(lambda module, *_: modes.append(module.training))
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    memory, x = retain.LocalMAS(model), torch.randn(4, 3, 3)
    state = torch.get_rng_state()
    with memory.observing():
        model(x)
    assert memory.observed.samples == 4
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_users_own_hooks_see_what_they_always_see(model, x):
    seen = []
    with retain.LocalMAS(model).observing():
        handle = model.register_forward_hook(lambda _m, _a, y: seen.append(y) or y + 1)
        answer = model(x)
        handle.remove()
    assert len(seen) == 1
    assert torch.equal(answer, model(x) + 1)


def test_through_data_parallel(model, x):
    memory = retain.LocalMAS(model)
    with memory.observing():
        nn.DataParallel(model)(x)
    assert_observed(memory, model, x, 6)


def test_a_memory_copied_while_it_observes_observes_by_itself(model, x):
    memory = retain.LocalMAS(model)
    with memory.observing():
        model(x)
        twin = pickle.loads(pickle.dumps(memory))
        model(x)
    with twin.observing():
        twin.model(x)
    assert (memory.observed.samples, twin.observed.samples) == (12, 12)
