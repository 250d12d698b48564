"""The certificate authority: what its certificates say, whom they are for, and who is revoked."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fedpruneshare.errors import SettingsError
from fedpruneshare.topics import Role
from firmware_configs.provision.authority import (
    CLIENT,
    SERVER,
    Authority,
    Issued,
    Leaf,
    belong_together,
    certificate_fault,
    new_request,
    read_certificate,
    read_request,
)

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("lab", clock=lambda: NOON)


def usages(issued: Issued) -> set[x509.ObjectIdentifier]:
    certificate = read_certificate(issued.certificate)
    return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_a_client_certificate_names_party_role_and_federation_and_has_one_use(authority: Authority) -> None:
    issued = authority.issue_client("pi-01", Role.DEVICE)
    certificate = read_certificate(issued.certificate)
    assert certificate.subject.rfc4514_string() == "CN=pi-01,OU=device,O=lab"
    assert usages(issued) == {CLIENT}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert belong_together(issued.certificate, issued.key)
    certificate.verify_directly_issued_by(read_certificate(authority.certificate))


def test_a_certificate_lasts_90_days_and_begins_a_little_early(authority: Authority) -> None:
    certificate = read_certificate(authority.issue_client("pi-01", Role.DEVICE).certificate)
    assert certificate.not_valid_after_utc == NOON + timedelta(days=90)
    assert NOON - timedelta(hours=1) < certificate.not_valid_before_utc < NOON


def test_no_certificate_outlives_its_authority() -> None:
    short = Authority.create("lab", days=10, clock=lambda: NOON)
    certificate = read_certificate(short.issue_client("pi-01", Role.DEVICE).certificate)
    assert certificate.not_valid_after_utc == short.not_after


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1", x509.IPAddress(ip_address("127.0.0.1"))),
        ("broker.example.org", x509.DNSName("broker.example.org")),
    ],
)
def test_a_broker_certificate_names_its_host_and_serves_only(
    authority: Authority, host: str, name: x509.GeneralName
) -> None:
    issued = authority.issue_server(host, broker="a")
    certificate = read_certificate(issued.certificate)
    assert list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == [name]
    assert usages(issued) == {SERVER}
    # A dot is in no party's name: the broker is nobody's double.
    assert "." in str(certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


def test_serial_numbers_are_random(authority: Authority) -> None:
    serials = {authority.issue_client("pi-01", Role.DEVICE).serial for _ in range(20)}
    assert len(serials) == 20
    assert min(serials) > 2**100


def test_what_is_revoked_stands_on_the_list_for_good(authority: Authority) -> None:
    mine = Authority.load(authority.certificate, authority.key_pem(), clock=lambda: NOON)
    bad, good = (mine.issue_client(name, Role.DEVICE) for name in ("pi-01", "pi-02"))
    mine.revoke(bad.serial)
    crl = x509.load_pem_x509_crl(mine.crl())
    entry = crl.get_revoked_certificate_by_serial_number(bad.serial)
    assert entry is not None
    assert entry.revocation_date_utc == NOON
    assert crl.get_revoked_certificate_by_serial_number(good.serial) is None
    assert crl.next_update_utc == mine.not_after
    public = read_certificate(mine.certificate).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert crl.is_signature_valid(public)


def test_dates_and_uses_can_be_chosen(authority: Authority) -> None:
    past = NOON - timedelta(days=2)
    issued = authority.issue_client("pi-01", Role.DEVICE, Leaf(not_after=past, not_before=past, usages=(SERVER,)))
    assert read_certificate(issued.certificate).not_valid_after_utc == past
    assert usages(issued) == {SERVER}


def test_a_request_is_for_the_key_that_signed_it() -> None:
    request, key = new_request("pi-01", Role.DEVICE, "lab")
    name, role, federation, public = read_request(request)
    assert (name, role, federation) == ("pi-01", Role.DEVICE, "lab")
    again, same = new_request("pi-01", Role.DEVICE, "lab", key)
    assert (read_request(again)[3], same) == (public, key)


def test_a_certificate_of_a_request_comes_without_a_key(authority: Authority) -> None:
    request, key = new_request("pi-01", Role.DEVICE, "lab")
    issued = authority.issue_client("pi-01", Role.DEVICE, Leaf(public_key=read_request(request)[3]))
    assert issued.key == b""
    assert belong_together(issued.certificate, key)


def bad_requests() -> dict[str, bytes]:
    request, _ = new_request("pi-01", Role.DEVICE, "lab")
    damaged = x509.load_pem_x509_csr(request).public_bytes(serialization.Encoding.DER)
    damaged = damaged[:-1] + bytes([damaged[-1] ^ 1])
    key = ed25519.Ed25519PrivateKey.generate()
    names = x509.load_pem_x509_csr(request).subject
    other = x509.CertificateSigningRequestBuilder().subject_name(names).sign(key, None)
    nameless = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    ec_key = ec.generate_private_key(ec.SECP256R1())
    wide = ec.generate_private_key(ec.SECP384R1())
    pem = serialization.Encoding.PEM
    return {
        "nothing": b"",
        "text": b"-----BEGIN CERTIFICATE REQUEST-----\nnonsense\n-----END CERTIFICATE REQUEST-----\n",
        "changed": x509.load_der_x509_csr(damaged).public_bytes(pem),
        "another kind of key": other.public_bytes(pem),
        "another curve": x509.CertificateSigningRequestBuilder()
        .subject_name(names)
        .sign(wide, hashes.SHA256())
        .public_bytes(pem),
        "nobody": nameless.sign(ec_key, hashes.SHA256()).public_bytes(pem),
    }


@pytest.mark.parametrize("name", bad_requests())
def test_a_bad_request_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="request"):
        read_request(bad_requests()[name])


@pytest.mark.parametrize("byte", [0x00, 0x03, 0xFF])
def test_a_request_that_is_not_whole_is_refused_wherever_it_is_spoilt(byte: int) -> None:
    """0x03 makes bit strings of names, which the library meets with an error of its own kind."""
    head, *lines, end = new_request("pi-01", Role.DEVICE, "lab")[0].splitlines()
    good = base64.b64decode(b"".join(lines))
    for index in range(len(good)):
        spoilt = bytes([*good[:index], byte, *good[index + 1 :]])
        if spoilt != good:
            with pytest.raises(SettingsError):
                read_request(b"\n".join([head, base64.b64encode(spoilt), end]))


def test_a_certificate_is_somebodys_and_for_something(authority: Authority) -> None:
    ca = read_certificate(authority.certificate)

    def fault(issued: Issued, name: str = "pi-01", role: Role = Role.DEVICE) -> str:
        return certificate_fault(read_certificate(issued.certificate), ca, name, role)

    good = authority.issue_client("pi-01", Role.DEVICE)
    assert fault(good) == ""
    assert "CN=pi-01" in fault(good, name="pi-02")
    assert "OU=device" in fault(good, role=Role.AGGREGATOR)
    assert "use" in fault(authority.issue_client("pi-01", Role.DEVICE, Leaf(usages=(SERVER,))))
    assert "use" in fault(authority.issue_client("pi-01", Role.DEVICE, Leaf(usages=())))
    assert "authority" in fault(Authority.create("lab").issue_client("pi-01", Role.DEVICE))


def test_keys_do_not_show(authority: Authority) -> None:
    issued = authority.issue_client("pi-01", Role.DEVICE)
    assert "PRIVATE" not in repr(issued) + repr(authority)


def test_certificate_and_key_of_an_authority_belong_together(authority: Authority) -> None:
    with pytest.raises(SettingsError, match="belong together"):
        Authority.load(authority.certificate, Authority.create("lab").key_pem())
    with pytest.raises(SettingsError, match="PEM"):
        Authority.load(b"nonsense", authority.key_pem())
    with pytest.raises(SettingsError, match="PEM"):
        Authority.load(authority.certificate, b"nonsense")
