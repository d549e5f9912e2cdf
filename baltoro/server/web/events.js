// Server-sent events from the body of a response.

/**
 * @typedef {{ name: string, data: string }} ServerEvent `name` is "message" where the server gave none
 * @param {ReadableStream<Uint8Array<ArrayBuffer>>} body
 * @returns {AsyncGenerator<ServerEvent>} complete events only: one cut off by a broken connection never was
 */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let name = "message";
  /** @type {string[]} */
  let data = [];
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?=[^])/); // a last \r may be half of \r\n
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { name, data: data.join("\n") };
          name = "message";
          data = [];
        } else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line.startsWith("event:")) name = line.slice(6).trim();
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // of an aborted request it rejects with what was already thrown
  }
}
