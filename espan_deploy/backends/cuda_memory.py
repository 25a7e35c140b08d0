"""An NVIDIA GPU's memory, streams and events, through pycuda: the one module that knows it.

Nothing here has run on this project's test machines, which have no GPU: see docs/hardware.md.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espan_deploy.errors import BackendUnavailableError, InferenceError

REMEDY = "pip install 'espan-deploy[gpu]' on a machine with an NVIDIA driver and the CUDA toolkit"


def gpu_unavailable_reason() -> str | None:
    """Why there is no GPU to use, or None."""
    try:
        Device()
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


def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


class Buffer:
    """Device memory. address: what kernels take. Freed with the object, or by ``free``."""

    def __init__(self, allocation: Any, nbytes: int) -> None:
        self._allocation: Any = allocation
        self.address = int(allocation)
        self.nbytes = nbytes

    def free(self) -> None:
        """Give the memory back. Calling it twice does no harm."""
        if self._allocation is not None:
            self._allocation.free()
            self._allocation = None


class Device:
    """The first GPU that the process may see, in the primary context that TensorRT uses as well.

    name, capability ("8.6"). Everything else wants to happen inside ``current()``, in any thread.
    Raises BackendUnavailableError where there is none.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            import pycuda.driver as cuda
        except ImportError as exc:
            missing = isinstance(exc, ModuleNotFoundError) and (exc.name or "").startswith("pycuda")
            what = "pycuda is not installed" if missing else f"pycuda cannot be loaded: {exc}"
            raise BackendUnavailableError(what, hint=REMEDY) from exc
        self._cuda = cuda
        try:
            cuda.init()
            device = cuda.Device(index)
            self._context = device.retain_primary_context()
        except cuda.Error as exc:
            raise BackendUnavailableError(f"there is no usable NVIDIA GPU: {exc}", hint=REMEDY) from exc
        self.name: str = device.name()
        major, minor = device.compute_capability()
        self.capability = f"{major}.{minor}"

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device this thread's own for a while; errors inside become InferenceError."""
        self._context.push()
        try:
            yield
        except self._cuda.MemoryError as exc:
            raise InferenceError(f"{self.name} is out of memory: {exc}", hint="lower the batch or the tile") from exc
        except self._cuda.Error as exc:
            raise InferenceError(f"{self.name} failed: {exc}") from exc
        finally:
            self._context.pop()

    def allocate(self, nbytes: int) -> Buffer:
        """Device memory of this size."""
        return Buffer(self._cuda.mem_alloc(nbytes), nbytes)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Host memory that copies run from and to while the host goes on; freed with the array."""
        array: NDArray[np.uint8] = self._cuda.pagelocked_empty(nbytes, np.uint8)
        return array

    def stream(self) -> Any:
        """A stream; its ``handle`` is what TensorRT takes."""
        return self._cuda.Stream()

    def event(self) -> Any:
        """An event for ordering and for the time between two: ``later.time_since(earlier)``, in milliseconds."""
        return self._cuda.Event()

    def copy_in(self, target: Buffer, source: NDArray[np.uint8], stream: Any) -> None:
        """Start a copy from pinned host memory."""
        self._cuda.memcpy_htod_async(target.address, source, stream)

    def copy_out(self, target: NDArray[np.uint8], source: Buffer, stream: Any) -> None:
        """Start a copy to pinned host memory."""
        self._cuda.memcpy_dtoh_async(target, source.address, stream)

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:
        """Record what ``work`` puts on a stream, without running it. Raises InferenceError where that is impossible."""
        return Graph(stream, work)


THREAD_LOCAL_CAPTURE = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on allocating meanwhile."""


class Graph:
    """A recorded sequence of launches, replayed as one. pycuda has none, so this asks the driver itself."""

    def __init__(self, stream: Any, work: Callable[[], None]) -> None:
        self._driver = _driver()
        self._executable = ctypes.c_void_p()
        graph = ctypes.c_void_p()
        handle = ctypes.c_void_p(stream.handle)
        self._check("cuStreamBeginCapture_v2", handle, ctypes.c_int(THREAD_LOCAL_CAPTURE))
        try:
            work()
        finally:
            self._check("cuStreamEndCapture", handle, ctypes.byref(graph))
        try:
            self._check("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
        finally:
            self._check("cuGraphDestroy", graph)

    def launch(self, stream: Any) -> None:
        """Replay it on a stream."""
        self._check("cuGraphLaunch", self._executable, ctypes.c_void_p(stream.handle))

    def free(self) -> None:
        """Give it back. Calling it twice does no harm."""
        if self._executable:
            self._check("cuGraphExecDestroy", self._executable)
            self._executable = ctypes.c_void_p()

    def _check(self, function: str, *arguments: Any) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code != 0:
            raise InferenceError(f"CUDA graph: {function} answered {code}", hint="set run.cuda_graph = false")
