// What went wrong, in words for the person in front of the page.

/**
 * @param {import("./server.js").Problem} problem
 * @param {boolean} keyGiven
 * @returns {{ title: string, advice: string, wantsKey: boolean }}
 */
export function explain(problem, keyGiven) {
  const { status, code, retryAfterS } = problem;
  const said = (/** @type {string} */ title, /** @type {string} */ advice) => ({ title, advice, wantsKey: false });
  if (code === "context_length_exceeded") {
    return said(
      "The conversation is longer than the model's context",
      "Start a new chat, or shorten a message by editing it.",
    );
  }
  switch (status) {
    case 0:
      return said("The server does not answer", "Is it still running, and this machine still connected to it?");
    case 200:
      return said("The answer broke off", "What came so far is kept. Try again, or go on from there.");
    case 401:
      return {
        title: keyGiven ? "The server does not know this API key" : "This server wants an API key",
        advice: "Whoever runs it can give you one; it goes into the settings.",
        wantsKey: true,
      };
    case 402:
    case 403:
      return {
        title: "This API key may not do that",
        advice: "Its limits are set by whoever runs the server.",
        wantsKey: true,
      };
    case 404:
      return said("The server does not have this model", "Choose another one above.");
    case 413:
      return said("The conversation is too large to send", "Start a new chat, or shorten a message by editing it.");
    case 429: {
      const wait = retryAfterS === null ? "a moment" : seconds(retryAfterS);
      return said("Too many requests at once", `Nothing is lost. Try again in ${wait}.`);
    }
    case 503:
      return said(
        "The model is not available at the moment",
        "The server is starting it again, or needs whoever runs it.",
      );
    case 504:
      return said(
        "The answer took longer than this server allows",
        "Try again when it is less busy, or with fewer max tokens.",
      );
    default:
      return status >= 500
        ? said("The server failed", "Its log says why.")
        : said("The server refuses this request", "Change what it names, then try again.");
  }
}

/** @param {number} count */
function seconds(count) {
  return count === 1 ? "1 second" : `${count} seconds`;
}
