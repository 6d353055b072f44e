// The explorer's page. Texts enter the page only as text nodes. The address has the whole state of the view.
"use strict";

const WAIT = 160; // milliseconds without a key before a text is ranked
const SHOWN = 6; // history items before the fold
const GONE = 6; // number of named titles that left the list
const CLOSE = 3; // number of places that rounding may move a target
const $ = (id) => document.getElementById(id);
const limit = Number(document.body.dataset.limit);
const mostLines = Number(document.body.dataset.lines);

let view = null; // the last answer of /api/view
let ranked = null; // the last answer of /api/rank; null while there is nothing to rank
let edited = null; // the same; null while text and weight are the run's own
let turn = 0; // number of the newest request for a view
let ranking = null; // AbortController of the current request for ranks
let writing = null; // AbortController of the profile that is being written
let matched = []; // lines of own titles, each with its item

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
const hidden = (text) => el("span", { class: "hidden" }, text);
const count = (n) => n.toLocaleString("en");
const fill = (node, ...children) => node.replaceChildren(...children.filter((child) => child !== null));

function problem(line) {
  $("problem").hidden = !line;
  $("problem").textContent = line || "";
}

async function ask(path, body, signal) {
  const how = body === undefined ? { signal } : { signal, method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, how);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The explorer does not answer. Is it still running in the terminal?");
  }
  const content = await answer.json().catch(() => ({ error: `The explorer answered with status ${answer.status}.` }));
  if (!answer.ok) throw new Error(content.error || `The explorer answered with status ${answer.status}.`);
  return content;
}

// ---- state and address

function address(changes = {}) {
  const state = { ...(view ? view.state : {}), ...changes };
  const query = new URLSearchParams();
  for (const key of ["dataset", "session", "own", "left", "right", "text", "weight", "same"]) {
    if (state[key] !== undefined && state[key] !== null && !(key === "own" && state.session !== "own")) query.set(key, state[key]);
  }
  return "?" + query;
}

async function go(search, push = true) {
  const mine = ++turn;
  stop();
  clearTimeout(timer);
  document.querySelector("main").setAttribute("aria-busy", "true");
  $("lists").classList.add("pending");
  problem("");
  try {
    const answer = await ask("/api/view" + search);
    if (mine !== turn) return;
    view = answer;
    take(answer.ranked || null);
    history[push ? "pushState" : "replaceState"](null, "", address());
    draw();
  } catch (error) {
    if (mine === turn) problem(error.message);
    if (mine === turn && !view) $("loading").hidden = true;
  } finally {
    if (mine === turn) {
      document.querySelector("main").setAttribute("aria-busy", "false");
      $("lists").classList.remove("pending");
    }
  }
}
const change = (changes) => go(address(changes));

function take(answer) {
  ranked = answer;
  edited = answer && answer.changed ? answer : null;
}
const otherText = () => Boolean(edited) && edited.text !== view.sides.right.text;
const otherWeight = () => Boolean(edited) && edited.weight !== view.sides.right.weight;

// ---- what is shown

function draw() {
  $("loading").hidden = true;
  for (const id of ["user", "profiles", "lists"]) $(id).hidden = false;
  $("notices").hidden = !view.notices.length;
  fill($("notices"), ...view.notices.map((line) => el("li", {}, line)));
  $("dataset").value = view.state.dataset;
  $("own-rating").textContent = view.best_rating;
  drawUser();
  drawChoices("left");
  drawChoices("right");
  drawProfiles();
  drawEditor();
  drawLists(false);
  $("missing").hidden = !view.missing.length;
  $("missing").querySelector("summary").textContent = view.missing.length === 1 ? "One run is not here, or only in part" : `${view.missing.length} runs are not here, or only in part`;
  fill($("missing").querySelector("ul"), ...view.missing.map((line) => el("li", {}, line)));
}

function facts(item) {
  const line = item.facts.join(" · ");
  return line ? el("span", { class: "what" }, line) : null;
}
const named = (item) => item.title + (item.year ? ` (${item.year})` : "");

