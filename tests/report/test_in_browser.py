"""Reports of every kind opened in a real browser, on a phone, a tablet and a desk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import retain
import retain.report

from . import made_up
from .browser import Browser, installed

WIDTHS = (360, 800, 1400)
EIGHT = ("finetune", "ebll", "imm-mean", "ewc", "mas")
KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "one method": lambda: made_up.results(("mas",), seeds=(0,)),
    "eleven methods": lambda: made_up.results(made_up.METHODS),
    "eight tasks": lambda: made_up.results(EIGHT, made_up.EIGHT, best=0.8, seeds=(0, 1)),
    "several strengths": lambda: made_up.sweep(("mas", "ewc")),
    "a failed row": made_up.with_failure,
    "an unfinished run": made_up.unfinished,
    "the paper's table 2": made_up.table2,
    "table 3 on stand-ins": made_up.table3,
    "a part of table 2": made_up.table2_in_part,
    "what each method keeps": made_up.memory_study,
    "adaptation": made_up.adaptation_study,
    "long names": made_up.long_names,
    "a comparison": made_up.comparison,
    "nothing yet": lambda: made_up.results(()),
}

NAMES_APART = (
    "one method",
    "eleven methods",
    "eight tasks",
    "several strengths",
    "adaptation",
    "long names",
    "a comparison",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = installed()
    if program is None:
        pytest.skip("no Chromium found: apt-get install chromium")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    made: dict[str, list[Path]] = {}

    def written(kind: str) -> list[Path]:
        if kind not in made:
            made[kind] = retain.report.write(KINDS[kind](), tmp_path_factory.mktemp("report"))
        return made[kind]

    return written


@pytest.mark.parametrize("kind", KINDS)
def test_it_opens_whole_at_every_width(
    kind: str, browser: Browser, page: Callable[[str], list[Path]]
) -> None:
    written = page(kind)
    expected = {path.stem for path in written if path.suffix == ".png"}
    for width in WIDTHS:
        assert browser.opened(written[0], width) == []
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run(STICKING_OUT) == [], f"at {width} pixels"
        pictures = browser.run(PICTURES)
        assert {picture["id"] for picture in pictures} == expected
        for picture in pictures:
            told = f"{picture['id']} at {width} pixels: {picture}"
            assert picture["shown"] == 1, told  # the wide or the narrow drawing, not both
            assert picture["width"] >= 200, told
            assert picture["marks"] >= 4, told
            assert len(picture["alt"]) > 20, told
            assert picture["smallest"] >= 8.5, told
            assert picture["cut"] == [], told
        if kind in NAMES_APART:
            assert browser.run(COVERING) == [], f"names cover each other at {width} pixels"


def test_the_page_of_a_passport_fits_a_phone_and_a_desk(browser: Browser, tmp_path: Path) -> None:
    made = retain.passports.Passport.load(retain.passports.minilm())
    page = made.write_page(tmp_path / "card.html")
    for width in (390, 1400):
        assert browser.opened(page, width) == []
        assert browser.run("document.documentElement.scrollWidth") <= width
        # names break behind a dot or an underscore, not inside of a word
        lines = browser.run(LINES_OF_NAMES)
        assert len(lines) > 90
        assert all(line[-1] in "._" for several in lines for line in several[:-1]), lines


def test_a_dark_page_is_dark_and_its_pictures_follow(
    browser: Browser, page: Callable[[str], list[Path]]
) -> None:
    written = page("eleven methods")[0]
    lightness = {}
    for dark in (False, True):
        assert browser.opened(written, 800, dark=dark) == []
        lightness[dark] = browser.run(LIGHTNESS)
    light, dark_ = lightness[False], lightness[True]
    assert light["page"] > 0.9
    assert light["text"] < 0.2
    assert light["picture text"] < 0.5
    assert dark_["page"] < 0.2
    assert dark_["text"] > 0.8
    assert dark_["picture text"] > 0.5


def test_tables_can_be_copied_and_sorted(
    browser: Browser, page: Callable[[str], list[Path]]
) -> None:
    browser.opened(page("eleven methods")[0], 1400)
    copied = browser.run(COPY)
    assert copied[0].splitlines()[0].startswith("Method,")
    assert "MAS," in copied[0]
    assert "\\begin{tabular}" in copied[1]
    order = browser.run(SORT)
    assert order[0] == sorted(order[0])
    assert order[1] == sorted(order[1], reverse=True)
    assert len(order[0]) == len(made_up.METHODS)


def test_a_reader_of_the_screen_finds_a_way(
    browser: Browser, page: Callable[[str], list[Path]]
) -> None:
    browser.opened(page("eleven methods")[0], 800)
    found = browser.run(OUTLINE)
    assert found["lang"] == "en"
    assert found["title"]
    assert found["h1"] == 1
    assert found["dead links"] == []
    assert found["twice the same id"] == []
    assert found["tables without a head"] == 0


STICKING_OUT = """[...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('.scroll') && !e.matches('.scroll')) return false;  // tables scroll inside
  if (e.closest('svg') && !e.matches('svg')) return false;  // looked at on their own
  const box = e.getBoundingClientRect();
  return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(e => e.outerHTML.slice(0, 120))"""

PICTURES = """[...document.querySelectorAll('figure')].map(figure => {
  const visible = [...figure.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width);
  const svg = visible[0], box = svg?.getBoundingClientRect();
  const texts = [...svg?.querySelectorAll('text') ?? []];
  const scale = box.width / svg.viewBox.baseVal.width;
  return {
    id: figure.id.replace('figure-', ''), shown: visible.length, width: box.width,
    alt: svg.getAttribute('aria-label'),
    marks: svg.querySelectorAll('path, use').length,
    smallest: Math.min(...texts.map(t => parseFloat(getComputedStyle(t).fontSize) * scale)),
    cut: texts.filter(t => {
      const b = t.getBoundingClientRect();
      return b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 3
        || b.bottom > box.bottom + 3;
    }).map(t => t.textContent),
  };
})"""

COVERING = """[...document.querySelectorAll('figure')].flatMap(figure => {
  const visible = [...figure.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width);
  // Rotated letters have boxes much larger than themselves.
  const level = t => !/rotate\\((?!-0 )/.test(t.getAttribute('transform') ?? '');
  const all = [...visible[0].querySelectorAll('text')].filter(level);
  const boxes = all.map(t => [t.textContent, t.getBoundingClientRect()]);
  return boxes.flatMap(([a, p], k) => boxes.slice(k + 1).filter(([, q]) =>
    p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 4 && q.top < p.bottom - 4
  ).map(([b]) => `${figure.id}: ${a} / ${b}`));
})"""

LINES_OF_NAMES = """[...document.querySelectorAll('td:first-child')].map(cell => {
  const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), lines = [];
  let last = null;
  for (let node; (node = walker.nextNode());) {
    for (let k = 0; k < node.length; k++) {
      const range = document.createRange();
      range.setStart(node, k);
      range.setEnd(node, k + 1);
      const top = Math.round(range.getBoundingClientRect().top);
      if (top !== last) lines.push('');
      lines[lines.length - 1] += node.data[k];
      last = top;
    }
  }
  return lines;
})"""

LIGHTNESS = """(() => {
  const of = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
    return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
  };
  const texts = [...document.querySelectorAll('svg text')];
  const fills = texts.map(t => of(getComputedStyle(t).fill));
  const dark = of(getComputedStyle(document.body).backgroundColor) < 0.5;
  return {
    'page': of(getComputedStyle(document.body).backgroundColor),
    'text': of(getComputedStyle(document.body).color),
    'picture text': dark ? Math.min(...fills) : Math.max(...fills),
  };
})()"""

COPY = """(async () => {
  const copied = [];
  Object.defineProperty(navigator, 'clipboard', {
    value: { writeText: async text => { copied.push(text); } },
  });
  for (const button of document.querySelectorAll('.copies button')) button.click();
  await new Promise(done => setTimeout(done));
  return copied;
})()"""

SORT = """(() => {
  const table = document.querySelector('table[data-sortable]');
  const head = table.tHead.rows[0].cells[2].querySelector('button');
  const column = () => [...table.tBodies[0].rows].map(row => Number(row.cells[2].dataset.value));
  head.click();
  const up = column();
  head.click();
  return [up, column()];
})()"""

OUTLINE = """(() => {
  const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  return {
    'lang': document.documentElement.lang,
    'title': document.title,
    'h1': document.querySelectorAll('h1').length,
    'dead links': [...document.querySelectorAll('a')].map(a => a.getAttribute('href'))
      .filter(href => !document.querySelector(href)),
    'twice the same id': ids.filter((id, k) => ids.indexOf(id) < k),
    'tables without a head': [...document.querySelectorAll('table')].filter(
      t => !t.tHead || !t.querySelector('th[scope=row]')).length,
  };
})()"""
