"""Pages, whole in themselves: no font, script or style comes from another place, so they work without a network."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib.resources import files


def _read(name: str) -> str:
    return (files(__name__) / name).read_text("utf-8")


@functools.cache
def docs_page() -> bytes:
    """The API reference: HTML with its style and script inside; it reads `/openapi.json` of the server it came from."""
    return _read("docs.html").replace("/*STYLE*/", _read("docs.css")).replace("/*SCRIPT*/", _read("docs.js")).encode()


def _hash(name: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(_read(name).encode()).digest()).decode()}'"


# The page may run its own script and style and ask its own server, nothing else; nobody may frame it.
SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (
        b"content-security-policy",
        (
            f"default-src 'none'; script-src {_hash('docs.js')}; style-src {_hash('docs.css')}; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ).encode(),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
