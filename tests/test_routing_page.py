"""The page of what experts do: whole, safe, bounded, the same each time."""

import base64
import hashlib
import html.parser
import json
import os
import re
import shutil

import numpy as np
import pytest

from moe_jax.analysis import records
from moe_jax.data import tokenizers
from moe_jax.errors import UserError
from moe_jax.plots import (
  routing_page,
  routing_text,
)

HOSTILE = (
  b'</script><img src=x onerror=alert(1)>"\'&amp;<!-- \xff\xc3 \xe2\x80\xae'
  b'\x00 caf\xc3\xa9 https://example.org/\r\n'
)
NAMES = '<b>code</b>', '"C" & co', '</script>'
M, K, E, D = 2, 2, 5, 3
METRICS = {
  'words': ['Experts <i>differ</i>.', 'By 0.5.', 'So.', 'Dead: <b>3</b>.'],
  'domain_specialisation/value': [0.1, 0.2],
  'domain_specialisation/null': [0.01, 0.02],
  'domain_specialisation/null_low': [0.0, 0.01],
  'domain_specialisation/null_high': [0.02, 0.03],
  'domain_specialisation/low': [0.05, 0.15],
  'domain_specialisation/high': [0.15, 0.25],
  'prefetch/hit_value': [None],
  'paths/entropy_value': 7.25,
  'saturation/undefined': 'one <checkpoint>',
  'top_tokens/by_lift': [[[{'text': '</b>\\n'}]] * E] * M,
}


def part(texts, seed=0):
  """Of documents (domain, text), routed by lot."""
  rng = np.random.default_rng(seed)
  ids = [tokenizers.Bytes().encode(t) for _, t in texts]
  n = sum(map(len, ids))
  of = lambda values: np.repeat(values, [*map(len, ids)])
  expert = rng.integers(0, E, (n, M, K))
  expert[::7, 0, 1] = -1
  weight = rng.random((n, M, K)) * 2.5 * (expert >= 0)
  token = np.concatenate(ids)
  return records.part(
    expert,
    token=token,
    next=np.append(token[1:], -1),
    predicted=rng.integers(3, 259, n),
    loss=np.append(rng.random(n - 1) * 9, np.nan),
    position=np.concatenate([np.arange(len(i)) for i in ids]),
    document=of(np.arange(len(ids))),
    domain=of([d for d, _ in texts]),
    weight=weight,
    cause=rng.integers(0, 2, (n, M, K)),
  )


def write(folder, texts, **changes):
  """A record and its metrics."""
  schema = records.Schema(
    layers=(1, 3),
    experts=(E, E),
    choices=K,
    vocab=384,
    domains=NAMES,
    documents=tuple((d, f'<{i}>') for i, (d, _) in enumerate(texts)),
    tokenizer='bytes()',
  )
  made = part(texts)
  records.write(folder / 'routing', schema, [made])
  metrics = changes.get('metrics', METRICS)
  (folder / 'metrics.json').write_text(json.dumps(metrics))
  return schema, made


class Parser(html.parser.HTMLParser):
  """Elements, attributes, and what scripts and styles hold."""

  def __init__(self):
    super().__init__()
    self.elements, self.attributes = [], []
    self.within, self.scripts, self.styles = [], {}, ''

  def handle_starttag(self, tag, attrs):
    self.elements.append(tag)
    self.attributes += attrs
    self.within.append((tag, dict(attrs).get('type', '')))

  def handle_endtag(self, tag):
    while self.within and self.within.pop()[0] != tag:
      pass

  def handle_data(self, data):
    tag, kind = self.within[-1] if self.within else ('', '')
    if tag == 'script':
      self.scripts[kind] = self.scripts.get(kind, '') + data
    elif tag == 'style':
      self.styles += data


def parse(text):
  parser = Parser()
  parser.feed(text)
  parser.close()
  return parser


def unpack(data):
  return {
    k: np.frombuffer(base64.b64decode(text), kind)
    for k, (kind, text) in data['arrays'].items()
  }


TEXTS = [
  (0, HOSTILE + b'def main():\n  pass\n' * 40),
  (1, b'int main(void);\n' * 30),
  (2, 'Schöne Prosa, und noch mehr davon.\n'.encode() * 20),
]


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """The record's schema and part, the page's text, its folder."""
  folder = tmp_path_factory.mktemp('run') / 'analysis'
  schema, made = write(folder, TEXTS)
  path = routing_page.write(folder)
  assert path == str(folder / 'report.html')
  return schema, made, (folder / 'report.html').read_text(), folder


