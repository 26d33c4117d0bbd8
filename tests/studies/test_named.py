"""Each study as the runs that it asks for: data, protocol, what was asked, what cannot be run."""

from __future__ import annotations

import shutil

import pytest

from retain import methods
from retain.errors import ConfigError, FileError
from retain.studies import STUDIES, Asked, Study, study_named
from retain.studies.paper import PAPER, published_pairs, published_sequence
from tests.tasks.image_folders import write_folder
from tests.tasks.miniatures import write_miniatures


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
    return write_miniatures(tmp_path_factory.mktemp("miniatures"))


def planned(name, data, **asked):
    return study_named(name, Asked(str(data), **asked))


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_runs_on_digits_and_comes_back_from_json(name):
    study = planned(name, "digits")
    assert study.parts
    assert "handwritten digits" in study.stand_in
    assert study.departures == ()
    assert Study.from_json(study.to_json()) == study


def test_table_2_asks_for_what_the_paper_compares(miniatures):
    study = planned("table2", miniatures)
    assert [part.name for part in study.parts] == [f"{a} → {b}" for a, b in published_pairs()]
    for part in study.parts:
        assert {*part.config.methods} == {
            *("finetune", "lwf", "ebll", "imm-mean", "imm-mode", "ewc", "si", "mas")
        }
        for field, value in PAPER.items():
            if field != "strengths":
                assert getattr(part.config, field) == value
        assert part.config.strengths_of("mas") == (1.0,)
    assert not any("protocol" in one for one in study.departures)


def test_table_3_asks_for_the_data_of_omega(miniatures):
    config = planned("table3", miniatures).parts[0].config
    assert config.methods == ("mas", "local-mas")
    assert config.importance_on == ("train", "test", "train+test")


def test_the_long_sequence_has_the_paper_s_order(miniatures):
    (part,) = planned("sequence", miniatures).parts
    assert part.name == " → ".join(published_sequence())
    (part,) = planned("sequence", miniatures, sets=("svhn", "flowers")).parts
    assert part.name == "flowers → svhn"


def test_memory_measures_every_method_and_needs_no_weights(miniatures):
    study = planned("memory", miniatures)
    config = study.parts[0].config
    assert {*config.methods} == {*methods.PAPER} - {"joint"}
    assert (config.epochs, config.weights) == (1, None)


def test_what_is_asked_for_wins_and_is_said(miniatures):
    asked = {"epochs": 3, "model": "resnet18", "weights": "none", "seeds": (4, 5)}
    study = planned("table2", miniatures, **asked, lr=0.5, image_size=64, samples_per_class=2)
    config = study.parts[0].config
    assert (config.epochs, config.model, config.weights, config.seeds) == (
        3,
        "resnet18",
        None,
        (4, 5),
    )
    said = "; ".join(study.departures)
    for departure in (
        "epochs 3 (protocol: 100)",
        "model resnet18",
        "untrained weights",
        "learning rate 0.5",
        "images of 64 pixels (protocol: 224)",
        "2 images of each class (protocol: all)",
    ):
        assert departure in said


def test_quick_is_less_and_says_so(miniatures):
    study = planned("table2", miniatures, quick=True, weights="none")
    config = study.parts[0].config
    assert study.quick
    assert config.quick
    assert config.epochs == 1
    assert "epochs 1 (protocol: 100)" in study.departures


def test_counts_that_are_not_the_published_ones_are_said(miniatures):
    study = planned("table2", miniatures)
    assert "3 of 200 classes" in study.altered["birds"]


