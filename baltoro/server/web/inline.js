// `code`, **strong** and *emphasis* inside a line of text -> DOM nodes. All else stays as it was written, links too.
// Takes time linear in the text, whatever the text: a marker that does not close is searched for once.

import { element } from "./dom.js";

/**
 * @param {string} text
 * @param {boolean} strong whether ** may open here: not inside of itself
 * @param {boolean} emphasis the same for *
 * @returns {(Node | string)[]}
 */
export function inline(text, strong = true, emphasis = true) {
  /** @type {(Node | string)[]} */
  const nodes = [];
  const unclosed = new Set(); // markers that have no end behind here
  let plain = 0; // where the text begins that no node holds yet
  let at = 0;

  /** @param {string} marker @param {number} end @param {() => Node} node */
  function close(marker, end, node) {
    if (end < 0) {
      unclosed.add(marker);
      at += marker.length;
      return;
    }
    if (at > plain) nodes.push(text.slice(plain, at));
    nodes.push(node());
    at = plain = end + marker.length;
  }

  while (at < text.length) {
    if (text[at] === "`") {
      const ticks = runOf("`", text, at);
      if (unclosed.has(ticks)) at += ticks.length;
      else {
        const end = closingTicks(text, at + ticks.length, ticks.length);
        close(ticks, end, () => element("code", {}, text.slice(at + ticks.length, end)));
      }
    } else if (text[at] === "*") {
      const stars = runOf("*", text, at);
      const opens = /\S/.test(text[at + stars.length] ?? " ");
      if (!opens || unclosed.has(stars) || !((stars === "**" && strong) || (stars === "*" && emphasis))) {
        at += stars.length;
        continue;
      }
      const end = closingStars(text, at + stars.length, stars.length);
      const inner = () => text.slice(at + stars.length, end);
      if (stars === "**") close(stars, end, () => element("strong", {}, ...inline(inner(), false, emphasis)));
      else close(stars, end, () => element("em", {}, ...inline(inner(), strong, false)));
    } else at++;
  }
  if (plain < text.length) nodes.push(text.slice(plain));
  return nodes;
}

/** @param {string} sign @param {string} text @param {number} at */
function runOf(sign, text, at) {
  let end = at;
  while (text[end] === sign) end++;
  return text.slice(at, end);
}

/**
 * Where the next run of exactly `count` backticks begins; -1: nowhere.
 * @param {string} text @param {number} from @param {number} count
 */
function closingTicks(text, from, count) {
  for (let at = text.indexOf("`", from); at >= 0; at = text.indexOf("`", at)) {
    const run = runOf("`", text, at).length;
    if (run === count) return at;
    at += run;
  }
  return -1;
}

/**
 * The same for stars, which close only behind a word.
 * @param {string} text @param {number} from @param {number} count
 */
function closingStars(text, from, count) {
  for (let at = text.indexOf("*", from); at >= 0; at = text.indexOf("*", at)) {
    const run = runOf("*", text, at).length;
    if (run === count && /\S/.test(text[at - 1])) return at;
    at += run;
  }
  return -1;
}
