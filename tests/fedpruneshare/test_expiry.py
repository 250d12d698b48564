"""When certificates end, read by hand, and who is told in time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from builders import directory, identity
from cryptography import x509
from structlog.testing import capture_logs

from fedpruneshare.errors import SettingsError
from fedpruneshare.expiry import SOON_S, certificate_end, tell_ends
from fedpruneshare.link.tls import TlsSettings
from fedpruneshare.party import Party
from fedpruneshare.process import serve
from fedpruneshare.topics import Role
from firmware_configs.provision.authority import Authority


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A certificate of 90 days."""
    path = tmp_path / "tls.pem"
    path.write_bytes(Authority.create("lab").issue_client("pi-01", Role.DEVICE).certificate)
    return path


def tls_of(place: Path) -> TlsSettings:
    return TlsSettings("", str(place), "")


@pytest.mark.parametrize("days", [90, 40 * 365])
def test_it_is_read_as_a_library_reads_it(tmp_path: Path, days: int) -> None:
    """Years of two digits, and from 2050 on of four."""
    made = Authority.create("lab", days=days + 1, leaf_days=days).issue_client("pi-01", Role.DEVICE).certificate
    (tmp_path / "tls.pem").write_bytes(made)
    known = x509.load_pem_x509_certificate(made).not_valid_after_utc
    assert certificate_end(tmp_path / "tls.pem") == known.timestamp()


@pytest.mark.parametrize("content", ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", None])
def test_what_is_no_certificate_is_refused(tmp_path: Path, content: str | None) -> None:
    place = tmp_path / "tls.pem"
    if content is not None:
        place.write_text(content)
    with pytest.raises(SettingsError, match="expected a PEM certificate"):
        certificate_end(place)


def test_what_ends_soon_or_has_ended_is_told(place: Path) -> None:
    end = int(certificate_end(place))
    party = Party(identity("device-00"), directory(expires_at=end + 100), Role.DEVICE)
    told = []
    for now in (end - SOON_S - 1, end - SOON_S + 1, end - 1, end + 1, end + 101):
        with capture_logs() as lines:
            tell_ends(party, tls_of(place), now)
        told.append({line["event"] for line in lines})
    both_soon = {"certificate-ends-soon", "directory-ends-soon"}
    one_over = {"certificate-has-ended", "directory-ends-soon"}
    assert told == [
        set(),
        {"certificate-ends-soon"},
        both_soon,
        one_over,
        {"certificate-has-ended", "directory-has-ended"},
    ]
    place = place.with_name("none.pem")
    with capture_logs() as lines:
        tell_ends(party, tls_of(place), end - 10 * SOON_S)
    assert [line["event"] for line in lines] == ["certificate-not-read"]


def test_a_service_at_work_tells_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpruneshare.expiry.SOON_S", 91 * 86_400)
    party = Party(identity("device-00"), directory(), Role.DEVICE)
    monkeypatch.setattr(party, "keep_directory", lambda: None)

    async def work() -> int:
        await asyncio.sleep(0)
        return 0

    with capture_logs() as lines:
        assert serve(work, party, tls_of(place)) == 0
    assert "certificate-ends-soon" in {line["event"] for line in lines}
