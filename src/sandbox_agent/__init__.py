"""Run coding agents in sandboxes and never lose an event."""
