"""What goes wrong through no fault of the program: one line each, no page."""

_LONGEST = 4000  # characters of a message


class UserError(ValueError):
  """A wrong field, value, path or file; the message names it and what fits.

  Half of a character, as JSON and file names may have, is shown by its number:
  no terminal and no UTF-8 file takes it. Of a message that is a page long, for
  a value that is, the middle is left out.
  """

  def __init__(self, *args):
    super().__init__(*(_plain(a) if isinstance(a, str) else a for a in args))


def _plain(text: str) -> str:
  text = text.encode(errors='backslashreplace').decode()
  if len(text) <= _LONGEST:
    return text
  half = _LONGEST // 2
  return f'{text[:half]} ... {text[-half:]}'


class StoppedError(KeyboardInterrupt):
  """A run was told to end, and did, with a checkpoint; the message says where.

  As Ctrl-C, it is nothing that `except Exception` may take for a failure.

  Attributes:
    code: to exit with.
  """

  def __init__(self, message: str, code: int = 143):
    super().__init__(message)
    self.code = code


class MachineError(UserError):
  """Steps gave other numbers when they ran again: not the data's fault.

  Attributes:
    code: to exit with, sysexits.h's EX_IOERR.
  """

  code = 74


class SpikedError(UserError, FloatingPointError):
  """The loss rose far above what it was, once more than the run may go back."""


class NotFiniteError(UserError, FloatingPointError):
  """Loss, state or evaluation are not finite; names step and checkpoint."""