function drawUser() {
  const user = view.user;
  $("user-title").textContent = user.own ? "Your own titles" : `User ${user.name}`;
  document.title = `${$("user-title").textContent} · Profile explorer`;
  $("user-facts").textContent = `${count(user.seen)} seen, of ${count(view.items)} titles` + (user.own ? "" : ` · session ${user.session}`);
  $("target").hidden = user.own;
  if (!user.own) fill($("target"), "The target, what this user chose next: ", el("b", {}, named(user.target)), user.target.facts.length ? ` · ${user.target.facts.join(" · ")}` : null);
  const line = (item) => el("li", {}, el("span", {}, named(item), facts(item)), el("span", { class: "stars" }, hidden("rated "), `★ ${item.rating}`));
  fill($("history"), ...user.history.slice(0, SHOWN).map(line));
  const rest = user.history.slice(SHOWN);
  $("more").hidden = !rest.length;
  $("more").querySelector("summary").textContent = `${rest.length} older`;
  fill($("more").querySelector("ol"), ...rest.map(line));
}

function drawChoices(side) {
  const groups = new Map();
  for (const choice of view.choices) {
    if (!groups.has(choice.group)) groups.set(choice.group, el("optgroup", { label: choice.group }));
    groups.get(choice.group).append(el("option", { value: choice.key }, choice.label));
  }
  fill($(side), ...groups.values());
  $(side).value = view.state[side];
}

// Texts with marked differences; `labels` names the marks for screen readers. Parts: kind, before, after.
function marked(parts, labels, first = false) {
  return parts.map(([kind, before, after]) => {
    const text = first || kind === "-" ? before : after;
    if (kind === "=") return document.createTextNode(text);
    return el(kind === "-" ? "del" : "ins", {}, hidden(`[${labels[kind]}: `), text, hidden("] "));
  });
}

function drawProfiles() {
  const alike = view.differences !== null && view.differences.some(([kind]) => kind === "=");
  const marks = $("mark").checked && alike && !view.same_text;
  for (const name of ["left", "right"]) {
    const side = view.sides[name];
    const box = document.querySelector(`.side.${name}`);
    const text = box.querySelector(".text");
    if (side.error || side.text === undefined) fill(text, el("span", { class: "none" }, side.error || "No profile."));
    else if (!side.text) fill(text, el("span", { class: "none" }, "(an empty profile)"));
    else if (marks) {
      const other = name === "left" ? "+" : "-";
      fill(text, ...marked(view.differences.filter(([kind]) => kind !== other), { "-": "only left", "+": "only right" }, name === "left"));
    } else fill(text, side.text);
    const notes = [];
    if (side.standing) notes.push("No profile is written for these titles yet; their own texts are ranked");
    if (side.source && !side.standing) notes.push(side.source);
    if (side.cut) notes.push("longer than the decoder reads, its end is not ranked");
    box.querySelector(".facts").textContent = notes.join(" · ");
    fill(box.querySelector(".write"), side.writes ? el("button", { type: "button", class: "main", onclick: () => write(name) }, "Write the profile") : null);
  }
  const apart = view.differences !== null && !alike && !view.same_text;
  $("same").hidden = !view.same_text && !apart;
  if (apart) $("same").textContent = "The two texts have hardly a word in common, so none is marked.";
  else if (view.sides.left.run === view.sides.right.run) $("same").textContent = "Both sides are the same run.";
  else $("same").textContent = "Both profiles are the same text; where its lists differ, the decoders or the weights do.";
}

function drawEditor() {
  const side = view.sides.right;
  $("edit").hidden = side.text === undefined;
  if (side.text === undefined) return;
  const text = edited ? edited.text : side.text;
  if ($("text").value !== text) $("text").value = text;
  $("wish").hidden = !view.words.length;
  fill($("word"), ...view.words.map((word) => el("option", {}, word)));
  $("edit-facts").textContent = `Ranked by the decoder of ${side.label}${side.edits}`;
  $("weight").max = side.largest_weight; // before the value, which may not exceed it
  $("weight").value = edited ? edited.weight : side.weight;
  $("beside").checked = view.state.same === "1";
  $("beside").disabled = !view.sides.left.live;
  tell();
}

