"""Glance's error bodies: one sentence in HTML, JSON or plain text, as the request's Accept header asks.

The layouts are those of webob's exceptions, which Glance raises; python-glanceclient reads its messages out of the HTML.
Source: Pylons/webob src/webob/exc.py (WSGIHTTPException); openstack/glance glance/common/wsgi.py.
"""

from __future__ import annotations

import html
import re
from typing import Any

import msgspec

TITLES = {
    300: "Multiple Choices",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    410: "Gone",
    413: "Request Entity Too Large",
    415: "Unsupported Media Type",
    416: "Request Range Not Satisfiable",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

UNAUTHORIZED = (
    "This server could not verify that you are authorized to access the document you requested. Either you supplied the wrong "
    "credentials (e.g., bad password), or your browser does not understand how to supply the credentials required."
)
ROUTE_NOT_FOUND = "The resource could not be found."
INTERNAL = "The server has either erred or is incapable of performing the requested operation."

END = "<br /><br />\n\n\n"  # what webob puts behind the sentence: a break, the empty detail, the empty comment
METHOD_END = "<br /><br />\n"

_OFFERS = ("text/html", "application/json")


class Refusal(Exception):
    """A request answered with an error.  `end` is the markup behind the message: most have `END`."""

    def __init__(self, status: int, message: str, *, headers: dict[str, str] | None = None, end: str = END) -> None:
        super().__init__(message)
        self.status, self.message, self.headers, self.end = status, message, headers or {}, end


def method_not_allowed(method: str, allowed: str) -> Refusal:
    """A route that exists, asked with another method."""
    return Refusal(405, f"The method {method} is not allowed for this resource. ", headers={"Allow": allowed}, end=METHOD_END)


def encode_error(refusal: Refusal, accept: str | None) -> tuple[str, bytes]:
    """Content-Type and body.

    Rules: `*/*` and anything that allows text/html gets HTML, application/json JSON, no Accept or another type plain text.
    """
    status = f"{refusal.status} {TITLES.get(refusal.status, 'Error')}"
    offer = _negotiate(accept)
    if offer == "text/html":
        text = html.escape(refusal.message) + refusal.end
        page = f"<html>\n <head>\n  <title>{status}</title>\n </head>\n <body>\n  <h1>{status}</h1>\n  {text}\n </body>\n</html>"
        return "text/html; charset=UTF-8", page.encode()
    if offer == "application/json":
        title = TITLES.get(refusal.status, "Error")
        return "application/json", msgspec.json.encode({"message": refusal.message + refusal.end, "code": status, "title": title})
    plain = re.sub(r"<br.*?>", "\n", refusal.end.replace("\n", " "))
    return "text/plain; charset=UTF-8", f"{status}\n\n{refusal.message}{plain}".encode()


def read_error(body: bytes, content_type: str = "") -> str:
    """The sentence of an error body in any of its forms; a body of another kind is returned as text, shortened."""
    text = body.decode("utf-8", "replace").strip()
    if "json" in content_type or text.startswith("{"):
        found = _json_message(body)
        if found is not None:
            return _clean(found)
    if "html" in content_type or text.startswith("<"):
        inner = re.search(r"</h1>(.*?)(?:<br|</body)", text, re.S | re.I)
        return _clean(html.unescape(inner.group(1) if inner else re.sub(r"<.*?>", " ", text, flags=re.S)))
    head, blank, rest = text.partition("\n\n")
    return _clean(rest if blank and re.match(r"\d{3} ", head) else text)


def _clean(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<br\s*/?>", " ", text)).strip()[:1000]


def _json_message(body: bytes) -> str | None:
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if isinstance(found, dict) and isinstance(found.get("error"), dict):  # Keystone's form, also used by proxies
        found = found["error"]
    message = found.get("message") if isinstance(found, dict) else None
    return message if isinstance(message, str) else None


def _negotiate(accept: str | None) -> str | None:
    """The best of the offers, HTML first among equals; None when neither is acceptable."""
    qualities = [(_quality(accept or "", offer), offer) for offer in _OFFERS]
    best = max(quality for quality, _ in qualities)
    return next((offer for quality, offer in qualities if quality == best), None) if best > 0 else None


def _quality(accept: str, offer: str) -> float:
    """What the most specific range that covers the offer gives it."""
    main = offer.partition("/")[0]
    rank = {offer: 3, f"{main}/*": 2, "*/*": 1}
    found = (0, 0.0)
    for part in accept.split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        if rank.get(name.lower(), 0) > found[0]:
            found = (rank[name.lower()], _q(parameters))
    return found[1]


def _q(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
