"""``sandbox-agent chat``: conversations with agents on a terminal, by prompt_toolkit."""
