"""An NVIDIA GPU's memory, streams and events, through pycuda: the one module that knows it.

The tests run it on the real pycuda and a stand-in for the driver; docs/hardware.md says what ran on hardware.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espan_deploy.errors import BackendUnavailableError, InferenceError

REMEDY = "pip install 'espan-deploy[gpu]' on a machine with an NVIDIA driver and the CUDA toolkit"

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING, for which pycuda has no name: other streams do not wait for the default one's work."""


def gpu_unavailable_reason() -> str | None:
    """Why there is no GPU to use, or None."""
    try:
        gpu()
    except BackendUnavailableError as exc:
        return exc.message
    return None


def driver_unavailable_reason() -> str | None:
    """Why the NVIDIA driver cannot be used, or None; asked of the driver itself, so pycuda is not needed."""
    try:
        code = _driver().cuInit(0)
    except OSError:
        return "there is no NVIDIA driver"
    return None if code == 0 else f"the NVIDIA driver answers error {code}"


def driver_cuda_version() -> str:
    """The newest CUDA that the driver knows, such as "13.0"; "" without a driver."""
    version = ctypes.c_int()
    try:
        code = _driver().cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}" if code == 0 else ""


def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


class Buffer:
    """Device memory. address: what kernels take."""

    def __init__(self, allocation: Any, nbytes: int) -> None:
        self._allocation: Any = allocation
        self.address = int(allocation)
        self.nbytes = nbytes

    def free(self) -> None:
        """Give the memory back, inside ``current()``. Calling it twice does no harm."""
        if self._allocation is not None:
            self._allocation.free()
            self._allocation = None


class PinnedBuffer:
    """Host memory that copies run from and to while the host goes on. array: its bytes, to be forgotten when freed."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.array = array
        self.nbytes = array.nbytes

    def free(self) -> None:
        """Give the memory back, inside ``current()``, however many views of it there are. Twice does no harm."""
        if self.array.size:
            allocation: Any = self.array.base
            self.array = np.empty(0, np.uint8)
            allocation.free()


class Event:
    """For ordering, and for the time between two. Whoever waits for it sleeps: spinning would take a core."""

    def __init__(self, raw: Any) -> None:
        self._raw: Any = raw

    def record(self, stream: Stream) -> None:
        """Put it behind what the stream was given so far."""
        self._raw.record(stream.raw)

    def synchronize(self) -> None:
        """Wait until the stream came to it."""
        self._raw.synchronize()

    def time_since(self, earlier: Event) -> float:
        """In milliseconds, by the device's clock, once both came."""
        return float(self._raw.time_since(earlier._raw))

    def make_wait(self, stream: Stream) -> None:
        """Let a stream's next work wait for it."""
        stream.raw.wait_for_event(self._raw)

    def free(self) -> None:
        """Give it back, inside ``current()``. Calling it twice does no harm."""
        self._raw = None


class Stream:
    """Work in order, which no other stream waits for unless told to. raw: pycuda's, not to be kept."""

    def __init__(self, raw: Any) -> None:
        self.raw: Any = raw

    @property
    def handle(self) -> int:
        """What TensorRT and the driver take."""
        return int(self.raw.handle)

    def synchronize(self) -> None:
        """Wait until it has nothing to do. This spins: an event's wait does not."""
        self.raw.synchronize()

    def free(self) -> None:
        """Give it back, inside ``current()``, when it has nothing to do. Calling it twice does no harm."""
        self.raw = None


_gpu: Device | None = None
_gpu_lock = threading.Lock()


def gpu() -> Device:
    """The first GPU that the process may see, woken once. Raises BackendUnavailableError where there is none."""
    global _gpu  # noqa: PLW0603 - a process has one primary context, which pycuda can hold once only
    with _gpu_lock:
        if _gpu is None:
            _gpu = Device()
        return _gpu


