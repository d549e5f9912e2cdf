// The page: what the person does -> the conversation changes -> it is saved and drawn, and the model answers.

import { emptyAnswer, emptyConversation, readConversation, requestBody, waitingCalls } from "./conversation.js";
import { button, byId, download, element, fit, keys } from "./dom.js";
import { count, Log } from "./log.js";
import { answer, models, Refused } from "./server.js";
import { SettingsPanel } from "./settings.js";
import { loadChat, loadKey, saveChat, saveKey, whenSavedElsewhere } from "./storage.js";

const SAVE_EVERY_MS = 1000; // while an answer grows

const message = /** @type {HTMLTextAreaElement} */ (byId("message"));
const modelChoice = /** @type {HTMLSelectElement} */ (byId("model"));
const file = /** @type {HTMLInputElement} */ (byId("file"));
const notice = byId("notice");

let chat = loadChat();
let key = loadKey();
/** @type {{ id: string, max_model_len: number }[]} */
let served = [];
/** @type {AbortController | null} */
let running = null;

const settings = new SettingsPanel({
  changed: save,
  keyChanged(changed) {
    key = changed;
    saveKey(key);
    log.keyGiven = Boolean(key);
    void loadModels().catch(() => {}); // the next message tells what is wrong
  },
});

const log = new Log(byId("log"), byId("scroll"), {
  ask(index, text) {
    if (!settings.check()) return;
    replacing("The conversation goes on from the edited message.", () => {
      chat.turns.length = index;
      chat.turns.push({ role: "user", content: text });
    });
    void generate();
  },
  rewrite(index, text) {
    replacing("The answer was edited.", () => (answerAt(index).content = text));
    message.focus();
  },
  again(index) {
    if (!settings.check()) return;
    const lost = answerAt(index).content || answerAt(index).calls.length || index < chat.turns.length - 1;
    replacing(lost ? "The answer is written anew." : "", () => (chat.turns.length = index));
    void generate();
  },
  goOn(index) {
    if (!settings.check()) return;
    replacing("", () => (chat.turns.length = index + 1));
    void generate(answerAt(index));
  },
  openKey: () => settings.open("key"),
  give(index, call, result) {
    if (!settings.check()) return;
    stop();
    call.result = result;
    call.draft = "";
    if (waitingCalls(answerAt(index)).length) {
      refresh();
      log.nextResult()?.focus();
    } else {
      refresh();
      void generate();
    }
  },
  editResult(index, call) {
    replacing("What followed the result is taken back.", () => {
      chat.turns.length = index + 1;
      call.draft = call.result ?? "";
      call.result = null;
    });
    log.nextResult()?.focus();
  },
  draft: save,
});

// ------------------------------------------------------------------------------------------------------- asking

function send() {
  const text = message.value;
  if (!text.trim() || running || !settings.check()) return;
  say("");
  chat.turns.push({ role: "user", content: text });
  message.value = "";
  fit(message);
  void generate();
}

/** The model's next turn, or more of `turn`. @param {import("./conversation.js").Answer} turn */
async function generate(turn = emptyAnswer()) {
  stop();
  const mine = (running = new AbortController());
  const continued = chat.turns.includes(turn);
  if (!continued) chat.turns.push(turn);
  Object.assign(turn, { finish: null, problem: null, usage: null, firstTokenMs: null, tokensPerS: null });
  refresh();
  log.toEnd();
  let saved = performance.now();
  const clock = setInterval(() => log.grown(), 1000);
  try {
    if (!served.length) await loadModels();
    const body = requestBody(continued ? chat : { ...chat, turns: chat.turns.slice(0, -1) });
    if (continued) /** @type {any} */ (body.messages).at(-1).partial = true;
    await answer(body, turn, {
      key,
      signal: mine.signal,
      grown() {
        log.grown();
        if (performance.now() - saved < SAVE_EVERY_MS) return;
        saved = performance.now();
        save();
      },
    });
  } catch (error) {
    if (error instanceof Refused) {
      turn.problem = error.problem;
      turn.finish = "failed";
    } else {
      turn.finish = "stopped";
      if (!mine.signal.aborted) throw error; // a fault of this page: into the browser's console
    }
  } finally {
    clearInterval(clock);
    if (running === mine) {
      running = null;
      const pinned = log.atEnd();
      refresh();
      if (pinned) log.toEnd();
      const idle = document.activeElement === document.body || (document.activeElement === message && !message.value);
      if (idle && matchMedia("(pointer: fine)").matches) (log.nextResult() ?? message).focus(); // no keyboard over a phone's answer
    }
  }
}

