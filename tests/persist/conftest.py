"""Fixtures of the persist tests."""

import pytest

pytest.register_assert_rewrite("sandbox_agent.testing")
