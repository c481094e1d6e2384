"use strict";
const get = (id) => document.getElementById(id);
const DEPTH = 100; // ranks of both systems that are compared
const PAGE = 50; // test queries that are listed at once
const OPERATORS = {
  boolean: ["="], string: ["=", "!=", "in", "not in"], list: ["contains", "in", "not in"],
  other: ["=", "!=", ">=", "<=", ">", "<", "in"],
};
const state = { info: null, token: "", queryId: null, listed: 0, search: 0, sides: [] };

// Elements are only made of text: nothing that comes from the server is parsed as HTML.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

async function ask(path, body) {
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  const options = { headers };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  let answer, content;
  try {
    answer = await fetch(path, options);
    content = await answer.json();
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.status === 401) {
    get("access").hidden = false;
    get("token").focus();
  }
  if (!answer.ok) throw new Error(content.error.message);
  return content;
}

function showError(message) {
  get("error").textContent = message;
  get("error").hidden = !message;
}

const number = (value, digits = 3) => value.toFixed(digits).replace("-", "\u2212");
const signed = (value) => (value > 0 ? "+" : "") + number(value);
const time = (value) => `${value >= 100 ? value.toFixed(0) : value >= 1 ? value.toFixed(1) : value.toFixed(2)} ms`;
const system = (name) => state.info.systems.find((each) => each.name === name);

async function start() {
  showError("");
  try {
    state.info = await ask("/info");
  } catch (error) {
    showError(error.message);
    return;
  }
  get("access").hidden = true;
  const info = state.info;
  const searching = info.systems.filter((each) => each.can_search);
  document.title = `${info.name} \u00b7 retrodistill`;
  get("name").textContent = info.name;
  const documents = Math.max(0, ...searching.map((each) => each.documents)).toLocaleString("en");
  const parts = [info.collection, `${documents} documents`, info.has_texts ? "" : "texts of documents are not available: serve with --collection"];
  get("about").textContent = parts.filter(Boolean).join(" \u00b7 ");
  for (const [place, id] of ["first", "second"].entries()) {
    const names = searching.map((each) => each.name);
    get(id).replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    get(id).value = info.pair[place] ?? names[place] ?? names[0] ?? "";
  }
  get("second-label").hidden = searching.length < 2;
  get("first-label").hidden = !searching.length;
  get("add-filter").hidden = !Object.keys(fields()).length;
  get("queries").hidden = get("jump").hidden = !info.queries;
  document.body.classList.toggle("alone", !info.queries);
  if (!searching.length) {
    get("search").hidden = true;
    showError("There is nothing to search here: this is a model without documents. Use POST /embed or /v1/rerank.");
    return;
  }
  read();
  list();
}

// The address of the page says what is shown, so that it can be kept and sent, and "back" goes back.
function read() {
  const given = new URLSearchParams(location.search);
  for (const id of ["first", "second", "k"]) {
    const wanted = given.get(id);
    if (wanted && [...get(id).options].some((option) => option.value === wanted)) get(id).value = wanted;
  }
  get("filters").replaceChildren();
  for (const condition of given.getAll("filter")) {
    const parsed = /^"([^"]+)" (=|!=|>=|<=|>|<|in|not in|contains) (.*)$/s.exec(condition);
    if (parsed) addFilter(...parsed.slice(1));
  }
  state.queryId = given.get("query_id");
  get("query").value = given.get("query") ?? "";
  if (get("query").value || state.queryId) search(false);
}

function remember() {
  const shown = new URLSearchParams({ query: get("query").value, first: get("first").value, second: get("second").value, k: get("k").value });
  if (state.queryId) shown.set("query_id", state.queryId);
  for (const condition of conditions()) shown.append("filter", condition);
  if (`?${shown}` !== location.search) history.pushState(null, "", `?${shown}`);
}

function chosen() {
  return [get("first").value, ...(get("second-label").hidden ? [] : [get("second").value])];
}

