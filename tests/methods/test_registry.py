import pytest

from retain.errors import ConfigError
from retain.methods import METHODS, method_named, options_of


def test_unknown_method():
    with pytest.raises(ConfigError, match=r"Unknown method .mass.\. Did you mean 'mas'"):
        method_named("mass")


def test_options_are_the_defaults_with_what_is_given():
    options = options_of("lwf", {"temperature": 3})
    assert options.temperature == 3
    assert options.strength == METHODS["lwf"].Options().strength


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("lwf", {"temprature": 1}, "has no option 'temprature'. Did you mean 'temperature'"),
        ("finetune", {"strength": 1}, "has no option 'strength'. It has none"),
        ("ewc", {"fisher": "diagonal"}, "ewc.fisher is 'diagonal'; expected"),
        ("lwf", {"warmup_epochs": 0.5}, "warmup_epochs is 0.5; expected int"),
        ("imm-mean", {"alpha": 0.5}, "alpha is 0.5; expected several of float ≥ 0"),
        ("imm-mean", {"alpha": (1.0, -1)}, "expected several of float ≥ 0"),
        ("imm-mean", {"drop_transfer": 1}, "drop_transfer is 1; expected float ≥ 0 and < 1"),
        ("lwf", {"temperature": 0}, "temperature is 0; expected float > 0"),
        ("lwf", {"temperature": float("inf")}, "temperature is inf; expected float > 0"),
        ("lwf", {"warmup_epochs": -1}, "warmup_epochs is -1; expected int ≥ 0"),
        ("ebll", {"code": 0}, "code is 0; expected int ≥ 1"),
        ("ebll", {"alpha": float("nan")}, "alpha is nan; expected float ≥ 0"),
        ("si", {"damping": 0.0}, "damping is 0.0; expected float > 0"),
        ("online-ewc", {"decay": 1.5}, "decay is 1.5; expected float ≥ 0 and < 1"),
        ("mas", {"strength": -1}, "strength is -1; expected float ≥ 0"),
        ("imm-mean", {"weight_transfer": 1}, "weight_transfer is 1; expected bool"),
        ("mas", {"strength": True}, "strength is True; expected float"),
    ],
)
def test_options_that_do_not_fit(method, given, message):
    with pytest.raises(ConfigError) as caught:
        options_of(method, given)
    assert message in str(caught.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError, match=r"'a'.*'b'"):
        options_of("lwf", {"a": 1, "b": 2})


def test_options_that_fit():
    assert options_of("imm-mean", {"alpha": [1, 2.5], "strength": 2}).alpha == [1, 2.5]
