// The page: what the person does -> the conversation changes -> it is saved and drawn, and the model answers.

import { emptyAnswer, emptyConversation, readConversation, requestBody, waitingCalls } from "./conversation.js";
import { button, byId, download, element, fit, keys } from "./dom.js";
import { count, Log } from "./log.js";
import { ModelChoice } from "./models.js";
import { explain } from "./problems.js";
import { answer, Refused } from "./server.js";
import { SettingsPanel } from "./settings.js";
import { loadChat, loadKey, saveChat, saveKey, whenSavedElsewhere } from "./storage.js";

const SAVE_EVERY_MS = 1000; // while an answer grows

const message = /** @type {HTMLTextAreaElement} */ (byId("message"));
const file = /** @type {HTMLInputElement} */ (byId("file"));
const notice = byId("notice");

let chat = loadChat();
let key = loadKey();
/** @type {AbortController | null} */
let running = null;

const settings = new SettingsPanel({
  changed: save,
  keyChanged(changed) {
    key = changed;
    saveKey(key);
    say("");
    void connect();
  },
});

const models = new ModelChoice((model) => {
  chat.model = model;
  refresh();
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
    if (!models.served.length) await loadModels();
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
      refresh();
      const idle = document.activeElement === document.body || (document.activeElement === message && !message.value);
      // On a phone the keyboard would come up over the answer.
      if (idle && !matchMedia("(pointer: coarse)").matches) (log.nextResult() ?? message).focus();
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

/** Learn what is served, or say why that is not to be learned. */
async function connect() {
  try {
    await loadModels();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    const { title, wantsKey } = explain(error.problem, Boolean(key));
    say(`${title}.`, wantsKey ? { label: "Enter a key", act: () => settings.open("key") } : null);
  }
}

async function loadModels() {
  await models.load(key);
  chat.model = models.nearest(chat.model);
  models.show(chat.model);
  byId("context").textContent = contextUsed();
  if (!chat.turns.length) log.draw(chat, welcome()); // it names the model; anything else there may be under way
}

// ------------------------------------------------------------------------------------- the conversation changes

/**
 * Change the conversation so that the person can take it back.
 * @param {string} words what was done; "" where nothing is lost by it
 * @param {() => void} change
 */
function replacing(words, change) {
  stop();
  const before = structuredClone(chat);
  change();
  refresh();
  const undo = () => {
    stop();
    chat = before;
    refresh();
    log.toEnd();
    say("");
    message.focus();
  };
  say(words, { label: "Undo", act: undo });
}

/** @param {number} index */
function answerAt(index) {
  return /** @type {import("./conversation.js").Answer} */ (chat.turns[index]);
}

/** The conversation changed: it is saved and shown. */
function refresh() {
  save();
  show();
}

function show() {
  log.keyGiven = Boolean(key);
  log.draw(chat, welcome());
  log.root.setAttribute("aria-busy", String(running !== null)); // read out when it is whole
  byId("send").hidden = running !== null;
  byId("stop").hidden = running === null;
  if (settings.settings !== chat.settings) settings.show(chat.settings, key);
  models.show(chat.model);
  message.placeholder = log.nextResult() ? "Or write something else" : "Message";
  byId("context").textContent = contextUsed();
}

function contextUsed() {
  const limit = models.context(chat.model);
  if (limit === null) return "";
  const last = chat.turns.findLast((turn) => turn.role === "assistant" && turn.usage !== null);
  const usage = last?.role === "assistant" ? last.usage : null;
  return `${count(usage ? usage.prompt + usage.completion : 0)} of ${count(limit)} tokens`;
}

function save() {
  if (saveChat(chat)) return;
  say("This browser does not keep the conversation: it is too long, or storage is off. Export keeps it.");
}

/** @param {string} words @param {{ label: string, act: () => void } | null} action what can be done about them */
function say(words, action = null) {
  notice.replaceChildren(...(words ? [words, ...(action ? [button(action.label, action.act)] : [])] : []));
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
    element(
      "p",
      {},
      "The conversation is kept in this browser and goes to this server only. " +
        "Tools are declared in the settings; when the model calls one, you give its result.",
    ),
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
byId("new").addEventListener("click", () => {
  if (chat.turns.length) {
    replacing(
      "A new chat has begun.",
      () => (chat = { ...emptyConversation(), settings: chat.settings, model: chat.model }),
    );
  }
  message.focus();
});
byId("export").addEventListener("click", () => {
  if (settings.check()) download("chat.json", `${JSON.stringify(requestBody(chat), null, 2)}\n`);
});
byId("import").addEventListener("click", () => file.click());
file.addEventListener("change", async () => {
  const [chosen] = file.files ?? [];
  file.value = ""; // the same file may be chosen again
  if (!chosen) return;
  try {
    const found = readConversation(await chosen.text());
    replacing("The conversation was imported.", () => {
      chat = { ...found, model: models.nearest(found.model) };
    });
    log.toEnd();
  } catch (error) {
    say(`Nothing was imported. ${/** @type {Error} */ (error).message}`);
  }
});
addEventListener("pagehide", () => {
  stop(); // else the request that ends with the page would look like a fault of the server
  save();
});
whenSavedElsewhere(() => {
  if (running || document.querySelector(".editing")) return;
  chat = loadChat();
  show(); // and not saved: two tabs would answer each other
});

refresh();
log.toEnd();
void connect();
