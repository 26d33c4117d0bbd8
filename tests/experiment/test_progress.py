"""What is shown while a run goes on."""

import io

import torch
from PIL import Image
from rich.console import Console

from retain.experiment import Config, progress, run
from retain.experiment.progress import Lines, Live, Watcher


def write_folder(root):
    for split in ("train", "test"):
        for grey, name in ((40, "dark"), (200, "light")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (16, 16), (grey + number,) * 3).save(folder / f"{number}.png")
    return root


class Listener(Watcher):
    def __init__(self):
        self.read = []

    def reading(self, what, done, total):
        self.read.append((what, done, total))


def test_a_run_tells_how_many_files_are_read(tmp_path):
    listener = Listener()
    tasks = f"folders:a={write_folder(tmp_path)}"
    sizes = {"image_size": 16, "batch_size": 4, "epochs": 1}
    run(Config(tasks=tasks, model="cnn", methods=("finetune",), **sizes), progress=listener)
    assert ("a train", 12, 12) in listener.read
    assert {total for _, _, total in listener.read} == {12}


def test_a_bar_for_what_is_read_goes_when_it_is_read():
    live = Live(Console(file=io.StringIO(), force_terminal=True))
    live.reading("a train", 1, 4)
    live.reading("a train", 2, 4)
    (bar,) = live.progress.tasks
    assert (bar.completed, bar.total, bar.visible) == (2, 4, True)
    live.reading("a train", 4, 4)
    live.stop()
    assert not bar.visible
    live.start(10)
    live.step(torch.zeros(()))
    live.stop()


def test_lines_now_and_then(monkeypatch, capsys):
    lines = Lines()
    lines.reading("a train", 1, 4)
    assert not capsys.readouterr().err
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    lines.reading("a train", 2, 4)
    assert capsys.readouterr().err == "reading a train: 2/4\n"


def test_lines_say_now_and_then_how_far_all_is(monkeypatch, capsys):
    lines = Lines()
    lines.start(100)
    lines.at("mas-seed0", "task 1/5 a")
    lines.phase("epoch 1/3")
    lines.step(torch.zeros(()))
    assert not capsys.readouterr().err  # not every step
    monkeypatch.setattr(progress, "WORK_LINE_EVERY", 0.0)
    lines.since -= 240
    lines.taken(29)
    assert capsys.readouterr().err == (
        "mas-seed0, task 1/5 a, epoch 1/3: 30% of all steps, about 9 min left\n"
    )
    lines.more(-70)
    lines.taken(1)
    assert "100% of all steps, about 0 s left" in capsys.readouterr().err


def test_a_bar_moves_by_what_others_do():
    live = Live(Console(file=io.StringIO(), force_terminal=True))
    live.start(10)
    live.taken(4)
    live.taken(3)
    live.stop()
    assert live.progress.tasks[live.bar].completed == 7