// The slider has no steps, so that the run's own weight is on it exactly; near it, it is meant.
function weight() {
  const { weight: own, largest_weight: largest } = view.sides.right;
  const value = Number($("weight").value);
  return Math.abs(value - own) < largest / 200 ? own : Math.round(value * 1000) / 1000;
}
const number = (value) => String(Math.round(value * 1000) / 1000);

function tell() {
  const length = $("text").value.length;
  $("text-count").textContent = `${count(length)} of ${count(limit)} characters`;
  $("text-count").classList.toggle("over", length > limit);
  const own = view.sides.right.weight;
  $("undo").disabled = $("text").value === view.sides.right.text && weight() === own;
  const what = weight() === own ? ", the run’s own" : `; the run’s own is ${number(own)}`;
  $("weight-shown").textContent = number(weight()) + (weight() === 0 ? " (text alone)" : "") + what;
  $("weight").setAttribute("aria-valuetext", $("weight-shown").textContent);
  const read = (edited || view.sides.right).read;
  $("read").hidden = !read;
  if (read) {
    fill($("read").querySelector(".likes"), read.likes || el("span", { class: "none" }, "nothing"));
    fill($("read").querySelector(".avoids"), read.avoids || el("span", { class: "none" }, "nothing"));
    const both = read.contradicted.join(", ");
    $("read").querySelector("p").textContent = both ? `Both liked and avoided: ${both}. The later statement counts.` : "";
  }
  $("changed").hidden = !otherText();
  if (otherText()) fill($("changed").querySelector("p"), ...marked(edited.edits, { "-": "removed", "+": "added" }));
}

// A difference of places, by sign and number; `words` says it to a screen reader.
function moved(by, words) {
  const sign = by > 0 ? `▲ ${count(by)}` : by < 0 ? `▼ ${count(-by)}` : "=";
  return el("span", { class: `move${by > 0 ? " up" : by < 0 ? " down" : ""}` }, el("span", { ariaHidden: "true" }, sign), hidden(words));
}

function row(item, side) {
  let move = null;
  if (item.there !== undefined) {
    const by = item.there - item.place;
    const other = side === "left" ? "right" : "left";
    move = moved(by, by ? `${Math.abs(by)} places ${by > 0 ? "above" : "below"} its place on the ${other}, ${item.there}` : `the same place on the ${other}`);
  } else if (item.was !== undefined) {
    const by = item.was - item.place;
    move = moved(by, by ? `${by > 0 ? "up" : "down"} ${Math.abs(by)}, was ${item.was}` : "unmoved");
  }
  const name = el("span", { class: "name" }, named(item), item.target ? el("span", { class: "tag" }, "target") : null, facts(item));
  const line = el("li", { class: item.target ? "target" : "" }, el("span", { class: "place" }, String(item.place)), name, move);
  line.dataset.item = item.item;
  return line;
}

function drawList(name, shown, animate) {
  const side = view.sides[name];
  const box = document.querySelector(`.list.${name}`);
  let title = side.label;
  if (name === "right" && otherText()) title += ", in your words";
  if (name === "right" && otherWeight()) title += `, weight ${number(edited.weight)}`;
  if (name === "left" && shown !== side) title += `, by the right text (weight ${number(shown.weight)})`;
  box.querySelector("h3").textContent = title;
  const rank = box.querySelector(".rank");
  const list = box.querySelector("ol");
  if (!shown.list) {
    fill(rank, el("span", { class: "none" }, side.error || "Nothing to show."));
    fill(list);
    fill(box.querySelector(".gone"));
    return;
  }
  if (shown.rank === null || shown.rank === undefined) fill(rank, el("span", { class: "note" }, `The best of ${count(side.of)} titles you did not name`));
  else {
    const parts = [el("span", {}, "Target at "), el("span", { class: "number" }, count(shown.rank)), el("span", {}, `of ${count(side.of)}`)];
    if (shown.changed) {
      const by = shown.before - shown.rank;
      parts.push(el("span", { class: by > 0 ? "better" : by < 0 ? "worse" : "" }, by ? `${by > 0 ? "▲" : "▼"} ${count(Math.abs(by))} ${by > 0 ? "better" : "worse"}, was ${count(shown.before)}` : "unmoved"));
    } else if (shown === side && side.here !== undefined && side.here !== side.rank) {
      const why = Math.abs(side.here - side.rank) <= CLOSE ? "rounding differs by batch and machine" : "text or decoder have changed since";
      parts.push(el("span", { class: "note" }, `From ranks.parquet; ranked again here: ${count(side.here)} (${why})`));
    }
    fill(rank, ...parts);
  }
  const before = new Map([...list.children].map((line) => [line.dataset.item, line.getBoundingClientRect().top]));
  fill(list, ...shown.list.map((item) => row(item, name)));
  const gone = (shown.gone || []).map((one) => `${one.title} (now ${count(one.place)})`);
  const rest = gone.length > GONE ? ` and ${gone.length - GONE} more` : "";
  fill(box.querySelector(".gone"), gone.length ? `Left the list: ${gone.slice(0, GONE).join(", ")}${rest}` : null);
  if (!animate || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const line of list.children) {
    const was = before.get(line.dataset.item);
    if (was === undefined) line.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 260 });
    else {
      const by = was - line.getBoundingClientRect().top;
      if (by) line.animate([{ transform: `translateY(${by}px)` }, { transform: "none" }], { duration: 260, easing: "ease-out" });
    }
  }
}

