import dataclasses
import json

import pytest

from retain.errors import ConfigError
from retain.experiment import Config
from retain.experiment.job import jobs

FULL = Config(
    tasks="folders:a=x,b=y",
    model="resnet18",
    methods=("finetune", "si", "mas", "ewc", "wise-ft"),
    seeds=(3, 4),
    strengths={"mas": (0.1, 1.0), "ewc": "auto", "si": 2},
    forms=("gradient", "proximal"),
    importance_on=("train", "train+test"),
    importance_classes=("rose", "3"),
    options={"si": {"damping": 0.01}, "ewc": {"fisher": "exact"}},
    sweeps={"wise-ft": (0.2, 0.4)},
    recipe="train.py:finetune",
    epochs=2,
    batch_size=32,
    lr=0.1,
    lr_drop_every=4,
    optimizer="sgd",
    batch_norm="moving",
    augmentation="crop-flip",
    amp=True,
    device="cpu",
    loaders=2,
    weights="default",
    image_size=64,
    classes_per_task=3,
    class_order_seed=1,
    samples_per_class=10,
    scenario="task-incremental",
    title="a title",
    quick=True,
    comparison=True,
)


def test_comes_back_from_json():
    assert Config.from_json(json.loads(json.dumps(FULL.to_json()))) == FULL
    assert Config.from_json(Config("digits").to_json()) == Config("digits")


def test_every_field_of_the_full_one_differs_from_the_default():
    default = Config("digits")
    same = [f.name for f in dataclasses.fields(Config)
            if getattr(FULL, f.name) == getattr(default, f.name)]  # fmt: skip
    assert not same


def test_differences_are_told_by_name():
    other = dataclasses.replace(FULL, epochs=3, seeds=(0,))
    assert FULL.differences(other) == ["seeds: [3, 4] → [0]", "epochs: 2 → 3"]
    assert FULL.differences(FULL) == []


def test_what_changes_no_number_is_no_difference():
    assert FULL.differences(dataclasses.replace(FULL, loaders=0)) == []


def test_one_strength_and_several_are_numbers():
    assert FULL.strengths == {"mas": (0.1, 1.0), "ewc": ("auto",), "si": (2.0,)}
    assert FULL.chooses_strength
    assert not Config("digits").chooses_strength


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"methods": ("mas", "ewcc")}, "Unknown method 'ewcc'. Did you mean 'ewc'"),
        ({"methods": ()}, "methods is empty"),
        ({"methods": ("mas", "mas")}, "methods names something twice"),
        ({"seeds": ()}, "seeds is empty"),
        ({"seeds": (0, -1)}, "seeds has -1; expected whole numbers, 0 or more"),
        ({"seeds": (1.5,)}, "seeds has 1.5; expected whole numbers"),
        ({"options": {"mas": {"form": "foo"}}}, "expected 'gradient' or 'proximal' or 'adaptive'"),
        ({"optimizer": "adamw"}, "Unknown optimizer 'adamw'. Did you mean 'adam'"),
        ({"forms": ("proximale",)}, "Unknown form 'proximale'"),
        ({"importance_on": ("tests",)}, "Unknown importance_on 'tests'. Did you mean 'test'"),
        ({"batch_norm": "frosen"}, "Unknown batch_norm 'frosen'"),
        ({"augmentation": "crop"}, "Unknown augmentation 'crop'. Did you mean 'crop-flip'"),
        ({"importance_classes": ("a", "a")}, "importance_classes names something twice"),
        ({"lr_drop_every": 0}, "lr_drop_every is 0; expected 1 or more"),
        ({"image_size": -1}, "image_size is -1; expected 1 or more"),
        ({"epochs": "3"}, "epochs is '3'; expected a whole number."),
        ({"batch_size": 2.5}, "batch_size is 2.5; expected a whole number."),
        ({"image_size": "64"}, "image_size is '64'; expected a whole number or None."),
        ({"lr": "a"}, "lr is 'a'; expected a number."),
        ({"lr": None}, "lr is None; expected a number."),
        ({"model": None}, "model is None; expected a word."),
        ({"strengths": [1.0]}, "strengths is [1.0]; expected a mapping with methods as keys."),
        ({"loaders": -1}, "loaders is -1"),
        ({"epochs": 10**400}, "epochs is 1000"),
        ({"seeds": (2**64,)}, "seeds has 18446744073709551616; expected whole numbers"),
        ({"seeds": (True,)}, "seeds has True; expected whole numbers"),
        ({"lr": 10**400}, "expected a number"),
        ({"lr": True}, "lr is True; expected a number"),
        ({"amp": 1}, "amp is 1; expected true or false"),
        ({"weights": ""}, "weights is ''; expected a word that is not empty or None"),
        ({"model": ""}, "model is ''"),
        ({"device": ""}, "device is ''"),
        ({"image_size": 10**10}, "image_size is 10000000000; expected 2147483647 or less"),
        ({"strengths": {"mas": "strong"}}, "strength of mas is 'strong'; expected a number ≥ 0"),
        ({"strengths": {"mas": 10**400}}, "strength of mas is 1000"),
        ({"strengths": {"mas": True}}, "strength of mas is True"),
        ({"strengths": {"mas": float("nan")}}, "strength of mas is nan"),
        ({"epoch": 3}, "A config has no field 'epoch'. Did you mean 'epochs'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"strengths": {"finetune": 1.0}}, "finetune has no strength λ to set"),
        ({"strengths": {"lwf": 1.0}}, "given for lwf, which is not among the methods"),
        ({"strengths": {"maas": 1.0}}, "Unknown method 'maas'"),
        ({"strengths": {"mas": -1.0}}, "strength of mas is -1.0; expected a number ≥ 0"),
        ({"strengths": {"mas": float("inf")}}, "strength of mas is inf"),
        ({"strengths": {"mas": (1, 1.0)}}, "expected different ones"),
        ({"options": {"mas": {"lambda": 1}}}, "mas has no option 'lambda'"),
    ],
)
def test_what_cannot_be_carried_out(asked, message):
    with pytest.raises(ConfigError) as caught:
        Config("digits", **asked)
    assert message in str(caught.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError, match=r"(?s)epochs is 0.*lr is 0"):
        Config("digits", epochs=0, lr=0)


def test_unknown_names_from_a_file():
    with pytest.raises(ConfigError, match=r"'epoch'\. Did you mean 'epochs'"):
        Config.from_json({"tasks": "digits", "epoch": 1})


def test_a_strength_given_as_an_option_is_a_number_like_any_other():
    (job,) = jobs(Config("digits", methods=("mas",), options={"mas": {"strength": 2}}))
    assert isinstance(job.strength, float)
    assert job.strength == 2.0


def test_jobs_seed_after_seed_and_only_what_applies():
    found = [(j.seed, j.method, j.strength, j.form, j.importance_on) for j in jobs(FULL)]
    first = [job[1:] for job in found if job[0] == 3]
    assert found == [(3, *job) for job in first] + [(4, *job) for job in first]
    assert first[:2] == [("finetune", None, None, None), ("si", 2.0, "gradient", None)]
    assert len([job for job in first if job[0] == "mas"]) == 2 * 2 * 2
    assert [job for job in first if job[0] == "ewc"] == [
        ("ewc", "auto", "gradient", None), ("ewc", "auto", "proximal", None)
    ]  # fmt: skip
    labels = [job.label for job in jobs(FULL)]
    assert len(set(labels)) == len(labels)
