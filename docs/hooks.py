"""What `mkdocs build` does for the guide beside its pages: the commands, and files of the tree.

`<!-- commands -->` becomes a description of every command, from the same place as `--help`.
Figures do not break at ± or =, and cells that hold sentences are wider than those of numbers. Links
to examples and experiments, which are beside `docs/` and not in it, lead to copies in the site.
θ* is the anchor and no emphasis. The search takes what it needs to run from a disk from the site
itself (`search.js`).
"""

from __future__ import annotations

import inspect
import posixpath
import re
from pathlib import Path
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import SimpleTextInlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SHIM = "https://unpkg.com/iframe-worker/shim"
COMMANDS = "<!-- commands -->"
UNBROKEN = re.compile(r"(?<=[\dλαn]) ([±=×/]) (?=[\d.−-])")  # 90.6 ± 1.1, λ = 1, 92.2 / 85.6
CELL = re.compile(r"<td>(.*?)</td>", re.S)
SENTENCE = 50  # characters
DEFAULT = re.compile(r"\s*\\?\[default: (.+?)\]$")
OUTSIDE = re.compile(r"\]\(\.\./((?:examples|experiments|benchmarks)/[^)#\s]+)\)")


class Symbols(Extension):
    """θ* is the anchor and `torch.__future__` a module: neither begins an emphasis."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Take it as it is, before emphasis is looked for."""
        symbols = SimpleTextInlineProcessor(r"(θ[₁₂]?\*|(?<=\.)__\w+__)")
        md.inlinePatterns.register(symbols, "symbols", 175)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The settings, with what the symbols of this project need."""
    config.markdown_extensions.append(Symbols())  # type: ignore[arg-type]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files that the pages link to outside of `docs/`, too."""
    wanted = set()
    for page in files.documentation_pages():
        wanted |= set(OUTSIDE.findall(page.content_string))
    for path in sorted(wanted):
        if (ROOT / path).is_file():
            made = File.generated(config, f"source/{path}.txt", abs_src_path=str(ROOT / path))
            files.append(made)
    return files


def on_page_markdown(markdown: str, page: Page, **_given: Any) -> str:
    """The page with its links to such files, and with the commands where they belong."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, commands())
    here = posixpath.dirname(page.file.src_uri) or "."

    def inside(found: re.Match[str]) -> str:
        return f"]({posixpath.relpath(f'source/{found[1]}.txt', here)})"

    return OUTSIDE.sub(inside, markdown)


def on_page_content(html: str, **_given: Any) -> str:
    """The page with figures that stay in one line, and cells of sentences known as such."""
    html = "".join(
        part if part.startswith("<pre") else UNBROKEN.sub("\u00a0\\1\u00a0", part)
        for part in re.split(r"(<pre.*?</pre>)", html, flags=re.S)
    )
    return CELL.sub(_cell_of, html)


def _cell_of(found: re.Match[str]) -> str:
    words = re.sub(r"<[^>]+>", "", found[1])
    return f'<td class="sentence">{found[1]}</td>' if len(words) > SENTENCE else found[0]


def on_post_page(output: str, page: Page, **_given: Any) -> str:
    """The page, which asks no other server for anything."""
    return output.replace(SHIM, posixpath.relpath("search.js", posixpath.dirname(page.url) or "."))


def on_post_template(output: str, **_given: Any) -> str:
    """The page of what is not found, likewise."""
    return output.replace(SHIM, "search.js")


def commands() -> str:
    """Every command of `retain`: what it does, what it is given, and its options."""
    import typer

    from retain.cli.app import app

    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, one) for name, one in sorted(group.commands.items()))


def _command(name: str, command: Any) -> str:
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    usage = " ".join(
        ["retain", name, *(_name(p) if p.required else f"[{_name(p)}]" for p in arguments)]
    )
    parts = [f"## retain {name}", f"    {usage} [OPTIONS]", _plain(command.help or "")]
    rows = [f"| {_flags(p)} | {_default(p)} | {_cell(_help(p))} |" for p in shown]
    if rows:
        parts.append("\n".join(["| option | default | what it is |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _name(argument: Any) -> str:
    return str(argument.name).upper()


def _flags(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_name(parameter)}`"
    return ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))


def _help(parameter: Any) -> str:
    """Without the default, which has a column of its own."""
    return DEFAULT.sub("", _plain(getattr(parameter, "help", "") or ""))


def _default(parameter: Any) -> str:
    value = parameter.default
    said = DEFAULT.search(_plain(getattr(parameter, "help", "") or ""))
    if said is not None:
        return f"`{said[1]}`"
    if parameter.required:
        return "required"
    if value is None or callable(value) or value in (False, (), [], "") or "UNSET" in repr(value):
        return ""
    return f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(_plain(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _plain(text: str) -> str:
    """Help without the marks that colour it on a terminal; an example is a block of code."""
    lines = inspect.cleandoc(text.replace("\b", "")).splitlines()
    found, example = [], False
    for line in lines:
        bare = re.sub(r"\[/?(?:bold|dim|italic|cyan|yellow|green)?\]", "", line)
        goes_on = example and bool(bare.strip())  # in the next line
        example = goes_on or bool(re.match(r"(retain|pip|python) ", bare))
        if goes_on:
            found[-1] += " \\"
        found.append(f"{'        ' if goes_on else '    '}{bare.strip()}" if example else bare)
    return "\n".join(found)
