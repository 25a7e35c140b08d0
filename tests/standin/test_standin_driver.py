"""What the stand-in catches: each of these a driver may let pass, or answer much later with something else."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
import pytest

from espan_deploy.backends.cuda_memory import Device, gpu

BYTES = 64


@pytest.fixture
def device(driver: Any) -> Device:
    return gpu()


class Copy:
    """A copy to the device that has not run."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.buffer, self.host, self.stream = device.allocate(BYTES), device.pinned(BYTES), device.stream()
        self.copy()

    def copy(self) -> None:
        self.device.copy_in(self.buffer, self.host.array, self.stream)

    def end(self) -> None:
        self.stream.synchronize()
        for thing in (self.buffer, self.host, self.stream):
            thing.free()


def test_memory_that_is_freed_while_a_copy_waits(device: Device, driver: Any) -> None:
    with device.current():
        work = Copy(device)
        work.buffer.free()
        work.end()
    freed, used = driver.violations()
    assert "work still pending uses" in freed
    assert used == "a copy to the device: device memory was used after it was freed"


def test_memory_that_is_used_after_it_was_freed(device: Device, driver: Any) -> None:
    with device.current():
        work = Copy(device)
        work.stream.synchronize()
        work.buffer.free()
        with pytest.raises(Exception, match="invalid argument"):
            work.copy()
        work.end()
    assert driver.violations() == ["cuMemcpyHtoDAsync_v2: device memory was used after it was freed"]


def test_a_graph_that_is_replayed_after_its_buffer_moved(device: Device, driver: Any) -> None:
    with device.current():
        work = Copy(device)
        graph = device.capture(work.stream, work.copy)
        work.stream.synchronize()
        work.buffer.free()
        work.buffer = device.allocate(BYTES)
        graph.launch(work.stream)
        work.end()
        graph.free()
    assert driver.violations() == ["a copy to the device: device memory was used after it was freed"]


def test_copies_larger_than_their_memory_or_from_memory_that_may_move(device: Device, driver: Any) -> None:
    with device.current():
        work = Copy(device)
        for source in (np.zeros(BYTES, np.uint8), np.zeros(2 * BYTES, np.uint8)):
            with pytest.raises(Exception, match="invalid argument"):
                device.copy_in(work.buffer, source, work.stream)
        work.end()
    pageable, large = driver.violations()
    assert "is no pinned memory" in pageable
    assert large == f"cuMemcpyHtoDAsync_v2: {2 * BYTES} bytes do not fit into {BYTES}"


def test_a_thread_without_the_context(device: Device, driver: Any) -> None:
    failures: list[Exception] = []
    with device.current():
        work = Copy(device)

        def elsewhere() -> None:
            try:
                work.copy()
            except Exception as exc:
                failures.append(exc)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        work.end()
    assert "invalid device context" in str(failures[0])
    assert driver.violations() == ["cuMemcpyHtoDAsync_v2 without a current context"]


def test_things_that_end_with_work_pending(device: Device, driver: Any) -> None:
    with device.current():
        work, event = Copy(device), device.event()
        event.record(work.stream)
        event.free()
        work.stream.free()
        work.buffer.free()
        work.host.free()
    assert driver.violations()[:2] == [
        "an event was destroyed before it came",
        "a stream was destroyed with work pending",
    ]


def test_the_default_stream_and_an_event_that_never_was(device: Device, driver: Any) -> None:
    with device.current():
        work, event = Copy(device), device.event()
        event.make_wait(work.stream)
        with pytest.raises(Exception, match="invalid resource handle"):
            event._raw.record()
        event.free()
        work.end()
    assert driver.violations() == [
        "a stream waits for an event that was never recorded",
        "cuEventRecord on the default stream, which all others wait for",
    ]


def test_what_it_lacks_is_loud(device: Device, driver: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with device.current():
        buffer = device.allocate(BYTES)
        with pytest.raises(Exception, match="not supported"):
            device._cuda.memset_d8(buffer.address, 0, BYTES)
        buffer.free()
    assert driver.violations() == ["cuMemsetD8_v2 is not in the stand-in"]
    assert capfd.readouterr().err == "stand-in driver: cuMemsetD8_v2 is not implemented\n"


def test_handles_that_are_none(device: Device, driver: Any) -> None:
    with device.current():
        stream = device.stream()
        stream.free()
        assert driver.library.cuStreamSynchronize(ctypes.c_void_p(0xBAD)) == driver.INVALID_HANDLE
        assert driver.library.cuGraphLaunch(ctypes.c_void_p(0x10000), None) != 0
    assert len(driver.violations()) == 2