class Device:
    """A GPU in its primary context, which TensorRT uses as well; ``gpu()`` gives the process's only one.

    name, capability ("8.6"). Everything else wants to happen inside ``current()``, in any thread. pycuda's objects know
    the context they were made in, not the device's: two of this class could not use each other's.
    """

    def __init__(self) -> None:
        try:
            import pycuda.driver as cuda
        except ImportError as exc:
            missing = isinstance(exc, ModuleNotFoundError) and (exc.name or "").startswith("pycuda")
            what = "pycuda is not installed" if missing else f"pycuda cannot be loaded: {exc}"
            raise BackendUnavailableError(what, hint=REMEDY) from exc
        self._cuda = cuda
        try:
            cuda.init()
            device = cuda.Device(0)
            self._context = device.retain_primary_context()
        except cuda.Error as exc:
            raise BackendUnavailableError(f"there is no usable NVIDIA GPU: {exc}", hint=REMEDY) from exc
        # pycuda's destructor would push this context without a pop and end it by cuCtxDetach, which is for contexts
        # of the other kind. The process's end does all of that better.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._context))
        self.name: str = device.name()
        major, minor = device.compute_capability()
        self.capability = f"{major}.{minor}"

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device this thread's own for a while; errors inside become InferenceError."""
        try:
            self._context.push()
            try:
                yield
            finally:
                self._pop()
        except self._cuda.MemoryError as exc:
            raise InferenceError(f"{self.name} is out of memory: {exc}", hint="lower the batch or the tile") from exc
        except self._cuda.Error as exc:
            raise InferenceError(f"{self.name} failed: {exc}") from exc

    def _pop(self) -> None:
        try:
            self._context.pop()
        except self._cuda.Error:
            # The driver may answer an earlier launch's failure here. pycuda then keeps the context on its own stack,
            # and aborts the process once the thread ends: so it is detached, and the next object that looks for it
            # drops it from there. The device is lost to this process anyhow.
            with suppress(self._cuda.Error):
                self._context.detach()
            with suppress(self._cuda.Error):
                self._cuda.Event()
            raise

    def allocate(self, nbytes: int) -> Buffer:
        """Device memory of this size."""
        return Buffer(self._cuda.mem_alloc(nbytes), nbytes)

    def pinned(self, nbytes: int) -> PinnedBuffer:
        """Pinned host memory of this size."""
        return PinnedBuffer(self._cuda.pagelocked_empty(nbytes, np.uint8))

    def free_bytes(self) -> tuple[int, int]:
        """Of the device's memory: free, and in all."""
        free, total = self._cuda.mem_get_info()
        return int(free), int(total)

    def stream(self) -> Stream:
        """A stream of its own."""
        return Stream(self._cuda.Stream(NON_BLOCKING))

    def event(self) -> Event:
        """An event of its own."""
        return Event(self._cuda.Event(self._cuda.event_flags.BLOCKING_SYNC))

    def copy_in(self, target: Buffer, source: NDArray[np.uint8], stream: Stream) -> None:
        """Start a copy from pinned host memory."""
        self._cuda.memcpy_htod_async(target.address, source, stream.raw)

    def copy_out(self, target: NDArray[np.uint8], source: Buffer, stream: Stream) -> None:
        """Start a copy to pinned host memory."""
        self._cuda.memcpy_dtoh_async(target, source.address, stream.raw)

    def synchronize(self) -> None:
        """Wait for everything the device was given, on any stream."""
        self._cuda.Context.synchronize()

    def settle(self, streams: Iterable[Stream]) -> None:
        """After a failure: wait until nothing on these streams touches memory any more, whatever else has failed."""
        for stream in streams:
            with suppress(self._cuda.Error):
                stream.synchronize()

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Record what ``work`` puts on a stream, without running it. Raises InferenceError where that is impossible."""
        return Graph(stream, work)


THREAD_LOCAL_CAPTURE = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on allocating meanwhile."""


class Graph:
    """A recorded sequence of launches, replayed as one. pycuda has none, so this asks the driver itself."""

    def __init__(self, stream: Stream, work: Callable[[], None]) -> None:
        self._driver = _driver()
        self._executable = ctypes.c_void_p()
        graph = ctypes.c_void_p()
        handle = ctypes.c_void_p(stream.handle)
        self._check("cuStreamBeginCapture_v2", handle, ctypes.c_int(THREAD_LOCAL_CAPTURE))
        try:
            work()
        except BaseException:
            # The stream must not go on recording; what ending it answers is the same failure once more.
            self._driver.cuStreamEndCapture(handle, ctypes.byref(graph))
            if graph:
                self._check("cuGraphDestroy", graph)
            raise
        self._check("cuStreamEndCapture", handle, ctypes.byref(graph))
        try:
            self._check("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
        finally:
            self._check("cuGraphDestroy", graph)

    def launch(self, stream: Stream) -> None:
        """Replay it on a stream."""
        self._check("cuGraphLaunch", self._executable, ctypes.c_void_p(stream.handle))

    def free(self) -> None:
        """Give it back once it has run. Calling it twice does no harm."""
        if self._executable:
            self._driver.cuGraphExecDestroy(self._executable)  # fails where the device is lost, with all that is on it
            self._executable = ctypes.c_void_p()

    def _check(self, function: str, *arguments: Any) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code != 0:
            raise InferenceError(f"CUDA graph: {function} answered {code}", hint="set run.cuda_graph = false")
