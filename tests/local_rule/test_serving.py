"""The local rule while a model serves: the user's own calls, in their own mode."""

import threading

import pytest
import torch
from torch import nn

from retain.errors import InputError
from retain.local_rule.rule import LocalRule

from .cases import CASES, Tokens, Twice, two_layers
from .test_rule import assert_same, rule_for, sums_of


class Collected:
    """What was committed, copied."""

    def __init__(self):
        self.batches = []

    def __call__(self, sums, samples):
        self.batches.append(({name: total.clone() for name, total in sums.items()}, samples))

    @property
    def samples(self):
        return sum(samples for _, samples in self.batches)

    @property
    def total(self):
        first = self.batches[0][0]
        return {name: sum(sums[name] for sums, _ in self.batches) for name in first}


def listening(rule, commit, *, every=1):
    return rule.listener(commit).listening(every=every)


def serve(model, calls, *, every=1, rule=None, into=None):
    """What was collected and answered; a call is a batch or several arguments."""
    collected = into or Collected()
    with listening(rule or rule_for(model), collected, every=every):
        outputs = [model(*(call if isinstance(call, tuple) else (call,))) for call in calls]
    return collected, outputs


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("every", [1, 3])
def test_observes_one_call_in_every(mode, every):
    model = CASES["conv2d"].model().eval()
    batches = list(torch.randn(7, 4, 2, 6, 6))
    with mode():
        expected = [model(batch) for batch in batches]
        collected, outputs = serve(model, batches, every=every)
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert collected.samples == 4 * len(batches[::every])
    assert_same(collected.total, sums_of(model, torch.cat(batches[::every])))


def test_what_is_committed_may_be_kept_outside_inference_mode():
    model, kept = two_layers(nn.ReLU()), {}
    with torch.inference_mode(), listening(rule_for(model), lambda sums, n: kept.update(sums)):
        model(torch.randn(6, 5))
    for total in kept.values():
        total.add_(1)  # an inference tensor would refuse


def test_dropout_and_random_state_are_untouched():
    model = nn.Sequential(nn.Linear(5, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, 2)).train()
    batches = list(torch.randn(4, 6, 5))
    torch.manual_seed(3)
    expected = [model(batch) for batch in batches]
    torch.manual_seed(3)
    collected, outputs = serve(model, batches)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert model.training
    assert collected.samples == 24


def test_training_goes_on_while_observed():
    model, x = two_layers(nn.GELU()), torch.randn(6, 5)
    model(x).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    _, (output,) = serve(model, [x])
    output.sum().backward()
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_single_samples_need_nothing_to_be_known():
    model = Tokens("first").eval()
    batches = list(torch.randn(5, 1, 3, 3))
    with torch.no_grad():
        collected, _ = serve(model, batches)
    assert collected.samples == 5
    assert_same(collected.total, sums_of(model, torch.cat(batches)))


@pytest.mark.parametrize("model", [Tokens("last"), Twice(nn.Tanh())])
def test_what_is_met_for_the_first_time_is_looked_at_and_observed(model):
    shape = (5, 4, 3, 3) if isinstance(model, Tokens) else (5, 4, 5)
    batches = list(torch.randn(shape))
    with torch.no_grad():
        expected = [model(batch) for batch in batches]
        collected, outputs = serve(model, batches, every=2)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert_same(collected.total, sums_of(model, torch.cat([batches[0], batches[2], batches[4]])))


def test_what_was_learned_by_observing_is_used_while_serving():
    model = Tokens("last").eval()
    rule, batches = rule_for(model), list(torch.randn(3, 4, 3, 3))
    sums_of(model, batches[0], rule=rule)
    collected, _ = serve(model, batches, rule=rule)
    assert collected.samples == 12


class Cached(Tokens):
    """Like a language model with a cache: every call changes what it was given."""

    def forward(self, x, cache):
        cache.calls += 1
        return super().forward(x)


def test_nobody_else_calls_a_model_with_a_cache():
    class Cache:
        calls = 0

    model, cache, collected = Cached("first").eval(), Cache(), Collected()
    batches = torch.randn(4, 4, 3, 3)
    with pytest.warns(UserWarning, match="leaves out"):
        serve(model, [(batch, cache) for batch in batches], into=collected)
    assert cache.calls == 4
    assert collected.samples == 16
    assert collected.total.keys() == {"embed.weight", "embed.bias"}


