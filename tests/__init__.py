"""The tests; what they need beyond pytest is in ``support``."""

import pytest

# Before anything imports it: assertions of the public test kit show their values.
pytest.register_assert_rewrite("sandbox_agent.testing")