def test_sequences_without_their_data_say_why(miniatures, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(miniatures, some)
    shutil.rmtree(some / "indoorCVPR_09")
    study = planned("table2", some)
    assert [part.name for part in study.parts] == ["flowers → birds"]
    assert set(study.skipped) == {"birds → scenes", "scenes → birds", "flowers → scenes"}
    assert all(
        "MIT Indoor Scenes" in why and "Get it from" in why for why in study.skipped.values()
    )
    (some / "CUB_200_2011" / "images.txt").unlink()
    with pytest.raises(ConfigError, match=r"Nothing of table2(.|\n)*images\.txt is missing"):
        planned("table2", some)
    long = planned("sequence", some)
    assert set(long.skipped) == {"scenes", "birds"}
    assert long.parts[0].name.startswith("flowers → cars")


def test_sets_that_are_no_pair_of_the_paper_follow_each_other(miniatures):
    study = planned("table2", miniatures, sets=("cars", "svhn"))
    assert [part.name for part in study.parts] == ["cars → svhn"]


def test_nothing_there_names_everything_and_a_way_out(tmp_path):
    with pytest.raises(ConfigError) as caught:
        planned("sequence", tmp_path)
    for said in ("Oxford Flowers 102", "SVHN", "retain datasets", "--data digits"):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("table4", Asked("digits"), "Did you mean 'table"),
        ("table2", Asked("/nowhere"), "is not a folder"),
        ("table2", Asked("digits", sets=("birds",)), "digits are one"),
        ("table2", Asked("digits", adapt_to=("0",)), "table2 has no use for it"),
        ("table2", Asked("digits", strengths={"maas": 1}), "Did you mean 'mas'"),
        ("adaptation", Asked("digits", adapt_to=("0", "x")), "'x', but the first task"),
        ("adaptation", Asked("digits", adapt_to=tuple("01234")), "names all 5 classes"),
        ("table2", Asked("folders:a=/nowhere"), "at least two tasks"),
    ],
)
def test_bad_input(name, asked, message):
    with pytest.raises(ConfigError, match=message):
        study_named(name, asked)


def test_an_unknown_set_is_asked_about(miniatures):
    with pytest.raises(ConfigError, match="Did you mean 'birds'"):
        planned("table2", miniatures, sets=("bird",))


def test_adaptation_has_two_omegas_that_differ_in_nothing_else():
    study = planned("adaptation", "digits", adapt_to=("4", "0"))
    whole, some = (part.config for part in study.parts)
    assert (whole.importance_classes, some.importance_classes) == ((), ("4", "0"))
    differing = {line.partition(":")[0] for line in whole.differences(some)}
    assert differing == {"methods", "importance_classes"}
    assert len(whole.seeds) > 1


def test_folders_stand_in(tmp_path):
    for name in "abcd":
        write_folder(tmp_path / name)
    given = "folders:" + ",".join(f"{name}={tmp_path / name}" for name in "abcd")
    study = planned("table2", given)
    assert [p.name for p in study.parts] == ["b → c", "c → b", "a → b", "a → c"]
    assert study.parts[0].config.batch_size == 12  # no larger than the training set
    assert study.parts[0].config.image_size == 32
    assert planned("table2", given, model="resnet18").parts[0].config.image_size is None
    asked = {"image_size": 96, "samples_per_class": 2, "lr": 0.5, "optimizer": "adam"}
    config = planned("table2", given, model="resnet18", batch_size=3, **asked).parts[0].config
    assert {name: getattr(config, name) for name in asked} == asked
    assert config.batch_size == 3
    two = planned("table2", given, sets=("a", "b"))
    assert [p.name for p in two.parts] == ["a → b", "b → a"]
    with pytest.raises(ConfigError, match="--sets names e"):
        planned("table2", given, sets=("a", "e"))
    with pytest.raises(FileError, match="does not exist"):
        planned("table2", f"folders:a={tmp_path / 'a'},z={tmp_path / 'z'}")


def test_quick_takes_untrained_weights_where_there_are_no_others(miniatures, monkeypatch):
    def unreachable(_name, **_options):
        raise FileError("no network")

    monkeypatch.setattr("retain.studies.studies.named_model", unreachable)
    study = planned("sequence", miniatures, quick=True)
    assert study.parts[0].config.weights is None
    assert any(one.startswith("untrained weights") for one in study.departures)
    assert planned("sequence", miniatures).parts[0].config.weights == "default"
