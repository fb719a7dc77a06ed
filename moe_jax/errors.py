"""What goes wrong through no fault of the program: one line each, no page."""


class UserError(ValueError):
  """A wrong field, value, path or file; the message names it and what fits."""


class NotFiniteError(UserError, FloatingPointError):
  """Loss, state or evaluation are not finite; names step and checkpoint."""
