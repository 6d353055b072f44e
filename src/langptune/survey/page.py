"""The questionnaire as one self-contained HTML file that sends no requests.

Style and script are strings here, not separate files, so that the hash of a rule's code includes them: editing either
reruns the questionnaires.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from typing import Any

STYLE = """
:root{--ink:#1f211e;--soft:#55594f;--line:#d5d3ca;--paper:#fbfaf6;--card:#fff;--deep:#1e4b45;--deeper:#143631;
--wash:#e8efec;--alarm:#9b1c1c;color-scheme:light}
*{box-sizing:border-box}
html{font-size:100%;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:1.0625rem/1.6 Charter,"Bitstream Charter","Source Serif 4",Cambria,Georgia,"DejaVu Serif",serif}
main{max-width:40rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
main:has(fieldset){max-width:62rem}
.told{margin:1.5rem 0 0}
h1{font-size:1.65rem;line-height:1.25;font-weight:600;margin:0 0 1.1rem;letter-spacing:-.01em}
h2{font-size:1.1rem;line-height:1.35;font-weight:600;margin:0 0 .5rem}
h1:focus,h2:focus{outline:none}
p{margin:0 0 1rem}
p,li,td,label,legend,h1,h2{overflow-wrap:anywhere}
.soft{color:var(--soft)}
.small{font-size:.94rem}
progress{display:block;width:100%;height:.3rem;margin:0 0 2rem;border:0;border-radius:1rem;overflow:hidden;
background:var(--line);appearance:none}
progress::-webkit-progress-bar{background:var(--line)}
progress::-webkit-progress-value{background:var(--deep)}
progress::-moz-progress-bar{background:var(--deep)}
.history{margin:0 0 2rem}
.history ol{margin:0;padding:0;list-style:none;columns:2 20rem;column-gap:2.5rem}
.history li{break-inside:avoid;display:flex;gap:1rem;justify-content:space-between;align-items:baseline;
padding:.28rem 0;border-bottom:1px solid var(--line);line-height:1.4}
.history .rating{flex:none;font:.9rem/1.4 system-ui,sans-serif;color:var(--soft)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,18rem),1fr));gap:1.25rem;margin:0 0 2.25rem}
.profile{background:var(--card);border:1px solid var(--line);border-radius:.4rem;padding:1.1rem 1.25rem;min-width:0}
.profile h2{font:600 .9rem/1.4 system-ui,sans-serif;color:var(--deep)}
.profile p{margin:0;white-space:pre-line}
fieldset{border:0;border-top:1px solid var(--line);margin:0;padding:1.25rem 0 1.4rem;min-width:0}
legend{float:left;width:100%;font-weight:600;padding:0;margin:0 0 .7rem}
legend+*{clear:both}
.choices{display:flex;flex-wrap:wrap;gap:.5rem}
.choices label,.agree{display:flex;gap:.6rem;align-items:center;cursor:pointer}
.choices label{font:1rem/1.35 system-ui,sans-serif;flex:1 1 9rem;min-height:2.75rem;padding:.5rem .8rem;
background:var(--card);border:1px solid #8b8f84;border-radius:.4rem}
.choices label:hover{background:var(--wash)}
.choices label:has(:checked){background:var(--wash);border-color:var(--deep);box-shadow:inset 0 0 0 1px var(--deep)}
.agree{align-items:flex-start;margin:1.5rem 0}
input[type=radio],input[type=checkbox]{accent-color:var(--deep);width:1.15rem;height:1.15rem;flex:none;margin:0}
.agree input{margin-top:.28rem}
:focus-visible{outline:3px solid #c77700;outline-offset:2px}
.choices label:has(:focus-visible){outline:3px solid #c77700;outline-offset:2px}
.choices input:focus-visible{outline:none}
.error{color:var(--alarm);font:600 .95rem/1.4 system-ui,sans-serif;margin:.6rem 0 0}
.error:empty{margin:0}
fieldset.missing legend{color:var(--alarm)}
.buttons{display:flex;flex-wrap:wrap;gap:.75rem;margin:1.75rem 0 0}
button{font:600 1rem/1.3 system-ui,sans-serif;min-height:2.9rem;padding:.65rem 1.5rem;border-radius:.4rem;
border:1px solid var(--deep);background:var(--card);color:var(--deep);cursor:pointer}
button:hover{background:var(--wash)}
button.main{background:var(--deep);color:#fff}
button.main:hover{background:var(--deeper)}
textarea{display:block;width:100%;font:1rem/1.5 system-ui,sans-serif;color:var(--ink);background:var(--card);
padding:.7rem .8rem;border:1px solid #8b8f84;border-radius:.4rem;min-height:7rem;resize:vertical}
textarea+p{margin-top:.6rem}
textarea.code{font:.85rem/1.45 ui-monospace,monospace;min-height:9rem;margin:.75rem 0 0;overflow-wrap:anywhere}
details{margin:1.75rem 0 0}
summary{cursor:pointer;font:600 1rem/1.4 system-ui,sans-serif;color:var(--deep);padding:.4rem 0}
label.above{display:block;font-weight:600;margin:0 0 .5rem}
@media (max-width:32rem){main{padding:1.5rem 1rem 3rem}h1{font-size:1.4rem}.choices{flex-direction:column}
.choices label{flex:0 0 auto}.buttons>*{flex:1 1 auto}}
@media (prefers-reduced-motion:no-preference){.choices label,button{transition:background-color .12s}}
"""

SCRIPT = r"""
'use strict';
(() => {
  const survey = JSON.parse(document.getElementById('survey').textContent);
  const main = document.getElementById('main');
  const KEY = 'langptune-survey-' + survey.survey;
  const PARTS = [
    {
      name: 'preference', legend: "Which profile describes this person's taste better?",
      options: [['a-much', 'A, much better'], ['a-bit', 'A, a bit better'], ['equal', 'About equal'],
                ['b-bit', 'B, a bit better'], ['b-much', 'B, much better']],
    },
    {
      name: 'easier', legend: 'Which profile is easier to read?',
      options: [['a', 'A'], ['equal', 'About equal'], ['b', 'B']],
    },
    ...[['left', 'A'], ['right', 'B']].map(([side, letter]) => ({
      name: 'unsupported_' + side,
      legend: `Does profile ${letter} claim something that the history does not support?`,
      options: [['yes', 'Yes'], ['no', 'No'], ['unsure', "Can't tell"]],
    })),
  ];

  // Order and sides: the same lines as langptune/survey/assignment.py.
  function mulberry32(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6D2B79F5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return (t ^ (t >>> 14)) >>> 0;
    };
  }

  function assign(seed) {
    const draw = mulberry32(seed);
    const below = n => Math.floor(draw() * n / 4294967296);
    const sides = new Map();
    for (const pair of survey.pairs) {
      if (pair.repeats) continue;
      const [first, second] = pair.profiles.map(profile => profile.id);
      sides.set(pair.question, draw() >>> 31 ? [second, first] : [first, second]);
    }
    const order = [...sides.keys()];
    for (let at = order.length - 1; at > 0; at--) {
      const other = below(at + 1);
      [order[at], order[other]] = [order[other], order[at]];
    }
    for (const pair of survey.pairs) {
      if (!pair.repeats) continue;
      const [left, right] = sides.get(pair.repeats);
      sides.set(pair.question, [right, left]);
      const far = below(Math.floor(order.length / 4) + 1);
      const place = order.indexOf(pair.repeats) < order.length / 2 ? order.length - far : far;
      order.splice(place, 0, pair.question);
    }
    return order.map(question => ({question, left: sides.get(question)[0], right: sides.get(question)[1]}));
  }

  // State: in memory, and in this tab's session storage until the end, so that a reload loses nothing.
  let state = null, since = 0;
  const hex = bytes => Array.from(
    crypto.getRandomValues(new Uint8Array(bytes)), byte => byte.toString(16).padStart(2, '0')).join('');

  function begin() {
    const seed = crypto.getRandomValues(new Uint32Array(1))[0];
    state = {response: hex(8), seed, at: -1, seconds: 0, answers: assign(seed), comment: ''};
  }

  function tick() {
    if (state && since) state.seconds += (performance.now() - since) / 1000;
    since = performance.now();
  }

  function rest() {
    tick();
    since = 0;
  }

  function keep() {
    if (!state) return;
    try { sessionStorage.setItem(KEY, JSON.stringify(state)); } catch { /* memory alone, then */ }
  }

  function forget() {
    try { sessionStorage.removeItem(KEY); } catch { /* nothing was kept */ }
  }

  function recall() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(KEY));
      const same = kept && JSON.stringify(assign(kept.seed).map(a => [a.question, a.left, a.right])) ===
        JSON.stringify(kept.answers.map(a => [a.question, a.left, a.right]));
      return same ? kept : null;
    } catch { return null; }
  }

  // Building blocks. Texts go in as text, never as markup.
  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, '');
      else if (value !== false && value !== null) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  function show(title, ...nodes) {
    const head = nodes.find(node => node.tagName === 'H1');
    main.replaceChildren(...nodes);
    document.title = title;
    window.scrollTo(0, 0);
    if (head) head.focus({preventScroll: true});
  }

  const heading = text => el('h1', {tabindex: '-1'}, text);
  const paragraphs = texts => texts.map(text => el('p', {}, text));

  function consent() {
    const error = el('p', {class: 'error', role: 'alert', id: 'consent-error'});
    const box = el('input', {type: 'checkbox', id: 'agree', 'aria-describedby': 'consent-error'});
    const form = el('form', {novalidate: true, onsubmit: event => {
      event.preventDefault();
      if (!box.checked) {
        error.textContent = 'Please tick the box if you agree to take part, or choose “I do not take part”.';
        box.setAttribute('aria-invalid', 'true');
        box.focus();
        return;
      }
      begin();
      instruction();
    }},
      el('label', {class: 'agree', for: 'agree'}, box, el('span', {}, survey.agreement)), error,
      el('div', {class: 'buttons'},
        el('button', {type: 'submit', class: 'main'}, 'I agree, begin'),
        el('button', {type: 'button', onclick: decline}, 'I do not take part')));
    show(survey.title, heading(survey.title), el('div', {}, ...paragraphs(survey.consent),
      el('p', {class: 'soft'}, 'Questions about this study: ' + survey.contact)), form);
  }

  function decline() {
    state = null;
    forget();
    show('No answers were stored', heading('Thank you for reading'),
      el('p', {}, 'You take no part, and nothing was stored. You can close this page now.'));
  }

  function instruction() {
    rest();
    state.at = -1;
    keep();
    show('How it works', heading('How it works'),
      el('div', {}, ...paragraphs(survey.instruction)),
      el('div', {class: 'buttons'},
        el('button', {type: 'button', class: 'main', onclick: () => go(0)}, 'Show the first pair')));
  }

  function go(at) {
    tick();
    state.at = at;
    keep();
    if (at < state.answers.length) question(); else comment();
  }

  function question() {
    const at = state.at, count = state.answers.length, answer = state.answers[at];
    const pair = survey.pairs.find(one => one.question === answer.question);
    const text = id => pair.profiles.find(profile => profile.id === id).text;
    const error = el('p', {class: 'error', role: 'alert', id: 'form-error'});
    const fields = PARTS.map(part => {
      const field = el('fieldset', {id: part.name}, el('legend', {}, part.legend),
        el('div', {class: 'choices'}, ...part.options.map(([value, label]) => el('label', {},
          el('input', {
            type: 'radio', name: part.name, value, checked: answer[part.name] === value,
            onchange: () => {
              answer[part.name] = value;
              field.classList.remove('missing');
              field.removeAttribute('aria-describedby');
              if (!form.querySelector('.missing')) error.textContent = '';
              keep();
            },
          }), el('span', {}, label)))));
      return field;
    });
    const form = el('form', {novalidate: true, onsubmit: event => {
      event.preventDefault();
      const missing = PARTS.filter(part => !answer[part.name]);
      PARTS.forEach((part, i) => {
        fields[i].classList.toggle('missing', missing.includes(part));
        if (missing.includes(part)) fields[i].setAttribute('aria-describedby', 'form-error');
      });
      if (missing.length) {
        error.textContent = missing.length === 1
          ? 'One question is still open: ' + missing[0].legend
          : missing.length + ' questions are still open; they are marked above.';
        document.querySelector(`#${missing[0].name} input`).focus();
        return;
      }
      go(at + 1);
    }}, ...fields, error, el('div', {class: 'buttons'},
      el('button', {type: 'submit', class: 'main'}, at + 1 < count ? 'Next pair' : 'Continue'),
      el('button', {type: 'button', onclick: () => at ? go(at - 1) : instruction()}, 'Back')));
    const profile = (letter, id) => el('section', {class: 'profile', 'aria-labelledby': 'profile-' + letter},
      el('h2', {id: 'profile-' + letter}, 'Profile ' + letter),
      text(id).trim() ? el('p', {dir: 'auto'}, text(id)) : el('p', {class: 'soft'}, '(This profile is empty.)'));
    show(`Pair ${at + 1} of ${count}`,
      heading(`Pair ${at + 1} of ${count}`),
      el('progress', {max: count, value: at, 'aria-label': `${at} of ${count} pairs answered`}),
      el('section', {class: 'history', 'aria-labelledby': 'history'},
        el('h2', {id: 'history'}, 'What this person chose, oldest first, with their own ratings'),
        el('ol', {}, ...pair.history.map(([title, rating]) => el('li', {},
          el('span', {dir: 'auto'}, title), el('span', {class: 'rating'}, rating === null ? '' : 'rated ' + rating))))),
      el('div', {class: 'pair'}, profile('A', answer.left), profile('B', answer.right)),
      form);
  }

  function comment() {
    const box = el('textarea', {id: 'comment', maxlength: '5000', 'aria-describedby': 'comment-note',
      oninput: () => { state.comment = box.value; keep(); }});
    box.value = state.comment;
    show('Anything to add?', heading('Anything to add?'),
      el('form', {onsubmit: event => { event.preventDefault(); finish(); }},
        el('label', {class: 'above', for: 'comment'}, 'Comment (optional)'), box,
        el('p', {class: 'soft small', id: 'comment-note'},
          'Please write nothing by which you, or anybody else, could be recognised.'),
        el('div', {class: 'buttons'},
          el('button', {type: 'submit', class: 'main'}, 'Finish'),
          el('button', {type: 'button', onclick: () => go(state.answers.length - 1)}, 'Back'))));
  }

  function finish() {
    rest();
    keep();
    const response = {
      schema: 'langptune-survey-response/1', survey: survey.survey, response: state.response, consent: true,
      seed: state.seed, seconds: Math.round(state.seconds),
      answers: state.answers.map(({question, left, right, preference, easier, unsupported_left, unsupported_right}) =>
        ({question, left, right, preference, easier, unsupported_left, unsupported_right})),
      comment: state.comment.trim(),
    };
    const name = `langptune-response-${state.response}.json`, text = JSON.stringify(response, null, 1) + '\n';
    const told = el('p', {role: 'status', class: 'told'});
    const box = el('textarea', {class: 'code', readonly: true, id: 'as-text', spellcheck: 'false',
      'aria-label': 'Your answers as text', onfocus: () => box.select()});
    box.value = text;
    const back = el('button', {type: 'button', onclick: () => { since = performance.now(); comment(); }}, 'Back');
    const save = () => {
      const url = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
      el('a', {href: url, download: name}).click();
      setTimeout(() => URL.revokeObjectURL(url), 10000);
      forget();
      back.remove();
      told.textContent = `Saved as ${name}, in the folder where your browser puts downloads. ` +
        'Please send that file to the person who gave you this page. You can then close this tab: it keeps nothing.';
    };
    show('Save your answers', heading('Thank you'),
      el('p', {}, 'All questions are answered. Your answers are still on this page alone: nothing was ' +
        'sent. Save them as a file, and send it to the person who gave you this page.'),
      el('div', {class: 'buttons'}, el('button', {type: 'button', class: 'main', onclick: save}, 'Save my answers'),
        back),
      told,
      el('details', {ontoggle: event => { if (event.target.open) forget(); }},
        el('summary', {}, 'If saving does not work: show as text to copy'),
        el('p', {class: 'small soft'}, 'Copy all of it into a message or a file.'), box));
  }

  window.addEventListener('pagehide', () => { if (since) { tick(); keep(); } });
  state = recall();
  if (!state) consent();
  else if (state.at < 0) instruction();
  else { since = performance.now(); if (state.at < state.answers.length) question(); else comment(); }
})();
"""

_PAGE = """<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="robots" content="noindex">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main id="main"></main>
<noscript><p>This questionnaire needs JavaScript; it runs in this page alone, and sends nothing anywhere.</p></noscript>
<script type="application/json" id="survey">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def policy() -> str:
    """The Content-Security-Policy: allows this style and this script by hash, and nothing else."""
    style, script = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in (STYLE, SCRIPT)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded(data: Any) -> str:
    """JSON for a ``<script>`` element: ASCII without ``<``, ``>`` and ``&``, so that no text can end the element."""
    text = json.dumps(data, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def page(data: dict[str, Any]) -> str:
    """The questionnaire.

    Args:
        data: ``survey`` (id), ``language``, ``title``, ``consent`` (paragraphs), ``agreement``, ``contact``,
            ``instruction`` (paragraphs) and ``pairs``: each ``question``, ``repeats`` (or null), ``history`` (title and
            rating, as text or null) and ``profiles`` (``id`` and ``text``, two of them).
    """
    return _PAGE.format(
        language=html.escape(data["language"]),
        policy=policy(),
        title=html.escape(data["title"]),
        style=STYLE,
        data=embedded(data),
        script=SCRIPT,
    )
