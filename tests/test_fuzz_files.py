"""Files with any byte or value changed: read, or refused in one line.

`MOE_JAX_FUZZ=2000 pytest -n 0 -m '' tests/test_fuzz_files.py` does as many
mutations of each format; here it is some dozens. A reader that hangs or breaks
the interpreter leaves what it read in the folder whose name it prints.
"""

import faulthandler
import os
import random
import resource
import shutil
import time

import pytest

from experiments import cli
from moe_jax import manifest
from moe_jax.errors import UserError
from moe_jax.runs import durable, quarantine
from tests import fuzz_files, fuzz_formats

MUTATIONS = int(os.environ.get('MOE_JAX_FUZZ', '0'))
# Those whose reading costs most.
FEW = {'checkpoint': 12, 'results.jsonl': 12, 'meta.json': 24}
SECONDS, MEMORY = 10, 1 << 20  # of CPU, for one reading; KiB, of all


def read(form, folder):
  """What was read, or None where the user is told in one line."""
  try:
    return form.read(folder)
  except UserError as e:
    text = str(e)
    # A terminal must take it.
    assert text and '\n' not in text and len(text.encode()) < 5000
  except OSError as e:
    said = isinstance(e, FileNotFoundError | NotADirectoryError)
    if not (said or cli._of_system(e)):
      raise
  return None


@pytest.mark.filterwarnings('default')
@pytest.mark.parametrize('name', fuzz_formats.FORMATS)
def test_mutations(name, tmp_path, monkeypatch, caplog):
  form = fuzz_formats.FORMATS[name]
  monkeypatch.setattr(quarantine, '_PAUSES', ())
  monkeypatch.setattr(durable, 'sync', lambda path: None)  # takes most time
  whole, folder = tmp_path / 'whole', tmp_path / 'mutated'
  whole.mkdir()
  form.make(whole)
  shutil.copytree(whole, folder)
  allowed = [read(form, folder)]
  if name == 'checkpoint':
    allowed.append(1.0)  # the step before
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for n in range(MUTATIONS or FEW.get(name, 30)):
    shutil.rmtree(folder)
    shutil.copytree(whole, folder)
    rng = random.Random(f'{name} {n}')
    files = sorted(p for p in folder.glob(form.files) if p.is_file())
    path = rng.choice(files)
    data = path.read_bytes()
    other = fuzz_files.mutated(data, rng)
    path.write_bytes(other)
    for signed in folder.glob(form.signed) if form.signed else ():
      manifest.write(signed)
    began = time.process_time()
    faulthandler.dump_traceback_later(12 * SECONDS, exit=True)
    try:
      found = read(form, folder)
    except BaseException as e:
      e.add_note(f'mutation {n} of {name}, {path.relative_to(folder)}')
      raise
    finally:
      faulthandler.cancel_dump_traceback_later()
    took = time.process_time() - began
    assert took < SECONDS, (name, n, took)
    if form.digest and found is not None and other != data:
      assert found in allowed or isinstance(found, str), (name, n)
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert after - before < MEMORY, name
