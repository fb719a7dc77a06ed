"""Messages are one line that any terminal takes."""

from moe_jax.errors import NotFiniteError, UserError


def test_half_characters_and_pages():
  assert str(UserError('a \ud800 b')) == 'a \\ud800 b'
  assert UserError('a', 3).args == ('a', 3) and not UserError().args
  text = str(UserError(f'value {"x" * 99_999} is wrong; valid: 1'))
  assert len(text) < 5000
  assert text.startswith('value xx') and text.endswith('xx is wrong; valid: 1')
  long = 'x' * 4000
  assert str(NotFiniteError(long)) == long
