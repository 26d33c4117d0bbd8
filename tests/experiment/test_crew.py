"""Jobs carried out side by side: the results of one process, whatever becomes of a worker."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import warnings
from types import SimpleNamespace

import pytest

from retain.errors import ConfigError, MissingExtraError
from retain.experiment import Config, Interrupted, Results, WorkersLostError, run
from retain.experiment.checkpoint import Checkpoint
from retain.experiment.job import jobs
from retain.experiment.progress import Watcher
from retain.experiment.workers import cluster
from retain.experiment.workers import processes as processes_module
from retain.experiment.workers.crew import Hearing, Workforce

from .tiny import tiny

METHODS = ("finetune", "ewc", "mas")


def numbers(results):
    """Everything in results.json but the seconds."""
    content = json.loads(json.dumps(results.to_json()))
    for record in content["runs"]:
        for clock in ("train_seconds", "importance_seconds", "evaluation_seconds"):
            record.pop(clock)
    return content


def asked(**more):
    return tiny(methods=METHODS, samples_per_class=8, **more)


@pytest.fixture(scope="module")
def alone():
    return numbers(run(asked(), progress=False))


class Listener(Watcher):
    """Remembers what it was told, and what there is to do."""

    def __init__(self, when=None, do=None):
        self.said, self.total, self.done, self.stopped = [], 0, 0, 0
        self.when, self.do = when, do

    def start(self, steps):
        self.total = steps

    def more(self, steps):
        self.total += steps

    def taken(self, count):
        self.done += count

    def say(self, line):
        self.said.append(line)
        if self.do is not None and self.when in line:
            do, self.do = self.do, None
            do()

    def stop(self):
        self.stopped += 1


@pytest.fixture
def begun(monkeypatch):
    """The processes that were begun."""
    found, real = [], processes_module.Processes._begun

    def listed(self):
        found.append(real(self))
        return found[-1]

    monkeypatch.setattr(processes_module.Processes, "_begun", listed)
    return found


def test_two_processes_give_the_results_of_one(alone, tmp_path, begun):
    listener = Listener()
    results = run(asked(), out=tmp_path, progress=listener, workers=2)
    assert numbers(results) == alone
    assert numbers(Results.read(tmp_path)) == alone
    assert len(begun) == 2
    assert not any(one.process.is_alive() for one in begun)
    assert listener.done == listener.total > 0
    assert sum("task 5/5" in line for line in listener.said) == len(METHODS)
    assert not [*tmp_path.glob("checkpoints/*"), *tmp_path.glob(".*")]


# A layer that ends its worker once, in the job that first comes to a fifth step: two make a task.
FUSE = """
import multiprocessing, os, signal
from torch import nn

