"""What every server store keeps to: a store's test module subclasses it and says how it is opened.

::

    class TestMyStore(SessionStoreSuite):
        @pytest.fixture
        def opener(self, tmp_path: Path) -> Opener:
            return lambda: opened(tmp_path / "store.db")

Each call of the opener opens the same store, which is empty at first, and lets go of it at the end; it also
finishes the deletes that were interrupted. Only one is open at a time.
"""

from __future__ import annotations

from tests.persist.store.suite_base import MeasuredStore, Opener
from tests.persist.store.suite_committing import CommittingSuite
from tests.persist.store.suite_deleting import DeletingSuite
from tests.persist.store.suite_expiring import ExpiringSuite
from tests.persist.store.suite_reading import ReadingSuite
from tests.persist.store.suite_searching import SearchingSuite

__all__ = ["MeasuredStore", "Opener", "SessionStoreSuite"]


class SessionStoreSuite(CommittingSuite, ReadingSuite, SearchingSuite, DeletingSuite, ExpiringSuite):
    """The promises of ``SessionStore``; see the module's docstring for its use."""