def test_the_page_fetches_nothing(written):
  page = parse(written[2])
  references = {'src', 'href', 'xlink:href', 'srcset', 'data', 'action'}
  for name, value in page.attributes:
    value = value or ''
    if name in references:
      assert value.startswith(('#', 'data:')), (name, value)
    if name != 'content':
      assert 'url(' not in value.replace('url(#', ''), (name, value)
  assert 'url(' not in page.styles and '@import' not in page.styles
  assert not re.search(r'fetch\(|XMLHttp|import\(|https?:', page.scripts[''])


def test_only_the_one_script_may_run(written):
  page = parse(written[2])
  assert set(page.scripts) == {'', 'application/json'}
  digest = hashlib.sha256(page.scripts[''].encode()).digest()
  wanted = f"script-src 'sha256-{base64.b64encode(digest).decode()}'"
  found = [v for k, v in page.attributes if k == 'content' and 'default' in v]
  assert found and wanted in found[0] and "default-src 'none'" in found[0]
  assert not re.search(
    '(inner|outer|Adjacent)HTML|write|eval', page.scripts['']
  )
  assert not [k for k, _ in page.attributes if k.startswith('on')]


def test_hostile_text_stays_text(written):
  _, made, text, _ = written
  page = parse(text)
  assert not {'img', 'b', 'i'} & set(page.elements)
  assert page.elements.count('script') == 2
  data = json.loads(page.scripts['application/json'])
  assert data['domains'] == list(NAMES)
  first = data['passages'][0]
  shown = unpack(data)['shown'][: first['tokens']]
  read = ''.join(data['words'][i] for i in shown)
  assert read.startswith(
    '</script><img src=x onerror=alert(1)>"\'&amp;<!-- \\xff\\xc3 \\u202e‧‧'
    '\\u0000 café‧ https://example.org/\\r\n'
  )
  assert '<p>Experts &lt;i&gt;differ&lt;/i&gt;.</p>' in text
  assert '<p class="alarm">Dead: &lt;b&gt;3&lt;/b&gt;.</p>' in text
  assert sum(p['tokens'] for p in data['passages']) > 0.95 * len(made)


def test_what_the_script_reads_is_the_record(written):
  _, made, text, _ = written
  data = json.loads(parse(text).scripts['application/json'])
  arrays = unpack(data)
  order = np.concatenate(
    [
      np.flatnonzero(
        (made.domain == p['domain'])
        & (made.position >= p['position'])
        & (made.position < p['position'] + p['tokens'])
      )
      for p in data['passages']
    ]
  )
  # One document a domain; passages from its middle begin at a line.
  assert len(set(order)) == len(order) > 0.95 * len(made)
  expert = arrays['expert'].reshape(-1, M, K).astype(int)
  expert[expert == 255] = -1
  np.testing.assert_array_equal(expert, made.expert[order])
  scale = np.array(data['scale'])[:, None]
  weight = arrays['weight'].reshape(-1, M, K) * scale
  np.testing.assert_allclose(weight, made.weight[order], atol=1e-4)
  cause = arrays['cause'].reshape(-1, M, K)
  np.testing.assert_array_equal(cause, made.cause[order])
  loss = np.where(
    arrays['loss'] == 65_535, np.nan, arrays['loss'] * data['loss_step']
  )
  np.testing.assert_allclose(loss, made.loss[order], atol=3e-4)
  count = np.zeros((M, D, E), int)
  for d, edges in zip(made.domain, made.expert, strict=True):
    for m in range(M):
      for e in edges[m][edges[m] >= 0]:
        count[m, d, e] += 1
  np.testing.assert_array_equal(arrays['count'].reshape(M, D, E), count)
  words = np.array(data['words'])
  own = routing_text.spelled([tokenizers.Bytes().decode([int(made.next[9])])])
  assert words[arrays['next']][list(order).index(9)] == own[0]


def test_the_same_bytes_however_parts_are_cut(written, monkeypatch):
  schema, made, text, folder = written
  monkeypatch.setattr(records, 'PART', 173)
  records.write(folder / 'routing', schema, [made])
  routing_page.write(folder)
  assert (folder / 'report.html').read_text() == text


