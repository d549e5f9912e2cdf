// Tools as people paste them: OpenAI's declarations, one or a list, or the functions alone.

/** @typedef {{ type: "function", function: { name: string, description?: string, parameters?: object } }} Tool */

/**
 * @param {string} text
 * @returns {Tool[]} empty for empty text
 * @throws {Error} whose message says what is wrong, and where
 */
export function readTools(text) {
  if (!text.trim()) return [];
  let found;
  try {
    found = JSON.parse(text);
  } catch (error) {
    throw new Error(`This is not JSON: ${/** @type {Error} */ (error).message}`);
  }
  if (isObject(found) && Array.isArray(found.tools)) found = found.tools;
  const tools = (Array.isArray(found) ? found : [found]).map(readTool);
  const names = tools.map((tool) => tool.function.name);
  const twice = names.find((name, place) => names.indexOf(name) < place);
  if (twice) throw new Error(`“${twice}” is declared twice.`);
  return tools;
}

/** @param {any} found @param {number} place @returns {Tool} */
function readTool(found, place) {
  const where = `Tool ${place + 1}`;
  if (!isObject(found)) throw new Error(`${where} is no object; expected {"type": "function", "function": {…}}.`);
  const declared = "function" in found ? found : { type: "function", function: found };
  if (declared.type !== "function")
    throw new Error(`${where} has the type ${JSON.stringify(declared.type)}; expected "function".`);
  if (!isObject(declared.function)) throw new Error(`${where}: “function” is no object.`);
  const { name, parameters } = declared.function;
  if (typeof name !== "string" || !/^[a-zA-Z0-9_.-]{1,64}$/.test(name)) {
    throw new Error(`${where} has no good name: 1 to 64 letters, digits, “_”, “.” or “-”.`);
  }
  if (parameters !== undefined && !isObject(parameters))
    throw new Error(`${where}: “parameters” is no JSON schema object.`);
  return /** @type {Tool} */ (declared);
}

/** @param {unknown} value @returns {value is Record<string, any>} */
export function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export const EXAMPLE = JSON.stringify(
  [
    {
      type: "function",
      function: {
        name: "get_weather",
        description: "Get the current weather of a city",
        parameters: {
          type: "object",
          properties: { city: { type: "string", description: "Name of the city" } },
          required: ["city"],
        },
      },
    },
  ],
  null,
  2,
);
