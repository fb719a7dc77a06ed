"""What goes wrong through no fault of the program: one line each, no page."""


class UserError(ValueError):
  """A wrong field, value, path or file; the message names it and what fits.

  Half of a character, as JSON and file names may have, is shown by its number:
  no terminal and no UTF-8 file takes it.
  """

  def __init__(self, *args):
    plain = lambda a: a.encode(errors='backslashreplace').decode()
    super().__init__(*(plain(a) if isinstance(a, str) else a for a in args))


class StoppedError(KeyboardInterrupt):
  """A run was told to end, and did, with a checkpoint; the message says where.

  As Ctrl-C, it is nothing that `except Exception` may take for a failure.

  Attributes:
    code: to exit with.
  """

  def __init__(self, message: str, code: int = 143):
    super().__init__(message)
    self.code = code


class NotFiniteError(UserError, FloatingPointError):
  """Loss, state or evaluation are not finite; names step and checkpoint."""
