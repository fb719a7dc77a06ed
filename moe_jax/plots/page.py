"""One HTML page that needs no network, no script and no other file."""

import html
from collections.abc import Sequence

_CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --page: #ffffff;
  --quiet: #656d76; --grid: #d8dee4; --stripe: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3;
  --page: #0f1317; --quiet: #9198a1; --grid: #2f353d; --stripe: #171c22; } }
body { color: var(--ink); background: var(--page); margin: 2rem auto;
  max-width: 66rem; padding: 0 1.2rem; line-height: 1.45;
  font: 16px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p { margin: .3rem 0 .8rem; } .quiet, figcaption { color: var(--quiet); }
figcaption { font-size: .88rem; } figure { margin: .8rem 0 1.6rem; }
figure svg { width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: .92rem; }
th, td { padding: .32rem .8rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--grid); }
th:first-child, td:first-child { text-align: left; padding-left: .3rem; }
tbody tr:nth-child(even) { background: var(--stripe); }
tr.total td { font-weight: 600; border-top: 2px solid var(--quiet); }
.facts { display: grid; gap: .7rem 1.6rem; margin: 1.1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); }
.facts div { border-left: 3px solid var(--grid); padding-left: .6rem; }
.facts dt { color: var(--quiet); font-size: .8rem; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; } pre { overflow-x: auto; font-size: .82rem;
  background: var(--stripe); padding: .8rem; }
@media print { body { margin: 0; max-width: none; font-size: 11pt; }
  figure, table { break-inside: avoid; } h2 { break-after: avoid; } }
"""


def page(title: str, body: Sequence[str], head: Sequence[str] = ()) -> str:
  """The whole page; `body` and `head` are HTML, `title` is text."""
  return '\n'.join(
    [
      '<!DOCTYPE html>',
      '<html lang="en">',
      '<head>',
      '<meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<title>{html.escape(title)}</title>',
      f'<style>{_CSS}</style>',
      *head,
      '</head>',
      '<body>',
      f'<h1>{html.escape(title)}</h1>',
      *body,
      '</body>',
      '</html>',
      '',
    ]
  )


def heading(text: str) -> str:
  return f'<h2>{html.escape(text)}</h2>'


def paragraph(text: str) -> str:
  return f'<p class="quiet">{html.escape(text)}</p>'


def table(
  header: Sequence[str], rows: Sequence[Sequence[str]], total: bool = False
) -> str:
  """Cells are text; with `total` the last row stands out."""
  cells = lambda tag, row: ''.join(
    f'<{tag}>{html.escape(c)}</{tag}>' for c in row
  )
  lines = [f'<tr>{cells("td", row)}</tr>' for row in rows]
  if total and lines:
    lines[-1] = lines[-1].replace('<tr>', '<tr class="total">')
  body = '\n'.join(lines)
  return (
    f'<div class="wide"><table><thead><tr>{cells("th", header)}</tr></thead>\n'
    f'<tbody>{body}</tbody></table></div>'
  )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
  """Names and values, as text, in a grid."""
  items = ''.join(
    f'<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>'
    for k, v in pairs
  )
  return f'<dl class="facts">{items}</dl>'


def figure(svg: str, caption: str) -> str:
  """An `<svg>` element over its caption, which is text."""
  said = html.escape(caption)
  svg = svg.replace('<svg', f'<svg role="img" aria-label="{said}"', 1)
  return f'<figure>{svg}\n<figcaption>{said}</figcaption></figure>'


def folded(title: str, text: str) -> str:
  """Long text that opens at a click."""
  return (
    f'<details><summary>{html.escape(title)}</summary>'
    f'<pre>{html.escape(text)}</pre></details>'
  )
