"""For all tests: what collecting them has imported is not walked through again by every garbage collection."""

import gc


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
