import torch

from retain.tasks import load_tasks


def test_five_tasks_of_two_digits_in_order():
    sequence = load_tasks("digits")
    assert [task.name for task in sequence.tasks] == ["0-1", "2-3", "4-5", "6-7", "8-9"]
    assert sequence.scenario == "task-incremental"
    assert sequence.input_shape == (1, 8, 8)
    assert sum(len(task.train) + len(task.test) for task in sequence.tasks) == 1797
    for task in sequence.tasks:
        assert len(task.classes) == 2
        for split in (task.train, task.test):
            (batch,) = split.batches(1000)
            assert batch.inputs.shape[1:] == (1, 8, 8)
            assert batch.inputs.min() >= 0
            assert batch.inputs.max() == 1
            assert set(batch.labels.tolist()) == {0, 1}


def test_the_split_is_stratified_and_disjoint():
    task = load_tasks("digits").tasks[1]
    share = [(split.labels == 0).float().mean() for split in (task.train, task.test)]
    assert abs(share[0] - share[1]) < 0.01
    train, test = (next(split.batches(1000)).inputs.flatten(1) for split in (task.train, task.test))
    assert torch.cdist(test, train).min() > 0


def test_the_seed_and_nothing_else_decides_the_split():
    first, again = (load_tasks("digits").tasks[0].test.inputs for _ in range(2))
    torch.manual_seed(99)
    assert torch.equal(first, again)
    assert not torch.equal(first, load_tasks("digits", seed=1).tasks[0].test.inputs)


def test_class_order_and_size_of_tasks():
    sequence = load_tasks("digits", classes_per_task=5, class_order_seed=3)
    names = [name for task in sequence.tasks for name in task.classes]
    assert sorted(names) == [str(digit) for digit in range(10)]
    assert names != sorted(names)
    assert [len(task.classes) for task in sequence.tasks] == [5, 5]


def test_labels_follow_the_order_of_the_classes():
    plain = {task.name: task for task in load_tasks("digits", classes_per_task=10).tasks}
    ordered = load_tasks("digits", classes_per_task=10, class_order_seed=3).tasks[0]
    (task,) = plain.values()
    for place, name in enumerate(ordered.classes):
        expected = task.test.inputs[task.test.labels == int(name)]
        assert torch.equal(ordered.test.inputs[ordered.test.labels == place], expected)


def test_samples_per_class():
    task = load_tasks("digits", samples_per_class=7).tasks[0]
    assert task.train.labels.bincount().tolist() == [7, 7]
    assert task.test.labels.bincount().tolist() == [7, 7]


def test_validation_is_cut_from_train():
    whole = load_tasks("digits").tasks[0]
    task = whole.with_validation(0.2)
    assert task.val is not None
    assert len(task.train) + len(task.val) == len(whole.train)
    assert abs(len(task.val) / len(whole.train) - 0.2) < 0.01
    assert torch.cdist(task.val.inputs.flatten(1), task.train.inputs.flatten(1)).min() > 0
    assert task.with_validation(0.5) is task
    assert load_tasks("digits", val_fraction=0.2).tasks[0].val is not None


def test_permuted_digits_share_everything_but_the_order_of_pixels():
    sequence = load_tasks("permuted-digits=4")
    assert sequence.scenario == "domain-incremental"
    first, *others = sequence.tasks
    assert len(others) == 3
    plain = load_tasks("digits", classes_per_task=10).tasks[0]
    assert torch.equal(first.train.inputs, plain.train.inputs)
    for task in others:
        assert torch.equal(task.train.labels, first.train.labels)
        assert not torch.equal(task.train.inputs, first.train.inputs)
        pixels = [t.train.inputs.flatten(1).sort(1).values for t in (task, first)]
        assert torch.equal(*pixels)
    # One order for all images: the sums over images are the same numbers, reordered.
    sums = [t.train.inputs.sum(0).flatten().sort().values for t in (others[0], first)]
    torch.testing.assert_close(*sums)
    assert not torch.equal(others[0].train.inputs, others[1].train.inputs)
