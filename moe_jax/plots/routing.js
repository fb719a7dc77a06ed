// The text view of a routing page: which expert takes which token.
//
// Reads the JSON of `routing_text.pack`; text goes into the page as text, never
// as HTML, and nothing is fetched. Letters as there: M layers, K choices, E
// experts, D domains; i is a token, m a layer, e an expert, g a colour.
(() => {
  'use strict';
  const GROUPS = 8; // colours that are told apart with any colour vision
  const data = JSON.parse(document.getElementById('routing-data').textContent);
  const $ = (id) => document.getElementById(id);
  const types = {
    '|u1': Uint8Array,
    '<u2': Uint16Array,
    '<i2': Int16Array,
    '<u4': Uint32Array,
  };
  const array = ([type, text]) =>
    new types[type](Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const arrays = {};
  for (const name in data.arrays) arrays[name] = array(data.arrays[name]);
  const { shown, token, next, predicted, loss } = arrays;
  const { expert, weight, cause, count } = arrays;
  const M = data.layers.length;
  const K = data.choices;
  const D = data.domains.length;
  const width = Math.max(...data.experts);
  const NOBODY = 2 ** (8 * expert.BYTES_PER_ELEMENT) - 1;
  const NO_LOSS = 2 ** 16 - 1;
  const DROPPED = ['capacity', 'receiver'].map((c) => data.causes.indexOf(c));
  const passageOf = new Uint16Array(shown.length);
  let total = 0;
  data.passages.forEach((p, n) => {
    p.start = total;
    total += p.tokens;
    passageOf.fill(n, p.start, total);
  });

  // What is chosen in the controls; `alone` is the expert that is highlighted.
  const state = { layer: M >> 1, alone: null, colour: '', domain: -1 };
  state.colour = $('colour').value;
  $('layer').value = state.layer;
  let drawn = []; // passages in the page, in order
  // Of each expert of the layer its colour, -1 for none, and how strong it is.
  let groupOf = [];
  let strengthOf = [];

  const element = (tag, className, ...children) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children);
    return made;
  };
  const percent = (x) => `${(100 * x).toFixed(x < 0.0995 ? 1 : 0)} %`;
  const quoted = (word) =>
    `‘${word.replaceAll('\n', '⏎').replaceAll('\t', '⇥').replaceAll(' ', '␣')}’`;
  const title = (m) => `Layer ${data.layers[m]}`;
  const chosen = (m, d, e) => count[(m * D + d) * width + e];
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const experts = () => [...Array(data.experts[state.layer]).keys()];
  const domains = [...Array(D).keys()];
  const loadOf = (m, e) => sum(domains.map((d) => chosen(m, d, e)));
  // An expert's share of a domain's choices.
  const shareIn = (m, d, e) => {
    const all = sum(experts().map((x) => chosen(m, d, x)));
    return all ? chosen(m, d, e) / all : 0;
  };

  function group() {
    const m = state.layer;
    const all = experts();
    if (state.colour === 'home') {
      const share = domains.map((d) => {
        const of = all.map((e) => chosen(m, d, e));
        const n = sum(of) || 1;
        return of.map((c) => c / n);
      });
      const home = all.map((e) => {
        const of = share.map((s) => s[e]);
        const most = Math.max(...of);
        const d = of.indexOf(most);
        // Full where twice the mean of all domains, faint where all are alike.
        const lift = most ? (most * D) / sum(of) : 0;
        return [most && d < GROUPS ? d : -1, Math.min(1, Math.max(0, lift - 1))];
      });
      groupOf = home.map((h) => h[0]);
      strengthOf = home.map((h) => h[1]);
      return;
    }
    const load = all.map((e) => loadOf(m, e));
    const ranked = [...all].sort((a, b) => load[b] - load[a] || a - b);
    groupOf = all.map(() => -1);
    strengthOf = all.map(() => 0.75);
    // In order of their numbers, so that neighbours in the row differ.
    const busy = ranked.slice(0, GROUPS).sort((a, b) => a - b);
    busy.forEach((e, g) => (groupOf[e] = g));
  }

  // The tint and the line below it; between, they are told apart by both.
  function tint(made, strength) {
    made.style.setProperty('--s', `${Math.round(4 + 56 * strength)}%`);
    made.style.setProperty('--u', `${Math.round(20 + 80 * strength)}%`);
  }

  // [expert, weight, share of the token's weights, cause] of each choice.
  function choices(i, m) {
    const found = [];
    let mass = 0;
    for (let k = 0; k < K; k++) {
      const at = (i * M + m) * K + k;
      if (expert[at] === NOBODY) continue;
      const w = weight[at] * data.scale[m];
      mass += Math.abs(w);
      found.push([expert[at], w, w, cause[at]]);
    }
    for (const c of found) c[2] = mass ? Math.abs(c[2]) / mass : 0;
    return found;
  }

  function paint(span) {
    const of = choices(Number(span.dataset.i), state.layer);
    let g = -1;
    let strength = 0;
    if (state.alone === null) {
      if (of.length) [g, strength] = [groupOf[of[0][0]], strengthOf[of[0][0]]];
    } else {
      const mine = of.find((c) => c[0] === state.alone);
      if (mine) [g, strength] = [colourOf(state.alone), 0.2 + 0.8 * mine[2]];
    }
    const lost = of.every((c) => DROPPED.includes(c[3]));
    const special = span.textContent.startsWith('⟨') ? ' special' : '';
    span.className =
      `${g < 0 ? 't' : `t g g${g}`}${lost ? ' lost' : ''}${special}`;
    tint(span, strength);
  }
  const colourOf = (e) => (groupOf[e] < 0 ? 0 : groupOf[e]);

  function repaint() {
    group();
    if (state.alone >= data.experts[state.layer]) state.alone = null;
    $('layer-name').textContent = title(state.layer);
    drawExperts();
    drawProfile();
    for (const span of document.querySelectorAll('#passages .t')) paint(span);
    if (held) show(held);
  }

  function drawExperts() {
    const m = state.layer;
    const load = experts().map((e) => loadOf(m, e));
    const most = Math.max(1, ...load);
    const all = sum(load) || 1;
    const focused = document.activeElement?.dataset?.expert;
    const chips = experts().map((e) => {
      const bar = element('span', 'load');
      bar.style.height = `${Math.max(2, (100 * load[e]) / most)}%`;
      const chip = element('button', 'chip', bar, element('b', '', String(e)));
      chip.type = 'button';
      chip.dataset.expert = e;
      const g = e === state.alone ? colourOf(e) : groupOf[e];
      if (g >= 0) chip.classList.add(`g${g}`);
      tint(chip, e === state.alone ? 1 : strengthOf[e]);
      const idle = e >= data.experts[m] - data.local[m];
      if (idle) chip.classList.add('local');
      chip.setAttribute('aria-pressed', String(e === state.alone));
      chip.title =
        `expert ${e}: ${percent(load[e] / all)} of the choices` +
        (idle ? '; it costs no computation' : '');
      return chip;
    });
    $('experts').replaceChildren(...chips);
    $('experts').classList.toggle('one', state.alone !== null);
    if (focused !== undefined) chips[Number(focused)]?.focus();
  }

  function drawProfile() {
    const m = state.layer;
    const E = data.experts[m];
    const box = $('profile');
    box.replaceChildren();
    if (state.alone !== null) {
      const e = state.alone;
      const all = sum(experts().map((x) => loadOf(m, x))) || 1;
      const share = loadOf(m, e) / all;
      box.append(
        element('p', '', element('strong', '', `Expert ${e}`),
          ` takes ${percent(share)} of this layer’s choices, ` +
          `${(share * E).toFixed(2)} times an even share. ` +
          'The deeper its colour, the more it weighs for the token.'));
      const rows = domains.map((d) => [d, shareIn(m, d, e) * E]);
      const most = Math.max(2, ...rows.map((r) => r[1]));
      const bars = element('div', `bars g${colourOf(e)}`);
      for (const [d, times] of rows) {
        const bar = element('span', 'bar', element('i', ''));
        bar.firstChild.style.width = `${(100 * times) / most}%`;
        bar.style.setProperty('--even', `${100 / most}%`);
        bars.append(
          element('span', 'name', data.domains[d]), bar,
          element('span', 'number', `${times.toFixed(2)}×`));
      }
      box.append(bars);
      const own = data.top_tokens?.[m]?.[e] ?? [];
      if (own.length) {
        const words = own.map((w) => element('code', '', quoted(w)));
        box.append(
          element('p', 'own', 'Its own tokens: ',
            ...words.flatMap((w) => [w, ' '])));
      }
      return;
    }
    if (state.colour === 'home') {
      const key = domains
        .filter((d) => d < GROUPS)
        .map((d) => element('span', `key g g${d}`, data.domains[d]));
      box.append(
        element('p', '', 'Experts have the colour of the domain that they ' +
          'serve most: ', ...key.flatMap((k) => [k, ' ']),
          'The fainter, the more alike they serve all.'));
    } else {
      const what = E > GROUPS ? `The ${GROUPS} busiest of ${E} experts` : 'Experts';
      box.append(
        element('p', '', `${what}, by the first choice of each token. ` +
          'Choose one above to see it alone.'));
    }
  }

  function drawPassage(n) {
    const p = data.passages[n];
    const cut = p.position ? `, from token ${p.position.toLocaleString('en')}` : '';
    const text = element('p', 'text');
    text.dir = 'auto';
    for (let i = p.start; i < p.start + p.tokens; i++) {
      const span = element('span', 't', data.words[shown[i]]);
      span.dataset.i = i;
      span.tabIndex = i === p.start ? 0 : -1;
      paint(span);
      text.append(span);
    }
    const title = element('h3', '', data.domains[p.domain], ' ',
      element('small', '', p.name + cut));
    const made = element('article', 'passage', title, text);
    made.dataset.n = n;
    return made;
  }

  const waiting = () =>
    data.passages
      .map((p, n) => n)
      .filter((n) => !drawn.includes(n))
      .filter((n) => state.domain < 0 || data.passages[n].domain === state.domain);

  function drawMore(some) {
    for (const n of waiting().slice(0, some)) {
      drawn.push(n);
      $('passages').append(drawPassage(n));
    }
    const left = waiting().length;
    $('more').hidden = !left;
    $('more').textContent =
      `More text (${left} ${left > 1 ? 'passages' : 'passage'} left)`;
  }

  function restart() {
    drawn = [];
    hide();
    $('passages').replaceChildren();
    drawMore(state.domain < 0 ? Math.min(Math.max(D, 3), 6) : 3);
  }

  // The card: all that is known of one token.
  let held = null;

  function show(span) {
    const i = Number(span.dataset.i);
    const p = data.passages[passageOf[i]];
    held?.classList.remove('held');
    held = span;
    span.classList.add('held');
    span.setAttribute('aria-describedby', 'card');
    const head = element('p', 'head',
      element('code', '', quoted(data.words[token[i]])),
      element('span', 'quiet',
        `${data.domains[p.domain]} · token ` +
        (p.position + i - p.start).toLocaleString('en')));
    const parts = [head];
    if (loss[i] !== NO_LOSS) {
      const nats = loss[i] * data.loss_step;
      parts.push(element('p', 'loss',
        'next ', element('code', '', quoted(data.words[next[i]])),
        ` loss ${nats.toFixed(2)} nats`,
        ...(predicted[i] === next[i]
          ? [', as predicted']
          : ['; predicted ', element('code', '', quoted(data.words[predicted[i]]))])));
    }
    const table = element('div', 'choices');
    // As many of the layers around as there is room for.
    const rows = K > 4 ? 7 : 12;
    const first = Math.max(0, Math.min(state.layer - (rows >> 1), M - rows));
    for (let m = first; m < Math.min(M, first + rows); m++) {
      const row = element('div', m === state.layer ? 'row now' : 'row');
      row.append(element('span', 'name', title(m)));
      const list = element('span', 'list');
      for (const [e, w, share, why] of choices(i, m)) {
        const chip = element('span', 'pick', element('b', '', String(e)));
        if (m === state.layer) {
          if (groupOf[e] >= 0) chip.classList.add('g', `g${groupOf[e]}`);
          tint(chip, strengthOf[e]);
          const bar = element('i', '');
          bar.style.width = `${Math.round(100 * share)}%`;
          chip.append(element('span', 'meter', bar), w.toFixed(2));
        } else {
          chip.style.opacity = 0.35 + 0.65 * share;
        }
        if (data.causes[why] !== 'kept') {
          chip.classList.toggle('lost', DROPPED.includes(why));
          if (m === state.layer) chip.append(` ${data.causes[why]}`);
        }
        list.append(chip);
      }
      if (!list.childNodes.length) list.append(element('span', 'quiet', 'nobody'));
      row.append(list);
      table.append(row);
    }
    parts.push(table);
    $('card').replaceChildren(...parts);
    $('card').hidden = false;
  }

  function hide() {
    held?.classList.remove('held');
    held = null;
    $('card').hidden = true;
  }

  function setLayer(m) {
    if (m < 0 || m >= M) return;
    state.layer = m;
    $('layer').value = m;
    repaint();
  }

  const under = (event) => event.target.closest?.('#passages .t');
  const passages = $('passages');
  passages.addEventListener('mouseover', (event) => {
    if (under(event)) show(under(event));
  });
  passages.addEventListener('focusin', (event) => {
    if (under(event)) show(under(event));
  });
  // A tap is a click; what was shown stays until one goes elsewhere.
  document.addEventListener('click', (event) => {
    if (under(event)) under(event).focus({ preventScroll: true });
    // What a click has replaced is in its path still.
    else if (!event.composedPath().includes($('card').parentNode)) hide();
  });
  passages.addEventListener('keydown', (event) => {
    const span = under(event);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const depth = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (event.key === 'Escape') hide();
    if (!span || !(step || depth)) return;
    event.preventDefault();
    if (depth) return setLayer(state.layer + depth);
    const to = step < 0 ? span.previousSibling : span.nextSibling;
    if (!to) return;
    span.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  });
  $('experts').addEventListener('click', (event) => {
    const chip = event.target.closest('.chip');
    if (!chip) return;
    const e = Number(chip.dataset.expert);
    state.alone = state.alone === e ? null : e;
    repaint();
  });
  $('layer').addEventListener('input', () => setLayer(Number($('layer').value)));
  $('colour').addEventListener('change', () => {
    state.colour = $('colour').value;
    state.alone = null;
    repaint();
  });
  $('domain').addEventListener('change', () => {
    state.domain = Number($('domain').value);
    restart();
  });
  $('more').addEventListener('click', () => drawMore(6));

  $('text-view').hidden = false;
  repaint();
  restart();
})();
