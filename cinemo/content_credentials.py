"""Content Credentials (C2PA): a signed statement inside a video's file that it was generated, and its verification.

Files are signed where CINEMO_C2PA_CERTIFICATE names a PEM file with the signer's certificate and those that issued it,
and CINEMO_C2PA_KEY one with its private key; CINEMO_C2PA_TIMESTAMP may be the URL of a timestamp authority. Needs the
extra `c2pa`. A signature is different each time, so equal videos no longer give equal files.
"""

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cinemo
from cinemo.provenance import TERMS

logger = logging.getLogger("cinemo")

SIGNED = (".mp4", ".gif", ".webp")  # C2PA defines no place for credentials in WebM
# Only a timestamp is fetched while a file is read or signed. A thumbnail would be as large as the video.
_SETTINGS = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}


def sign(path: Path, source: str) -> None:
    """Add credentials to a video's file, if a certificate is set. source: IPTC's digital source type.

    Raises ValueError if certificate, key or library cannot be used.
    """
    certificate, key = (os.environ.get(f"CINEMO_C2PA_{name}") for name in ("CERTIFICATE", "KEY"))
    if not certificate and not key:
        return
    if not certificate or not key:
        raise ValueError("CINEMO_C2PA_CERTIFICATE and CINEMO_C2PA_KEY go together; set both, or none to sign nothing")
    if path.suffix not in SIGNED:
        logger.warning("a %s file cannot hold Content Credentials; use %s", path.suffix, ", ".join(SIGNED))
        return
    c2pa = load()
    signed = path.with_stem(path.stem + "-signed")
    try:
        chain, secret = Path(certificate).read_bytes(), Path(key).read_bytes()
        info = c2pa.C2paSignerInfo(algorithm(secret), chain, secret, os.environ.get("CINEMO_C2PA_TIMESTAMP"))
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(statement(source), context=context(c2pa)) as builder:
            builder.sign_file(path, signed, signer)
        os.replace(signed, path)
    except (OSError, ValueError, c2pa.C2paError) as error:
        raise ValueError(f"CINEMO_C2PA_CERTIFICATE, CINEMO_C2PA_KEY: {path.name} cannot be signed ({error})") from error
    finally:
        signed.unlink(missing_ok=True)


def statement(source: str) -> dict[str, Any]:
    """The manifest: which program created the file, and how."""
    action = {"action": "c2pa.created", "digitalSourceType": TERMS + source}
    return {
        "claim_generator_info": [{"name": "Cinemo", "version": cinemo.__version__}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }


def read(path: Path) -> str | None:
    """Verify a file's credentials: a sentence that says whether they hold and who signed; None if it has none."""
    if path.suffix.lower() not in SIGNED or b"c2pa" not in path.read_bytes():
        return None
    if find_spec("c2pa") is None:
        return "not verified: pip install c2pa-python"
    c2pa = load()
    try:
        if (reader := c2pa.Reader.try_create(path, context=context(c2pa))) is None:
            return None
        with reader:
            state, manifest = reader.get_validation_state(), reader.get_active_manifest() or {}
            results = reader.get_validation_results() or {}
    except c2pa.C2paError as error:
        return f"INVALID: {error}"
    signature, generator = manifest.get("signature_info", {}), manifest.get("claim_generator_info") or [{}]
    by = f"signed by {signature.get('common_name', 'nobody')} of {signature.get('issuer', 'nobody')}"
    made = f"with {generator[0].get('name', 'an unknown program')}"
    if state == "Valid":  # a "Trusted" one's certificate leads to a known authority
        return f"valid, {by}, whose certificate is of no known authority, {made}"
    codes = sorted({fault["code"] for fault in results.get("activeManifest", {}).get("failure", [])})
    return f"{'valid' if state == 'Trusted' else 'INVALID: ' + ', '.join(codes)}, {by}, {made}"


def algorithm(key: bytes) -> str:
    """C2PA's name of the signature algorithm of a private key in PEM. Raises ValueError for another kind of key."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    secret = load_pem_private_key(key, None)
    if isinstance(secret, ec.EllipticCurvePrivateKey) and secret.key_size in (256, 384, 521):
        return {256: "es256", 384: "es384", 521: "es512"}[secret.key_size]
    if isinstance(secret, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(secret, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise ValueError("the key is neither EC, RSA nor Ed25519")


def context(c2pa: Any) -> Any:
    """The library's settings for signing and reading."""
    return c2pa.Context(c2pa.Settings.from_dict(_SETTINGS))


def load() -> Any:
    """Import the library. Raises ValueError if it is not installed."""
    try:
        import c2pa
    except ImportError:
        raise ValueError(
            "CINEMO_C2PA_CERTIFICATE is set, but c2pa-python is missing; pip install c2pa-python"
        ) from None
    return c2pa
