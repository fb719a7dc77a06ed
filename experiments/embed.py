"""Embeddings of domains by a run's model: rows that routers begin with.

  python -m experiments.embed --from=PUBLIC --domains=prose,code --out=R.npy
  python -m experiments.convert --from=PUBLIC --workdir=OWNER \\
      --method="upcycle(num_experts=2, router='flex_olmo(k=2)', rows='R.npy')"

A row is the mean hidden state of a domain's documents, each of length 1
(FlexOlmo, arXiv:2507.07024, which takes another model's); 'code+prose' is one
of two domains. The first of an owner's rows is the public expert's.
"""

from absl import flags

from experiments import cli, modules, processes

_FROM = flags.DEFINE_string('from', None, 'Workdir of the run.', required=True)
_DOMAINS = flags.DEFINE_list('domains', [], 'A row each.')
_OUT = flags.DEFINE_string('out', None, 'File to write, .npy.', required=True)
_CPU_DEVICES = flags.DEFINE_integer('cpu_devices', 1, 'Simulated, on CPU.')
flags.adopt_module_key_flags(processes)
flags.adopt_module_key_flags(modules)


def main(_: list[str]) -> None:
  """Writes the file."""
  modules.allow()
  processes.start(_CPU_DEVICES.value)
  from moe_jax.training import embeddings

  embeddings.write(_FROM.value, _DOMAINS.value, _OUT.value)
  print(_OUT.value)


if __name__ == '__main__':
  cli.run(main)
