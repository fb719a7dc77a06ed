"""The page of an analysis: what experts do, in words, figures and the text.

`write` reads `routing/` and `metrics.json` of an analysis directory and leaves
`report.html` there: one file, at most 10 MB, that fetches nothing and may be
opened from a disk. All of the text is in it as text.
"""

import base64
import dataclasses
import hashlib
import html
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from moe_jax import json_files
from moe_jax.analysis import records
from moe_jax.data import tokenizers
from moe_jax.errors import UserError
from moe_jax.plots import (
  page,
  routing_figures,
  routing_sections,
  routing_text,
  style,
)

LIMIT = 10_000_000  # bytes
_SECOND = 'encoder/'
_HERE = pathlib.Path(__file__).parent
_LIFT = (
  'Look for blocks of orange: a domain’s own experts. Colour is an expert’s '
  'share of a domain’s choices over its mean share; white is alike.'
)


def write(analysis_dir: str | os.PathLike) -> str:
  """Writes `report.html`; returns its path.

  Of an encoder-decoder the encoder's is `report_encoder.html`, from
  `routing_encoder/` and the metrics whose names begin with 'encoder/'.

  Raises:
    ValueError: no routing record there, or one without tokens.
    FileNotFoundError: no metrics.json.
  """
  folder = pathlib.Path(analysis_dir)
  metrics = json_files.read(folder / 'metrics.json')
  own = {k: v for k, v in metrics.items() if not k.startswith(_SECOND)}
  further = ''
  if (folder / 'routing_encoder').exists():
    second = {
      k.removeprefix(_SECOND): v
      for k, v in metrics.items()
      if k.startswith((_SECOND, 'outputs/', 'importance/'))
    }
    _write(folder, 'routing_encoder', 'report_encoder.html', second)
    further = '<p><a href="report_encoder.html">The encoder’s experts</a></p>'
  return _write(folder, 'routing', 'report.html', own, further)


