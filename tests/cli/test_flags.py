import pytest

from retain.cli.flags import names, settings, strengths, whole_numbers
from retain.errors import ConfigError


def test_lists():
    assert names("a, b,,c") == ("a", "b", "c")
    assert whole_numbers("0,1, 2", "--seeds") == (0, 1, 2)
    with pytest.raises(ConfigError, match="--seeds is '0,x'; expected whole numbers"):
        whole_numbers("0,x", "--seeds")


def test_strengths():
    methods = ("finetune", "mas", "ewc")
    assert strengths(["mas=1,ewc=400"], methods) == {"mas": (1.0,), "ewc": (400.0,)}
    assert strengths(["mas=0.1,mas=1"], methods) == {"mas": (0.1, 1.0)}
    assert strengths(["mas=0.1:1:1e1", "ewc=auto"], methods) == {
        "mas": (0.1, 1.0, 10.0),
        "ewc": ("auto",),
    }
    assert strengths(["auto"], methods) == {"mas": ("auto",), "ewc": ("auto",)}
    with pytest.raises(ConfigError, match="--strength has 'mas=strong'"):
        strengths(["mas=strong"], methods)


def test_settings():
    given = ["lwf.temperature=1", "ewc.fisher=exact", "imm-mean.alpha=1:2", "lwf.warmup_epochs=2",
             "imm-mode.weight_transfer=false"]  # fmt: skip
    assert settings(given) == {
        "lwf": {"temperature": 1, "warmup_epochs": 2},
        "ewc": {"fisher": "exact"},
        "imm-mean": {"alpha": (1, 2)},
        "imm-mode": {"weight_transfer": False},
    }
    for wrong in ("lwf.temperature", "temperature=1"):
        with pytest.raises(ConfigError, match=r"expected METHOD\.OPTION=VALUE"):
            settings([wrong])
    with pytest.raises(ConfigError, match="Did you mean 'lwf'"):
        settings(["lwff.temperature=1"])
