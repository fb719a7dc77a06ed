"""The flag of modules that call strings may import."""

from absl import flags

from moe_jax import registry

_ALLOW = flags.DEFINE_list(
  'allow_modules',
  [],
  "Modules, such as 'my_lab', that dotted names of call strings may import.",
)


def allow() -> None:
  """Before a config's call strings are built."""
  registry.allow(*_ALLOW.value)
