"""Pieces of a page that needs no network, no script and no other file."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from common.report.text import Cell, Table


def document(title: str, header: str, sections: Iterable[str]) -> str:
    """A page.

    Args:
        title: as text; `header` and `sections` are HTML.
        header: what stands above the sections.
        sections: made by `section`.
    """
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # The browser itself then refuses whatever would be fetched or run.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n"
    )
    return f"{head}<body>\n<main>\n{header}{''.join(sections)}</main>\n</body>\n</html>\n"


def section(title: str, body: str) -> str:
    """A section, or nothing where there is nothing to say."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}</section>\n" if body else ""


def table(content: Table, caption: str) -> str:
    """A table under its caption."""
    first, *rest = content.header
    corner = f'<th scope="col">{escape(first)}</th>' if first else "<td></td>"
    head = corner + "".join(f'<th scope="col">{escape(name)}</th>' for name in rest)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_cell, cells))}</tr>\n'
        for name, cells in content.rows
    )
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in content.notes)
    return (
        # The caption stands outside what scrolls sideways; `aria-label` ties it to the table.
        f'<p class="caption">{escape(caption)}</p>\n<div class="wide" tabindex="0">'
        f'<table aria-label="{escape(caption)}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>\n"
        + (f'<ol class="notes">{notes}</ol>\n' if notes else "")
    )


def _cell(cell: Cell) -> str:
    marks = "".join(f"<sup>{number}</sup>" for number in cell.notes)
    interval = f"<small>{escape(cell.interval)}</small>" if cell.interval else ""
    return f"<td>{escape(cell.value)}{marks}{interval}</td>"


def definitions(items: Iterable[tuple[str, str]]) -> str:
    """Names and what they mean."""
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>\n" for name, text in items
    )
    return f"<dl>{rows}</dl>\n" if rows else ""


def bullets(items: Iterable[str]) -> str:
    """A list."""
    rows = "".join(f"<li>{escape(item)}</li>\n" for item in items)
    return f"<ul>{rows}</ul>\n" if rows else ""


def preformatted(text: str) -> str:
    """Text as it stands, or nothing."""
    return f'<pre class="wide" tabindex="0">{escape(text)}</pre>\n' if text else ""


def paragraphs(sentences: Iterable[str]) -> str:
    """Each in a paragraph."""
    return "".join(f"<p>{escape(sentence)}</p>\n" for sentence in sentences)


_CSS = """
:root { color-scheme: light dark; --ink: #1d2529; --paper: #ffffff; --accent: #0b62a4;
  --faint: #b4bdc2; --soft: #f2f5f6; --warn: #8a4b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ea; --paper: #14191c; --accent: #74b9ee;
  --faint: #56626a; --soft: #1e2529; --warn: #f0b26b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem; padding-top: .6rem;
  border-top: 1px solid var(--faint); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; }
.kind { margin: 0 0 .3rem; font-size: .85rem; opacity: .8; }
.label { display: inline-block; margin: 0 0 .3rem; padding: .05rem .6rem; border-radius: 1rem;
  border: 1px solid currentColor; font-size: .85rem; font-weight: 600; }
.label.phantom { color: var(--warn); } .label.real { color: var(--accent); }
.summary { padding: .6rem 1rem; background: var(--soft); border-left: 4px solid var(--accent); }
.wide { overflow-x: auto; }
pre { font-size: .85rem; }
table { border-collapse: collapse; margin: .4rem 0; font-variant-numeric: tabular-nums;
  font-size: .9rem; }
caption { text-align: left; padding: .2rem 0; font-size: .9rem; font-weight: 600; }
.caption { font-size: .9rem; opacity: .85; margin: .8rem 0 0; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--faint); white-space: nowrap; }
thead th, thead td { vertical-align: bottom; border-bottom: 2px solid var(--faint); }
th { font-weight: 600; }
td small { display: block; font-size: .8rem; opacity: .85; }
sup { font-size: .7rem; margin-left: .15rem; line-height: 0; }
.notes { margin: .2rem 0 1rem; padding-left: 1.3rem; font-size: .82rem; }
.grid { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; }
.confusion th, .confusion td { padding: .3rem .6rem; }
.confusion td { text-align: right; }
.confusion thead td { text-align: left; font-size: .8rem; opacity: .85; }
figure { margin: 1.2rem 0; }
figure svg { display: block; width: 100%; min-width: 38rem; height: auto; }
svg text { font-family: inherit !important; }
figcaption { font-size: .85rem; opacity: .85; margin-top: .3rem; }
dl { margin: .6rem 0; font-size: .92rem; }
dl div { display: grid; grid-template-columns: minmax(8rem, 11rem) 1fr; gap: 0 1rem;
  padding: .2rem 0; }
dt { font-weight: 600; overflow-wrap: anywhere; } dd { margin: 0; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; } li { margin: .2rem 0; }
details { margin: .4rem 0; } summary { cursor: pointer; font-weight: 600; }
@media print {
  :root { color-scheme: light; --ink: #000; --paper: #fff; --accent: #0b62a4; --faint: #999;
    --soft: #fff; --warn: #8a4b00; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; }
  .wide { overflow: visible; } table { font-size: 8pt; } td small { font-size: 6.5pt; }
  th { white-space: normal; } th, td { padding: .15rem .4rem .15rem 0; }
  figure svg { min-width: 0; }
  details::details-content { content-visibility: visible; block-size: auto; }
  tr, figure, .confusion { break-inside: avoid; } h2, summary { break-after: avoid; }
}
"""