/** End the answer that grows, if one does; what came of it stays. */
function stop() {
  if (!running) return;
  running.abort();
  running = null;
  const last = chat.turns[chat.turns.length - 1];
  if (last?.role === "assistant") last.finish ??= "stopped";
  refresh();
}

async function loadModels() {
  served = await models(key);
  if (!served.some(({ id }) => id === chat.model)) chat.model = served[0].id;
  modelChoice.replaceChildren(...served.map(({ id }) => element("option", { value: id }, id)));
  modelChoice.disabled = served.length < 2;
  modelChoice.value = chat.model;
  byId("context").textContent = contextUsed();
  if (!chat.turns.length) log.draw(chat, welcome()); // it names the model; anything else there may be under way
}

// ------------------------------------------------------------------------------------- the conversation changes

/** Change the conversation so that the person can take it back. @param {string} words "" for no way back @param {() => void} change */
function replacing(words, change) {
  stop();
  const before = structuredClone(chat);
  change();
  refresh();
  say(words, () => {
    stop();
    chat = before;
    refresh();
    log.toEnd();
  });
}

/** @param {number} index */
function answerAt(index) {
  return /** @type {import("./conversation.js").Answer} */ (chat.turns[index]);
}

/** Everything on the page as the data say, and the data saved. */
function refresh() {
  save();
  log.keyGiven = Boolean(key);
  log.draw(chat, welcome());
  log.root.setAttribute("aria-busy", String(running !== null)); // read out when it is whole
  byId("send").hidden = running !== null;
  byId("stop").hidden = running === null;
  if (settings.settings !== chat.settings) settings.show(chat.settings, key);
  if (served.length) modelChoice.value = chat.model;
  const waits = chat.turns.length && log.nextResult() !== null;
  message.placeholder = waits ? "Answer the calls above, or write something else" : "Message";
  byId("context").textContent = contextUsed();
}

function contextUsed() {
  const limit = served.find(({ id }) => id === chat.model)?.max_model_len;
  if (!limit) return "";
  const last = chat.turns.findLast((turn) => turn.role === "assistant" && turn.usage !== null);
  const usage = last?.role === "assistant" ? last.usage : null;
  return `${count(usage ? usage.prompt + usage.completion : 0)} of ${count(limit)} tokens`;
}

function save() {
  if (!saveChat(chat)) say("This browser does not keep the conversation: it is too long, or storage is off. Export keeps it.");
}

/** @param {string} words @param {(() => void) | null} undo */
function say(words, undo = null) {
  const back = () => {
    say("");
    undo?.();
    message.focus();
  };
  notice.replaceChildren(...(words ? [words, ...(undo ? [button("Undo", back)] : [])] : []));
}

function welcome() {
  const example = () => {
    byId("example").click();
    message.value = "What is the weather in Skardu?";
    message.focus();
    fit(message);
  };
  return element(
    "div",
    { className: "welcome" },
    element("h2", {}, chat.model ? `Talk to ${chat.model}` : "Talk to the model"),
    element("p", {}, "The conversation stays in this browser and on this server. Tools go into the settings; when the model calls one, you give the result."),
    button("Try a tool call", example),
  );
}

// ----------------------------------------------------------------------------------------------------- the page

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
keys(message, { submit: send });
message.addEventListener("input", () => fit(message));
byId("stop").addEventListener("click", () => {
  stop();
  message.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) stop();
});
modelChoice.addEventListener("change", () => {
  chat.model = modelChoice.value;
  refresh();
});
byId("new").addEventListener("click", () => {
  if (chat.turns.length) {
    replacing("A new chat has begun.", () => (chat = { ...emptyConversation(), settings: chat.settings, model: chat.model }));
  }
  message.focus();
});
byId("export").addEventListener("click", () => download("chat.json", `${JSON.stringify(requestBody(chat), null, 2)}\n`));
byId("import").addEventListener("click", () => file.click());
file.addEventListener("change", async () => {
  const [chosen] = file.files ?? [];
  file.value = ""; // the same file may be chosen again
  if (!chosen) return;
  try {
    const found = readConversation(await chosen.text());
    replacing("The conversation was imported.", () => {
      if (!served.some(({ id }) => id === found.model)) found.model = chat.model;
      chat = found;
    });
    log.toEnd();
  } catch (error) {
    say(`Nothing was imported. ${/** @type {Error} */ (error).message}`);
  }
});
addEventListener("pagehide", save);
whenSavedElsewhere(() => {
  if (running || document.querySelector(".editing")) return;
  chat = loadChat();
  refresh();
});

refresh();
log.toEnd();
void loadModels().catch((error) => {
  if (error instanceof Refused && error.problem.status === 401) say("This server wants an API key.", null);
});
