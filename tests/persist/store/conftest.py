"""Fixtures of the store's tests."""

import pytest

pytest.register_assert_rewrite("tests.persist.store.suite", "tests.persist.store.making")
