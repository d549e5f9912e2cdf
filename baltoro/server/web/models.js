// Which of the served models answers: the choice in the page's head.

import { byId, element } from "./dom.js";
import { models } from "./server.js";

export class ModelChoice {
  /** @param {(model: string) => void} chosen by the person */
  constructor(chosen) {
    this.select = /** @type {HTMLSelectElement} */ (byId("model"));
    /** @type {{ id: string, max_model_len: number }[]} */
    this.served = [];
    this.select.addEventListener("change", () => chosen(this.select.value));
  }

  /** Ask the server what it has. @param {string} key @throws {import("./server.js").Refused} */
  async load(key) {
    this.served = await models(key);
    this.select.replaceChildren(...this.served.map(({ id }) => element("option", { value: id }, id)));
    this.select.disabled = this.served.length < 2;
  }

  /** `model` if it is served here, else the first that is; before `load` nothing is known. @param {string} model */
  nearest(model) {
    return this.served.some(({ id }) => id === model) ? model : (this.served[0]?.id ?? model);
  }

  /** @param {string} model */
  show(model) {
    if (this.served.length) this.select.value = model;
  }

  /** Tokens of its context; null where nothing is known. @param {string} model */
  context(model) {
    return this.served.find(({ id }) => id === model)?.max_model_len ?? null;
  }
}
