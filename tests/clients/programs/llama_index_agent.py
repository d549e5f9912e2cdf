"""llama-index's FunctionAgent, predict_and_call and a stream against the server at sys.argv[1]."""

import asyncio
import json
import sys

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


model = OpenAILike(
    model="tiny", api_base=f"{sys.argv[1]}/v1", api_key="none", is_chat_model=True, is_function_calling_model=True,
    context_window=4096, max_retries=0,
)  # fmt: skip
tool = FunctionTool.from_defaults(get_weather)
said = {}


async def ask() -> str:
    agent = FunctionAgent(tools=[tool], llm=model, system_prompt="Be brief.")
    return str(await agent.run("How is the weather in Skardu?"))


said["agent"] = asyncio.run(ask())
said["predict_and_call"] = str(model.predict_and_call([tool], "How is the weather in Skardu?"))
said["stream"] = "".join(piece.delta or "" for piece in model.stream_chat([ChatMessage("Hi")]))
said["complete"] = str(model.chat([ChatMessage("Hi")]).message.content)

print(json.dumps(said))
