"""Run a model that somebody else made in a process that can harm nobody (docs/protocol.md §6.6).

The file first passes the fence (`model_fence.py`). What the fence cannot see is bounded here: the child
(`model_child.py`) may take so much memory and so much time, opens nothing, and has an empty folder to be in. If it
dies by itself (the kernel was short of memory, say), what it was asked is asked of a new one, once; if that dies, too,
that is an error by name, and the next model gets a new one. It is a fence against accidents of the kind that parsers
have, not a virtual machine: the child could still use the processor.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.local_model import ModelInput
from fedpruneshare.sparse.model_fence import FenceLimits, check_model

_log = structlog.get_logger()

_LENGTHS: Final = struct.Struct(">IQ")
_PROGRAM: Final = Path(__file__).with_name("model_child.py")
_MAX_HEADER_BYTES: Final = 1 << 16
_START_S: Final = 60.0
#: The child's environment: no settings of ours, none that onnxruntime would heed, one thread each.
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "ORT_DISABLE_TELEMETRY": "1",
}

Floats = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class ChildLimits:
    """What the child may take: memory beyond its libraries, seconds for one request, bytes of one answer."""

    memory_bytes: int = 2 << 30
    request_s: float = 120.0
    answer_bytes: int = 1 << 30


class _DiedError(ModelFileError):
    """The process ended by itself, which another one may not do."""


class ContainedModel:
    """A process that holds one model at a time. Start one and keep it: it takes a third of a second to be there."""

    def __init__(self, limits: ChildLimits | None = None, fence: FenceLimits | None = None) -> None:
        self._limits, self._fence = limits or ChildLimits(), fence or FenceLimits()
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._inputs: list[ModelInput] = []
        self._model = b""

    def load(self, model: bytes) -> list[ModelInput]:
        """Take this model in place of the one before; returns what it takes. Raises `ModelFileError`."""
        check_model(model, self._fence)
        self._model = model
        try:
            found = self._load()
        except _DiedError as error:
            _log.warning("model-process-started-again", reason=str(error))
            found = self._load()
        try:
            self._inputs = [
                ModelInput(str(name), str(kind), tuple(size if isinstance(size, int) else None for size in shape))
                for name, kind, shape in found["inputs"]
            ]
        except (KeyError, TypeError, ValueError):
            raise self._broken("gave no list of inputs") from None
        if not self._inputs:
            raise ModelFileError("the model takes nothing, expected one input")
        return self._inputs

    def run(self, inputs: NDArray[np.float32]) -> Floats:
        """The first output for the first input. Raises `ModelFileError`, also if it is too slow or dies twice."""
        if not self._inputs or self._child is None:
            raise RuntimeError("no model was loaded")
        data = np.ascontiguousarray(inputs, dtype="<f4")
        request = {"op": "run", "input": self._inputs[0].name, "shape": list(inputs.shape)}
        try:
            found, answer = self._ask(request, data.tobytes())
        except _DiedError as error:
            _log.warning("model-process-started-again", reason=str(error))
            self._load()
            found, answer = self._ask(request, data.tobytes())
        try:
            kind, shape = np.dtype({"<f4": "<f4", "<f8": "<f8"}[found["dtype"]]), [int(size) for size in found["shape"]]
            outputs = np.frombuffer(answer, dtype=kind).reshape(shape)
        except (KeyError, TypeError, ValueError):
            raise self._broken("gave no array") from None
        if math.prod(shape) * kind.itemsize != len(answer):
            raise self._broken("gave an array of another size than it said")
        return outputs

    def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if self._connection is not None:
            self._connection.close()
        if child is not None:
            with suppress(ProcessLookupError):
                child.kill()
            child.wait()

    def __enter__(self) -> ContainedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_child", None) is not None:
            self.close()

    # ----------------------------------------------------------------------- the process

    def _load(self) -> dict[str, Any]:
        self._start()
        return self._ask({"op": "load"}, self._model)[0]

    def _start(self) -> None:
        if self._child is not None and self._child.poll() is None:
            return
        self.close()
        ours, theirs = socket.socketpair()
        paths = os.pathsep.join(path for path in sys.path if path and Path(path).is_absolute())
        command = [sys.executable, "-P", "-B", str(_PROGRAM)]
        limits = [str(self._limits.memory_bytes), str(self._limits.request_s)]
        try:
            with theirs, tempfile.TemporaryDirectory(prefix="fps-model-") as empty:
                self._child = subprocess.Popen(
                    [*command, *limits], stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    cwd=empty, env={**_ENVIRONMENT, "PYTHONPATH": paths},
                )  # fmt: skip
        except OSError as error:  # no memory for a process, no room for a folder
            ours.close()
            raise ModelFileError(f"the process that runs the model does not start: {error.strerror}") from None
        self._connection = ours

    def _ask(self, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        assert self._connection is not None
        deadline = time.monotonic() + self._limits.request_s + (_START_S if header["op"] == "load" else 0.0)
        head = json.dumps(header).encode()
        try:
            self._connection.settimeout(max(0.001, deadline - time.monotonic()))
            self._connection.sendall(_LENGTHS.pack(len(head), len(data)) + head)
            self._connection.sendall(data)
            sizes = _LENGTHS.unpack(self._receive(_LENGTHS.size, deadline))
            if sizes[0] > _MAX_HEADER_BYTES or sizes[1] > self._limits.answer_bytes:
                raise self._broken(f"answers with {sizes[1]} bytes, expected at most {self._limits.answer_bytes}")
            found: Any = json.loads(self._receive(sizes[0], deadline))
            answer = self._receive(sizes[1], deadline)
        except TimeoutError:
            raise self._broken(f"took longer than {self._limits.request_s:g} s") from None
        except (OSError, ValueError):
            raise self._broken("ended") from None
        if not isinstance(found, dict):
            raise self._broken("gave no answer")
        if "error" in found:
            raise ModelFileError(f"the model does not run: {str(found['error'])[:300]}")
        return found, answer

    def _receive(self, size: int, deadline: float) -> bytes:
        assert self._connection is not None
        data = bytearray()
        while len(data) < size:
            self._connection.settimeout(max(0.001, deadline - time.monotonic()))
            piece = self._connection.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise OSError("closed")
            data += piece
        return bytes(data)

    def _broken(self, what: str) -> ModelFileError:
        """The child is of no more use: end it, and say why."""
        child, kind = self._child, ModelFileError
        if child is not None and what == "ended":
            with suppress(subprocess.TimeoutExpired):
                code = child.wait(5.0)
                what = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                kind = ModelFileError if code == -signal.SIGALRM else _DiedError  # by its own clock: it is too slow
        self.close()
        return kind(f"the process that runs the model {what}, expected an answer")
