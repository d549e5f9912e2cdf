"""What an answer's text is to look like, as three APIs ask for it: text, any JSON object, JSON by a schema.

OpenAI's chats nest the schema (`response_format.json_schema`), its responses do not (`text.format`), and messages of
Anthropic's have a schema or nothing (`output_config.format`). `strict` changes one thing: a schema that cannot be
enforced is refused even with --loose-schemas. Every other schema is enforced all the same.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from baltoro.chat.messages import AnswerFormat, Json
from baltoro.server.body import Strict

Kind = Literal["text", "json_object", "json_schema"]
FormatName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class SchemaBody(Strict):
    name: FormatName
    description: str | None = None  # the model is not told: the prompt is the client's alone
    schema_: Annotated[dict[str, Json], Field(alias="schema")] = Field(default_factory=dict[str, Json])
    strict: bool | None = None


class ResponseFormat(Strict):
    """Of a chat."""

    type: Kind
    json_schema: SchemaBody | None = None

    @model_validator(mode="after")
    def _schema_and_type_agree(self) -> ResponseFormat:
        _agree(self.type, "json_schema", given=self.json_schema is not None)
        return self

    def wanted(self) -> AnswerFormat | None:
        if self.json_schema is None:
            return None if self.type == "text" else AnswerFormat()
        strict, where = bool(self.json_schema.strict), "response_format.json_schema.schema"
        return AnswerFormat(schema=self.json_schema.schema_, strict=strict, param=where)


class TextFormat(Strict):
    """Of a response."""

    type: Kind
    name: FormatName | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Json] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_and_type_agree(self) -> TextFormat:
        _agree(self.type, "schema", given=self.schema_ is not None)
        return self

    def wanted(self) -> AnswerFormat | None:
        if self.schema_ is None:
            return None if self.type == "text" else AnswerFormat(name="text.format", param="text.format")
        strict, where = bool(self.strict), "text.format.schema"
        return AnswerFormat(schema=self.schema_, strict=strict, name="text.format", param=where)


class MessageFormat(Strict):
    """Of a message."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Json], Field(alias="schema")]

    def wanted(self) -> AnswerFormat:
        return AnswerFormat(schema=self.schema_, name="output_config.format", param="output_config.format")


def _agree(kind: Kind, field: str, *, given: bool) -> None:
    if given != (kind == "json_schema"):
        verb = "expected no" if given else "expected"
        raise PydanticCustomError(
            "invalid_value", "{verb} {field} with type '{kind}'", {"verb": verb, "field": field, "kind": kind}
        )
