// The planner: what a person chooses -> /plan.json -> bars, figures and commands. No figure is computed here.

import { byId, copyButton, element } from "./dom.js";
import { loadKey } from "./storage.js";

const form = /** @type {HTMLFormElement} */ (byId("wish"));
const PURPOSES = { "routed experts": "experts", "resident weights": "resident", cache: "cache", activations: "activations" };
const PLACES = { gpu: "all on GPUs", hybrid: "experts in RAM, the rest on GPUs", ram: "all in RAM", disk: "experts from the disk" };
const PAUSE_MS = 150; // after the last key, before the server is asked

let asked = 0; // the newest question: answers to older ones are dropped
let timer = 0;

form.addEventListener("input", () => {
  showContext();
  clearTimeout(timer);
  timer = setTimeout(ask, PAUSE_MS);
});
form.addEventListener("submit", (event) => event.preventDefault());
restore();
ask();

/** Fields that say something, as /plan.json wants them. */
function wish() {
  const found = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    if (typeof value === "string" && value.trim()) found.set(name, name === "context" ? String(2 ** Number(value)) : value);
  }
  return found;
}

/** What the address says, so that a plan can be sent as a link. */
function restore() {
  for (const [name, value] of new URLSearchParams(location.search)) {
    const field = form.elements.namedItem(name);
    if (field instanceof HTMLInputElement) field.value = name === "context" ? String(Math.log2(Number(value))) : value;
    else if (field instanceof HTMLSelectElement) field.append(element("option", { value, selected: true }, value));
  }
  showContext();
}

function showContext() {
  const range = /** @type {HTMLInputElement} */ (form.elements.namedItem("context"));
  byId("context-now").textContent = (2 ** Number(range.value)).toLocaleString("en");
}

async function ask() {
  const mine = ++asked;
  const query = wish();
  byId("result").classList.add("old");
  const key = loadKey();
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let plan, problem;
  try {
    const response = await fetch(`plan.json?${query}`, { headers });
    const body = await response.json();
    if (response.ok) plan = body;
    else problem = response.status === 401 ? "This server wants an API key: give it on the chat page, in its settings." : body.error.message;
  } catch {
    problem = "The server does not answer.";
  }
  if (mine !== asked) return;
  history.replaceState(null, "", `?${query}`);
  byId("result").classList.remove("old");
  if (plan) offer(plan.choices);
  if (plan && !plan.fits) problem = `${plan.error}. ${plan.hint}.`;
  byId("problem").hidden = !problem;
  byId("problem").textContent = problem ?? "";
  for (const id of ["quality", "headline", "memory", "formats", "advice", "commands"]) byId(id).replaceChildren();
  figures([]);
  if (plan?.fits) show(plan);
  else if (plan) byId("headline").textContent = `${plan.model} does not fit${plan.short_bytes ? `: ${size(plan.short_bytes)} short` : ""}`;
}

/** Fill the selects, once; what is chosen stays. @param {any} choices */
function offer(choices) {
  const entries = {
    model: choices.models.map((/** @type {string} */ each) => [each, each]),
    machine: [["", "described below"], ...Object.entries(choices.machines).map(([name, title]) => [name, String(title)])],
    format: [["", "the best that is not slow"], ...choices.formats.map((/** @type {string} */ each) => [each, each])],
    place: [["", "where it is fastest"], ...choices.places.map((/** @type {keyof typeof PLACES} */ each) => [each, PLACES[each]])],
  };
  for (const [name, options] of Object.entries(entries)) {
    const select = /** @type {HTMLSelectElement} */ (form.elements.namedItem(name));
    if (select.options.length >= options.length) continue;
    const chosen = select.value || { model: "kimi-k2-instruct", machine: "" }[name] || "";
    select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
    select.value = chosen;
  }
}

/** @param {any} plan */
function show(plan) {
  const layout = plan.layout ? `, ${plan.layout}` : "";
  const place = PLACES[/** @type {keyof typeof PLACES} */ (plan.place)];
  byId("headline").textContent = `${rate(plan.tokens_per_s)} tokens/s in ${plan.format}: ${place}${layout}`;
  const assumed = plan.machine.assumed.length ? ` Assumed: ${plan.machine.assumed.join("; ")}.` : "";
  byId("quality").textContent = `${plan.binding} binds. Quality: ${plan.quality}.${assumed}`;
  memory(plan);
  formats(plan);
  const rows = [
    ...Object.entries(plan.cache_bytes).map(([tokens, bytes]) => [`Cache of ${count(tokens)} tokens`, size(bytes), "of one request"]),
    ["Room for", `${count(plan.free_cache_tokens)} tokens`, "of all requests together"],
    ["A cold token reads", size(plan.cold_bytes_per_token), "of routed experts"],
    ...plan.step.map((/** @type {any} */ each) => [`A step: ${each.resource}`, `${(each.seconds * 1e3).toFixed(2)} ms`, each.formula]),
    ...plan.prefill.map((/** @type {any} */ each) => [`First token of ${count(each.tokens)}`, time(each.ttft_s.expected), `${rate(each.tokens_per_s)} tokens/s; ${each.formula}`]),
    ["All requests together", `${rate(plan.throughput)} tokens/s`, `${count(plan.concurrency)} at once, prompts of ${count(plan.throughput.prompt)} included`],
    ["Loading", time(plan.load_s.expected), `${time(plan.load_s.low)} to ${time(plan.load_s.high)}`],
    ["To fetch", size(plan.disk.fetch_bytes), `${size(plan.disk.packed_bytes)} afterwards`],
  ];
  if (plan.cost?.money) rows.push(["A million tokens", plan.cost.money[1].toFixed(3), "generated; the price's own money"]);
  figures(rows);
  if (plan.advice.length) {
    const items = plan.advice.map((/** @type {any} */ each) => element("li", {}, `${each.change}: ${figure(each.tokens_per_s)} tokens/s`));
    byId("advice").append(element("h3", {}, "What would help, the cheapest first"), element("ol", {}, ...items));
  }
  for (const [name, text] of Object.entries(plan.commands)) {
    const bar = element("div", { className: "bar" }, element("span", {}, name), copyButton(() => String(text), name));
    byId("commands").append(element("div", { className: "code" }, bar, element("pre", { tabIndex: 0 }, element("code", {}, String(text)))));
  }
}

