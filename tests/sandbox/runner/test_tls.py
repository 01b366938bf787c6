"""TLS between runner and client, with certificates made for the test."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from service.sandbox.base import SandboxError, SessionLimits
from service.sandbox.runner.client import RunnerClient, RunnerClientSettings
from service.sandbox.runner.control import set_draining
from service.sandbox.runner.settings import RunnerSettings
from tests.sandbox.conftest import served
from tests.support.fake_sandbox import TOKEN, FakeSandbox

LIMITS = SessionLimits()


@dataclass(frozen=True)
class Authority:
    """A certificate authority in ``folder``."""

    folder: Path
    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "_key", ec.generate_private_key(ec.SECP256R1()))
        self.folder.mkdir(exist_ok=True)
        certificate = self._certificate(self.name, self._key.public_key(), is_ca=True)
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.pem"

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return the certificate and the key of ``name``, valid for the loopback addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._certificate(name, key.public_key(), is_ca=False)
        files = self.folder / f"{self.name}-{name}.crt", self.folder / f"{self.name}-{name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files

    def _certificate(self, name: str, key: ec.EllipticCurvePublicKey, *, is_ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if not is_ca:
            names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())  # type: ignore[attr-defined]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls", "authority")


def client_of(port: int, ca: Path | None, **options: object) -> RunnerClient:
    settings = RunnerClientSettings((f"127.0.0.1:{port}",), TOKEN, ca_file=ca, connect_timeout_s=0.3)
    return RunnerClient(replace(settings, **options))  # type: ignore[arg-type]


async def test_sessions_and_checks_use_tls(authority: Authority, unused_tcp_port: int) -> None:
    certificate, key = authority.issue("runner")
    options = {"tls_certificate": certificate, "tls_key": key}
    async with served(FakeSandbox(), f"127.0.0.1:{unused_tcp_port}", authority.file, **options) as runner:
        assert await runner.client.ready()
        session = runner.client.session(LIMITS)
        await session.invoke("print encrypted")
        assert (await session.flush()).stdout == "encrypted\n"
        await session.close()


async def test_rejects_other_authorities_names_and_plain_text(
    authority: Authority, unused_tcp_port: int, tmp_path: Path
) -> None:
    certificate, key = authority.issue("runner")
    options = {"tls_certificate": certificate, "tls_key": key}
    other = Authority(tmp_path / "other", "other")
    async with served(FakeSandbox(), f"127.0.0.1:{unused_tcp_port}", authority.file, **options) as runner:
        for stranger, problem in (
            (client_of(unused_tcp_port, other.file), "not trusted"),
            (
                client_of(unused_tcp_port, authority.file, addresses=(f"localhost:{unused_tcp_port}",)),
                "not trusted",
            ),
            (client_of(unused_tcp_port, None), "no runner answers"),
        ):
            assert not await stranger.ready()
            with pytest.raises(SandboxError, match=problem):
                await stranger.session(LIMITS).invoke("print 1")
            await stranger.stop()
        assert runner.sandbox.sessions == []


async def test_a_client_with_an_authority_never_talks_to_a_runner_without_tls(
    authority: Authority, unused_tcp_port: int
) -> None:
    async with served(FakeSandbox(), f"127.0.0.1:{unused_tcp_port}") as runner:
        client = client_of(unused_tcp_port, authority.file)
        assert not await client.ready()
        with pytest.raises(SandboxError):
            await client.session(LIMITS).invoke("print 1")
        await client.stop()
        assert runner.sandbox.sessions == []


async def test_mutual_tls_requires_a_client_certificate(authority: Authority, unused_tcp_port: int) -> None:
    certificate, key = authority.issue("runner")
    mine = authority.issue("client")
    options = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": authority.file}
    async with served(
        FakeSandbox(), f"127.0.0.1:{unused_tcp_port}", authority.file, client_pair=mine, **options
    ) as runner:
        session = runner.client.session(LIMITS)
        await session.invoke("print known")
        assert (await session.flush()).stdout == "known\n"
        await session.close()
        anonymous = client_of(unused_tcp_port, authority.file)
        assert not await anonymous.ready()
        with pytest.raises(SandboxError):
            await anonymous.session(LIMITS).invoke("print 1")
        await anonymous.stop()


async def test_drain_trusts_the_runners_own_certificate(authority: Authority, unused_tcp_port: int) -> None:
    certificate, key = authority.issue("runner")
    for options in (
        {"tls_certificate": certificate, "tls_key": key},
        {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": authority.file},
    ):
        address = f"127.0.0.1:{unused_tcp_port}"
        async with served(
            FakeSandbox(), address, authority.file, client_pair=(certificate, key), **options
        ) as runner:
            report = await asyncio.to_thread(set_draining, runner.settings, on=True)
            assert report.state == "draining"
            plain = RunnerSettings(token=TOKEN, bind=address)
            with pytest.raises(SandboxError, match="certificate and key if it uses TLS"):
                await asyncio.to_thread(set_draining, plain, on=True)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tls_certificate": "a.crt"}, "both a certificate and its key"),
        ({"tls_client_ca": "ca.pem"}, "only with a certificate"),
        ({"bind": "wss://127.0.0.1:1"}, "needs a TLS certificate"),
        ({"bind": "unix:/r.sock", "tls_certificate": "a", "tls_key": "b"}, "bind to host:port"),
    ],
)
def test_rejects_incomplete_settings(options: dict[str, str], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        RunnerSettings.model_validate({"token": TOKEN, "bind": "127.0.0.1:1", **options})


def test_unusable_files_are_named(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("runner")
    _, other_key = authority.issue("other")
    settings = RunnerSettings(
        token=TOKEN, bind="127.0.0.1:1", tls_certificate=certificate, tls_key=tmp_path / "absent.key"
    )
    with pytest.raises(ValueError, match=r"absent\.key can't be read"):
        settings.tls_context()
    with pytest.raises(ValueError, match="not a TLS certificate and its unencrypted private key"):
        settings.model_copy(update={"tls_key": other_key}).tls_context()
    with pytest.raises(ValueError, match=r"\.key holds no TLS certificate authority"):
        client_of(1, key)
    with pytest.raises(ValueError, match="rules out TLS"):
        client_of(1, authority.file, addresses=("ws://127.0.0.1:1",))
    with pytest.raises(ValueError, match="address of a runner is missing"):
        client_of(1, None, addresses=())
