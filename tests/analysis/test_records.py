"""Records of routing: what was written is read, and nothing else is."""

import dataclasses
import json

import numpy as np
import pytest

from moe_jax import types
from moe_jax.analysis import records
from moe_jax.errors import UserError

SCHEMA = records.Schema(layers=(1, 3), experts=(4, 4), choices=2, vocab=9)


def some(n, seed=0):
  rng = np.random.default_rng(seed)
  expert = rng.integers(-1, 4, (n, 2, 2))
  return records.part(expert, token=rng.integers(0, 9, n))


def same(a, b):
  for field in records.FIELDS:
    np.testing.assert_array_equal(getattr(a, field), getattr(b, field), field)


def test_causes_are_those_of_the_layer():
  assert records.CAUSES == types.CAUSES
  assert (records.KEPT, records.UNSENT) == (types.KEPT, types.UNSENT)


def test_what_was_written_is_read(tmp_path, monkeypatch):
  monkeypatch.setattr(records, 'PART', 7)
  parts = some(16), some(5, seed=1)
  written = records.write(tmp_path / 'routing', SCHEMA, iter(parts))
  record = records.Record.open(tmp_path / 'routing')
  assert record == written
  assert record.schema.parts == (7, 7, 2, 5)
  assert record.schema.names == ('layer_1', 'layer_3')
  assert len(record) == 21
  same(records.concatenate(record.parts()), records.concatenate(parts))


def test_a_second_record_takes_the_place_of_the_first(tmp_path):
  records.write(tmp_path, SCHEMA, [some(3), some(3)])
  records.write(tmp_path, SCHEMA, [some(2)])
  assert sorted(f.name for f in tmp_path.iterdir()) == [
    'part_00000.npz',
    'schema.json',
  ]


def test_a_record_half_written_is_none(tmp_path):
  def failing():
    yield some(3)
    raise OSError('disk full')

  records.write(tmp_path, SCHEMA, [some(3)])
  with pytest.raises(OSError, match='disk full'):
    records.write(tmp_path, SCHEMA, failing())
  with pytest.raises(UserError, match=r'holds no routing record'):
    records.Record.open(tmp_path)


def test_parts_that_do_not_fit_are_not_written(tmp_path):
  wide = dataclasses.replace(SCHEMA, choices=3)
  with pytest.raises(UserError, match=r'expert is int16 \(3, 2, 2\)'):
    records.write(tmp_path, wide, [some(3)])


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'version': 7}, 'version 7; read are those of version 1'),
    ({'tokens': 4}, r'parts of \(3,\) tokens do not make 4'),
    ({'parts': 3}, 'no schema of a record'),
    ({'layers': [1]}, 'for 1 layers'),
    ({'choices': 1}, r'expert is int16 \(3, 2, 2\); the schema says'),
  ],
)
def test_another_schema_is_one_line(tmp_path, change, said):
  records.write(tmp_path, SCHEMA, [some(3)])
  file = tmp_path / 'schema.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(UserError, match=said):
    list(records.Record.open(tmp_path).parts())


@pytest.mark.parametrize('rest', [b'', b'nonsense', None])
def test_a_broken_part_is_one_line(tmp_path, rest):
  records.write(tmp_path, SCHEMA, [some(3)])
  file = tmp_path / 'part_00000.npz'
  if rest is None:
    file.unlink()
  else:
    file.write_bytes(rest)
  with pytest.raises(UserError, match=r'part_00000\.npz is'):
    list(records.Record.open(tmp_path).parts())