async function search(isNew = true) {
  const query = get("query").value.trim();
  if (!query && !state.queryId) {
    get("query").focus();
    return;
  }
  const turn = ++state.search;
  showError("");
  get("status").textContent = "Searching\u2026";
  get("sides").setAttribute("aria-busy", "true");
  if (isNew) remember();
  const filter = conditions();
  const shown = Number(get("k").value);
  try {
    const sides = [];
    for (const name of chosen()) { // one after the other: their times are compared
      const depth = Math.min(Math.max(DEPTH, shown), system(name).documents, state.info.limits.k);
      const asked = state.queryId ? { query_id: state.queryId } : { query };
      sides.push(await ask("/search", { ...asked, system: name, k: depth, filter, texts: shown }));
      if (turn !== state.search) return;
    }
    state.sides = sides;
    show(sides, shown);
  } catch (error) {
    if (turn !== state.search) return;
    get("status").textContent = "";
    get("sides").hidden = get("tabs").hidden = true;
    showError(error.message);
  } finally {
    if (turn === state.search) get("sides").removeAttribute("aria-busy");
  }
}

function show(sides, shown) {
  if (state.queryId) get("query").value = sides[0].query;
  const ranks = sides.map((side) => new Map(side.documents.map((each) => [each.document_id, each.rank])));
  get("sides").replaceChildren(...sides.map((side, place) => column(side, place, sides, ranks, shown)));
  get("sides").hidden = false;
  showTabs(sides.map((side) => side.system));
  get("status").textContent = summary(sides, ranks, shown);
  for (const button of get("queries-list").querySelectorAll("button")) {
    if (button.dataset.id === sides[0].query_id) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

// On a narrow screen, one side at a time.
function showTabs(names) {
  const choose = (place) => {
    get("sides").dataset.shown = names.length > 1 ? place : "";
    for (const [at, button] of [...get("tabs").children].entries()) button.setAttribute("aria-pressed", String(at === place));
  };
  const before = get("sides").dataset.shown;
  get("tabs").replaceChildren(...names.map((name, place) => make("button", { type: "button", onclick: () => choose(place) }, name)));
  get("tabs").hidden = names.length < 2;
  choose(before === "0" ? 0 : 1);
}

function summary(sides, ranks, shown) {
  const most = Math.min(shown, Math.max(...sides.map((side) => side.documents.length)));
  if (!most) return "No document was found.";
  const parts = [];
  if (sides.length === 2) {
    const tops = sides.map((side) => side.documents.slice(0, shown).map((each) => each.document_id));
    const shared = tops[1].filter((id) => tops[0].includes(id));
    const change = (id) => ranks[0].get(id) - ranks[1].get(id);
    const up = shared.filter((id) => change(id) > 0).length;
    const down = shared.filter((id) => change(id) < 0).length;
    parts.push(`${shared.length} of ${most} documents in both: ${up} moved up, ${down} down`);
    const measure = state.info.measure;
    const [before, after] = sides.map((side) => side[measure]);
    if (measure && before !== null && before !== undefined && after !== null && after !== undefined) {
      const name = measure.replace("ndcg", "nDCG");
      parts.push(`${name} ${number(before)} \u2192 ${number(after)} (${signed(after - before)})`);
    }
  }
  if (sides[0].relevant) parts.push(`${sides[0].relevant} known relevant`);
  return parts.join(" \u00b7 ");
}

function column(side, place, sides, ranks, shown) {
  const about = system(side.system);
  const detail = about.is_recorded ? "recorded" : time(side.milliseconds);
  const items = side.documents.slice(0, shown).map((each) => item(each, place, sides, ranks));
  return make("section", { class: about.role, "aria-label": side.system },
    make("div", { class: "head" },
      make("h2", {}, side.system),
      make("span", { class: "soft", title: about.queries_by ? `queries by ${about.queries_by}, documents by ${about.documents_by}` : null }, detail)),
    make("ol", {}, ...items));
}

function item(found, place, sides, ranks) {
  const title = found.title || found.document_id;
  const entry = make("li", { tabindex: "0", "data-id": found.document_id, onmouseenter: same, onmouseleave: same, onfocusin: same, onfocusout: same },
    make("div", { class: "head" },
      make("span", {}, make("span", { class: "rank" }, `${found.rank}`), make("span", { class: "title" }, ...marked(title, sides[0].query))),
      sides.length === 2 ? movement(found, place, sides, ranks) : null),
    found.text ? make("p", { class: "text" }, ...marked(found.text, sides[0].query)) : null,
    make("p", { class: "fields" }, facts(found)),
    make("div", { class: "acts" },
      make("button", { type: "button", "data-grade": "1", "aria-pressed": "false", onclick: () => judge(found.document_id, 1) }, "Relevant"),
      make("button", { type: "button", "data-grade": "0", "aria-pressed": "false", onclick: () => judge(found.document_id, 0) }, "Not relevant"),
      found.text && found.text.length > 260
        ? make("button", { type: "button", class: "open", "aria-expanded": "false", onclick: unfold }, "More text") : null));
  paint(entry, found.relevance);
  return entry;
}

function facts(found) {
  const values = Object.entries(found.fields ?? {}).map(([name, value]) => `${name}: ${String(Array.isArray(value) ? value.join(", ") : value).slice(0, 80)}`);
  return [found.title ? found.document_id : "", `score ${number(found.score)}`, ...values].filter(Boolean).join(" \u00b7 ");
}

// From the left system to the right one: on both sides, the rank in the other and the way there.
function movement(found, place, sides, ranks) {
  const other = 1 - place, rank = ranks[other].get(found.document_id), name = sides[other].system;
  if (rank === undefined) {
    const depth = sides[other].documents.length;
    return make("span", { class: `move ${place ? "up" : "gone"}`, title: `not among the first ${depth} of ${name}` }, place ? "new" : `not in ${depth}`);
  }
  const [before, after] = place ? [rank, found.rank] : [found.rank, rank];
  const change = before - after;
  const kind = change > 0 ? "up" : change < 0 ? "down" : "";
  const arrow = change > 0 ? "\u25b2" : "\u25bc";
  return make("span", { class: `move ${kind}`, title: `rank ${rank} in ${name}` },
    change ? `${arrow}${Math.abs(change)} ${place ? `from ${before}` : `to ${after}`}` : "same rank");
}

function marked(text, query) {
  const words = [...new Set(query.toLowerCase().match(/[\p{L}\p{N}]{4,}/gu) ?? [])].slice(0, 30);
  if (!words.length) return [text];
  const pattern = new RegExp(`((?<![\\p{L}\\p{N}])(?:${words.join("|")})(?![\\p{L}\\p{N}]))`, "giu");
  return text.split(pattern).map((part, place) => (place % 2 ? make("mark", {}, part) : part));
}

function unfold(event) {
  const entry = event.target.closest("li");
  const isOpen = entry.classList.toggle("open");
  event.target.textContent = isOpen ? "Less text" : "More text";
  event.target.setAttribute("aria-expanded", String(isOpen));
}

function copies(id) {
  return [...get("sides").querySelectorAll("li")].filter((entry) => entry.dataset.id === id);
}

function same(event) {
  const is = event.type === "mouseenter" || event.type === "focusin";
  for (const entry of copies(event.currentTarget.dataset.id)) {
    if (entry !== event.currentTarget) entry.classList.toggle("same", is);
  }
}

function paint(entry, relevance) {
  const isKnown = relevance !== undefined && relevance !== null;
  entry.classList.toggle("relevant", isKnown && relevance > 0);
  entry.classList.toggle("not-relevant", isKnown && relevance <= 0);
  for (const button of entry.querySelectorAll("[data-grade]")) {
    button.setAttribute("aria-pressed", String(isKnown && (relevance > 0) === (button.dataset.grade === "1")));
  }
}

async function judge(id, relevance) {
  const { query, query_id } = state.sides[0];
  const asked = state.queryId ? { query_id } : { query };
  showError("");
  try {
    await ask("/judge", { ...asked, document_id: id, relevance });
    for (const entry of copies(id)) paint(entry, relevance);
    get("status").textContent = `${id} is judged ${relevance ? "relevant" : "not relevant"}.`;
  } catch (error) {
    showError(error.message);
  }
}

function fields() { // those that both systems can filter by
  const [first, ...others] = chosen().map((name) => system(name)?.fields ?? {});
  return Object.fromEntries(Object.entries(first ?? {}).filter(([name]) => !name.includes('"') && others.every((other) => name in other)));
}

function operatorsOf(kind) {
  return OPERATORS[kind] ?? (kind?.startsWith("list") ? OPERATORS.list : OPERATORS.other);
}

function addFilter(name, operator, value) {
  const known = fields();
  const field = make("select", { "aria-label": "Field" }, ...Object.keys(known).map((each) => make("option", { value: each }, each)));
  const compare = make("select", { "aria-label": "Operator" });
  const box = make("input", { "aria-label": "Value", autocomplete: "off" });
  const fill = () => compare.replaceChildren(...operatorsOf(known[field.value]).map((each) => make("option", { value: each }, each)));
  const again = () => { if (box.value.trim() && (get("query").value || state.queryId)) search(); };
  if (name in known) field.value = name;
  fill();
  if (operator) compare.value = operator;
  box.value = value ?? "";
  field.addEventListener("change", () => { fill(); again(); });
  compare.addEventListener("change", again);
  box.addEventListener("change", again);
  const row = make("div", { class: "filter" }, field, compare, box,
    make("button", { type: "button", "aria-label": "Remove this filter", onclick: () => { row.remove(); if (get("query").value) search(); get("add-filter").focus(); } }, "Remove"));
  get("filters").append(row);
  return box;
}

function conditions() {
  return [...get("filters").children]
    .map((row) => [...row.querySelectorAll("select, input")].map((each) => each.value.trim()))
    .filter(([, , value]) => value)
    .map(([name, operator, value]) => `"${name}" ${operator} ${value}`);
}

async function list(isMore = false) {
  if (!state.info.queries) return;
  const [first, second] = chosen();
  const parameters = new URLSearchParams({ first, second: second ?? first, order: get("order").value, offset: isMore ? state.listed : 0, limit: PAGE });
  try {
    const answer = await ask(`/queries?${parameters}`);
    const rows = answer.queries.map((each) => {
      const gain = each.difference === null ? null
        : make("span", { class: `gain ${each.difference > 0 ? "up" : each.difference < 0 ? "down" : ""}` }, signed(each.difference));
      const current = each.query_id === state.queryId ? "true" : null;
      return make("li", {}, make("button", { type: "button", "data-id": each.query_id, "aria-current": current, onclick: () => choose(each) }, make("span", {}, each.text), gain));
    });
    if (isMore) get("queries-list").append(...rows);
    else get("queries-list").replaceChildren(...rows);
    state.listed = (isMore ? state.listed : 0) + rows.length;
    get("more").hidden = state.listed >= answer.total;
    get("order").parentElement.hidden = !answer.measure;
    get("queries-about").textContent = answer.measure
      ? `${answer.measure.replace("ndcg", "nDCG")} of ${second} minus that of ${first}, ${answer.total.toLocaleString("en")} queries`
      : `${answer.total.toLocaleString("en")} queries`;
  } catch (error) {
    showError(error.message);
  }
}

function choose(query) {
  state.queryId = query.query_id;
  get("query").value = query.text;
  search();
  if (matchMedia("(max-width: 64rem)").matches) get("status").scrollIntoView({ block: "start" });
}

function step(by) {
  const buttons = [...get("queries-list").querySelectorAll("button")];
  const at = buttons.findIndex((button) => button.getAttribute("aria-current"));
  buttons[at < 0 ? 0 : Math.min(Math.max(at + by, 0), buttons.length - 1)]?.click();
}

function walk(by) {
  const entries = [...get("sides").querySelectorAll("li")].filter((entry) => entry.offsetParent);
  const at = entries.indexOf(document.activeElement?.closest("#sides li"));
  entries[at < 0 ? 0 : Math.min(Math.max(at + by, 0), entries.length - 1)]?.focus();
}

get("search").addEventListener("submit", (event) => { event.preventDefault(); search(); });
get("query").addEventListener("input", () => { state.queryId = null; });
get("access").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = get("token").value; // kept in memory only
  get("token").value = "";
  start();
});
get("add-filter").addEventListener("click", () => addFilter().focus());
get("k").addEventListener("change", () => { if (state.sides.length) search(); });
for (const id of ["first", "second"]) {
  get(id).addEventListener("change", () => {
    get("add-filter").hidden = !Object.keys(fields()).length;
    list();
    if (state.sides.length) search();
  });
}
get("order").addEventListener("change", () => list());
get("more").addEventListener("click", () => list(true));
addEventListener("popstate", read);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const entry = document.activeElement?.closest("#sides li");
  const keys = {
    "/": () => get("query").focus(), j: () => walk(1), k: () => walk(-1), "]": () => step(1), "[": () => step(-1),
    r: () => entry && judge(entry.dataset.id, 1), n: () => entry && judge(entry.dataset.id, 0),
  };
  if (keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
});
start();
