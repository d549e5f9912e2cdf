"""Every error a user can cause, as one tree.

BaltoroError              what is wrong, with the value; what was expected; what to do
├── ConfigError           config.json: unknown, missing or contradictory fields
├── CheckpointError       shards, index, tensor names, shapes, dtypes
├── ReadError             a range of a file that does not come: the disk, a short or replaced file
├── TraceError            a routing trace or a file of hot experts that is damaged or of another model
├── FetchError            a source that cannot be read, a full disk, bytes that are not those published
├── TokenizerError        tiktoken.model, special tokens, undecodable ids
├── RecipeError           a training recipe (TOML) or its data
├── PlanError             a model that does not fit a machine, or not in the layout that is asked for
├── EngineError           the engine failed or is shutting down; not the caller's fault
│   ├── QueueFull         as many requests wait as may; later there is room again
│   └── DeadlineError     a request was not done when its time was over
├── ToolError             what a model asked a tool for cannot be done; the model reads why
├── AccountsError         the database of keys cannot be used, or what is asked of it makes no sense
├── AccessError           who asks may not: no key, or a wrong one
│   ├── ForbiddenError    a key that is right, and not for this model
│   └── SpentError        a limit of the key is reached; some of them have room again later
└── RequestError          one request cannot be honoured; the server answers 4xx
    ├── SchemaError       a tool's JSON schema or a response format cannot be compiled
    ├── ContextError      prompt and answer do not fit the context
    └── ModelNotFound     the request names a model that is not served
"""


class BaltoroError(Exception):
    """Something the user can repair. `hint` says what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigError(BaltoroError):
    """config.json does not describe a model that we can build."""


class CheckpointError(BaltoroError):
    """The files of a checkpoint contradict each other, the config, or the format."""


class ReadError(BaltoroError):
    """Bytes of an open file could not be read, or are no longer those of the file that was opened."""


class TraceError(BaltoroError):
    """What was recorded of a model's use of its experts cannot be read, or does not fit."""


class FetchError(BaltoroError):
    """The files of a model could not be brought here; what has arrived is kept."""


class TokenizerError(BaltoroError):
    """The vocabulary file is broken, or text and ids do not belong to it."""


class RecipeError(BaltoroError):
    """A training recipe asks for something that does not exist or does not fit."""


class PlanError(BaltoroError):
    """The model does not run there. `short_bytes`: how much is missing at the fullest place; None: it is not bytes."""

    def __init__(self, message: str, *, hint: str = "", short_bytes: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.short_bytes = short_bytes


class EngineError(BaltoroError):
    """The engine stopped or failed; requests in flight end with this."""


class QueueFull(EngineError):
    """Too many requests wait. `retry_after_s`: when, at the present speed, all of these will have their turn."""

    def __init__(self, message: str, *, hint: str = "", retry_after_s: int) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class DeadlineError(EngineError):
    """The time that a request had is over; what it has said until then was told."""


class ToolError(BaltoroError):
    """A tool cannot do what a model asked of it; the text is for the model."""


class AccountsError(BaltoroError):
    """Keys and what they used cannot be read or written."""


class AccessError(BaltoroError):
    """Who asks may not. Neither `message` nor `hint` ever has the key that was sent."""

    status = 401
    code = "invalid_api_key"


class ForbiddenError(AccessError):
    """The key is right, but not for what is asked."""

    status = 403
    code = "model_not_found"  # OpenAI's, for a model that a project has no access to


class SpentError(AccessError):
    """A limit of the key is reached. `retry_after_s`: when there is room again; None: not by waiting."""

    status = 429

    def __init__(self, message: str, *, hint: str = "", limit: str, retry_after_s: int | None) -> None:
        """limit: requests, tokens, concurrent, or budget, which no wait fills up again"""
        super().__init__(message, hint=hint)
        self.limit = limit
        self.retry_after_s = retry_after_s
        self.code = "insufficient_quota" if limit == "budget" else "rate_limit_exceeded"


class RequestError(BaltoroError):
    """A request that cannot be honoured. `param` names the offending field of the request."""

    def __init__(self, message: str, *, hint: str = "", param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.code = code


class SchemaError(RequestError):
    """A JSON schema that cannot be turned into a constraint."""


class ContextError(RequestError):
    """Prompt plus requested answer is longer than the context. `sizes`: tokens of the prompt, of the context."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        param: str | None = None,
        code: str | None = None,
        sizes: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, param=param, code=code)
        self.sizes = sizes


class ModelNotFound(RequestError):
    """The named model is not the one served here."""
