"""Runs that take a second."""

from retain.experiment import Config


def tiny(**asked):
    given = {
        "tasks": "digits",
        "methods": ("finetune", "mas"),
        "samples_per_class": 16,
        "epochs": 1,
        "batch_size": 8,
        "lr": 0.05,
        "optimizer": "sgd",
        "device": "cpu",
    }
    return Config(**{**given, **asked})


def accuracies(results):
    return [(run.method, run.seed, run.strength, run.accuracy) for run in results.runs]
