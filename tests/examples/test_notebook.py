"""Notebooks: the example, and a live display, in a real kernel."""

from __future__ import annotations

import asyncio
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

nbformat: Any = import_module("nbformat")  # it has no types
ROOT = Path(__file__).parents[2]
SECONDS = 100

# A kernel takes seconds to start, and pyzmq warns about loops that nbclient makes.
pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("default")]


class _Recorder(NotebookClient):
    """Keeps the changes of displays, which overwrite each other in the notebook."""

    changes: list[str]

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "update_display_data":
            self.changes.append(msg["content"]["data"]["text/html"])
        return super().process_message(msg, cell, cell_index)


def run(notebook: Any, folder: Path) -> list[str]:
    """Run a notebook in place, and return what its displays have shown, one after another."""
    client = _Recorder(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.changes = []
    asyncio.run(client.async_execute())
    return client.changes


def cells(*sources: str) -> Any:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def test_the_example_runs_from_its_top_to_its_end(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "examples/notebook/session.ipynb", as_version=4)
    run(notebook, tmp_path)
    shown = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    live, turn, transcript = shown
    for each in (live, transcript):
        assert all(text in each for text in ("Plan", "✓ Read the request", "✓ Write hello.txt", "Mock agent"))
    assert "You said: What can you do?" in turn
    assert "You said: What can you do?" in transcript


def test_a_turn_is_shown_while_it_runs(tmp_path: Path) -> None:
    source = """
from sandbox_agent import SandboxAgent, local
from sandbox_agent.testing import ScriptedAgent
from IPython.display import DisplayHandle
import threading
shown = threading.Event()
update = DisplayHandle.update

def note(handle, transcript):
    update(handle, transcript)
    if "One" in transcript._repr_html_():
        shown.set()

DisplayHandle.update = note
agent = ScriptedAgent(lambda turn: (turn.plan("One", "Two"), shown.wait(60), turn.say("<b>Done</b>")))
sdk = await SandboxAgent.start(sandbox=local(agent_commands=agent.commands, log="silent"))
session = await sdk.create_session(agent="scripted")
response = await session.show("go")
print(response.stop_reason)
await sdk.destroy_sandbox()
await sdk.dispose()
agent.close()
"""
    notebook = cells(source)
    changes = run(notebook, tmp_path)
    assert any("One" in change and "Done" not in change for change in changes)
    assert "&lt;b&gt;Done&lt;/b&gt;" in changes[-1]
    assert any(output.get("text") == "end_turn\n" for output in notebook.cells[0].outputs)


def test_an_error_of_the_turn_is_raised_in_the_cell(tmp_path: Path) -> None:
    source = """
from sandbox_agent import SandboxAgent, local
sdk = await SandboxAgent.start(sandbox=local(log="silent"))
session = await sdk.create_session(agent="mock")
try:
    await session.show("die 3")
finally:
    await sdk.destroy_sandbox()
    await sdk.dispose()
"""
    with pytest.raises(CellExecutionError, match="ended with exit code 3"):
        run(cells(source), tmp_path)


def test_a_program_without_async_can_show_a_turn(tmp_path: Path) -> None:
    source = """
from sandbox_agent.sync import SandboxAgent, local
sdk = SandboxAgent.start(sandbox=local(log="silent"))
session = sdk.create_session(agent="mock")
response = session.show("echo hello")
sdk.destroy_sandbox()
sdk.dispose()
"""
    assert "hello" in run(cells(source), tmp_path)[-1]
