"""The tests that wait for a GPU, here on the stand-in: what it can show is that they would run."""

from __future__ import annotations

from engines.test_gpu import (  # noqa: F401 - tests and their fixtures
    device,
    name,
    test_a_graph_of_a_copy_is_captured_and_replayed,
    test_an_a6000_engine_runs_on_an_a6000_alone,
    test_an_engine_file_is_opened_and_another_gpu_s_refused,
    test_an_engine_for_this_gpu_upscales,
    test_copies_through_pinned_memory_on_two_streams,
    test_the_device_says_what_it_is,
)
