"""What goes wrong through no fault of the program: one line each, no page."""


class UserError(ValueError):
  """A wrong field, value, path or file; the message names it and what fits."""


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
