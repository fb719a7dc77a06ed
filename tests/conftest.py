"""Eight simulated devices for every test; a test without them must fail."""

import jax

jax.config.update('jax_num_cpu_devices', 8)


def pytest_sessionstart(session):
  del session
  found = jax.devices()
  assert len(found) == 8 and found[0].platform == 'cpu', found
