"""Every Python block of README and the guide runs, in order, page by page."""

from __future__ import annotations

import re
import socket
import warnings
from pathlib import Path

import pytest
import torch

import retain
from tests.docs.stand_ins import namespace, passport_of

ROOT = Path(__file__).parents[2]
# On the line above a block that cannot run here: it needs a GPU, a network, SLURM, ….
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$")
FENCE = re.compile(r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.M | re.S)
# Pages whose blocks have a test of their own.
ELSEWHERE = {"docs/tokens.md": "tests/samples/test_page.py"}


def pages():
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if "```python" in page.read_text(encoding="utf-8")]


def blocks(page: Path):
    """(first line, code, why it is not run) of every block."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        before = text[: found.start()]
        reason = NOT_RUN.search(before)
        indent = found["indent"]
        lines = [line.removeprefix(indent) for line in found["code"].splitlines()]
        yield before.count("\n") + 2, "\n".join(lines) + "\n", reason[1] if reason else None


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def as_torchrun(monkeypatch):
    """Tells this process, when it is called, what torchrun tells one that is alone."""

    def told():
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**alone, "MASTER_PORT": free_port()}.items():
            monkeypatch.setenv(name, value)

    yield told
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch, as_torchrun, capfd):
    name = page.relative_to(ROOT).as_posix()
    if name in ELSEWHERE:
        assert page.name in (ROOT / ELSEWHERE[name]).read_text(encoding="utf-8")
        return
    monkeypatch.chdir(tmp_path)
    names = namespace()
    shipped = lambda: passport_of(names["model"], tmp_path)  # noqa: E731
    monkeypatch.setattr(retain.passports, "minilm", shipped)
    for line, code, reason in blocks(page):
        # Lines of a traceback are those of the page.
        compiled = compile("\n" * (line - 1) + code, str(page), "exec")
        if reason is None:
            if "init_process_group(" in code:
                as_torchrun()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(compiled, names)


def test_what_is_not_run_says_why():
    reasons = [reason for page in pages() for _, _, reason in blocks(page) if reason is not None]
    assert all(re.search(r"GPU|network|package|SLURM", reason) for reason in reasons), reasons
    marks = sum(page.read_text(encoding="utf-8").count("<!-- not run:") for page in pages())
    assert marks == len(reasons)  # each stands right above a block


def test_what_has_a_language_is_python_and_so_is_run():
    for page in pages():
        fences = re.findall(r"^ *```(\S+)", page.read_text(encoding="utf-8"), re.M)
        assert set(fences) <= {"python", "text"}, page
        printed = re.findall(r"^ *```text\n(.*)", page.read_text(encoding="utf-8"), re.M)
        assert all(line.startswith("$ ") for line in printed), page  # a command and what it says