def test_what_is_drawn_is_bounded_and_spread(tmp_path, monkeypatch):
  long = [(d, b'word ' * 4000) for d in (0, 0, 1)]
  write(tmp_path, [*long, (2, b'few words')])
  record = records.Record.open(tmp_path / 'routing')
  passages = routing_text.sample(record, 4000).passages
  domain = np.concatenate([p.domain for p in passages])
  assert len(domain) <= 4000
  counts = np.bincount(domain)
  assert counts[2] == 9 and min(counts[:2]) > 1500, counts
  for p in passages:
    assert len(p) <= routing_text.PASSAGE
    assert len(set(p.document)) == 1 and set(np.diff(p.position)) <= {1}
    # No piece keeps the whole part in memory.
    assert all(
      getattr(p, k).base is None or len(getattr(p, k).base) <= 400
      for k in records.FIELDS
    )
  # Both documents of a domain, and not their beginnings alone.
  starts = {(p.document[0], p.position[0]) for p in passages}
  assert {0, 1, 2, 3} == {d for d, _ in starts}
  assert max(p for _, p in starts) > 15_000
  # A token takes 2 * 2 choices of 4 bytes, and 8: 24, and a third in base64.
  monkeypatch.setattr(routing_text, 'BYTES', 24 * 100 * 4 // 3)
  few = routing_text.sample(record).passages
  assert sum(map(len, few)) == 100


def test_a_page_that_would_be_too_large_has_less_text(tmp_path, monkeypatch):
  write(tmp_path, [(0, b'word ' * 2000)], metrics={})
  tokens = lambda: sum(
    p['tokens']
    for p in json.loads(
      parse((tmp_path / 'report.html').read_text()).scripts['application/json']
    )['passages']
  )
  whole = os.path.getsize(routing_page.write(tmp_path))
  drawn = tokens()
  monkeypatch.setattr(routing_page, 'LIMIT', whole - 1)
  assert os.path.getsize(routing_page.write(tmp_path)) < whole
  assert 0.4 * drawn < tokens() < 0.6 * drawn


def test_spelling():
  piece = lambda *v: routing_text.spelled(v)
  assert piece(b'a', b'\xe2', b'\x82\xac', b' b') == ['a', '€', '‧', ' b']
  assert piece(b'\xc3', b'x') == ['\\xc3', 'x']
  assert piece(b'a\n\t', b'', b'\x1b[') == ['a\n\t', '', '\\u001b[']
  assert piece('\u2066\ufeff'.encode()) == ['\\u2066\\ufeff']


def test_padding_where_a_row_begins_reads_what_it_stands_for():
  made = part([(0, b'abcdef')])
  made.token[[0, 3, 5]] = 0, 0, 1
  made.next[4] = 1  # the end of the text is itself
  sample = routing_text.Sample((made,), np.zeros((M, D, E)), np.ones(D))
  schema = records.Schema((1, 3), (E, E), K, 384, domains=NAMES)
  special = {0: 'pad', 1: 'eos'}
  data = routing_text.pack(sample, schema, tokenizers.Bytes().decode, special)
  arrays, words = unpack(data), np.array(data['words'])
  assert ''.join(words[arrays['shown']]) == '⟨pad⟩bcde⟨eos⟩'
  assert ''.join(words[arrays['token']]) == '⟨pad⟩bc⟨pad⟩e⟨eos⟩'


def test_tokens_without_a_tokenizer_are_numbers():
  sample = routing_text.Sample(
    (part(TEXTS[:1]),), np.zeros((M, D, E)), np.ones(D)
  )
  schema = records.Schema((1, 3), (E, E), K, 384, domains=NAMES)
  data = routing_text.pack(sample, schema)
  shown = [data['words'][i] for i in unpack(data)['shown'][:2]]
  assert shown == ['⟨63⟩ ', '⟨50⟩ ']
  decode = tokenizers.Bytes().decode
  data = routing_text.pack(sample, schema, decode, {63: 'eos'})
  assert '⟨eos⟩' not in data['words']  # an id with a text keeps it


def test_an_encoder_has_a_page_of_its_own(tmp_path):
  write(tmp_path, TEXTS[:1], metrics={})
  second = {'committee/value': [0.5, 0.25], 'words': ['Mine.']}
  metrics = {f'encoder/{k}': v for k, v in second.items()}
  shutil.copytree(tmp_path / 'routing', tmp_path / 'routing_encoder')
  (tmp_path / 'metrics.json').write_text(json.dumps(metrics))
  routing_page.write(tmp_path)
  read = lambda name: (tmp_path / name).read_text()
  assert 'href="report_encoder.html"' in read('report.html')
  assert 'Mine.' not in read('report.html')
  assert 'ommittee' not in read('report.html')
  assert 'Mine.' in read('report_encoder.html')
  assert 'that all domains share' in read('report_encoder.html')


def test_a_record_without_tokens_is_refused(tmp_path):
  schema = records.Schema((1,), (2,), 1, 9)
  records.write(tmp_path / 'routing', schema, [])
  (tmp_path / 'metrics.json').write_text('{}')
  with pytest.raises(UserError, match='no tokens'):
    routing_page.write(tmp_path)
