// The conversation on the page: a turn is drawn from its data, the one that grows is brought up to date once a frame.

import { callCards } from "./calls.js";
import { canContinue } from "./conversation.js";
import { button, copyButton, element, fit, keys } from "./dom.js";
import { Markdown } from "./markdown.js";
import { explain } from "./problems.js";

/**
 * What a person can do to a turn; the index counts turns from 0.
 * @typedef {{
 *   ask: (index: number, text: string) => void, rewrite: (index: number, text: string) => void,
 *   again: (index: number) => void, goOn: (index: number) => void, openKey: () => void,
 *   give: (index: number, call: import("./conversation.js").Call, result: string) => void,
 *   editResult: (index: number, call: import("./conversation.js").Call) => void, draft: () => void,
 * }} Actions
 */

export class Log {
  /** @param {HTMLElement} root @param {HTMLElement} scroller @param {Actions} actions */
  constructor(root, scroller, actions) {
    this.root = root;
    this.scroller = scroller;
    this.actions = actions;
    this.keyGiven = false;
    /** @type {(() => void) | null} */
    this.update = null; // of the last turn, while it grows
    this.frame = 0;
  }

  /**
   * @param {import("./conversation.js").Conversation} chat
   * @param {HTMLElement} welcome shown where nothing was said
   */
  draw({ turns }, welcome) {
    const pinned = this.atEnd();
    this.update = null;
    const articles = turns.map((turn, index) =>
      turn.role === "user" ? this.question(turn, index) : this.answer(turn, index, index === turns.length - 1),
    );
    this.root.replaceChildren(...(turns.length ? articles : [welcome]));
    this.root.querySelectorAll("textarea").forEach(fit);
    if (pinned) this.toEnd();
  }

  /** The last turn has more to show. */
  grown() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      const pinned = this.atEnd();
      this.update?.();
      if (pinned) this.toEnd();
    });
  }

  atEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < 60; // pixels: a line or two
  }

  toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** Where the person types next: the first result that is missing, if there is one. */
  nextResult() {
    return /** @type {HTMLTextAreaElement | null} */ (this.root.querySelector(".give textarea"));
  }

  /** @param {import("./conversation.js").Question} turn @param {number} index */
  question(turn, index) {
    const text = element("div", { className: "text" }, turn.content);
    const article = element("article", { className: "question", "aria-label": "You" });
    const edit = () => this.edit(article, turn.content, "Send", (changed) => this.actions.ask(index, changed));
    article.append(
      text,
      actions(
        copyButton(() => turn.content, "this message"),
        button("Edit", edit, { "aria-label": "Edit this message" }),
      ),
    );
    return article;
  }

  /** @param {import("./conversation.js").Answer} turn @param {number} index @param {boolean} last */
  answer(turn, index, last) {
    const article = element("article", { className: "answer", "aria-label": "Answer" });
    const text = element("div", { className: "text markdown" });
    const cards = element("div", { className: "calls" });
    const status = element("p", { className: "status" });
    const markdown = new Markdown(text);
    const begun = performance.now();
    const show = () => {
      markdown.show(turn.content);
      cards.replaceChildren(
        ...callCards(turn, last, {
          give: (call, result) => this.actions.give(index, call, result),
          edit: (call) => this.actions.editResult(index, call),
          draft: this.actions.draft,
        }),
      );
      const seconds = Math.floor((performance.now() - begun) / 1000);
      const silent = turn.firstTokenMs === null;
      status.textContent = silent ? `Reading the prompt${seconds ? ` · ${seconds} s` : ""}` : "Writing";
    };
    show();
    article.append(text, cards);
    if (turn.finish === null) {
      article.append(status);
      this.update = show;
      return article;
    }
    if (turn.problem) article.append(this.problem(turn.problem, index, last));
    const parts = measures(turn).map((each) => element("span", {}, each));
    const measured = element(
      "p",
      { className: "measured" },
      ...parts.flatMap((each, at) => (at ? [" · ", each] : [each])),
    );
    const edit = () => this.edit(article, turn.content, "Save", (changed) => this.actions.rewrite(index, changed));
    article.append(
      measured,
      actions(
        ...(turn.content
          ? [copyButton(() => turn.content, "this answer"), button("Edit", edit, { "aria-label": "Edit this answer" })]
          : []),
        ...(turn.problem ? [] : [button("Regenerate", () => this.actions.again(index))]),
        ...(canContinue(turn) ? [button("Continue", () => this.actions.goOn(index))] : []),
      ),
    );
    return article;
  }

  /** @param {import("./server.js").Problem} problem @param {number} index @param {boolean} last */
  problem(problem, index, last) {
    const { title, advice, wantsKey } = explain(problem, this.keyGiven);
    return element(
      "div",
      { className: "problem", role: last ? "alert" : "note" },
      element("strong", {}, title),
      element("p", {}, advice),
      ...(problem.message ? [element("p", { className: "said" }, `The server says: ${problem.message}`)] : []),
      element(
        "div",
        { className: "row" },
        ...(wantsKey ? [button("Enter a key", this.actions.openKey)] : []),
        button("Try again", () => this.actions.again(index)),
      ),
    );
  }

  /** @param {HTMLElement} article @param {string} text @param {string} verb @param {(text: string) => void} done */
  edit(article, text, verb, done) {
    const before = [...article.childNodes];
    const area = element("textarea", { value: text, "aria-label": "Edited text", oninput: () => fit(area) });
    const close = () => {
      article.classList.remove("editing");
      article.replaceChildren(...before);
      article.querySelector("button")?.focus();
    };
    const submit = () => area.value.trim() && done(area.value);
    keys(area, { submit, cancel: close });
    article.classList.add("editing");
    article.replaceChildren(
      area,
      element("div", { className: "row" }, button(verb, submit, { className: "primary" }), button("Cancel", close)),
    );
    fit(area);
    area.focus();
  }
}

/** @param {...HTMLElement} buttons */
function actions(...buttons) {
  return element("div", { className: "actions" }, ...buttons);
}

/**
 * Counts and speed of an answer, and how it ended where that is not by itself.
 * @param {import("./conversation.js").Answer} turn
 */
function measures({ finish, usage, firstTokenMs, tokensPerS }) {
  const shown = [];
  if (finish === "length") shown.push("Cut off: no tokens left");
  if (finish === "stopped") shown.push("Stopped");
  if (usage) {
    shown.push(`${count(usage.prompt)} prompt tokens${usage.cached ? `, ${count(usage.cached)} of them cached` : ""}`);
    shown.push(`${count(usage.completion)} generated`);
  }
  if (firstTokenMs !== null)
    shown.push(
      `first after ${firstTokenMs < 1000 ? `${Math.round(firstTokenMs)} ms` : `${(firstTokenMs / 1000).toFixed(1)} s`}`,
    );
  if (tokensPerS !== null)
    shown.push(`${tokensPerS < 10 ? tokensPerS.toFixed(1) : count(Math.round(tokensPerS))} tokens/s`);
  return shown;
}

/** @param {number} tokens */
export function count(tokens) {
  return tokens.toLocaleString("en");
}
