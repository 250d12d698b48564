"""The federation's certificate authority: who may open a connection to a broker (docs/operations.md).

X.509 guards the transport and nothing else: messages are signed, and shares sealed, with the keys of the directory.
Every federation has an authority of its own, so that brokers of one know nobody of another. Keys are ECDSA P-256, which
every TLS library in use takes. A certificate names its role (`OU`) and its one use: a client's is no server's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from fedpruneshare.errors import SettingsError
from fedpruneshare.topics import Role

CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH
#: The unit a broker's certificate names in place of a role.
BROKER_UNIT: Final = "broker"

CA_DAYS: Final = 3650
LEAF_DAYS: Final = 90
#: How far certificates reach back, for clocks that are a little slow.
BACKDATED: Final = timedelta(minutes=5)

#: What a certificate that is not whole may be besides malformed.
_ODD: Final = (x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The clock of a real authority; X.509 counts whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Issued:
    """One certificate and its key, PEM. `key` is empty where the key was made elsewhere; `repr` never shows it."""

    certificate: bytes
    serial: int
    not_after: datetime
    key: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Leaf:
    """What one certificate says; None leaves it to the authority: from now on, for its usual time, with a new key."""

    not_before: datetime | None = None
    not_after: datetime | None = None
    usages: Sequence[ObjectIdentifier] | None = None
    public_key: ec.EllipticCurvePublicKey | None = None


class Authority:
    """A self-signed authority that issues client and server certificates and its revocation list.

    Serial numbers are random. `revoked` maps the serials that are no longer good to when that was said; keeping it is
    the caller's part. The clock is passed, so that tests can issue what has expired or is not valid yet.
    """

    def __init__(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        revoked: Mapping[int, datetime] | None = None,
        leaf_days: float = LEAF_DAYS,
        clock: Clock = utc_now,
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._leaf_time = timedelta(days=leaf_days)
        self._clock = clock
        self.revoked: dict[int, datetime] = dict(revoked or {})

    def __repr__(self) -> str:
        return f"Authority({self._certificate.subject.rfc4514_string()})"

    @classmethod
    def create(
        cls,
        federation: str,
        *,
        days: float = CA_DAYS,
        leaf_days: float = LEAF_DAYS,
        clock: Clock = utc_now,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> Authority:
        """A new authority with a key of its own."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"{federation} authority", "authority", federation)
        start = not_before or clock() - BACKDATED
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(not_after or start + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(is_authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(builder.sign(key, hashes.SHA256()), key, leaf_days=leaf_days, clock=clock)

    @classmethod
    def load(
        cls, certificate: bytes, key: bytes, revoked: Mapping[int, datetime] | None = None, clock: Clock = utc_now
    ) -> Authority:
        """An authority from its PEM certificate and its unencrypted PEM key. Raises `SettingsError`."""
        made, known = _load_key(key), read_certificate(certificate)
        if known.public_key() != made.public_key():
            raise SettingsError("the authority's certificate and key do not belong together")
        return cls(known, made, revoked, clock=clock)

    @property
    def certificate(self) -> bytes:
        """Its own certificate, PEM: what brokers and clients trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def not_before(self) -> datetime:
        """When it begins."""
        return self._certificate.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """When it ends, and with it all it has issued."""
        return self._certificate.not_valid_after_utc

    def key_pem(self) -> bytes:
        """Its private key, PEM, *unencrypted*: for what encrypts it next, and for nothing else."""
        return _key_pem(self._key)

    def issue_client(self, name: str, role: Role, leaf: Leaf | None = None) -> Issued:
        """A certificate for a party: `CN` its name in the directory, `OU` its role, use client authentication alone."""
        return self._issue(_name(name, role.value, self._federation), leaf or Leaf(), (CLIENT,), None)

    def issue_server(self, host: str, leaf: Leaf | None = None, *, broker: str = "") -> Issued:
        """A certificate for the broker at `host` (a name or an address, which clients compare with what they dialled).

        Its `CN` holds a dot or a colon, so it can never be taken for a party's.
        """
        names = x509.SubjectAlternativeName([_general_name(host)])
        subject = _name(f"broker.{broker or 'federation'}", BROKER_UNIT, self._federation)
        return self._issue(subject, leaf or Leaf(), (SERVER,), names)

    def revoke(self, serial: int) -> None:
        """Put a serial on the list; `crl` has it from then on."""
        self.revoked.setdefault(serial, self._clock())

    def crl(self) -> bytes:
        """The revocation list, PEM, in force until the authority ends.

        A list that ran out would have brokers refuse *everybody*, and a list alone is no defence here: aggregators
        refuse the messages of a revoked party by the directory, also where its session lives on.
        """
        now = self._clock() - BACKDATED
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now)
            .next_update(max(self.not_after, now + timedelta(days=1)))
            .add_extension(x509.CRLNumber(len(self.revoked) + 1), critical=False)
            .add_extension(self._key_identifier(), critical=False)
        )
        for serial, when in sorted(self.revoked.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    @property
    def _federation(self) -> str:
        return str(self._certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())

    def _issue(
        self,
        subject: x509.Name,
        leaf: Leaf,
        usages: Sequence[ObjectIdentifier],
        names: x509.SubjectAlternativeName | None,
    ) -> Issued:
        key = None if leaf.public_key is not None else ec.generate_private_key(ec.SECP256R1())
        public = key.public_key() if key is not None else leaf.public_key
        assert public is not None
        start = leaf.not_before or self._clock() - BACKDATED
        end = leaf.not_after or min(self._clock() + self._leaf_time, self.not_after)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(self._key_identifier(), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )
        allowed = usages if leaf.usages is None else leaf.usages
        if allowed:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(allowed)), critical=False)
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        made = builder.sign(self._key, hashes.SHA256())
        pem = made.public_bytes(serialization.Encoding.PEM)
        return Issued(pem, made.serial_number, end, _key_pem(key) if key is not None else b"")


# --------------------------------------------------------------------------- requests and reading


def new_request(name: str, role: Role, federation: str, known_key: bytes = b"") -> tuple[bytes, bytes]:
    """The signed request for a certificate of a new key, or of a known one: (request, key), all PEM.

    Raises `SettingsError` if the known key does not read. The key stays where it is.
    """
    key = _load_key(known_key) if known_key else ec.generate_private_key(ec.SECP256R1())
    subject = _name(name, role.value, federation)
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM), _key_pem(key)


def read_request(request: bytes) -> tuple[str, Role, str, ec.EllipticCurvePublicKey]:
    """A request -> (name, role, federation, key). Raises `SettingsError` if malformed, or not signed by its key."""
    try:
        made = x509.load_pem_x509_csr(request)
        key = made.public_key()
        name = str(made.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        unit = str(made.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)[0].value)
        federation = str(made.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)
        role, is_signed = Role(unit), made.is_signature_valid
    except (ValueError, IndexError, TypeError, InvalidSignature, UnsupportedAlgorithm, *_ODD):
        raise SettingsError("the certificate request does not read, expected what `enrol request` writes") from None
    if not is_signed or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SettingsError("the certificate request is not signed by a P-256 key of its own")
    return name, role, federation, key


def read_certificate(data: bytes) -> x509.Certificate:
    """A PEM certificate. Raises `SettingsError`, also for one of which a part is found wrong when it is looked at."""
    try:
        made = x509.load_pem_x509_certificate(data)
        for part in ("subject", "issuer", "extensions", "not_valid_before_utc", "not_valid_after_utc"):
            getattr(made, part)
        made.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, *_ODD):
        raise SettingsError("not a PEM certificate") from None
    return made


def certificate_fault(certificate: x509.Certificate, authority: x509.Certificate, name: str, role: Role) -> str:
    """What keeps a certificate from being that of a party, dates aside: found and expected; empty if nothing does."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        issuer, known = certificate.issuer.rfc4514_string(), authority.subject.rfc4514_string()
        return f"issued by {issuer}, expected {'another of that name' if issuer == known else known}"
    federation = str(authority.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)
    expected = _name(name, role.value, federation)
    if certificate.subject != expected:
        return f"of {certificate.subject.rfc4514_string()}, expected {expected.rfc4514_string()}"
    try:
        usages = set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        usages = set()
    return "" if usages == {CLIENT} else "for another use, expected a client's"


def belong_together(certificate: bytes, key: bytes) -> bool:
    """Whether a PEM certificate is of a PEM key. Raises `SettingsError` if one of them does not read."""
    return read_certificate(certificate).public_key() == _load_key(key).public_key()


def _load_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SettingsError("not an unencrypted PEM key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SettingsError("not an EC key, expected one on P-256")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common: str, unit: str, federation: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


__all__ = [
    "CLIENT",
    "SERVER",
    "Authority",
    "Issued",
    "Leaf",
    "belong_together",
    "certificate_fault",
    "new_request",
    "read_certificate",
    "read_request",
]
