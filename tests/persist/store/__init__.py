"""The server's stores. The suites are rewritten here because tests of other folders import them, too."""

import pytest

pytest.register_assert_rewrite(
    "tests.persist.store.making",
    "tests.persist.store.suite_committing",
    "tests.persist.store.suite_reading",
    "tests.persist.store.suite_searching",
    "tests.persist.store.suite_deleting",
    "tests.persist.store.suite_expiring",
)
