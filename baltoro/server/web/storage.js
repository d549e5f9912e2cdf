// What outlives a reload: the conversation in this browser, the API key in this tab.

import { emptyConversation } from "./conversation.js";

const CHAT = "baltoro.chat.1"; // a new form of Conversation gets a new number
const KEY = "baltoro.key";

/** @returns {import("./conversation.js").Conversation} */
export function loadChat() {
  try {
    const found = JSON.parse(localStorage.getItem(CHAT) ?? "null");
    if (!Array.isArray(found?.turns) || !found.turns.every(isTurn)) return emptyConversation();
    for (const turn of found.turns) {
      if (turn.role === "assistant") turn.finish ??= "stopped"; // the page was left while the answer grew
    }
    const empty = emptyConversation();
    return { ...empty, ...found, settings: { ...empty.settings, ...found.settings } };
  } catch {
    return emptyConversation(); // a browser that keeps nothing, or not our text
  }
}

/** @param {any} turn */
function isTurn(turn) {
  return typeof turn?.content === "string" && (turn.role === "user" || Array.isArray(turn.calls));
}

/** @param {import("./conversation.js").Conversation} chat @returns {boolean} whether it was kept */
export function saveChat(chat) {
  try {
    localStorage.setItem(CHAT, JSON.stringify(chat));
    return true;
  } catch {
    return false; // the browser's quota, or it keeps nothing
  }
}

/** @param {() => void} changed when another tab saved its conversation */
export function whenSavedElsewhere(changed) {
  addEventListener("storage", (event) => event.key === CHAT && changed());
}

/** @returns {string} "" without one */
export function loadKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

/** @param {string} key */
export function saveKey(key) {
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    // A browser that keeps nothing: the key is asked for again after a reload.
  }
}