function drawLists(animate) {
  const right = ranked || view.sides.right;
  const left = ranked && ranked.beside ? ranked.beside : view.sides.left;
  drawList("left", left, animate && left !== view.sides.left);
  drawList("right", right, animate);
  const other = new Set((left.list || []).map((item) => item.item));
  const both = (right.list || []).filter((item) => other.has(item.item)).length;
  const lines = [`${both} of ${(right.list || []).length} titles in both lists`];
  if (left !== view.sides.left) lines.push("▲ ▼ places above or below the other list");
  $("overlap").textContent = right.list && left.list ? lines.join(" · ") : "";
}

// ---- editing

let timer = 0;
function typed() {
  clearTimeout(timer);
  tell();
  timer = setTimeout(rerank, WAIT);
}

async function rerank() {
  const text = $("text").value;
  if (ranking) ranking.abort();
  problem("");
  const same = $("beside").checked;
  if (text === view.sides.right.text && weight() === view.sides.right.weight && !same) {
    take(null);
    settle();
    return;
  }
  if (text.length > limit) {
    problem(`The text has ${count(text.length)} characters; at most ${count(limit)} are ranked.`);
    return;
  }
  const mine = (ranking = new AbortController());
  const lists = document.querySelectorAll(same ? ".list ol" : ".list.right ol");
  for (const list of lists) list.classList.add("pending");
  try {
    const beside = same ? { beside: view.state.left } : {};
    const answer = await ask("/api/rank", { dataset: view.state.dataset, run: view.state.right, text, weight: weight(), ...beside, ...whose() }, mine.signal);
    if (mine !== ranking) return;
    take(answer);
    settle();
  } catch (error) {
    if (error.name !== "AbortError") problem(error.message);
  } finally {
    if (mine === ranking) for (const list of document.querySelectorAll(".list ol")) list.classList.remove("pending");
  }
}

function settle() {
  view.state.text = otherText() ? edited.text : undefined;
  view.state.weight = otherWeight() ? String(edited.weight) : undefined;
  view.state.same = ranked && ranked.beside ? "1" : undefined;
  history.replaceState(null, "", address());
  tell();
  drawLists(true);
  const shown = ranked || view.sides.right;
  const lines = [edited ? "Ranked." : "The profile as it was written, with the run’s own weight."];
  if (shown.rank) lines.push(`Target at ${shown.rank} of ${view.sides.right.of}${edited ? `, was ${edited.before}` : ""}.`);
  if (ranked && ranked.beside && ranked.beside.rank) lines.push(`On the left at ${ranked.beside.rank}.`);
  if (edited) lines.push(`${edited.list.filter((item) => item.was > edited.list.length).length} of ${edited.list.length} titles are new. First: ${edited.list[0].title}.`);
  $("moved").textContent = lines.join(" ");
}

function whose() {
  if (view.state.session !== "own") return { session: Number(view.state.session) };
  return { own: view.state.own.split(",").map((pair) => pair.split(":").map(Number)) };
}

