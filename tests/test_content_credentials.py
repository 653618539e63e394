"""Content Credentials: videos are signed where a certificate is set, and `cinemo info` says whether they hold."""

import datetime
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cinemo.lineage import trace
from cinemo.provenance import read_mark
from cinemo.video import sample_clip, write_video

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
SIGNED = "valid, signed by Videos of An Operator, whose certificate is of no known authority, with Cinemo"


def name(common: str) -> x509.Name:
    pairs = ((NameOID.ORGANIZATION_NAME, "An Operator"), (NameOID.COMMON_NAME, common))
    return x509.Name([x509.NameAttribute(*pair) for pair in pairs])


def certificate(common: str, key: Any, issuer_key: Any, is_authority: bool) -> bytes:
    """A certificate of the authority Root, or of somebody that it vouches for, in PEM."""
    now = datetime.datetime.now(datetime.UTC)
    no = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                        "encipher_only", "decipher_only"), False)  # fmt: skip
    usage = x509.KeyUsage(digital_signature=not is_authority, key_cert_sign=is_authority, crl_sign=is_authority, **no)
    builder = (
        x509.CertificateBuilder(name("Root"), name(common), key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(is_authority, None), True)
        .add_extension(usage, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
    )
    if not is_authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def signer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An operator's certificate and key, as they are set; returns the folder of both."""
    root, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    folder = tmp_path / "signer"
    folder.mkdir()
    chain = certificate("Videos", own, root, False) + certificate("Root", root, root, True)
    (folder / "chain.pem").write_bytes(chain)
    kind = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(own.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))
    monkeypatch.setenv("CINEMO_C2PA_CERTIFICATE", str(folder / "chain.pem"))
    monkeypatch.setenv("CINEMO_C2PA_KEY", str(folder / "key.pem"))
    return folder


@pytest.mark.parametrize("ending", [".mp4", ".gif", ".webp"])
def test_a_signed_video_plays_and_is_verified_and_a_changed_one_is_found_out(
    signer: Path, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"a{ending}"
    write_video(path, FRAMES, 8)
    assert read_mark(path) == "trainedAlgorithmicMedia"
    assert len(sample_clip(path, 0, 1, 4)) == 4
    assert trace(str(path)).facts["Content Credentials"] == SIGNED
    data = bytearray(path.read_bytes())
    data[-len(data) // 3 if ending != ".mp4" else data.index(b"mdat") + 40] ^= 1
    path.write_bytes(data)
    assert "INVALID: " in trace(str(path)).facts["Content Credentials"]
    assert {one.name for one in tmp_path.iterdir()} == {"signer", path.name}  # nothing temporary is left


def test_a_webm_is_written_unsigned_with_a_warning(
    signer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_video(tmp_path / "a.webm", FRAMES, 8)
    assert "cannot hold Content Credentials" in caplog.text
    assert "Content Credentials" not in trace(str(tmp_path / "a.webm")).facts


def test_a_certificate_that_cannot_be_used_is_named_and_nothing_is_written(
    signer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value, sentence in (
        ("CINEMO_C2PA_KEY", "", "go together"),
        ("CINEMO_C2PA_KEY", "/none.pem", "No such file"),
        ("CINEMO_C2PA_KEY", str(signer / "chain.pem"), "cannot be signed"),
        ("CINEMO_C2PA_CERTIFICATE", str(signer / "key.pem"), "certificate is invalid"),
    ):
        with monkeypatch.context() as changed:
            changed.setenv(variable, value)
            with pytest.raises(ValueError, match=sentence):
                write_video(tmp_path / "a.mp4", FRAMES, 8)
    with monkeypatch.context() as changed:
        changed.setitem(sys.modules, "c2pa", None)
        with pytest.raises(ValueError, match="pip install c2pa-python"):
            write_video(tmp_path / "a.mp4", FRAMES, 8)
    assert {one.name for one in tmp_path.iterdir()} == {"signer"}