/** @param {any} plan */
function memory(plan) {
  const parts = [];
  for (const [where, room] of Object.entries(plan.capacity)) {
    const items = plan.memory.filter((/** @type {any} */ item) => item.where === where);
    const used = items.reduce((/** @type {number} */ sum, /** @type {any} */ item) => sum + item.bytes, 0);
    const track = element("div", { className: "track" });
    let left = 0;
    for (const item of items) {
      const share = (item.bytes / Math.max(room, used)) * 100;
      const purpose = PURPOSES[/** @type {keyof typeof PURPOSES} */ (item.purpose)] ?? "resident";
      track.append(piece(purpose, left, share, `${item.purpose}: ${size(item.bytes)}, ${item.formula}`));
      left += share;
    }
    parts.push(labelled(where, `${size(used)} of ${size(room)}`, track));
  }
  const legend = Object.entries(PURPOSES).map(([name, kind]) => element("span", {}, element("i", { className: kind }), name));
  byId("memory").append(element("h3", {}, "Memory"), ...parts, element("div", { className: "legend" }, ...legend));
}

/** Bands on a scale of powers of ten. @param {any} plan */
function formats(plan) {
  const able = plan.formats.filter((/** @type {any} */ each) => each.tokens_per_s);
  const low = Math.log10(Math.min(...able.map((/** @type {any} */ each) => each.tokens_per_s.low))) - 0.1;
  const high = Math.log10(Math.max(...able.map((/** @type {any} */ each) => each.tokens_per_s.high))) + 0.1;
  const at = (/** @type {number} */ value) => ((Math.log10(value) - low) / (high - low)) * 100;
  const parts = plan.formats.map((/** @type {any} */ each) => {
    const name = `${each.format}, ${size(each.weight_bytes)}`;
    const track = element("div", { className: "track" });
    if (!each.tokens_per_s) return labelled(name, `${size(each.short_bytes)} short`, track);
    const { low: slow, expected, high: fast } = each.tokens_per_s;
    const kind = each.format === plan.format ? "band chosen" : "band";
    track.append(piece(kind, at(slow), at(fast) - at(slow), rate(each.tokens_per_s)), piece("mark", at(expected), 0, ""));
    return labelled(name, `${rate(each.tokens_per_s)} tokens/s, ${each.place}`, track);
  });
  byId("formats").append(element("h3", {}, `Formats: tokens/s of one request${plan.concurrency > 1 ? `, ${count(plan.concurrency)} at once` : ""}`), ...parts);
}

/** @param {string} kind @param {number} left in percent @param {number} width in percent @param {string} title */
function piece(kind, left, width, title) {
  const made = element("div", { className: kind, title });
  made.style.left = `${left}%`; // through the object model, which the policy allows
  if (width) made.style.width = `${width}%`;
  return made;
}

/** @param {string} what @param {string} value @param {HTMLElement} track */
function labelled(what, value, track) {
  return element("div", {}, element("div", { className: "what" }, element("span", {}, what), element("span", {}, value)), track);
}

/** @param {string[][]} rows */
function figures(rows) {
  const body = byId("figures").querySelector("tbody");
  body?.replaceChildren(...rows.map((row) => element("tr", {}, ...row.map((text) => element("td", {}, text)))));
}

/** @param {{ low: number, expected: number, high: number }} band */
function rate(band) {
  return `${figure(band.expected)} (${figure(band.low)} to ${figure(band.high)})`;
}

/** @param {number} value */
function figure(value) {
  return value >= 100 ? count(Math.round(value)) : value.toFixed(value >= 10 ? 1 : 2);
}

/** @param {number | string} value */
function count(value) {
  return Number(value).toLocaleString("en");
}

/** @param {number} seconds */
function time(seconds) {
  return seconds >= 600 ? `${count(Math.round(seconds / 60))} min` : `${seconds.toFixed(seconds < 10 ? 2 : 0)} s`;
}

/** @param {any} bytes */
function size(bytes) {
  for (const [unit, worth] of /** @type {const} */ ([["TB", 1e12], ["GB", 1e9], ["MB", 1e6]])) {
    if (bytes >= worth) return `${(bytes / worth).toFixed(2)} ${unit}`;
  }
  return `${count(Math.round(bytes))} B`;
}
