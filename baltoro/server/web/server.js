// What this page asks of the server: its models, and answers as they grow.

import { events } from "./events.js";

const SPAN_MS = 20; // what comes within less tells the network's speed and not the model's

/**
 * Why there is no answer, or no whole one.
 * @typedef {{ status: number, message: string, code: string | null, retryAfterS: number | null }} Problem
 *   `status` 0: nobody answered; 200: the answer broke off; `message`: the server's own words
 */
export class Refused extends Error {
  /** @param {Problem} problem */
  constructor(problem) {
    super(problem.message);
    this.problem = problem;
  }
}

/**
 * @param {string} key
 * @returns {Promise<{ id: string, max_model_len: number }[]>}
 * @throws {Refused}
 */
export async function models(key) {
  const response = await ask("v1/models", { headers: headers(key) });
  return (await response.json()).data;
}

/**
 * One answer. `turn` grows as pieces come, and `grown` is told of each; when it returns, `turn.finish` is set.
 * @param {Record<string, unknown>} body
 * @param {import("./conversation.js").Answer} turn
 * @param {{ key: string, signal: AbortSignal, grown: () => void }} options
 * @throws {Refused} whatever came before stays in `turn`
 */
export async function answer(body, turn, { key, signal, grown }) {
  const begun = performance.now();
  let first = 0;
  let last = 0;
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.body) throw broken();
  try {
    for await (const { name, data } of events(response.body)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (name === "error") throw new Refused(problem(200, chunk.error, null));
      const [choice] = chunk.choices;
      if (choice && take(choice, turn)) {
        last = performance.now();
        first ||= last;
        turn.firstTokenMs ??= first - begun;
        grown();
      }
      if (chunk.usage) turn.usage = counts(chunk.usage);
    }
  } catch (error) {
    if (signal.aborted || error instanceof Refused) throw error;
    throw broken();
  }
  if (!turn.finish) throw broken();
  const later = (turn.usage?.completion ?? 0) - 1; // tokens behind the first one
  turn.tokensPerS = later > 0 && last - first >= SPAN_MS ? (later * 1000) / (last - first) : null;
}

/**
 * Whether it brought anything to see.
 * @param {{ delta: any, finish_reason: string | null }} choice
 * @param {import("./conversation.js").Answer} turn
 */
function take({ delta, finish_reason }, turn) {
  if (delta.content) turn.content += delta.content;
  for (const piece of delta.tool_calls ?? []) {
    const call = (turn.calls[piece.index] ??= { id: piece.id, name: "", arguments: "", result: null, draft: "" });
    call.name += piece.function.name ?? "";
    call.arguments += piece.function.arguments ?? "";
  }
  turn.finish = finish_reason ?? turn.finish;
  return Boolean(delta.content || delta.tool_calls);
}

/** @param {any} usage */
function counts(usage) {
  return {
    prompt: usage.prompt_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    completion: usage.completion_tokens,
  };
}

/** @param {string} key @returns {Record<string, string>} */
function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** @param {string} path @param {RequestInit} options @returns {Promise<Response>} of status 2xx */
async function ask(path, options) {
  let response;
  try {
    // Relative to the page, so that a proxy may put the server under a path.
    response = await fetch(new URL(path, document.baseURI), options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refused({ status: 0, message: "", code: null, retryAfterS: null });
  }
  if (response.ok) return response;
  const found = await response.json().catch(() => null);
  const retryAfter = parseInt(response.headers.get("retry-after") ?? "", 10);
  throw new Refused(problem(response.status, found?.error, Number.isNaN(retryAfter) ? null : retryAfter));
}

/** @param {number} status @param {any} error as in the body @param {number | null} retryAfterS @returns {Problem} */
function problem(status, error, retryAfterS) {
  return { status, message: String(error?.message ?? ""), code: error?.code ?? null, retryAfterS };
}

function broken() {
  return new Refused(problem(200, { message: "The connection ended in the middle of the answer." }, null));
}
