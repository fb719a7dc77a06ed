"""What methods refuse where they are built; other families say more."""

import re

import pytest

from moe_jax import registry
from tests import methods

CASES = [
  (family, *case)
  for family in ('experts', 'local_experts', 'dispatch')
  for case in methods.errors(family)
]


@pytest.mark.parametrize(('family', 'spec', 'message'), CASES)
def test_errors(family, spec, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    registry.build(family, spec, d_ff=4)
