"""Runs a program so that a mistake of the user's costs one line, not a page.

A wrong flag, config field, value or path ends the program with `error: ...` on
stderr and exit code 1. Whatever else goes wrong keeps its traceback: it is a
defect of the program, or of a library under it.
"""

import ast
import atexit
import errno
import logging as std_logging
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from moe_jax.errors import StoppedError, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What the system says of a path or its disk, through no fault of the program.
_SYSTEM = {
  *_FULL,
  errno.EFBIG,
  errno.EIO,
  errno.EISDIR,
  errno.ELOOP,
  errno.ENAMETOOLONG,
  errno.EROFS,
  errno.ESTALE,
}
# What a collective says when one of its processes is not there any more.
_LOST = (
  r'Connection (reset|closed|refused)[\w ]*|Socket closed|heartbeat timeout'
)
# To exit with, of a process that was told to end.
_codes: list[int] = []
# Flags of mains that are paths.
_PATHS = {
  *('workdir', 'workdirs', 'against', 'pretrained', 'out', 'replay'),
  *('compare', 'text', 'from', 'from_hf', 'to_hf', 'hf_config'),
  *('done', 'study', 'dir', 'loads'),
}
# Seconds that processes which fail alike may be apart.
_TURN = 2
_HELP = ('-h', '-help', '--help', '-helpshort', '--helpshort')


def run(
  main: Callable[[list[str]], int | None], arguments: bool = False
) -> None:
  """`app.run(main)` for a program that takes flags.

  `--help` prints the main module's docstring and flags, and exits with 0. The
  user's mistakes are UserErrors, and paths that are missing or forbidden.

  Args:
    main: of the program.
    arguments: whether it takes others than flags.
  """

  def guarded(argv):
    if not flags.FLAGS['verbosity'].present:
      # absl's INFO would put the lines of three libraries between ours.
      logging.set_verbosity(logging.WARNING)
      logging.get_absl_handler().setFormatter(_Line())
    if len(argv) > 1 and not arguments:
      _fail(f'unexpected argument {argv[1]!r}; options are --name=value')
    _check_paths()
    for number in (signal.SIGTERM, signal.SIGUSR1):
      if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, _stop)
    try:
      code = main(argv)
      # Not at the exit, which would tell it as a traceback; stdout may be None.
      print(end='', flush=True)
      return code
    except KeyboardInterrupt as e:
      _end(e)
    except UserError as e:
      _fail(str(e), getattr(e, 'code', 1))
    except (FileNotFoundError, NotADirectoryError, PermissionError) as e:
      _fail(_last_line(e))
    except Exception as e:
      if isinstance(e, BrokenPipeError) and _unread():
        _fail('nobody reads the output any more')
      # A library that was being imported calls the signal a failure.
      for inner in _causes(e):
        if isinstance(inner, KeyboardInterrupt):
          _end(inner)
      # ml_collections keeps a config file's failure until the config is used.
      ours = isinstance(e, OSError) and 'Failed loading config file' in str(e)
      line = _last_line(e) if ours else _of_system(e)
      # One of several processes must not wait for the others.
      if _peers():
        _leave(e, line)
      if not line:
        raise
      # Of a save that failed in thirty threads it tells thirty times.
      std_logging.getLogger('asyncio').setLevel(std_logging.CRITICAL)
      _fail(line)

  # Before those of jax.distributed and of the lock, which so come first.
  atexit.register(_leave_at_last)
  app.run(guarded, flags_parser=_parse)


class _Line(std_logging.Formatter):
  """In place of absl's date, thread and line, and without tracebacks.

  Orbax logs one for each of its threads that a full disk stops.
  """

  def format(self, record: std_logging.LogRecord) -> str:
    return f'{record.levelname}: {record.getMessage()}'


def _check_paths() -> None:
  """Ends the program where a flag's path is no path of a file system.

  A URL: `gs:` would be a folder. Nothing, in a list or where a path has to be
  given: it would be the folder that one is in.
  """
  for name in _PATHS & set(flags.FLAGS):
    value = flags.FLAGS[name].value
    if value == '' != flags.FLAGS[name].default:
      _fail(f'--{name}= is empty; a path is wanted')
    value = value or ()
    for path in [value] if isinstance(value, str) else value:
      if not path:
        _fail(f'--{name}={",".join(value)} has an empty name in it')
      if '://' in path:
        _fail(
          f'--{name}={path} is in an object store, which has no locks and no'
          ' renames; a path of a file system is wanted, local or mounted, and'
          ' what is there can be copied'
        )


