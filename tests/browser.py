"""Chromium without a window, through its DevTools: a page is opened and used.

Chrome DevTools Protocol, https://chromedevtools.github.io/devtools-protocol.
"""

import base64
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

NAMES = 'chromium', 'chromium-browser', 'google-chrome'
SECONDS = 60
_FLAGS = (
  '--headless=new',
  '--no-sandbox',  # as root, as in containers, there is none
  '--disable-gpu',
  '--disable-dev-shm-usage',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--hide-scrollbars',
  '--remote-debugging-port=0',
)


def found() -> str | None:
  """The path of a browser, None where there is none."""
  return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
  """A tab: `requests` are the URLs that it asked for, `errors` what its console
  said of errors, exceptions and breaches of policy."""

  def __init__(self, socket):
    self._socket, self._number = socket, itertools.count(1)
    self._session = {}
    self.requests: list[str] = []
    self.errors: list[str] = []
    self._seen: set[str] = set()

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    """The result of a method; a RuntimeError where it fails."""
    number = next(self._number)
    message = {'id': number, 'method': method, 'params': params}
    self._socket.send(json.dumps(message | self._session))
    while True:
      said = json.loads(self._socket.recv())
      if said.get('id') == number:
        if 'error' in said:
          raise RuntimeError(f'{method}: {said["error"]}')
        return said['result']
      self._note(said)

  def attach(self) -> None:
    """Calls go to the browser's first tab from here on."""
    there = self.call('Target.getTargets')['targetInfos']
    target = next(t['targetId'] for t in there if t['type'] == 'page')
    session = self.call('Target.attachToTarget', targetId=target, flatten=True)
    self._session = {'sessionId': session['sessionId']}

  def open(self, path: str | os.PathLike, *, touch: bool = False, **size: int):
    """Opens a file; `width` and `height` are of the window, in pixels."""
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self.call(f'{domain}.enable')
    size = {'width': 1200, 'height': 900} | size
    self.call(
      'Emulation.setDeviceMetricsOverride',
      **size,
      deviceScaleFactor=2 if touch else 1,
      mobile=touch,
    )
    self._seen.clear()
    self.call('Page.navigate', url=pathlib.Path(path).resolve().as_uri())
    end = time.monotonic() + SECONDS
    while 'Page.loadEventFired' not in self._seen:
      self.js('0')
      assert time.monotonic() < end, 'the page did not load'

  def js(self, code: str) -> Any:
    """The value of an expression; a RuntimeError where it throws."""
    found = self.call(
      'Runtime.evaluate',
      expression=code,
      returnByValue=True,
      awaitPromise=True,
    )
    if 'exceptionDetails' in found:
      raise RuntimeError(f'{code}: {found["exceptionDetails"]}')
    return found['result'].get('value')

  def media(self, scheme: str) -> None:
    """'dark' or 'light'."""
    feature = {'name': 'prefers-color-scheme', 'value': scheme}
    self.call('Emulation.setEmulatedMedia', features=[feature])

  def move(self, selector: str, *, click: bool = False) -> None:
    """The mouse goes to the middle of an element that is scrolled to."""
    x, y = self.js(
      f'(async () => {{ const at = document.querySelector({selector!r});'
      'at.scrollIntoView({block: "center"});'
      'await new Promise((f) => requestAnimationFrame(f));'
      'const r = at.getClientRects()[0];'
      'return [r.x + r.width / 2, r.y + r.height / 2]; })()'
    )
    mouse = lambda kind, **more: self.call(
      'Input.dispatchMouseEvent', type=kind, x=x, y=y, **more
    )
    mouse('mouseMoved')
    if click:
      mouse('mousePressed', button='left', clickCount=1)
      mouse('mouseReleased', button='left', clickCount=1)

  def key(self, key: str) -> None:
    for kind in ('rawKeyDown', 'keyUp'):
      self.call('Input.dispatchKeyEvent', type=kind, key=key, code=key)

  def png(self, path: str | os.PathLike, whole: bool = False) -> None:
    """A picture of the window, or of all of the page."""
    shot = self.call('Page.captureScreenshot', captureBeyondViewport=whole)
    pathlib.Path(path).write_bytes(base64.b64decode(shot['data']))

  def _note(self, event: dict[str, Any]) -> None:
    method, params = event['method'], event['params']
    self._seen.add(method)
    if method == 'Network.requestWillBeSent':
      self.requests.append(params['request']['url'])
    elif method == 'Runtime.exceptionThrown':
      self.errors.append(json.dumps(params['exceptionDetails']))
    elif method == 'Runtime.consoleAPICalled':
      if params['type'] in ('error', 'warning', 'assert'):
        self.errors.append(json.dumps(params['args']))
    elif method == 'Log.entryAdded':
      self.errors.append(params['entry']['text'])


@contextlib.contextmanager
def page() -> Iterator[Page]:
  """A tab of a browser that ends with the block."""
  import websocket  # of the extra `browser`

  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
    said = pathlib.Path(home) / 'stderr'
    with said.open('wb') as log:
      flags = [*_FLAGS, f'--user-data-dir={home}', 'about:blank']
      process = subprocess.Popen([found(), *flags], stdout=log, stderr=log)
    try:
      socket = websocket.create_connection(
        _address(pathlib.Path(home), process, said),
        timeout=SECONDS,
        suppress_origin=True,
      )
      with contextlib.closing(socket):
        tab = Page(socket)
        tab.attach()
        yield tab
    finally:
      process.terminate()
      process.wait(SECONDS)


def _address(home: pathlib.Path, process, said: pathlib.Path) -> str:
  """Where the browser listens: it writes port and path into a file."""
  end, file = time.monotonic() + SECONDS, home / 'DevToolsActivePort'
  while time.monotonic() < end and process.poll() is None:
    lines = file.read_text().splitlines() if file.exists() else []
    if len(lines) == 2:
      return f'ws://127.0.0.1:{lines[0]}{lines[1]}'
    time.sleep(0.05)
  raise RuntimeError(f'{found()} did not start: {said.read_text()[-500:]}')