// ---- writing a profile of own titles

function stop() {
  if (writing) writing.abort();
  writing = null;
}

async function write(name) {
  stop();
  const mine = (writing = new AbortController());
  const box = document.querySelector(`.side.${name} .write`);
  const bar = el("progress", { max: 1, value: 0, ariaLabel: "Profile written" });
  const state = el("span", { class: "facts", role: "status" }, "Starting…");
  fill(box, bar, state, el("button", { type: "button", onclick: () => { stop(); drawProfiles(); } }, "Stop"));
  box.lastChild.focus();
  problem("");
  try {
    const body = { dataset: view.state.dataset, run: view.state[name], own: whose().own };
    const answer = await fetch("/api/write", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal: mine.signal });
    if (!answer.ok) throw new Error((await answer.json()).error);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const event = JSON.parse(line);
        if (event.error) throw new Error(event.error);
        if (event.text !== undefined) {
          writing = null;
          const text = $("text").value !== view.sides.right.text && view.state.text !== undefined ? {} : { text: undefined };
          await go(address(text), false);
          $("moved").textContent = "The profile is written.";
          return;
        }
        bar.max = event.of;
        bar.value = event.done;
        state.textContent = { waiting: "Another profile is being written…", loading: "Loading the encoder…", writing: `${event.done} of at most ${event.of} tokens` }[event.stage];
      }
    }
    throw new Error("The explorer ended before the profile was written.");
  } catch (error) {
    if (error.name !== "AbortError" && mine === writing) {
      writing = null;
      problem(error.message);
      drawProfiles();
    }
  }
}

// ---- whose history

let finding = 0;
async function find() {
  const query = $("find").value.trim();
  const mine = ++finding;
  if (!query || !view) {
    $("found").hidden = true;
    $("found-state").textContent = "";
    return [];
  }
  try {
    const users = await ask(`/api/users?${new URLSearchParams({ dataset: view.state.dataset, q: query })}`);
    if (mine !== finding) return [];
    fill($("found"), ...users.map((one) => el("li", {}, el("button", { type: "button", onclick: () => pick(one.session) }, `User ${one.user}`, one.why.startsWith("saw ") ? el("span", { class: "what" }, one.why) : null))));
    if (!users.length) fill($("found"), el("li", { class: "none" }, "Nobody found"));
    $("found").hidden = false;
    $("found-state").textContent = users.length ? `${users.length} found` : "Nobody found";
    return users;
  } catch (error) {
    problem(error.message);
    return [];
  }
}

function pick(session) {
  $("found").hidden = true;
  $("find").value = "";
  finding++;
  change({ session: String(session), own: undefined, text: undefined });
  $("find").focus();
}

async function match() {
  const lines = $("own-lines").value.split("\n").filter((line) => line.trim());
  if (!lines.length) {
    $("own-state").textContent = "Type a title first.";
    return;
  }
  if (lines.length > mostLines) {
    $("own-state").textContent = `${lines.length} titles; at most ${mostLines} are taken.`;
    return;
  }
  try {
    matched = await ask("/api/match", { dataset: view.state.dataset, lines });
    drawMatched();
  } catch (error) {
    problem(error.message);
  }
}

function drawMatched() {
  fill($("own-found"), ...matched.map((one, at) => {
    if (one.item) return el("li", {}, el("span", { ariaHidden: "true" }, "✓"), el("b", {}, named(one.item)), el("span", { class: "stars" }, hidden("rated "), `★ ${one.rating}`));
    if (!one.near.length) return el("li", {}, el("span", { ariaHidden: "true" }, "✗"), `“${one.line}” is not in the catalogue; it is left out.`);
    const choose = (item) => () => {
      one.item = item;
      drawMatched();
      const next = $("own-found").querySelectorAll("li")[at].querySelector("button") || $("own-found").querySelector("button") || $("own-use");
      next.focus();
    };
    return el("li", {}, el("span", { ariaHidden: "true" }, "?"), `“${one.line}”: do you mean`, ...one.near.map((item) => el("button", { type: "button", onclick: choose(item) }, named(item))));
  }));
  const good = new Set(matched.filter((one) => one.item).map((one) => one.item.item)).size;
  $("own-use").disabled = !good;
  $("own-state").textContent = `${good} of ${matched.length} found` + (good < matched.length ? "; the others are left out unless you choose." : ".");
}

