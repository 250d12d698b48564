"""Telling in good time that this party's certificate or its directory ends (docs/protocol.md §3.1, §7.1).

Connections live on over the end of a certificate. So nothing shows it until one falls, and then, where all were issued
together, the whole federation is out.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
from Crypto.Util.asn1 import DerObject, DerSequence

from fedpruneshare.directory import utc
from fedpruneshare.errors import SettingsError
from fedpruneshare.link.tls import TlsSettings
from fedpruneshare.party import Party

_log = structlog.get_logger()

#: Certificates and directories that end sooner are worth a word.
SOON_S: Final = 14 * 86_400
_LOOK_S: Final = 12 * 3600.0
#: X.509's two ways to write a time: years of two digits until 2049, of four from then on.
_TIMES: Final = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def certificate_end(path: Path) -> float:
    """When the first certificate of a PEM file ends, in seconds since 1970. Raises `SettingsError`.

    Read by hand (RFC 5280 §4.1): a device has no library for certificates, and needs none for anything else.
    """
    try:
        pem = path.read_text("ascii")
        der = ssl.PEM_cert_to_DER_cert(pem[pem.index(_BEGIN) : pem.index(_END) + len(_END)])
        fields = DerSequence().decode(DerSequence().decode(der)[0])
        validity = DerSequence().decode(fields[4])  # after version, serial number, algorithm and issuer
        end = DerObject().decode(validity[1])
        moment = datetime.strptime(end.payload.decode("ascii"), _TIMES[validity[1][0]])
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise SettingsError(f"{path}: {type(error).__name__}, expected a PEM certificate") from None
    return moment.replace(tzinfo=UTC).timestamp()


async def watch_ends(party: Party, tls: TlsSettings | None) -> None:
    """Twice a day, say what ends soon or has ended. Until cancelled."""
    while True:
        tell_ends(party, tls, time.time())
        await asyncio.sleep(_LOOK_S)


def tell_ends(party: Party, tls: TlsSettings | None, now: float) -> None:
    """Log what ends soon or has ended at a time."""
    _tell("directory", f"version {party.directory.version}", party.directory.expires_at, now)
    if tls is not None:
        try:
            _tell("certificate", tls.certificate, certificate_end(Path(tls.certificate)), now)
        except SettingsError as error:  # it may be being replaced; the link says so where it is not
            _log.warning("certificate-not-read", reason=str(error))


def _tell(what: str, which: str, end: float, now: float) -> None:
    if 0 < end <= now:
        _log.error(f"{what}-has-ended", which=which, at=utc(end))
    elif 0 < end <= now + SOON_S:
        _log.warning(f"{what}-ends-soon", which=which, at=utc(end))
