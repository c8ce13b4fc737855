"""Programs of these tests run once or twice: they are compiled without expensive optimizations."""

from collections.abc import Iterator

import jax
import pytest

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(autouse=True)
def quick_compilation() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def compiles():
    """Programs that were compiled since."""
    seen = []

    def listen(event, seconds, **_):
        if event == COMPILED:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)
