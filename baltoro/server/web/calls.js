// A call of the model as a card: its name, its arguments, and its result, which the person types.

import { wholeCalls } from "./conversation.js";
import { button, copyButton, element, fit, keys } from "./dom.js";

/**
 * @typedef {import("./conversation.js").Call} Call
 * @typedef {{ give: (call: Call, result: string) => void, edit: (call: Call) => void, draft: () => void }} Actions
 *
 * @param {import("./conversation.js").Answer} turn
 * @param {boolean} last whether nothing was said behind it
 * @param {Actions} actions
 */
export function callCards(turn, last, actions) {
  const whole = wholeCalls(turn);
  return turn.calls.map((call) => card(call, stateOf(call, turn, whole, last), actions));
}

/** @param {Call} call @param {import("./conversation.js").Answer} turn @param {Call[]} whole @param {boolean} last */
function stateOf(call, turn, whole, last) {
  if (turn.finish === null) return "being written";
  if (!whole.includes(call)) return "cut off";
  if (call.result !== null) return "answered";
  return last ? "waiting for a result" : "not answered";
}

/** @param {Call} call @param {string} state @param {Actions} actions */
function card(call, state, actions) {
  const text = pretty(call.arguments);
  return element(
    "section",
    { className: "call", "aria-label": `Call of ${call.name}, ${state}` },
    element(
      "div",
      { className: "bar" },
      element("span", { className: "name" }, call.name),
      element("span", { className: `pill ${state.split(" ")[0]}` }, state),
      copyButton(() => text, `the arguments of ${call.name}`),
    ),
    element("pre", { tabIndex: 0 }, text),
    ...(state === "waiting for a result" ? [resultForm(call, actions)] : []),
    ...(state === "answered" ? [result(call, actions)] : []),
    ...(state === "not answered" ? [missingResult(call, actions)] : []),
  );
}

/** @param {Call} call @param {Actions} actions */
function resultForm(call, actions) {
  const area = element("textarea", {
    className: "mono",
    rows: 2,
    value: call.draft,
    spellcheck: false,
    placeholder: "What the tool returned",
    "aria-label": `Result of ${call.name}`,
    oninput: () => {
      call.draft = area.value;
      fit(area);
      actions.draft();
    },
  });
  const give = () => actions.give(call, area.value);
  keys(area, { submit: give });
  return element("div", { className: "give" }, area, button("Give result", give, { className: "primary" }));
}

/** @param {Call} call @param {Actions} actions */
function result(call, actions) {
  return element(
    "div",
    { className: "result" },
    element(
      "div",
      { className: "bar" },
      element("span", {}, "Result"),
      copyButton(() => call.result ?? "", `the result of ${call.name}`),
      button("Edit", () => actions.edit(call), { "aria-label": `Edit the result of ${call.name}` }),
    ),
    element("pre", { tabIndex: 0 }, call.result || "(empty)"),
  );
}

/** The conversation went on without it. @param {Call} call @param {Actions} actions */
function missingResult(call, actions) {
  const give = button("Go back and give one", () => actions.edit(call));
  return element("div", { className: "result bar" }, element("span", {}, "No result"), give);
}

/** Arguments for the eye; those that are not whole yet, or no JSON, as they came. @param {string} text */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
