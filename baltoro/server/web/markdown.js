// What a model writes -> DOM nodes: code blocks, lists, tables, headings, quotes, paragraphs. Built node by node, so
// that no text can become markup.

import { copyButton, element } from "./dom.js";
import { inline } from "./inline.js";

/**
 * A block and the lines it was read from. A node depends on them alone, so equal lines need no new node.
 * @typedef {{ kind: string, lines: string[] }} Block
 */

const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/;
const HEADING = /^(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}(?:-{3,}|\*{3,}|_{3,})[ \t]*$/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])[ \t]+(?=\S)/;
const QUOTE = /^ {0,3}>/;
const MAX_DEPTH = 6; // of lists and quotes inside each other; deeper ones are paragraphs

/** Text that grows, shown in `root`: blocks that did not change keep their nodes, and a reader's selection. */
export class Markdown {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    /** @type {string[]} */
    this.shown = [];
  }

  /** @param {string} text */
  show(text) {
    const blocks = split(text);
    blocks.forEach((block, place) => {
      const source = `${block.kind}\n${block.lines.join("\n")}`;
      if (this.shown[place] === source) return;
      const made = node(block, 0);
      const old = this.root.children[place];
      if (old) old.replaceWith(made);
      else this.root.append(made);
      this.shown[place] = source;
    });
    while (this.root.children.length > blocks.length) this.root.lastElementChild?.remove();
    this.shown.length = blocks.length;
  }
}

/** @param {string} text */
function split(text) {
  return splitLines(text.split(/\r\n|\n|\r/), 0);
}

/** @param {string[]} lines @param {number} depth @returns {Block[]} */
function splitLines(lines, depth) {
  /** @type {Block[]} */
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const kind = kindOf(lines, at, depth);
    const end = ends[kind](lines, at, depth);
    blocks.push({ kind, lines: lines.slice(at, end) });
    at = end;
  }
  return blocks;
}

