"""Values that nobody should give, and what became of those who were given one."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**64, 10**400, -(10**400), 0.5, -0.5, 1e308, -1e308,
    1e-320, float("nan"), float("inf"), "", " ", "x", "mas", "a" * 300, "[/x]", "[bold]", "$5_$10",
    "../../etc", "a/b", "\x1b[2J", "caf\udce9", "\u202eabc", "<script>alert(1)</script>", "\0", [],
    [None], [[]], [1, "a"], {}, {"a": 1}, {"": {}}, {"[/x]": 0.5}, DEEP, list(range(50)),
)  # fmt: skip


# Somebody wrote it, with a digest that fits, or with none: nothing can tell it from one of ours.
FORGED = "a forged file, possible and used"
NOTED = (
    "written anew, with a note"  # what it holds was used, and a warning says that it was changed
)


class Tally(Counter[str]):
    """How many of what was tried ended in which way; `kept` are the first few surprises."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[str] = []

    def surprise(self, kind: str, what: str) -> None:
        """Count something that must not happen."""
        self[kind] += 1
        if len(self.kept) < 10:
            self.kept.append(f"{kind}: {what}")

    def line(self) -> str:
        """The counts in one line."""
        return ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.items()))


def places(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, as the keys that lead there."""
    found = [at]
    items = content.items() if isinstance(content, dict) else ()
    items = enumerate(content) if isinstance(content, list) else items
    for key, value in items:
        found += places(value, (*at, key))
    return found


def changed(content: Any, dice: random.Random) -> Any:
    """The content with one to three places replaced, taken out or doubled; changes it in place."""
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        at = dice.choice(places(content))
        if not at:
            if dice.random() < 0.02:
                return dice.choice(VALUES)
            continue
        within = content
        for key in at[:-1]:
            within = within[key]
        what = dice.random()
        if what < 0.7:
            within[at[-1]] = dice.choice(VALUES)
        elif what < 0.85 or isinstance(within, dict):
            del within[at[-1]]
        else:
            within.append(within[at[-1]])
    return content


def damaged(content: bytes, dice: random.Random) -> bytes:
    """The bytes with a bit flipped, cut off, or some put in or taken out."""
    text = bytearray(content)
    at = dice.randrange(len(text))
    what = dice.randrange(5)
    if what < 2:
        text[at] ^= 1 << dice.randrange(8)
    elif what == 2:
        del text[at:]
    elif what == 3:
        text[at:at] = dice.choice((b"\xff", b"[" * 2000, b"NaN", b"9" * 5000, b"\0", b'"', b"{}"))
    else:
        del text[at : at + dice.randrange(1, 50)]
    return bytes(text)
