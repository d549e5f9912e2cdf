// The panel of settings: the form <-> the conversation's settings, and the API key.

import { byId, element } from "./dom.js";
import { EXAMPLE, readTools } from "./tools.js";

export class SettingsPanel {
  /** @param {{ changed: () => void, keyChanged: (key: string) => void }} told */
  constructor(told) {
    this.told = told;
    this.panel = byId("settings");
    this.form = /** @type {HTMLFormElement} */ (byId("settings-form"));
    this.opener = byId("open-settings");
    this.toolsState = byId("tools-state");
    /** @type {import("./conversation.js").Settings | null} */
    this.settings = null;

    this.opener.addEventListener("click", () => (this.panel.hidden ? this.open() : this.close()));
    byId("close-settings").addEventListener("click", () => this.close());
    this.panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.close();
    });
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", (event) => this.read(/** @type {HTMLInputElement} */ (event.target)));
    this.field("key").addEventListener("change", () => {
      const key = this.field("key").value.trim();
      const fit = /^[!-~]*$/.test(key);
      this.field("key").setCustomValidity(fit ? "" : "Keys have letters, digits and signs of ASCII, and no spaces.");
      if (fit) told.keyChanged(key);
    });
    byId("example").addEventListener("click", () => {
      this.field("tools").value = EXAMPLE;
      this.read(this.field("tools"));
    });
  }

  /** @param {string} name @returns {HTMLInputElement} or a textarea or select, which have the same `value` */
  field(name) {
    return /** @type {HTMLInputElement} */ (this.form.elements.namedItem(name));
  }

  /** @param {import("./conversation.js").Settings} settings written to as the person types @param {string} key */
  show(settings, key) {
    this.settings = settings;
    this.field("key").value = key;
    this.field("parallel_tool_calls").checked = settings.parallel_tool_calls;
    for (const name of /** @type {const} */ (["system", "tools", "temperature", "top_p", "max_tokens", "seed"])) {
      this.field(name).value = settings[name];
    }
    this.showTools();
    this.checkSeed();
  }

  /** JavaScript would round larger ones, and `min` and `max` so far apart make `step` inexact. */
  checkSeed() {
    const seed = this.field("seed");
    const whole = Number.isSafeInteger(Number(seed.value));
    seed.setCustomValidity(whole ? "" : "Expected a whole number between −(2⁵³ − 1) and 2⁵³ − 1.");
  }

  /** @param {HTMLInputElement} input */
  read(input) {
    if (!this.settings || !(input.name in this.settings)) return; // the key and the file are no settings
    /** @type {any} */ (this.settings)[input.name] = input.type === "checkbox" ? input.checked : input.value;
    if (input.name === "tools") this.showTools();
    if (input.name === "seed") this.checkSeed();
    this.told.changed();
  }

  /** Says what the pasted declarations are, and offers their names as choices. */
  showTools() {
    if (!this.settings) return;
    /** @type {string[]} */
    let names = [];
    let fault = "";
    try {
      names = readTools(this.settings.tools).map((tool) => tool.function.name);
    } catch (error) {
      fault = /** @type {Error} */ (error).message;
    }
    const { length } = names;
    this.toolsState.textContent =
      fault || (length ? `${length} tool${length > 1 ? "s" : ""}: ${names.join(", ")}` : "");
    this.toolsState.classList.toggle("fault", Boolean(fault));
    this.field("tools").setCustomValidity(fault);
    byId("example").hidden = Boolean(this.settings.tools.trim());

    const options = [
      ["auto", "The model decides"],
      ["none", "No call"],
      ["required", "At least one call"],
      ...names.map((name) => [`function:${name}`, `Only ${name}`]),
    ];
    const choice = this.field("tool_choice");
    choice.replaceChildren(...options.map(([value, label]) => element("option", { value }, label)));
    if (!fault && !options.some(([value]) => value === this.settings?.tool_choice)) this.settings.tool_choice = "auto";
    choice.value = this.settings.tool_choice;
    choice.disabled = !length;
    this.field("parallel_tool_calls").disabled = !length;
  }

  /** Whether all fields can be sent; opens the panel at the first that can not. */
  check() {
    // A field in a hidden panel cannot show its complaint.
    if (this.form.checkValidity()) return true;
    this.open();
    this.form.reportValidity();
    return false;
  }

  /** @param {string} name of the field to start at */
  open(name = "system") {
    this.panel.hidden = false;
    this.opener.setAttribute("aria-expanded", "true");
    this.field(name).focus();
  }

  close() {
    this.panel.hidden = true;
    this.opener.setAttribute("aria-expanded", "false");
    this.opener.focus();
  }
}
