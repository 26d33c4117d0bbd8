"""How long requests to examples/serving.py take with and without observing, on 127.0.0.1.

python benchmarks/serving.py [--model minilm|small] [--every 10] [--requests 400] [--clients 4]

Two servers run, one that observes and one that does not; rounds of requests go to one and the other
in turn. Every answer is looked at, and the samples that were observed are counted against the
requests that were sent. The file is written every `--interval` seconds meanwhile.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[1] / "examples" / "serving.py"
TEXTS = [
    "How do I change the limit of my card?",
    "My transfer has not arrived yet, although I sent it two days ago and it was confirmed.",
    "Is there a fee for taking out money abroad?",
    "The card was swallowed.",
]
READY = 120  # seconds, at most, until a server answers


def ask(port: int, path: str, body: Any = None) -> Any:
    """What a server on this machine answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@contextmanager
def server(*options: str, log: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server that answers: its port and its process. It is asked to stop in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLE), "--port", str(port), "--threads", "1", *options],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            until = time.monotonic() + READY
            while True:
                try:
                    ask(port, "/observed")
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > until:
                        raise SystemExit(f"No server: {log.read_text()}") from None
                    time.sleep(0.1)
            yield port, process
        finally:
            process.terminate()
            process.wait(60)


def load(port: int, *, requests: int, clients: int) -> list[float]:
    """Milliseconds of each request, of `clients` that ask one after another. All are answered."""
    took: list[float] = []
    failed: list[Exception] = []

    def work(index: int) -> None:
        for number in range(index, requests, clients):
            start = time.perf_counter()
            try:
                (embedding,) = ask(port, "/embed", {"texts": [TEXTS[number % len(TEXTS)]]})
            except Exception as error:
                failed.append(error)
                return
            took.append(1000 * (time.perf_counter() - start))
            assert len(embedding) > 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return took


def percentiles(took: list[float]) -> dict[str, float]:
    """p50, p95 and p99."""
    cuts = statistics.quantiles(took, n=100)
    return {f"p{k}": cuts[k - 1] for k in (50, 95, 99)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--requests", type=int, default=400, help="to each server, in all")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--interval", type=float, default=10.0)
    options = parser.parse_args()
    took: dict[str, list[float]] = {"alone": [], "observed": []}
    each = options.requests // options.rounds
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        common = ("--model", options.model, "--memory", str(folder / "memory.safetensors"))
        observing = ("--every", str(options.every), "--interval", str(options.interval))
        ports = {
            "alone": stack.enter_context(
                server(*common, "--not-observing", log=folder / "alone.log")
            )[0],
            "observed": stack.enter_context(
                server(*common, *observing, log=folder / "observed.log")
            )[0],
        }
        for port in ports.values():
            load(port, requests=options.every, clients=1)  # the first, which takes longer
        for _ in range(options.rounds):
            for name, port in ports.items():
                took[name] += load(port, requests=each, clients=options.clients)
        sent = options.every + len(took["observed"])
        samples = ask(ports["observed"], "/observed")["samples"]
    print(f"{options.model}, one request in {options.every} observed, {options.clients} clients,")
    print(f"{len(took['alone'])} requests each, in {options.rounds} rounds by turns; milliseconds:")
    for name, times in took.items():
        print(f"  {name:9}" + "".join(f"  {k} {v:7.2f}" for k, v in percentiles(times).items()))
    print(f"samples observed: {samples}, of {sent} requests (one in {sent / samples:g})")


if __name__ == "__main__":
    main()