class Fuse(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, x):
        self.steps += self.training
        if self.steps == 5 and multiprocessing.parent_process():
            try:
                os.close(os.open(MARK, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return x
            os.kill(os.getpid(), signal.SIGKILL)
        return x

def made():
    return nn.Sequential(nn.Flatten(), Fuse(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
"""


def test_a_worker_that_is_killed_costs_its_job_no_more_than_a_task(tmp_path, begun):
    (tmp_path / "fuse.py").write_text(FUSE.replace("MARK", repr(str(tmp_path / "burnt"))))
    config = asked(model=f"{tmp_path / 'fuse.py'}:made")
    listener = Listener()
    results = run(config, out=tmp_path / "out", progress=listener, workers=2)
    assert (tmp_path / "burnt").exists()
    assert len(begun) == 3
    again = "its worker was lost, so it is run again"
    (lost,) = [line for line in listener.said if again in line]
    # From its last task, which is told again; not from the first.
    (label,) = {job.label for job in jobs(config) if job.label in lost}
    assert sum(f"{label}: task 1/5" in said for said in listener.said) == 1
    assert listener.done == listener.total
    assert not list((tmp_path / "out").glob("checkpoints/*"))
    assert numbers(results) == numbers(run(config, progress=False))


def test_a_job_that_ends_every_worker_is_a_failed_run_and_the_others_go_on(tmp_path):
    model = tmp_path / "bad.py"
    model.write_text(
        "import multiprocessing, os\nfrom torch import nn\n"
        "def made():\n"
        "    if multiprocessing.parent_process():\n        os._exit(7)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    )
    config = tiny(methods=("finetune",), samples_per_class=8, model=f"{model}:made")
    results = run(config, out=tmp_path / "out", progress=False, workers=2)
    (record,) = results.runs
    assert record.status == "failed"
    assert "ended 3 times, the last time by exit code 7" in record.error


def test_data_that_vanish_are_failed_runs(tmp_path, monkeypatch):
    stage = Hearing.__init__

    def gone(self, *args):
        (tmp_path / "mine.py").unlink()
        stage(self, *args)

    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef made():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    )
    monkeypatch.setattr(Hearing, "__init__", gone)
    config = tiny(samples_per_class=8, model=f"{tmp_path / 'mine.py'}:made")
    results = run(config, progress=False, workers=2)
    assert [record.status for record in results.runs] == ["failed"] * 2
    assert "mine.py" in results.runs[0].error


def test_an_interrupted_run_goes_on_with_another_number_of_workers(alone, tmp_path, begun):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="Go on with"):
        run(asked(), out=tmp_path, progress=Listener("task 3/5", stop), workers=2)
    assert not any(one.process.is_alive() for one in begun)
    before = Results.read(tmp_path)
    assert [record.method for record in before.runs] == [*METHODS]
    assert numbers(run(asked(), out=tmp_path, resume=True, progress=False)) == alone


def test_checkpoints_of_a_run_whose_results_are_gone_are_not_gone_on_with(alone, tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run(asked(epochs=3), out=tmp_path, progress=Listener("task 2/5", stop), workers=2)
    assert list(tmp_path.glob("checkpoints/*"))
    (tmp_path / "results.json").unlink()
    assert numbers(run(asked(), out=tmp_path, progress=False, workers=2)) == alone


def test_a_worker_writes_nothing_into_a_folder_that_is_another_runs(tmp_path):
    from retain.experiment.workers.assignment import AbandonedError, Assignment

    job = jobs(asked())[0]
    (tmp_path / ".lock").write_text("mine")
    assignment = Assignment(asked(), 0, job, tmp_path, "mine")
    checkpoint = assignment.checkpoint
    assert checkpoint.path == Checkpoint(tmp_path, job).path
    (tmp_path / ".lock").write_text("another's")
    with pytest.raises(AbandonedError):
        checkpoint.save(None)
    assert assignment.checkpoint is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 0}, "workers is 0; expected 1 or more"),
        ({"workers": -1}, "workers is -1; expected 1 or more"),
        ({"workers": 10**400}, "expected 1024 or less"),
        ({"workers": ""}, "workers is ''; expected a whole number"),
        ({"workers": None}, "workers is None; expected a whole number"),
        ({"workers": True}, "workers is True; expected a whole number"),
        ({"workers": 2.0}, "workers is 2.0; expected a whole number"),
        ({"scheduler": ""}, "scheduler is ''; expected an address such as tcp://HOST:8786"),
        ({"scheduler": "localhost"}, "expected an address such as tcp://HOST:8786"),
        ({"scheduler": "tcp://a:99999"}, "expected an address such as tcp://HOST:8786"),
        ({"scheduler": "tcp://a b:1"}, "expected an address such as tcp://HOST:8786"),
        ({"scheduler": 3}, "scheduler is 3; expected a word"),
        ({"scheduler": "tcp://a:1", "workers": 2}, "Give only one of the two"),
    ],
)
def test_workers_that_cannot_be_are_refused_in_words(given, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(asked(), out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_addresses_that_can_be():
    for address in ("tcp://127.0.0.1:8786", "tls://[::1]:80", "tcp://node-1.cluster:65535"):
        assert Workforce(scheduler=address).scheduler == address


def test_the_option_for_image_files_was_called_workers():
    content = Config("digits", loaders=3).to_json()
    content["workers"] = content.pop("loaders")
    assert Config.from_json(content) == Config("digits", loaders=3)
    with pytest.raises(ConfigError, match="A config has no field 'workers'"):
        Config.from_json({**content, "loaders": 1})


# ---- a cluster ----


@pytest.fixture
def distributed():
    return pytest.importorskip("distributed", reason="dask.distributed is not installed")


def unused_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_scheduler_that_is_not_there(distributed, monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "ANSWER", 0.2)
    since = time.monotonic()
    with pytest.raises(ConfigError, match=r"did not answer within 0.2 seconds.*dask scheduler"):
        run(asked(), out=tmp_path / "out", scheduler=f"tcp://127.0.0.1:{unused_port()}")
    assert time.monotonic() - since < 10
    assert not (tmp_path / "out").exists()


def test_somebody_who_listens_and_never_answers(distributed, monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        since = time.monotonic()
        with pytest.raises(ConfigError, match="did not answer within 1 seconds"):
            run(asked(), scheduler=f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - since < 15


def test_without_distributed_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"retain\[cluster\]"):
        run(asked(), scheduler="tcp://127.0.0.1:1")


@pytest.fixture
def two(distributed):
    """A cluster of two processes with two threads each, which have to take turns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, host="127.0.0.1", dashboard_address=None
        )
        yield made
        made.close()


@pytest.mark.slow
def test_a_cluster_gives_the_results_of_one_process(two, alone, tmp_path):
    listener = Listener()
    address = two.scheduler_address
    results = run(asked(), out=tmp_path, progress=listener, scheduler=address)
    assert numbers(results) == alone
    assert listener.done == listener.total > 0
    assert not list(tmp_path.glob("checkpoints/*"))
    assert numbers(run(asked(), progress=False, scheduler=address)) == alone  # nothing on disk


@pytest.mark.slow
def test_a_worker_of_a_cluster_that_is_killed(two, alone, tmp_path):
    config, killed = asked(epochs=20), []

    def kill():
        for worker in two.workers.values():  # whichever has the job
            killed.append(worker.process.pid)
            os.kill(killed[-1], signal.SIGKILL)

    listener = Listener("task 2/5", kill)
    results = run(config, out=tmp_path, progress=listener, scheduler=two.scheduler_address)
    assert len(killed) == 2
    assert any("its worker was lost" in line for line in listener.said)
    assert numbers(results) == numbers(run(config, progress=False))


@pytest.mark.slow
def test_a_scheduler_that_goes_in_the_middle(two, tmp_path):
    closing = []

    def close():
        closing.append(threading.Thread(target=two.close))
        closing[0].start()

    with pytest.raises(WorkersLostError, match=r"scheduler .* is gone.*--resume"):
        run(asked(epochs=200), out=tmp_path, progress=Listener("task 1/5", close),
            scheduler=two.scheduler_address)  # fmt: skip
    closing[0].join()
    assert Results.read(tmp_path).runs


class Told:
    """A connection to a worker that is given one assignment."""

    def __init__(self, place):
        self.waiting, self.said = [SimpleNamespace(place=place)], []
        self.send = self.said.append

    def recv(self):
        if not self.waiting:
            raise EOFError
        return self.waiting.pop()


@pytest.mark.parametrize("end", [KeyboardInterrupt("x"), GeneratorExit("x"), BaseException("x")])
def test_whatever_somebodys_code_raises_in_a_worker_fails_its_job_alone(monkeypatch, end):
    def ends(*_args):
        raise end

    monkeypatch.setattr(processes_module.Worker, "do", ends)
    monkeypatch.setattr(processes_module.signal, "signal", lambda *_: None)
    connection = Told(place=3)
    processes_module._serve(connection)
    (_, place, why) = connection.said[1]
    assert [event[0] for event in connection.said] == ["ready", "gone", "done"]
    assert place == 3
    assert why.startswith(f"{type(end).__name__}: x")


@pytest.mark.parametrize("error", [EOFError(), BlockingIOError(11, "unavailable")])
def test_workers_that_cannot_be_started_are_told_of(monkeypatch, tmp_path, error):
    """As when the process that starts them was killed."""

    def fails(_self):
        raise error

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", fails)
    with pytest.raises(WorkersLostError, match=r"No worker process could be started.*Go on with"):
        run(asked(), out=tmp_path, progress=False, workers=2)
