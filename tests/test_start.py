"""Programs ask for huge pages; importing the package does nothing."""

import os
import subprocess
import sys

PROGRAM = """
import os, sys
print(os.environ.get('GLIBC_TUNABLES', 'none'), *sys.argv[1:])
"""


def start(tmp_path, args, **more):
  """Runs a program of a copy of the package, without jax."""
  (tmp_path / 'experiments').mkdir(exist_ok=True)
  here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  with open(os.path.join(here, 'experiments', '__init__.py')) as f:
    (tmp_path / 'experiments' / '__init__.py').write_text(f.read())
  (tmp_path / 'experiments' / 'say.py').write_text(PROGRAM)
  env = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'} | more
  done = subprocess.run(
    [sys.executable, *args],
    cwd=tmp_path,
    env=env,
    capture_output=True,
    text=True,
    timeout=60,
    check=True,
  )
  return done.stdout.strip()


def test_huge_pages(tmp_path):
  wanted = 'glibc.malloc.hugetlb=1' if sys.platform == 'linux' else 'none'
  program = ['-m', 'experiments.say', '--a=b c', '--d']
  assert start(tmp_path, program) == f'{wanted} --a=b c --d'
  other = 'glibc.malloc.check=0'
  kept = start(tmp_path, program, GLIBC_TUNABLES=other)
  assert kept == f'{other} --a=b c --d'
  importer = ['-c', 'import experiments.say', '--e']
  assert start(tmp_path, importer) == 'none --e'