def _parse(argv: list[str]) -> list[str]:
  if any(a in _HELP for a in argv[1:]):
    # Not absl's own, which ends a call for help with exit code 1.
    app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
  argv, own = _of_decoder(of_json(argv))
  if argv != sys.argv:
    sys.argv[1:] = argv[1:]  # where ml_collections looks for fields
  try:
    rest = flags.FLAGS(argv)
    if own:
      _set_of_decoder(flags.FLAGS['config'].value, own)
    return rest
  except UserError as e:
    _fail(f'{e}; --help lists the flags')
  except flags.Error as e:
    flag, in_config, _ = str(e).partition(': Error whilst parsing config file')
    if not in_config:
      missing = re.search(r'Flag (--\w+) must have a value', flag)
      flag = f'{missing[1]} is required' if missing else flag.rstrip('.')
      _fail(f'{flag}; --help lists the flags')
    # ml_collections hands on the traceback of `get_config` as text.
    kind, _, said = _last_line(e).partition(': ')
    if kind != 'ValueError':
      raise
    _fail(f'{flag}: {said}')
  except (AttributeError, KeyError) as e:
    # The answer to an override of a field that does not exist; the same errors
    # out of a config file are its defects.
    if any(m.endswith('_config') for m in _modules(e)):
      raise
    while isinstance(e.args[0], Exception):  # AttributeError(KeyError(...))
      e = e.args[0]
    _fail(_unknown_field(str(e.args[0]), argv))
  except (TypeError, IndexError) as e:
    inside = _inside_a_value(e, argv)
    if not inside:
      raise
    _fail(inside)
  except OSError as e:
    _fail(_last_line(e))


def define_fields(name: str, config: Any, text: str) -> flags.FlagHolder:
  """A flag for fields of a config; what they are given is read at once."""
  try:
    return config_flags.DEFINE_config_dict(name, config.lock(), text)
  except (AttributeError, KeyError) as e:
    while isinstance(e.args[0], Exception):
      e = e.args[0]
    _fail(_unknown_field(str(e.args[0]), sys.argv))


def overrides(name: str, groups: tuple[str, ...]) -> dict[str, Any]:
  """{'data.dir': value}: what --NAME.data.dir and its like were given.

  Raises:
    ValueError: a field of another group.
  """
  given = config_flags.get_override_values(flags.FLAGS[name])
  for field in given:
    if field.partition('.')[0] not in groups:
      raise UserError(
        f'--{name}.{field}: here fields of {" and ".join(groups)} can be given'
      )
  return given


def of_json(argv: list[str]) -> list[str]:
  """With `--config=RUN/config.json` as the config file that reads it."""
  saved = os.path.join(os.path.dirname(__file__), '..', 'configs', 'saved.py')
  named = lambda a: re.sub(
    r'^--?config=(.+\.json)$', lambda m: f'--config={saved}:{m[1]}', a
  )
  return [named(a) for a in argv]


def _of_decoder(argv: list[str]) -> tuple[list[str], dict[str, str]]:
  """The other arguments, and `--config.moe.decoder.<field>=<text>`.

  `moe.decoder` has no fields until one is set, so ml_collections knows none.
  """
  found = [re.match(r'--?config\.moe\.decoder\.(\w+)=(.*)', a) for a in argv]
  rest = [a for a, m in zip(argv, found) if not m]
  return rest, {m[1]: m[2] for m in found if m}


def _set_of_decoder(config: Any, own: dict[str, str]) -> None:
  """Sets fields of `moe.decoder`, each of the type that `moe` has."""
  for name, text in own.items():
    flag = f'--config.moe.decoder.{name}={text}'
    if name not in config.get('moe', {}) or name == 'decoder':
      raise UserError(f'{flag}: the config has no field {f"moe.{name}"!r}')
    kind, value = type(config.moe[name]), text
    if kind is not str:
      try:
        value = ast.literal_eval(text.capitalize() if kind is bool else text)
      except (ValueError, SyntaxError):
        value = text
      value = kind(value) if isinstance(value, int | list) else value
      if type(value) is not kind:
        raise UserError(f'{flag}: the type {kind.__name__} is wanted')
    with config.unlocked():
      config.moe.decoder[name] = value


