"""Branches of a seed: one run a domain, each from the seed's parameters.

Branch-Train-Merge (Li et al. 2022, arXiv:2208.03306, section 2) and what comes
of it train them without a word between them; so each is a run of its own,
WORKDIR/<domain>, with the lineage that mixing and averaging ask for.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from moe_jax import json_files, registry
from moe_jax.conversion import lineage, trees
from moe_jax.errors import UserError
from moe_jax.problems import base as problems
from moe_jax.runs import configs, workdir as workdir_lib, writers
from moe_jax.training import loop

Path = str | os.PathLike
# What a branch is: given here, and by no override.
_OWN = ('data.domains', 'data.weights', 'train.init_from', 'train.init_dense')


def plan(
  seed: Path, domains: Sequence[str], root: Path, fields: Mapping[str, Any]
) -> dict[str, Any]:
  """{domain: locked config of its run}; nothing is written but built data.

  Args:
    seed: workdir of the run that all begin with.
    domains: of its data.
    root: where the branches' workdirs are to be.
    fields: {'train.steps': ...} in place of the seed's.

  Raises:
    ValueError: an unknown domain, the same twice, a field that is a branch's
      own, or a branch that is there with other settings.
  """
  config = workdir_lib.load_config(seed)
  for name in _OWN:
    if name in fields:
      raise UserError(f'{name} is what makes a branch: it cannot be given')
  cache = {'data.cache': config.data.cache or os.path.abspath(f'{root}/data')}
  config = trees.with_fields(config, cache | dict(fields))
  _check_domains(config, seed, domains)
  own = {
    'data.weights': (),
    'train.init_from': os.path.abspath(seed),
    'train.init_dense': False,
  }
  made = {
    d: trees.with_fields(config, own | {'data.domains': (d,)}) for d in domains
  }
  for domain, its in made.items():
    configs.validate(its)
    path = pathlib.Path(root) / domain
    if (path / 'config.json').exists():
      differs = workdir_lib.changes(path, configs.to_dict(its))
      if differs:
        raise UserError(
          f'{path} holds a branch of other settings: '
          f'{"; ".join(differs.values())}; choose another workdir'
        )
  return made


def _check_domains(config, seed, domains) -> None:
  if not domains:
    raise UserError('no domains; --domains=a,b is wanted')
  whole = trees.with_fields(config, {'data.domains': (), 'data.weights': ()})
  problem = problems.of(whole).with_kept(str(seed), config.train.init_from)
  problem.find()
  data = problem.open(cache_dir=config.data.cache)
  known = getattr(data, 'domains', ())
  for n, domain in enumerate(domains):
    if domain not in known:
      raise registry.unknown('domain', domain, known)
    if domain in domains[:n]:
      raise UserError(f'domain {domain!r} twice')


def begin(seed: Path, root: Path, made: Mapping[str, Any]) -> None:
  """Writes each branch's lineage.json, once: the seed as it is now.

  Raises:
    ValueError: a branch that began with other parameters than the seed has.
  """
  found = lineage.of(seed)
  told = {d: lineage.told(f'branch(domain={d!r})', '', [found]) for d in made}
  for domain in made:
    path = pathlib.Path(root) / domain / trees.LINEAGE
    if path.is_file():
      before = json_files.read(path)['sources'][0]['digest']
      if before != found.digest:
        raise UserError(
          f'{path.parent} began with {before[:12]}, {seed} is now '
          f'{found.digest[:12]}: it has been trained on; choose another workdir'
        )
  for domain, its in told.items():
    path = pathlib.Path(root) / domain / trees.LINEAGE
    if not path.is_file():
      path.parent.mkdir(parents=True, exist_ok=True)
      writers.write_json(path, its)


def train(
  root: Path,
  made: Mapping[str, Any],
  *,
  index: int = 0,
  count: int = 1,
  allow_download: bool = False,
) -> None:
  """Trains what is left of every `count`-th branch, from the `index`-th on."""
  for domain in list(made)[index::count]:
    workdir = os.path.join(root, domain)
    loop.train(made[domain], workdir, allow_download=allow_download)


def summary(root: Path, domains: Sequence[str]) -> dict[str, dict[str, Any]]:
  """{domain: its scores, and what it cost}; of those that are over.

  Written to WORKDIR/summary.json, too.
  """
  found = {}
  for domain in domains:
    path = pathlib.Path(root) / domain
    if not (path / 'summary.json').is_file():
      continue
    own = json_files.read(path / 'summary.json')
    stages = lineage.of(path).stages
    found[domain] = {
      'scores': {s['key']: own[s['key']] for s in own['problem']['shown']},
      'eval/loss': own['eval/loss'],
      'seconds': own['seconds'],
      'stages': [dict(s) for s in stages],
    }
  writers.write_json(pathlib.Path(root) / 'summary.json', found)
  return found


HEADER = ('branch', 'score', 'held-out loss', 'tokens', 'FLOPs', 'seconds')


def cells(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
  """A row a branch under HEADER; tokens and FLOPs are its own stage's."""
  out = []
  for domain, own in found.items():
    stage = own['stages'][-1]
    score = ', '.join(f'{v:.4f}' for v in own['scores'].values())
    numbers = (
      f'{own["eval/loss"]:.4f}',
      f'{stage["tokens"]:,.0f}',
      f'{stage["flops"]:.3g}',
      f'{own["seconds"]:.0f}',
    )
    out.append((domain, score, *numbers))
  return out