/** @param {string[]} lines @param {number} at @param {number} depth */
function kindOf(lines, at, depth) {
  const line = lines[at];
  if (fenceOf(line)) return "code";
  if (HEADING.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (depth < MAX_DEPTH && QUOTE.test(line)) return "quote";
  if (depth < MAX_DEPTH && ITEM.test(line)) return "list";
  if (isDelimiter(lines[at + 1]) && cells(line).length === cells(lines[at + 1]).length) return "table";
  return "paragraph";
}

/**
 * Where a block that begins at `at` ends.
 * @type {Record<string, (lines: string[], at: number, depth: number) => number>}
 */
const ends = {
  heading: (_, at) => at + 1,
  rule: (_, at) => at + 1,

  code(lines, at) {
    let end = at + 1;
    while (end < lines.length && !closes(lines[end], lines[at])) end++;
    return Math.min(end + 1, lines.length); // one that never closes goes to the end
  },

  quote(lines, at) {
    while (at < lines.length && QUOTE.test(lines[at])) at++;
    return at;
  },

  table(lines, at) {
    while (at < lines.length && lines[at].includes("|")) at++;
    return at;
  },

  // Items, what is indented under them, and lines that go on with an item's paragraph.
  list(lines, at, depth) {
    const { ordered } = marker(lines[at]);
    let end = at + 1;
    for (let next = end; next < lines.length; next++) {
      const line = lines[next];
      if (!line.trim()) continue; // belongs to the list if the list goes on behind it
      const behindBlank = next > end;
      const indented = /^(?: {2,}|\t)/.test(line);
      if (!indented && ITEM.test(line) ? marker(line).ordered !== ordered : !indented) {
        if (behindBlank || kindOf(lines, next, depth) !== "paragraph") break;
      }
      end = next + 1;
    }
    return end;
  },

  paragraph(lines, at, depth) {
    do at++;
    while (at < lines.length && lines[at].trim() && kindOf(lines, at, depth) === "paragraph");
    return at;
  },
};

/** @param {Block} block @param {number} depth @returns {HTMLElement} */
function node({ kind, lines }, depth) {
  switch (kind) {
    case "code":
      return code(lines);
    case "heading": {
      const [, signs, text] = /** @type {RegExpExecArray} */ (HEADING.exec(lines[0]));
      // The page has h1 and h2 of its own.
      return element(/** @type {"h3"} */ (`h${Math.min(signs.length + 2, 6)}`), {}, ...inline(text));
    }
    case "rule":
      return element("hr");
    case "quote": {
      const inner = lines.map((line) => line.replace(/^ {0,3}> ?/, ""));
      return element("blockquote", {}, ...nodes(inner, depth + 1));
    }
    case "list":
      return list(lines, depth);
    case "table":
      return table(lines);
    default:
      return element("p", {}, ...inline(lines.join("\n")));
  }
}

/** @param {string[]} lines @param {number} depth */
function nodes(lines, depth) {
  return splitLines(lines, depth).map((block) => node(block, depth));
}

/** @param {string[]} lines */
function code(lines) {
  const language = fenceOf(lines[0])?.info.split(/\s/)[0];
  const closed = lines.length > 1 && closes(lines[lines.length - 1], lines[0]);
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  return element(
    "div",
    { className: "code" },
    element(
      "div",
      { className: "bar" },
      element("span", {}, language || "text"),
      copyButton(() => text, "code"),
    ),
    element("pre", { tabIndex: 0 }, element("code", {}, text)),
  );
}

/** @param {string} line @returns {{ fence: string, info: string } | null} */
function fenceOf(line) {
  const [, fence, info] = FENCE.exec(line) ?? [];
  if (!fence || (fence[0] === "`" && info.includes("`"))) return null; // ```code``` within a line
  return { fence, info: info.trim() };
}

/** @param {string} line @param {string} opening */
function closes(line, opening) {
  const fence = fenceOf(opening)?.fence ?? "";
  const marks = line.trim();
  return marks.length >= fence.length && marks === fence[0].repeat(marks.length);
}

/** @param {string} line the first of an item */
function marker(line) {
  const [whole, indent, sign] = /** @type {RegExpExecArray} */ (ITEM.exec(line));
  return { width: whole.length, indent: indent.length, ordered: /\d/.test(sign), number: parseInt(sign, 10) };
}

/** @param {string[]} lines @param {number} depth */
function list(lines, depth) {
  const first = marker(lines[0]);
  /** @type {string[][]} */
  const items = [];
  let width = first.width;
  for (const line of lines) {
    if (ITEM.test(line) && marker(line).indent <= first.indent + 1) {
      width = marker(line).width;
      items.push([line.slice(width)]);
    } else {
      const indent = Math.min(width, line.length - line.trimStart().length);
      items[items.length - 1].push(line.slice(indent));
    }
  }
  const made = items.map((item) => element("li", {}, ...nodes(item, depth + 1)));
  return first.ordered ? element("ol", { start: first.number }, ...made) : element("ul", {}, ...made);
}

/** @param {string | undefined} line */
function isDelimiter(line) {
  return (
    line !== undefined && line.includes("-") && line.includes("|") && cells(line).every((cell) => /^:?-+:?$/.test(cell))
  );
}

/** @param {string} line */
function cells(line) {
  return line
    .trim()
    .replace(/^\|/, "")
    .replace(/\|$/, "")
    .split("|")
    .map((cell) => cell.trim());
}

/** @param {string[]} lines */
function table(lines) {
  const [head, , ...rows] = lines.map(cells);
  const row = (/** @type {"th" | "td"} */ tag, /** @type {string[]} */ texts) =>
    element("tr", {}, ...texts.map((text) => element(tag, {}, ...inline(text))));
  return element(
    "div",
    { className: "table", tabIndex: 0 },
    element(
      "table",
      {},
      element("thead", {}, row("th", head)),
      element("tbody", {}, ...rows.map((each) => row("td", each))),
    ),
  );
}