def _write(
  folder: pathlib.Path,
  name: str,
  page_name: str,
  metrics: Mapping[str, Any],
  further: str = '',
) -> str:
  """The page of a record; returns its path."""
  record = records.Record.open(folder / name)
  schema = record.schema
  if not len(record):
    raise UserError(f'{record.path}: the routing record has no tokens')
  sample = routing_text.sample(record)
  own = _own_tokens(metrics.get('top_tokens/by_lift'))
  title = f'Inside {folder.resolve().parent.name}'
  head = [_policy(), f'<style>{_asset("routing.css")}</style>']
  top = [_lead(metrics.get('words')), page.facts(_facts(schema)), further]
  figures = _figures(metrics, schema, sample)
  reader = _reader(schema.tokenizer, folder)
  script = f'<script>{_asset("routing.js")}</script>'
  keep = len(sample.passages)
  while True:
    some = dataclasses.replace(sample, passages=sample.passages[:keep])
    data = routing_text.pack(some, schema, *reader) | {'top_tokens': own}
    view = _text_view(data)
    body = [*top, *view, *figures, _json('routing-data', data), script]
    made = page.page(title, body, head).encode()
    if len(made) <= LIMIT or keep == 1:
      break
    keep = max(1, keep // 2)  # words, names and figures were large
  path = folder / page_name
  path.write_bytes(made)
  return str(path)


def _own_tokens(tables: Any) -> list | None:
  """[M][E] of texts, out of those of the metric; None where they are not."""
  try:
    return [
      [[str(row['text']) for row in rows[:8]] for rows in of_layer]
      for of_layer in tables
    ]
  except (TypeError, KeyError):
    return None


def _reader(spec: str, folder: pathlib.Path):
  """What `routing_text.pack` takes to spell; of a run, its own tokenizer."""
  if not spec:
    return None, None
  kept = folder.parent / 'tokenizer.json'
  try:
    made = tokenizers.build(
      tokenizers.at(spec, str(kept)) if kept.exists() else spec
    )
    made.decode([])
  except (UserError, AttributeError, TypeError):
    return None, None  # ids are shown as numbers
  sentinels = {id: f'sentinel {i}' for i, id in enumerate(made.sentinel_ids)}
  special = sentinels | {made.pad_id: 'pad', made.eos_id: 'eos'}
  return made.decode, special


def _lead(words: Any) -> str:
  """The overview: three sentences in large letters; what follows are alarms."""
  said = [words] if isinstance(words, str) else list(words or ())
  lines = [html.escape(str(s)) for s in said]
  lead = ''.join(f'<p>{s}</p>' for s in lines[:3])
  alarms = ''.join(f'<p class="alarm">{s}</p>' for s in lines[3:])
  return f'<div class="lead">{lead}</div>{alarms}' if lines else ''


def _facts(schema: records.Schema) -> list[tuple[str, str]]:
  E = sorted(set(schema.experts))
  factor = schema.capacity_factor
  return [
    ('tokens', f'{schema.tokens:,}'),
    ('documents', f'{len(schema.documents):,}'),
    ('domains', ', '.join(schema.domains)),
    ('MoE layers', f'{len(schema.layers)} ({schema.stack})'),
    ('experts of a layer', ', '.join(map(str, E))),
    ('choices of a token', f'up to {schema.choices}'),
    ('capacity factor', 'none: dropless' if factor is None else f'{factor:g}'),
    ('checkpoint', f'step {schema.step:,}'),
  ]


def _text_view(data: dict[str, Any]) -> list[str]:
  option = lambda value, text: (
    f'<option value="{value}">{html.escape(text)}</option>'
  )
  M, many = len(data['layers']), len(data['domains']) > 1
  domains = ''.join(option(i, d) for i, d in enumerate(data['domains']))
  home = option('home', 'home domains') if many else ''
  only = '' if many else ' hidden'
  return [
    '<section id="text-view" hidden>',
    '<h2>Who takes which token?</h2>',
    page.paragraph(
      'Held-out text, each token in the colour of its first expert. Point at '
      'a token, or tap it, to see more; by keyboard, left and right go through '
      'the text, up and down through the layers.'
    ),
    '<div class="view"><aside>',
    '<div class="controls"><div class="knobs">',
    f'<label{" hidden" if M < 2 else ""}><output id="layer-name" for="layer">'
    f'</output><input type="range" id="layer" min="0" max="{M - 1}" '
    'aria-label="Layer"></label>',
    f'<label{only}>Colour <select id="colour">{home}'
    f'{option("busiest", "busiest experts")}</select></label>',
    f'<label{only}>Text <select id="domain">{option(-1, "all domains")}'
    f'{domains}</select></label>',
    '</div><div id="experts" role="group" aria-label="Experts"></div></div>',
    '<div id="profile" aria-live="polite"></div>',
    '<div id="card" role="tooltip" hidden></div></aside>',
    '<div class="reading"><div id="passages"></div>',
    '<button type="button" id="more" hidden></button></div></div>',
    '</section>',
    '<noscript><p class="quiet">The text view needs JavaScript; nothing is '
    'fetched.</p></noscript>',
  ]


def _figures(metrics, schema, sample) -> list[str]:
  """Every section that has something to show; what is left, folded."""
  lift = routing_figures.lift(sample.count_MDE, schema.domains, schema)
  body = []
  for i, section in enumerate(routing_sections.SECTIONS):
    drawn = list(section.draw(metrics, schema))
    if lift and not i:
      drawn.insert(0, ('lift', lift, _LIFT))
    if drawn:
      body += [page.heading(section.title), *map(_figure, drawn)]
  rest = routing_sections.rest(metrics)
  rows = routing_sections.scalars(metrics)
  folded = [_figure(d) for d in rest.draw(metrics, schema)]
  if rows:
    folded.append(page.table(['of the whole model', '', 'by chance'], rows))
  if folded:
    said = html.escape(rest.title)
    body += [f'<details><summary>{said}</summary>', *folded, '</details>']
  return body


def _figure(drawn: routing_sections.Drawn) -> str:
  name, fig, caption = drawn
  return page.figure(style.svg(fig, name), caption)


def _json(name: str, value: Any) -> str:
  """JSON in an element that no text can close."""
  text = json.dumps(value, sort_keys=True, separators=(',', ':'))
  text = text.replace('<', '\\u003c').replace('>', '\\u003e')
  return f'<script type="application/json" id="{name}">{text}</script>'


def _policy() -> str:
  """Nothing may be fetched, and no script run but ours, by its hash."""
  digest = hashlib.sha256(_asset('routing.js').encode()).digest()
  allowed = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{base64.b64encode(digest).decode()}'"
  )
  return (
    f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'
    '<link rel="icon" href="data:,">'
  )


def _asset(name: str) -> str:
  return (_HERE / name).read_text(encoding='utf-8')
