import pytest

from retain.errors import ConfigError
from retain.tasks import TaskOptions, load_tasks


def refused(spec, *, match, **options):
    with pytest.raises(ConfigError, match=match):
        load_tasks(spec, **options)


def test_unknown_names_get_a_suggestion():
    refused("digist", match=r"No tasks are called 'digist'\. Did you mean 'digits'\? Known: digits")
    refused("digits", clases_per_task=2, match=r"Did you mean 'classes_per_task'")


def test_nothing_behind_the_name():
    refused("permuted-digits=", match=r"Nothing stands behind 'permuted-digits'")
    refused("permuted-digits=few", match="expected the number of tasks")
    refused("permuted-digits=0", match="one task or more")
    refused("digits=/data", match="need no path")


def test_scenarios():
    assert load_tasks("digits", scenario="domain-incremental").scenario == "domain-incremental"
    assert load_tasks("permuted-digits", scenario="task-incremental").scenario == "task-incremental"
    refused("digits", scenario="class-incremental", match="one head per task.*one for all")
    refused("digits", scenario="domain-incremental", classes_per_task=4, match="classes: 2, 4")


def test_options_that_do_not_fit():
    refused("digits", image_size=224, match="as they are")
    refused("digits", augmentation="crop-flip", match="for tasks of image files")
    refused("digits", augmentation="crop-flop", match=r"Did you mean 'crop-flip'")
    refused("digits", classes_per_task=3, match="fewer than two classes")
    refused("digits", classes_per_task=1, match="fewer than two classes")
    refused("digits", samples_per_class=0, match="expected int ≥ 1")
    refused("digits", val_fraction=1.5, match="expected float ≥ 0 and ≤ 1")
    refused("digits", samples_per_class=1, val_fraction=0.2, match="2 of its 2 classes")
    refused("permuted-digits", class_order_seed=1, match="has all ten classes")


def test_single_options_win_over_the_others():
    options = TaskOptions(samples_per_class=4, classes_per_task=5)
    sequence = load_tasks("digits", options, samples_per_class=3)
    assert len(sequence.tasks) == 2
    assert len(sequence.tasks[0].train) == 15


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"samples_per_class": 0}, "samples_per_class is 0; expected int ≥ 1"),
        ({"samples_per_class": 1.5, "seed": "a"}, "samples_per_class is 1.5.*seed is 'a'"),
        ({"image_size": True}, "image_size is True; expected int ≥ 1 .* or None"),
        ({"val_fraction": float("nan")}, "val_fraction is nan; expected float ≥ 0 and ≤ 1"),
        ({"augmentation": "crop"}, "augmentation is 'crop'; expected 'none' or 'crop-flip'"),
    ],
)
def test_an_option_is_checked_by_what_its_field_says(given, said):
    with pytest.raises(ConfigError, match=said):
        load_tasks("digits", **given)
