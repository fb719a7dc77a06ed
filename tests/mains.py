"""Runs a main in this process, with flags as on the command line."""

import contextlib
import importlib
import io
import sys
import warnings

from absl import flags

import experiments
from moe_jax.training import loop  # noqa: F401, or the first test pays for it

FLAGS, _PACKAGE = flags.FLAGS, 'experiments.'


@contextlib.contextmanager
def loaded(name):
  """`experiments.<name>`, newly imported, alone in what it defines.

  Mains define flags of the same names, and a process may import each once: the
  flags of others are out of sight here, and back afterwards.
  """
  others = {k: FLAGS[k] for k in FLAGS if _ours(k)}
  for k in others:
    delattr(FLAGS, k)
  kept = _forget()
  try:
    yield importlib.import_module(f'experiments.{name}')
  finally:
    _forget()
    # Those of libraries that were imported meanwhile stay.
    for k in [k for k in FLAGS if _ours(k)]:
      delattr(FLAGS, k)
    for k, module in kept.items():
      sys.modules[k] = module
      setattr(experiments, k.rpartition('.')[2], module)
    for k, flag in others.items():
      FLAGS[k] = flag


def _ours(flag):
  # absl knows no module of those that were put back, and a wrong one of the
  # overrides of a config ('config.seed').
  module = FLAGS.find_module_defining_flag(flag) or _PACKAGE
  return '.' in flag or module.startswith(_PACKAGE)


def _forget():
  """Takes the mains out of the interpreter's modules, and returns them."""
  found = {k: v for k, v in sys.modules.items() if k.startswith(_PACKAGE)}
  for k in found:
    del sys.modules[k]
    delattr(experiments, k.rpartition('.')[2])
  return found


def defined(name):
  """Names of the flags that a main adds to absl's and those of libraries."""
  with loaded(name):
    return ours()


def ours():
  """Names of the flags of the main that is loaded."""
  return {k for k in FLAGS if _ours(k)}


def call(name, *args, stdin=b''):
  """Runs `python -m experiments.<name> ARGS`; (what it returned, its stdout).

  As `cli.run` does, but that errors are raised.
  """
  out = io.TextIOWrapper(io.BytesIO(), write_through=True)
  given = io.TextIOWrapper(io.BytesIO(stdin))
  argv, keep = [name, *args], (sys.argv, sys.stdin)
  # config_flags reads it, too; some where a main is imported.
  sys.argv, sys.stdin = argv, given
  try:
    with loaded(name) as module, contextlib.redirect_stdout(out):
      with warnings.catch_warnings():  # ml_collections loads as in 2012
        warnings.simplefilter('ignore', DeprecationWarning)
        rest = FLAGS(argv)
      assert len(rest) == 1, rest
      result = module.main(rest)
  finally:
    sys.argv, sys.stdin = keep
  return result, out.buffer.getvalue().decode(errors='surrogateescape')
