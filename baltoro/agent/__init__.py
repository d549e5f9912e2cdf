"""A model that acts: messages, tool calls, results, again, until it is done or its budget is spent."""
