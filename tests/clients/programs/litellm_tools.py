"""litellm's tool loop over chats and Anthropic's messages, and a response, against the server at sys.argv[1]."""

import json
import sys

import litellm

url = sys.argv[1]
litellm.telemetry = False
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": SCHEMA}}]


def loop(**where: object) -> list[str]:
    """The tool loop: finish reasons, and the last text."""
    messages: list = [{"role": "user", "content": "How is the weather in Skardu?"}]
    reasons = []
    for _ in range(3):
        choice = litellm.completion(messages=messages, tools=TOOLS, num_retries=0, **where).choices[0]
        reasons.append(choice.finish_reason)
        messages.append(choice.message.model_dump(exclude_none=True))
        if not choice.message.tool_calls:
            break
        for call in choice.message.tool_calls:
            city = json.loads(call.function.arguments)["city"]
            messages.append({"role": "tool", "tool_call_id": call.id, "content": f"Sunny in {city}."})
    return [*reasons, messages[-1]["content"]]


openai = {"model": "openai/tiny", "api_base": f"{url}/v1", "api_key": "none"}
anthropic = {"model": "anthropic/tiny", "api_base": url, "api_key": "none", "max_tokens": 100}
said: dict = {"chat": loop(**openai), "messages": loop(**anthropic)}
for name, where in (("chat stream", openai), ("messages stream", anthropic)):
    chunks = list(litellm.completion(
        messages=[{"role": "user", "content": "Skardu?"}], tools=TOOLS, stream=True, num_retries=0,
        stream_options={"include_usage": True}, **where,
    ))  # fmt: skip
    whole = litellm.stream_chunk_builder(chunks)
    said[name] = whole.choices[0].message.tool_calls[0].function.arguments
responses = litellm.responses(input="Hi", num_retries=0, **openai)
said["responses"] = responses.output[0].content[0].text

print(json.dumps(said))
