"""Mutual TLS 1.3 for a link: who the broker must be, who we are, and what a refusal means (docs/protocol.md §3.1).

Only the federation's own authority is trusted, and the certificate must name the host that was dialled. The handshake
is driven by the asyncio loop on the non-blocking socket; nothing here blocks it but the reading of three small files.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from fedpruneshare.errors import CertificateDateError, CertificateError, LinkError, SettingsError
from fedpruneshare.link import BrokerAddress
from fedpruneshare.storage import refuse_open_file

#: X.509 verification codes of OpenSSL that only the passing of time, a clock or a renewal changes.
_NOT_YET_VALID, _EXPIRED = 9, 10
_HOST_CODES: Final = (62, 63, 64)
#: The broker's alerts that are about our certificate -> what they mean.
_ALERTS: Final = {
    "CERTIFICATE_EXPIRED": "has expired",
    "CERTIFICATE_REVOKED": "has been revoked",
    "CERTIFICATE_REQUIRED": "is missing",
    "CERTIFICATE_UNKNOWN": "is not accepted",
    "UNKNOWN_CA": "is not of the broker's authority",
    "BAD_CERTIFICATE": "is not valid yet by its own clock, or damaged",
    "UNSUPPORTED_CERTIFICATE": "may not be used by a client",
    "DECRYPT_ERROR": "has a signature that is wrong",
    "ACCESS_DENIED": "is not let in",
}


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PEM files: the federation's authority, and this party's certificate with its key, which only its owner may read.

    They are read again at every connect, so that a renewed certificate is used from then on.
    """

    ca_file: str
    certificate: str
    key_file: str


def client_context(settings: TlsSettings) -> ssl.SSLContext:
    """TLS 1.3 and the federation's authority alone. Raises `SettingsError` for what its files lack."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies the certificate and the host name by itself
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    refuse_open_file(Path(settings.key_file))
    try:
        context.load_verify_locations(cafile=settings.ca_file)
    except OSError as error:  # an ssl.SSLError is one
        raise SettingsError(f"link.tls.ca_file {settings.ca_file}: {_why(error)}, expected a PEM certificate") from None
    try:
        context.load_cert_chain(settings.certificate, settings.key_file, _no_password)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"link.tls.certificate {settings.certificate} with key_file {settings.key_file}: {_why(error)}, "
            "expected a PEM certificate and its unencrypted key"
        ) from None
    return context


async def start_tls(sock: socket.socket, address: BrokerAddress, settings: TlsSettings) -> ssl.SSLSocket:
    """Shake hands on a connected, non-blocking socket, which is closed if that fails.

    In TLS 1.3 a broker judges our certificate after our half is done: its refusal is what the first read finds
    (`refusal`). Raises `CertificateError`, `CertificateDateError`, or `LinkError` for anything else.
    """
    try:
        context = client_context(settings)
    except SettingsError as error:  # files that are being renewed; what is wrong from the start was said before
        sock.close()
        raise CertificateError(str(error), "files") from None
    secure = sock
    try:
        secure = context.wrap_socket(sock, do_handshake_on_connect=False, server_hostname=address.host)
        await _shake_hands(secure)
    except ssl.SSLCertVerificationError as error:
        secure.close()
        raise _distrust(error, address) from None
    except (OSError, ValueError) as error:
        secure.close()
        unknown = LinkError(f"{address}: {_why(error)}, expected a TLS 1.3 handshake")
        raise refusal(error, address, settings) or unknown from None
    except BaseException:
        secure.close()
        raise
    return secure


async def _shake_hands(secure: ssl.SSLSocket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            secure.do_handshake()
        except ssl.SSLWantReadError:
            await _until(loop.add_reader, loop.remove_reader, secure)
        except ssl.SSLWantWriteError:
            await _until(loop.add_writer, loop.remove_writer, secure)
        else:
            return


def refusal(error: Exception | None, address: BrokerAddress, settings: TlsSettings) -> LinkError | None:
    """What the broker's alert says of our certificate, as an error; None if it says nothing of it."""
    reason = (getattr(error, "reason", None) or "") if isinstance(error, ssl.SSLError) else ""
    meaning = next((text for name, text in _ALERTS.items() if reason.endswith(f"ALERT_{name}")), None)
    if meaning is None:
        return None
    text = f"{address}: the broker says that certificate {settings.certificate} {meaning}"
    if reason.endswith(("CERTIFICATE_EXPIRED", "BAD_CERTIFICATE")):
        return CertificateDateError(f"{text}; this machine's clock says {_clock()}")
    return CertificateError(f"{text}, expected a login", reason)


def _distrust(error: ssl.SSLCertVerificationError, address: BrokerAddress) -> LinkError:
    """What is wrong with the broker's certificate."""
    clock, code, why = _clock(), error.verify_code, error.verify_message
    if code == _NOT_YET_VALID:
        return CertificateDateError(
            f"{address}: the broker's certificate is not valid yet: this machine's clock says {clock}, before its time"
        )
    if code == _EXPIRED:
        return CertificateDateError(
            f"{address}: the broker's certificate, or its authority's, has expired; this machine's clock says {clock}"
        )
    if code in _HOST_CODES:
        return CertificateError(f"{address}: the broker's certificate is another host's ({why})", "host")
    return CertificateError(
        f"{address}: the broker's certificate is not of this federation's authority ({why})", "authority"
    )


async def _until(add: Callable[..., Any], remove: Callable[[socket.socket], bool], sock: socket.socket) -> None:
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    add(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        remove(sock)


def _no_password() -> str:
    raise ValueError("it is encrypted")


def _why(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return re.sub(r" \(_ssl\.c:\d+\)", "", text)


def _clock() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


__all__ = ["TlsSettings", "client_context", "refusal", "start_tls"]
