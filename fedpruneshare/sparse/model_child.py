"""The process that loads and runs a model of somebody else; started by `contained_model.py`, by path.

Imports done, it gives up what it does not need: it can open nothing (no descriptor above those it has), write no file,
take no more memory than it was told, and is nobody where it was root. Then it reads requests from its only connection,
standard input, and answers each. A frame is two lengths (4 bytes of header, 8 of data), a JSON header, and data.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from contextlib import suppress
from typing import Any

import numpy as np
import onnxruntime

_LENGTHS = struct.Struct(">IQ")
_NOBODY = 65534


def main() -> None:
    """Answer requests until the connection closes. Arguments: bytes of memory beyond what imports took; seconds."""
    memory_bytes, limit_s = int(sys.argv[1]), float(sys.argv[2])
    onnxruntime.set_default_logger_severity(4)
    _confine(memory_bytes)
    session: Any = None
    while True:
        header, data = _receive()
        signal.setitimer(signal.ITIMER_REAL, limit_s)  # its default action ends the process
        try:
            if header["op"] == "load":
                session = None
                session = _load(data)
                _send(_described(session))
            else:
                _send_outputs(session, header, data)
        except Exception as error:  # onnxruntime's exceptions share no public base class
            text = next(iter(str(error).strip().splitlines()), "")
            _send({"error": f"{type(error).__name__}: {text}"[:300]})
        signal.setitimer(signal.ITIMER_REAL, 0)


def _confine(memory_bytes: int) -> None:
    with open("/proc/self/statm", "rb") as file:
        pages = int(file.read().split()[0])
    space = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NOFILE):
        resource.setrlimit(limit, (0, 0))
    if os.geteuid() == 0:
        with suppress(PermissionError):  # root of a container that may not
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)


def _load(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _described(session: Any) -> dict[str, Any]:
    return {"inputs": [[one.name, one.type, list(one.shape)] for one in session.get_inputs()]}


def _send_outputs(session: Any, header: dict[str, Any], data: bytes) -> None:
    inputs = np.frombuffer(data, dtype="<f4").reshape(header["shape"])
    outputs = np.asarray(session.run(None, {header["input"]: inputs})[0])
    kind = "<f4" if outputs.dtype == np.float32 else "<f8"
    _send({"shape": list(outputs.shape), "dtype": kind}, np.ascontiguousarray(outputs, dtype=kind).tobytes())


def _receive() -> tuple[dict[str, Any], bytes]:
    head, body = _LENGTHS.unpack(_read(_LENGTHS.size))
    return json.loads(_read(head)), _read(body)


def _read(size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(0, min(size - len(data), 1 << 20))
        if not piece:
            sys.exit(0)
        data += piece
    return bytes(data)


def _send(header: dict[str, Any], data: bytes = b"") -> None:
    head = json.dumps(header).encode()
    rest = memoryview(_LENGTHS.pack(len(head), len(data)) + head + data)
    while rest:
        rest = rest[os.write(0, rest) :]


if __name__ == "__main__":
    main()