def _unknown_field(said: str, argv: list[str]) -> str:
  # ml_collections names the field and its neighbour, but not the flag.
  found = re.search(r"^'(\w+)'|to lookup: ([\w.]+)$", said)
  if not found:
    return said
  field = found[1] or found[2]
  given = [a for a in argv if re.match(rf'--?\w+\.([\w.]+\.)?{field}\b', a)]
  near = re.search(r'Did you mean "(\w+)"', said)
  return (
    (f'{given[0]}: ' if given else '')
    + f'the config has no field {field!r}'
    + (f'; did you mean {near[1]!r}?' if near else '')
  )


def _inside_a_value(error: Exception, argv: list[str]) -> str:
  """What to say of an override of a part of a value; '' where none is."""
  # The config before its overrides: ml_collections has it where it failed.
  found = [
    frame.f_locals['config']
    for frame, _ in traceback.walk_tb(error.__traceback__)
    if frame.f_globals.get('__name__', '').startswith('ml_collections.')
    and 'config' in frame.f_locals
  ]
  for arg in argv if found else ():
    given = re.match(r'--?\w+\.([\w.[\]]+)', arg)
    at, path = found[0], ''
    for field in re.findall(r'\w+', given[1])[:-1] if given else ():
      path, at = f'{path}.{field}'.lstrip('.'), getattr(at, field, None)
      if not hasattr(at, 'items'):
        return (
          f'{arg}: {path} is {at!r}, one value without fields; set it whole'
        )
  return ''


def _modules(error: Exception) -> list[str]:
  """The modules of the traceback, the raising one last."""
  frames = traceback.walk_tb(error.__traceback__)
  return [f.f_globals.get('__name__', '') for f, _ in frames]


def _last_line(error: Exception) -> str:
  line = str(error).strip().splitlines()[-1]
  return re.sub(r'^\s*\[Errno \d+\] ', '', line)


def _unread() -> bool:
  """Whether stdout is a pipe that its reader closed; it is then let go."""
  poll = select.poll()
  poll.register(sys.stdout.fileno(), select.POLLOUT)
  gone = select.POLLERR | select.POLLHUP
  if not any(event & gone for _, event in poll.poll(0)):
    return False
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  return True


def _peers() -> bool:
  """Whether this is one of several processes; starts no device."""
  if 'jax' not in sys.modules:
    return False
  from moe_jax.parallel import compat

  return compat.service()[2] > 1


def _leave(error: Exception, line: str) -> None:
  """Ends a process of several, which would wait for the others, and abort."""
  found = re.search(_LOST, str(error))
  if found:
    line = f'error: another process of this job is gone ({found[0]})'
    print(line, file=sys.stderr)
  elif line:
    print(f'error: {line}', file=sys.stderr)
  else:
    traceback.print_exception(error)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(1)


def _of_system(error: Exception) -> str:
  """What to say of a disk that is full, or such; '' of a defect.

  Libraries wrap what the system says, or keep its text alone.
  """
  for inner in _causes(error):
    number = inner.errno if isinstance(inner, OSError) else None
    texts = [os.strerror(n) for n in _FULL]
    if number in _SYSTEM or any(t in str(inner) for t in texts):
      return _last_line(error) if error is inner else _first_line(error)
  return ''


def _causes(error: BaseException) -> Iterator[BaseException]:
  """An error, what it was raised for, and so on."""
  inner: BaseException | None = error
  while inner is not None:
    yield inner
    inner = inner.__cause__ or inner.__context__


def _first_line(error: Exception) -> str:
  return str(error).strip().splitlines()[0]


def _stop(number: int, frame) -> None:
  """Where nothing else hears the signal: no run is at its steps."""
  raise StoppedError(f'{signal.Signals(number).name}: ended')


def _end(told: KeyboardInterrupt) -> NoReturn:
  stopped = isinstance(told, StoppedError)
  print(told if stopped else 'interrupted', file=sys.stderr)
  _codes.append(told.code if stopped else 130)
  sys.exit(_codes[0])


def _leave_at_last() -> None:
  """Ends a process that was told to without the interpreter's own clearing up.

  XLA's threads may be at something then, and crash: the exit code was that of
  a segmentation fault, one time in two.
  """
  if _codes:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_codes[0])


def _fail(message: str, code: int = 1) -> NoReturn:
  print(f'error: {" ".join(message.split())}', file=sys.stderr)
  if _peers():
    # An ordinary exit would wait for the others, and they for this one; those
    # that fail as it did are given the time to say so.
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(_TURN)
    os._exit(code)
  sys.exit(code)
