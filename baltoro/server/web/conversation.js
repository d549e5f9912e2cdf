// The conversation as data: what was said, the settings, and the request that both make. No page, no network.

import { isObject, readTools } from "./tools.js";

/**
 * A call of the model; `result` is null until the person gave one, `draft` is what they type meanwhile.
 * @typedef {{ id: string, name: string, arguments: string, result: string | null, draft: string }} Call
 *
 * @typedef {{ role: "user", content: string }} Question
 *
 * `finish`: the server's reason, or "stopped" by the person, or "failed"; null while it grows.
 * @typedef {{
 *   role: "assistant", content: string, calls: Call[], finish: string | null,
 *   usage: { prompt: number, cached: number, completion: number } | null,
 *   firstTokenMs: number | null, tokensPerS: number | null, problem: import("./server.js").Problem | null,
 * }} Answer
 *
 * Values of the form, as typed; "" leaves the choice to the server.
 * @typedef {{
 *   system: string, tools: string, tool_choice: string, parallel_tool_calls: boolean,
 *   temperature: string, top_p: string, max_tokens: string, seed: string,
 * }} Settings
 *
 * @typedef {{ turns: (Question | Answer)[], settings: Settings, model: string }} Conversation
 */

const NUMBERS = /** @type {const} */ (["temperature", "top_p", "max_tokens", "seed"]);

/** @returns {Conversation} */
export function emptyConversation() {
  const sampling = { temperature: "", top_p: "", max_tokens: "", seed: "" };
  return {
    turns: [],
    settings: { system: "", tools: "", tool_choice: "auto", parallel_tool_calls: true, ...sampling },
    model: "",
  };
}

/** @returns {Answer} */
export function emptyAnswer() {
  const measured = { usage: null, firstTokenMs: null, tokensPerS: null };
  return { role: "assistant", content: "", calls: [], finish: null, problem: null, ...measured };
}

/**
 * The calls that are whole. A last one that max_tokens, the person or a fault cut short may not be answered: what is
 * missing could have changed it.
 * @param {Answer} turn
 */
export function wholeCalls(turn) {
  return turn.calls.filter(
    (call, place) => place < turn.calls.length - 1 || turn.finish === "tool_calls" || isJson(call.arguments),
  );
}

/** Calls that wait for a result. @param {Answer} turn */
export function waitingCalls(turn) {
  return turn.finish === null ? [] : wholeCalls(turn).filter((call) => call.result === null);
}

/** Whether the model can go on behind this text. @param {Answer} turn */
export function canContinue(turn) {
  return turn.finish !== "stop" && turn.finish !== null && !turn.calls.length && turn.content.trim() !== "";
}

/**
 * The body of POST /v1/chat/completions for the next answer.
 * @param {Conversation} chat
 * @throws {Error} where the tools cannot be read
 */
export function requestBody({ turns, settings, model }) {
  /** @type {Record<string, unknown>} */
  const body = { model, messages: messages(turns, settings.system) };
  const tools = readTools(settings.tools);
  if (tools.length) {
    const name = /^function:(.*)$/.exec(settings.tool_choice)?.[1];
    body.tools = tools;
    body.tool_choice = name ? { type: "function", function: { name } } : settings.tool_choice;
    body.parallel_tool_calls = settings.parallel_tool_calls;
  }
  for (const field of NUMBERS) {
    if (settings[field].trim()) body[field] = Number(settings[field]);
  }
  return body;
}

/** @param {(Question | Answer)[]} turns @param {string} system */
function messages(turns, system) {
  /** @type {Record<string, unknown>[]} */
  const said = system.trim() ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    if (turn.role === "user") {
      said.push({ role: "user", content: turn.content });
      continue;
    }
    const calls = wholeCalls(turn);
    if (!turn.content && !calls.length) continue; // nothing came: it failed, or was stopped at once
    const message = { role: "assistant", content: turn.content || null };
    const tool_calls = calls.map(({ id, name, arguments: text }) => ({
      id,
      type: "function",
      function: { name, arguments: text },
    }));
    said.push(calls.length ? { ...message, tool_calls } : message);
    for (const { id, result } of calls) {
      if (result !== null) said.push({ role: "tool", tool_call_id: id, content: result });
    }
  }
  return said;
}

/**
 * A conversation from such a body, for imports.
 * @param {string} text
 * @returns {Conversation}
 * @throws {Error} whose message says what is wrong
 */
export function readConversation(text) {
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    throw new Error("The file is not JSON.");
  }
  if (!isObject(body) || !Array.isArray(body.messages)) {
    throw new Error("The file has no “messages”; expected a file exported here, or the body of a chat request.");
  }
  const chat = emptyConversation();
  body.messages.forEach((message, place) => addMessage(chat, message, `Message ${place + 1}`));
  const { settings } = chat;
  if (body.tools?.length) settings.tools = JSON.stringify(body.tools, null, 2);
  readTools(settings.tools);
  const named = body.tool_choice?.function?.name;
  settings.tool_choice = named ? `function:${named}` : String(body.tool_choice ?? "auto");
  settings.parallel_tool_calls = body.parallel_tool_calls !== false;
  for (const field of NUMBERS) {
    if (typeof body[field] === "number") settings[field] = String(body[field]);
  }
  chat.model = String(body.model ?? "");
  return chat;
}

/** @param {Conversation} chat @param {any} message @param {string} where */
function addMessage({ turns, settings }, message, where) {
  const content = textOf(message?.content, where);
  switch (message?.role) {
    case "system":
    case "developer":
      if (turns.length || settings.system)
        throw new Error(`${where} is a second system prompt; this page has one, at the start.`);
      settings.system = content;
      return;
    case "user":
      turns.push({ role: "user", content });
      return;
    case "assistant": {
      const calls = (message.tool_calls ?? []).map((/** @type {any} */ call) => readCall(call, where));
      turns.push({ ...emptyAnswer(), content, calls, finish: calls.length ? "tool_calls" : "stop" });
      return;
    }
    case "tool": {
      const last = turns[turns.length - 1];
      const call =
        last?.role === "assistant" &&
        last.calls.find(({ id, result }) => id === message.tool_call_id && result === null);
      if (!call) throw new Error(`${where} is a result without a call before it.`);
      call.result = content;
      return;
    }
    default:
      throw new Error(
        `${where} has the role ${JSON.stringify(message?.role)}; expected system, user, assistant or tool.`,
      );
  }
}

/** @param {any} call @param {string} where @returns {Call} */
function readCall(call, where) {
  const { name, arguments: given } = call?.function ?? {};
  if (typeof call?.id !== "string" || typeof name !== "string")
    throw new Error(`${where} has a call without id or name.`);
  return {
    id: call.id,
    name,
    arguments: typeof given === "string" ? given : JSON.stringify(given ?? {}),
    result: null,
    draft: "",
  };
}

/** @param {any} content @param {string} where */
function textOf(content, where) {
  if (typeof content === "string") return content;
  if (content === null || content === undefined) return "";
  if (Array.isArray(content) && content.every((part) => typeof part?.text === "string"))
    return content.map((part) => part.text).join("");
  throw new Error(`${where} has something other than text, which this page cannot show.`);
}

/** @param {string} text */
function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}
