"""The page of what experts do, in a browser: opened, pointed at, used by keys.

Slow, of the extra `browser`, and in need of Chromium, which pip cannot bring.
Where either is absent it is skipped with a line that says how to get it: a
laptop need not have a browser. CI installs both and sets MOE_JAX_BROWSER=1,
under which their absence is a failure: else a browser that went missing there
would leave the page untested, and nobody would see.
"""

import importlib.util
import os

import pytest

from moe_jax.plots import routing_page
from tests import browser
from tests.test_routing_page import HOSTILE, NAMES, D, E, K, write

pytestmark = pytest.mark.slow
TOKEN = '#passages .passage:first-child .t:nth-child(40)'


def needed():
  """Skips, or fails where a browser is demanded."""
  lacks = [
    how
    for there, how in (
      (importlib.util.find_spec('websocket'), "pip install -e '.[browser]'"),
      (browser.found(), 'apt-get install -y chromium'),
    )
    if not there
  ]
  if lacks:
    demanded = os.environ.get('MOE_JAX_BROWSER') == '1'
    (pytest.fail if demanded else pytest.skip)(
      f'needs a browser: {" && ".join(lacks)}'
    )


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  needed()
  folder = tmp_path_factory.mktemp('browser') / 'analysis'
  code = HOSTILE + b'def main():\n  pass\n' * 30
  write(folder, [(0, code), (1, b'int x;\n' * 90), (2, b'Some prose. ' * 90)])
  return routing_page.write(folder)


@pytest.fixture(scope='module')
def tab():
  needed()
  with browser.page() as made:
    yield made


def card(tab):
  return tab.js('card.hidden ? "" : card.innerText')


def test_the_page_opens_and_is_used(tab, path):
  tab.open(path)
  count = lambda css: tab.js(f'document.querySelectorAll({css!r}).length')
  assert tab.js('document.title') == 'Inside browser0'
  assert count('#passages .passage') == D and count('#experts .chip') == E
  # Text is text, whatever it reads.
  shown = tab.js('document.querySelector("#passages .text").textContent')
  assert shown.startswith('</script><img src=x onerror=alert(1)>"\'&amp;<!--')
  assert count('img') == 0
  assert (
    tab.js('document.querySelector("#domain option:last-child").text')
    == (NAMES[-1])
  )

  # The mouse over a token: experts, weights, domain, loss.
  assert card(tab) == ''
  tab.move(TOKEN)
  said = card(tab)
  assert NAMES[0] in said and 'token 39' in said and 'loss' in said
  assert count('#card .row') == 2 and count('#card .row.now .pick') == K

  # A byte inside a character is shown in it, and said by its number.
  at = HOSTILE.index(b'\xa9') + 1
  tab.move(f'#passages .passage:first-child .t:nth-child({at})')
  assert '‘\\xa9’' in card(tab)

  # The layer's selector changes who took the tokens; so do keys.
  classes = '[...document.querySelectorAll("#passages .t")].map(t=>t.className)'
  before = tab.js(classes)
  assert tab.js('document.getElementById("layer-name").value') == 'Layer 3'
  tab.move('#layer', click=True)
  tab.key('Home')
  assert tab.js('document.getElementById("layer-name").value') == 'Layer 1'
  assert tab.js(classes) != before

  # One expert alone, its tokens and no others in a colour.
  tab.move('#experts .chip:nth-child(3)', click=True)
  assert 'Expert 2' in tab.js('profile.innerText')
  assert tab.js(
    '[...document.querySelectorAll("#passages .t")].every((t) => {'
    'const i = t.dataset.i; t.dispatchEvent(new MouseEvent("mouseover",'
    '{bubbles: true})); const has = [...card.querySelectorAll('
    '".row.now .pick b")].some((b) => b.textContent === "2");'
    'return has === t.classList.contains("g"); })'
  )
  tab.move('#experts .chip:nth-child(3)', click=True)
  assert 'Expert 2' not in tab.js('profile.innerText')

  # By keyboard: focus, along the text, through the layers, away.
  tab.js(f'document.querySelector({TOKEN!r}).focus()')
  tab.key('ArrowRight')
  assert 'token 40' in card(tab)
  tab.key('ArrowDown')
  assert tab.js('document.getElementById("layer-name").value') == 'Layer 3'
  assert 'token 40' in card(tab)
  tab.key('Escape')
  assert card(tab) == ''

  # The domain's selector, and more of its text.
  tab.js('domain.value = 1; domain.dispatchEvent(new Event("change"))')
  assert (
    set(
      tab.js(
        '[...document.querySelectorAll(".passage h3")].map(h=>h.innerText)'
      )
    )
    .pop()
    .startswith(NAMES[1])
  )
  drawn = count('#passages .t')
  if not tab.js('more.hidden'):
    tab.move('#more', click=True)
    assert count('#passages .t') > drawn

  # Nothing was fetched, and nothing complained.
  page = 'file://' + path
  assert [u for u in tab.requests if not u.startswith('data:')] == [page]
  assert tab.errors == []


def test_the_page_is_read_on_a_phone(tab, path):
  tab.open(path, width=360, height=740, touch=True)
  assert tab.js('document.documentElement.scrollWidth') <= 360
  tab.move(TOKEN, click=True)
  assert 'loss' in card(tab)
  low, high = tab.js(
    '[card.getBoundingClientRect().top, card.getBoundingClientRect().bottom]'
  )
  assert 740 / 2 < low < high <= 740
  assert tab.errors == []


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_can_be_read_on_every_colour(tab, path, scheme):
  """Contrast of text and ground, WCAG 2.2, 1.4.3: at least 4.5 to 1.

  At the weakest and the strongest tint that the script makes.
  """
  tab.media(scheme)
  tab.open(path)
  worst = tab.js("""(() => {
    const canvas = document.createElement('canvas').getContext('2d', {
      willReadFrequently: true });
    const paint = (...colours) => {
      canvas.clearRect(0, 0, 1, 1);
      for (const c of colours) {
        canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); }
      const rgb = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
      const [r, g, b] = rgb.map((v) => v / 255).map(
        (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const page = getComputedStyle(document.body).backgroundColor;
    const made = document.createElement('span');
    document.querySelector('.text').append(made);
    return Math.min(...[...Array(8).keys()].flatMap((g) =>
      ['4%', '60%'].map((strength) => {
        made.className = `t g g${g}`;
        made.style.setProperty('--s', strength);
        const look = getComputedStyle(made);
        const ground = paint(page, look.backgroundColor);
        const ink = paint(page, look.backgroundColor, look.color);
        const [low, high] = [ground, ink].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05); })));
  })()""")
  tab.media('light')
  assert worst >= 4.5