function use() {
  const own = new Map();
  for (const one of matched) if (one.item) { own.delete(one.item.item); own.set(one.item.item, one.rating); }
  openOwn(false);
  change({ session: "own", own: [...own].map(([item, rating]) => `${item}:${rating}`).join(","), text: undefined });
  $("profiles").focus();
}

function openOwn(open) {
  $("own").hidden = !open;
  $("own-open").setAttribute("aria-expanded", String(open));
  if (open) $("own-lines").focus();
}

// ---- wiring

$("pick").addEventListener("submit", async (event) => {
  event.preventDefault();
  const users = await find();
  if (users.length) pick(users[0].session);
});
let looking = 0;
$("find").addEventListener("input", () => { clearTimeout(looking); looking = setTimeout(find, WAIT); });
$("pick").addEventListener("keydown", (event) => {
  if (event.key === "Escape") { $("found").hidden = true; $("find").focus(); }
  const buttons = [...$("found").querySelectorAll("button")];
  if ((event.key === "ArrowDown" || event.key === "ArrowUp") && !$("found").hidden && buttons.length && (event.target === $("find") || buttons.includes(event.target))) {
    event.preventDefault();
    const at = buttons.indexOf(event.target) + (event.key === "ArrowDown" ? 1 : -1);
    (at < 0 ? $("find") : buttons[Math.min(at, buttons.length - 1)]).focus();
  }
});
document.addEventListener("click", (event) => { if (!$("found").contains(event.target)) $("found").hidden = true; });
$("dataset").addEventListener("change", () => go("?" + new URLSearchParams({ dataset: $("dataset").value })));
$("random").addEventListener("click", async () => {
  try {
    const seed = Math.max(0, Math.floor(Number($("seed").value)) || 0);
    const drawn = await ask(`/api/random?${new URLSearchParams({ dataset: view.state.dataset, seed })}`);
    await change({ session: String(drawn.session), own: undefined, text: undefined });
    $("user-facts").textContent += ` · drawn with seed ${seed}`;
    $("seed").value = seed + 1;
  } catch (error) {
    problem(error.message);
  }
});
$("own-open").addEventListener("click", () => openOwn($("own").hidden));
$("own-match").addEventListener("click", match);
$("own-lines").addEventListener("input", () => { $("own-use").disabled = true; });
$("own-use").addEventListener("click", use);
for (const side of ["left", "right"]) {
  $(side).addEventListener("change", () => change({ [side]: $(side).value, ...(side === "right" ? { text: undefined, weight: undefined } : {}) }));
}
$("swap").addEventListener("click", () => change({ left: view.state.right, right: view.state.left, text: undefined, weight: undefined }));
$("mark").addEventListener("change", drawProfiles);
$("text").addEventListener("input", typed);
$("weight").addEventListener("input", typed);
$("beside").addEventListener("change", rerank);
$("undo").addEventListener("click", () => {
  $("text").value = view.sides.right.text;
  $("weight").value = view.sides.right.weight;
  rerank();
  $("text").focus();
});
for (const button of $("wish").querySelectorAll("button")) {
  button.addEventListener("click", () => {
    const text = $("text").value.trimEnd();
    $("text").value = `${text}${text && !/[.!?]$/.test(text) ? "." : ""}${text ? " " : ""}${button.dataset.wish} ${$("word").value}.`;
    rerank();
  });
}
$("link").addEventListener("click", async () => {
  let state = "Link copied.";
  try {
    await navigator.clipboard.writeText(location.href);
  } catch {
    state = "The browser does not let the page copy; the link is in its address bar.";
  }
  $("link-state").textContent = state;
});
// The server has set a cookie with the token. So it is removed from the address, from links and the browser's history.
const query = new URLSearchParams(location.search);
if (query.has("token")) {
  query.delete("token");
  history.replaceState(null, "", String(query) ? "?" + query : location.pathname);
}
addEventListener("popstate", () => go(location.search, false));
addEventListener("pagehide", stop);
go(location.search, false);
