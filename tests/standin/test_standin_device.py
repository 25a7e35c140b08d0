"""Memory, streams, events and graphs through the real pycuda, on the stand-in driver."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from espan_deploy.backends.cuda_memory import Device, driver_cuda_version, driver_unavailable_reason, gpu
from espan_deploy.errors import InferenceError


@pytest.fixture
def device(driver: Any) -> Device:
    return gpu()


def elsewhere(work: Any) -> Any:
    """Do it in another thread, which then ends."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as exc:
            results.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def test_the_device_says_what_it_is(device: Device) -> None:
    assert (device.name, device.capability) == ("Stand-in card", "8.6")
    assert driver_unavailable_reason() is None
    assert driver_cuda_version() == "13.0"
    assert gpu() is device
    with device.current():
        free, total = device.free_bytes()
        assert 0 < free <= total


def test_copies_wait_for_each_other_across_streams(device: Device, driver: Any) -> None:
    with device.current():
        source, target = device.pinned(1 << 16), device.pinned(1 << 16)
        source.array[:] = np.random.default_rng(0).integers(0, 256, source.nbytes, np.uint8)
        buffer, first, second = device.allocate(source.nbytes), device.stream(), device.stream()
        began, event = device.event(), device.event()
        began.record(first)
        device.copy_in(buffer, source.array, first)
        event.record(first)
        event.make_wait(second)
        device.copy_out(target.array, buffer, second)
        assert not np.array_equal(source.array, target.array)  # nothing runs before somebody waits
        done = device.event()
        done.record(second)
        done.synchronize()
        assert np.array_equal(source.array, target.array)
        assert event.time_since(began) > 0
        for thing in (buffer, source, target, began, event, done, first, second) * 2:
            thing.free()
    assert not any(driver.held().values())
    assert driver.count("wait that spins") == 0
    assert driver.count("stream that waits for the default one") == 0


def test_everything_may_end_in_another_thread_than_it_began(device: Device, driver: Any) -> None:
    made: dict[str, Any] = {}

    def begin() -> None:
        with device.current():
            made.update(memory=device.allocate(64), pinned=device.pinned(64), stream=device.stream())
            made["event"] = device.event()

    def end() -> None:
        with device.current():
            for thing in made.values():
                thing.free()

    elsewhere(begin)
    assert driver.live("stream") == 1
    elsewhere(end)
    assert not any(driver.held().values())


def test_out_of_memory_is_told_from_other_failures(device: Device, driver: Any) -> None:
    driver.limit(1000)
    with pytest.raises(InferenceError, match="out of memory"), device.current():
        device.allocate(2000)
    driver.fail("cuMemHostAlloc", times=2)
    with pytest.raises(InferenceError, match="out of memory"), device.current():
        device.pinned(10)
    driver.forget()
    driver.fail("cuStreamCreate", times=1, code=driver.LAUNCH_FAILED)
    with pytest.raises(InferenceError, match="Stand-in card failed"), device.current():
        device.stream()


def test_a_graph_of_a_copy_is_captured_and_replayed(device: Device, driver: Any) -> None:
    with device.current():
        source, target = device.pinned(4096), device.pinned(4096)
        buffer, stream = device.allocate(4096), device.stream()

        def work() -> None:
            device.copy_in(buffer, source.array, stream)
            device.copy_out(target.array, buffer, stream)

        graph = device.capture(stream, work)
        for value in (3, 200):
            source.array[:] = value
            graph.launch(stream)
            stream.synchronize()
            assert (target.array == value).all()
        graph.free()
        graph.free()
        for thing in (source, target, buffer, stream):
            thing.free()
    assert not any(driver.held().values())


def test_a_capture_that_fails_ends_all_the_same(device: Device, driver: Any) -> None:
    with device.current():
        stream = device.stream()

        def allocates() -> None:
            device.allocate(64)

        def gives_up() -> None:
            raise KeyError("mine")

        with pytest.raises(Exception, match="not permitted when stream is capturing"):
            device.capture(stream, allocates)
        with pytest.raises(KeyError, match="mine"):
            device.capture(stream, gives_up)
        driver.fail("cuGraphInstantiateWithFlags", times=1)
        with pytest.raises(InferenceError, match="cuGraphInstantiateWithFlags answered 2"):
            device.capture(stream, lambda: None)
        device.capture(stream, lambda: None).free()
        stream.free()
    assert not any(driver.held().values())


def test_a_context_that_cannot_be_left_does_not_end_the_process(device: Device, driver: Any) -> None:
    """pycuda aborts where a thread ends with a context on its stack; with a device of its own, since it is lost."""
    lost = Device()

    def work() -> None:
        try:
            with lost.current():
                driver.fail("cuCtxPopCurrent_v2", times=1, code=driver.LAUNCH_FAILED)
        finally:
            assert driver.library.standin_depth() == 1  # the driver was told to fail before it did anything
            driver.library.cuCtxPopCurrent_v2(None)

    assert isinstance(elsewhere(work), InferenceError)
    with device.current():
        device.allocate(16).free()
