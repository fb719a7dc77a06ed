"""Continues a prompt with a run's checkpoint: bytes in, bytes out.

  python -m experiments.generate --workdir=/tmp/run --prompt='def main('
  echo 'import' | python -m experiments.generate --workdir=/tmp/run --prompt=-

Decodes with a key-value cache, dropless: what a token gets does not depend on
the others of its batch. Writes the samples to stdout (with --out also to a
file).
"""

import sys

from absl import flags

from experiments import cli, modules, processes

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Workdir of the training run.', required=True
)
_PROMPT = flags.DEFINE_string(
  'prompt', '', "Text to continue; '-' reads stdin."
)
_LENGTH = flags.DEFINE_integer('length', 256, 'Tokens to add, at most.')
_SAMPLES = flags.DEFINE_integer('samples', 1, 'Continuations to draw.')
_TEMPERATURE = flags.DEFINE_float('temperature', 0.8, '0 takes the likeliest.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the draws.')
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint; default the newest.')
_OUT = flags.DEFINE_string('out', '', 'File for the samples, in raw bytes.')
_MESH = flags.DEFINE_string('mesh', 'auto()', 'Mesh to decode on.')
_CPU_DEVICES = flags.DEFINE_integer(
  'cpu_devices', 1, 'Simulated devices, on CPU only.'
)
flags.adopt_module_key_flags(processes)
flags.adopt_module_key_flags(modules)


def main(_: list[str]) -> None:
  """Generates and prints."""
  modules.allow()
  processes.start(_CPU_DEVICES.value)
  from moe_jax.training import generation

  prompt = _PROMPT.value.encode()
  if _PROMPT.value == '-':
    prompt = sys.stdin.buffer.read()
  generator = generation.Generator(
    _WORKDIR.value, mesh_spec=_MESH.value, step=_STEP.value
  )
  texts = generator(
    prompt,
    length=_LENGTH.value,
    samples=_SAMPLES.value,
    temperature=_TEMPERATURE.value,
    seed=_SEED.value,
  )
  for i, text in enumerate(texts):
    if len(texts) > 1:
      print(f'--- sample {i}')
    sys.stdout.flush()
    sys.stdout.buffer.write(text + b'\n')
  if _OUT.value:
    with open(_OUT.value, 'wb') as f:
      f.write(b'\n'.join(texts))


if __name__ == '__main__':
  cli.run(main)
