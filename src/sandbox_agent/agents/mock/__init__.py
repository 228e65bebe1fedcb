"""A scripted ACP agent that needs no model, network or installation, and that can misbehave on request.

``python -m sandbox_agent.agents.mock`` speaks ACP on stdin and stdout. The prompt ``help`` lists its
commands. It imports little, and only from the standard library, to start fast.
"""

__all__: list[str] = []
