"""langchain's agent over chats and responses, a bare tool loop and a stream against the server at sys.argv[1]."""

import json
import sys

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


url = f"{sys.argv[1]}/v1"
model = ChatOpenAI(model="tiny", base_url=url, api_key="none", max_retries=0)
said = {}

agent = create_agent(model, [get_weather], system_prompt="Be brief.")
turns = agent.invoke({"messages": [{"role": "user", "content": "How is the weather in Skardu?"}]})["messages"]
said["agent"] = [turn.type for turn in turns] + [turns[-1].content]

bound = model.bind_tools([get_weather], tool_choice="auto", parallel_tool_calls=False)
history = [HumanMessage("How is the weather in Skardu?")]
for _ in range(3):
    answer = bound.invoke(history)
    history.append(answer)
    for call in answer.tool_calls:
        history.append(ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]))
said["loop"] = history[-1].content

chunks = list(model.bind_tools([get_weather]).stream("How is the weather in Skardu?", stream_usage=True))
whole = sum(chunks[1:], chunks[0])
said["stream"] = {"calls": [call["args"] for call in whole.tool_calls], "tokens": whole.usage_metadata["total_tokens"]}

responses = ChatOpenAI(model="tiny", base_url=url, api_key="none", max_retries=0, use_responses_api=True, store=False)
turns = create_agent(responses, [get_weather]).invoke({"messages": [{"role": "user", "content": "Skardu?"}]})[
    "messages"
]
said["responses"] = [turn.type for turn in turns] + [turns[-1].text]

print(json.dumps(said))
