"""Continues prompts with a run's checkpoint: bytes in, bytes out.

  python -m experiments.generate --workdir=/tmp/run --prompt='def main('
  echo 'import' | python -m experiments.generate --workdir=/tmp/run --prompt=-
  python -m experiments.generate --workdir=/tmp/run --prompt=for --prompt=while

Decodes with a key-value cache, dropless: what a token gets does not depend on
the others of its batch. Writes the samples to stdout (with --out also to a
file).
"""

import sys

from absl import flags

from experiments import cli, modules, processes, steps

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Workdir of the training run.', required=True
)
_PROMPT = flags.DEFINE_multi_string(
  'prompt', [''], "Text to continue; '-' reads stdin. Several are a batch."
)
_LENGTH = flags.DEFINE_integer('length', 256, 'Tokens to add, at most.')
_SAMPLES = flags.DEFINE_integer('samples', 1, 'Continuations of each prompt.')
_TEMPERATURE = flags.DEFINE_float('temperature', 0.8, '0 takes the likeliest.')
_TOP_K = flags.DEFINE_integer('top_k', 0, 'Draw from so many; 0: from all.')
_TOP_P = flags.DEFINE_float('top_p', 1.0, 'Draw from so much probability.')
_STOP = flags.DEFINE_string('stop', '', 'A token that ends a sample, too.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the draws.')
_OUT = flags.DEFINE_string('out', '', 'File for the samples, in raw bytes.')
_MESH = flags.DEFINE_string('mesh', 'auto()', 'Mesh to decode on.')
_CPU_DEVICES = flags.DEFINE_integer(
  'cpu_devices', 1, 'Simulated devices, on CPU only.'
)
flags.adopt_module_key_flags(processes)
flags.adopt_module_key_flags(modules)
flags.adopt_module_key_flags(steps)


def main(_: list[str]) -> None:
  """Generates and prints."""
  modules.allow()
  processes.start(_CPU_DEVICES.value)
  from moe_jax.training import generation

  prompts = [
    sys.stdin.buffer.read() if p == '-' else p.encode() for p in _PROMPT.value
  ]
  generator = generation.Generator(
    _WORKDIR.value, mesh_spec=_MESH.value, step=steps.chosen(_WORKDIR.value)
  )
  texts = generator(
    prompts,
    length=_LENGTH.value,
    samples=_SAMPLES.value,
    temperature=_TEMPERATURE.value,
    top_k=_TOP_K.value,
    top_p=_TOP_P.value,
    stop=_STOP.value.encode(),
    seed=_SEED.value,
  )
  for i, text in enumerate(texts):
    prompt, sample = divmod(i, _SAMPLES.value)
    if len(texts) > 1:
      of = f' of prompt {prompt}' if len(prompts) > 1 else ''
      print(f'--- sample {sample}{of}')
    sys.stdout.flush()
    sys.stdout.buffer.write(text + b'\n')
  sys.stdout.flush()
  first, rate = generator.speed
  print(
    f'first token after {first:.3g} s, then {rate:.3g} tokens a second',
    file=sys.stderr,
  )
  if _OUT.value:
    with open(_OUT.value, 'wb') as f:
      f.write(b'\n'.join(texts))


if __name__ == '__main__':
  cli.run(main)
