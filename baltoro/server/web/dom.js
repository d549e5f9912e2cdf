// Elements from plain values. Text becomes text nodes, never markup: no file here parses HTML.

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, unknown>} properties `className`, `onclick` and so on; `aria-*` and `role` are attributes
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role") made.setAttribute(name, String(value));
    else /** @type {any} */ (made)[name] = value;
  }
  made.append(...children);
  return made;
}

/** An element of index.html. @template {HTMLElement} T @param {string} id @returns {T} */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no #${id}`);
  return /** @type {T} */ (found);
}

/** @param {string} label @param {() => void} onclick @param {Record<string, unknown>} more */
export function button(label, onclick, more = {}) {
  return element("button", { type: "button", onclick, ...more }, label);
}

/** @param {() => string} text what is copied, asked at the click @param {string} what for those who hear the page */
export function copyButton(text, what) {
  const made = button("Copy", async () => {
    made.textContent = (await copied(text())) ? "Copied" : "Not allowed";
    setTimeout(() => (made.textContent = "Copy"), 1500);
  });
  made.setAttribute("aria-label", `Copy ${what}`);
  return made;
}

/** @param {string} text */
async function copied(text) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(
      () => true,
      () => false,
    );
  }
  // Browsers give no clipboard to plain http from another machine, the usual way to reach a server in one's network.
  const before = document.activeElement;
  const carrier = element("textarea", { value: text, className: "unseen", readOnly: true });
  document.body.append(carrier);
  carrier.select();
  const done = document.execCommand("copy");
  carrier.remove();
  if (before instanceof HTMLElement) before.focus();
  return done;
}

/** As high as its text, up to what the style sheet allows. @param {HTMLTextAreaElement} area */
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

/**
 * Enter submits, Shift+Enter is a new line, Escape cancels. While an input method composes, keys are its own.
 * @param {HTMLTextAreaElement} area
 * @param {{ submit: () => void, cancel?: () => void }} on
 */
export function keys(area, { submit, cancel }) {
  area.addEventListener("keydown", (event) => {
    if (event.isComposing || event.keyCode === 229) return; // 229: Safari's Enter that ends a composition
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      submit();
    } else if (event.key === "Escape" && cancel) {
      event.stopPropagation();
      cancel();
    }
  });
}

/** Hand a file to the person. @param {string} name @param {string} text */
export function download(name, text) {
  const href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}