class Fails(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.fc, self.error = nn.Linear(5, 2), error

    def forward(self, x):
        self.fc(x)
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_nothing_is_left_after_an_exception(error):
    model, collected = Fails(error), Collected()
    names = [set(vars(module)) for module in model.modules()]
    depth = torch._C._len_torch_function_stack()
    with pytest.raises(type(error)), listening(rule_for(model), collected):
        model(torch.randn(6, 5))
    assert torch._C._len_torch_function_stack() == depth
    assert [set(vars(module)) for module in model.modules()] == names
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not collected.batches


def test_observes_again_after_an_exception_that_was_handled():
    model, collected = two_layers(nn.ReLU()), Collected()
    with listening(rule_for(model), collected):
        with pytest.raises(RuntimeError):
            model(torch.randn(6, 4))
        model(torch.randn(6, 5))
    assert collected.samples == 6


def test_somebody_elses_forward_is_called():
    model = two_layers(nn.ReLU())
    model.forward = own = lambda x: x
    with pytest.warns(UserWarning, match="local rule"), listening(rule_for(model), Collected()):
        assert model(3.0 * torch.ones(2, 5)).sum() == 30
    assert model.forward is own


def test_two_may_listen_at_once():
    model, one, other = two_layers(nn.ReLU()), Collected(), Collected()
    with listening(rule_for(model), one), listening(rule_for(model), other, every=2):
        for batch in torch.randn(4, 6, 5):
            model(batch)
    assert (one.samples, other.samples) == (24, 12)
    assert vars(model).keys() == vars(two_layers(nn.ReLU())).keys()


def test_threads_do_not_mix_their_batches():
    model, collected = two_layers(nn.ReLU()), Collected()
    barrier, batches = threading.Barrier(4), torch.randn(4, 20, 6, 5)
    outputs = {}

    def work(index):
        barrier.wait()
        outputs[index] = torch.stack([model(batch) for batch in batches[index]])

    with listening(rule_for(model), collected):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    torch.testing.assert_close(torch.stack([outputs[i] for i in range(4)]), model(batches))
    assert collected.batches
    possible = [sums_of(model, batch)["2.weight"] for batch in batches.flatten(0, 1)]
    for sums, _ in collected.batches:
        assert any(torch.allclose(sums["2.weight"], total) for total in possible)


def test_nan_is_served_and_not_counted():
    model, collected = two_layers(nn.ReLU()), Collected()
    broken = torch.full((6, 5), torch.nan)
    with pytest.warns(UserWarning, match="NaN or infinity"), listening(rule_for(model), collected):
        assert model(broken).isnan().all()
    assert not collected.batches


def test_calls_without_a_tensor_are_served():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 2)

        def forward(self, number):
            return number + 1

    model = Counts()
    with pytest.warns(UserWarning, match="no tensor"), listening(rule_for(model), Collected()):
        assert model(3) == 4


def test_keyword_arguments_and_the_batch_dimension():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, *, steps, labels=None):
            return self.head(torch.relu(self.body(steps)).mean(0)), labels

    model, collected = Keywords(), Collected()
    rule = LocalRule(model, dict(model.named_parameters()), batch_dim=1)
    with listening(rule, collected):
        for steps in torch.randn(3, 7, 4, 5):
            assert model(steps=steps, labels="given")[1] == "given"
    assert collected.samples == 12


@pytest.mark.parametrize("every", [0, -1, 1.5, "2"])
def test_every_is_a_positive_whole_number(every):
    model = two_layers(nn.ReLU())
    with (
        pytest.raises(InputError, match="every="),
        listening(rule_for(model), Collected(), every=every),
    ):
        pass


def test_a_model_that_was_never_called_is_said_to_be_so():
    with pytest.warns(UserWarning, match="was not called"):
        serve(two_layers(nn.ReLU()), [])


class Backend:
    """A compiler that compiles nothing and counts how often its code runs."""

    def __init__(self):
        self.runs = 0

    def __call__(self, graph, _inputs):
        def run(*args):
            self.runs += 1
            return graph.forward(*args)

        return run


@pytest.mark.slow
@pytest.mark.parametrize("way", ["wrapped", "in place"])
def test_a_compiled_model_is_observed_and_stays_compiled(way):
    model, collected, backend = two_layers(nn.ReLU()), Collected(), Backend()
    served = model
    if way == "in place":
        model.compile(backend=backend, fullgraph=True)
    else:
        served = torch.compile(model, backend=backend, fullgraph=True)
    rule = rule_for(model, served=served)
    batches = torch.randn(6, 6, 5)
    with torch.no_grad():
        expected = [served(batch) for batch in batches]
        with listening(rule, collected, every=3):
            outputs = [served(batch) for batch in batches]
        served(batches[0])
    for a, b in zip(outputs, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert backend.runs == 6 + 4 + 1
    assert_same(collected.total, sums_of(model, torch.cat([batches[0], batches[3]])))


@pytest.mark.slow
def test_compiled_elsewhere_it_is_not_observed_and_that_is_said():
    model, collected, backend = two_layers(nn.ReLU()), Collected(), Backend()
    served = torch.compile(model, backend=backend, fullgraph=True)
    with (
        pytest.warns(UserWarning, match="give the compiled model"),
        listening(rule_for(model), collected),
    ):
        served(torch.randn(6, 5))
    served(torch.randn(6, 5))
    assert backend.runs == 2
    assert not collected.batches
