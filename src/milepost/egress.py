"""Every request this server makes for somebody else: image sources and callbacks, guarded against server-side request forgery.

Theory: whoever may name a URL can otherwise make the server speak to what only the server reaches: its own loopback, the private
network, a cloud's metadata service.  A check of the name alone is not enough: the name may resolve differently a moment later
(DNS rebinding), and a redirect may lead elsewhere.

Rules
1. Only `http` and `https`, written in lower case with `//`; no spaces, control characters or backslashes anywhere in the URL.
2. The URL is parsed once, by the parser of the HTTP client itself, so that the host that is checked is the host that is asked.
   A user and password before the host are allowed (they are sent to that host only); they never change which host is checked.
3. A host that is an address must be written in its usual form.  `127.1`, `2130706433`, `0x7f000001` and `0177.0.0.1` are refused
   whatever they stand for; an IPv6 address in brackets may be written in any of its forms.
4. An address is checked after unwrapping IPv4 from IPv6 (mapped, compatible, 6to4, Teredo, NAT64).  What is allowed:

   | address                                                             | private="none" | "loopback" | "all" |
   |---------------------------------------------------------------------|----------------|------------|-------|
   | public                                                              | yes            | yes        | yes   |
   | loopback: 127.0.0.0/8, ::1                                          | no             | yes        | yes   |
   | private, shared                                                     | no             | no         | yes   |
   | link-local (169.254.169.254), unspecified, reserved, multicast, and other metadata services of clouds | no | no | no |

   Who opens the private network means its servers.  A metadata service gives the machine's own credentials to whoever asks, and
   nobody stores images or takes callbacks there.

5. Every address that a name resolves to must be allowed; the connection is then pinned to one of those: the client asks no
   resolver again.
6. Each redirect is a new request under the same rules, at most `REDIRECTS_MAX` of them.  `Authorization` and `Cookie` do not
   follow to another origin, and https never leads to http.
7. No proxy of the environment is ever used: it would resolve the name itself.  No cookies, no decompression: the bytes are the
   file's bytes.

Errors: InvalidInput (not such a URL), Forbidden (the policy refuses it), Unreachable (no answer; later it may work),
ProtocolError (the answer is not HTTP as agreed: a redirect to nowhere, too many of them).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

import msgspec
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import (
    BuilderError,
    ConnectError,
    ConnectTimeoutError,
    DetailedPyreqwestError,
    PyreqwestError,
    RequestTimeoutError,
)
from pyreqwest.http import Url

from milepost.errors import Forbidden, InvalidInput, ProtocolError, Unreachable

if TYPE_CHECKING:
    from pyreqwest.response import Response

    from milepost.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Private = Literal["none", "loopback", "all"]

REDIRECTS_MAX = 5
URL_CHARS_MAX = 8192
ADDRESSES_MAX = 16  # of one name; more are not tried
USER_AGENT = "milepost"


class EgressPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What outgoing requests may reach."""

    private: Private = "none"
    ports: frozenset[int] | None = None  # None: all; else the port that is really used must be one of them
    hosts: frozenset[str] | None = None  # None: all; else only these hosts, in lower case, and still by the rules of addresses

    @classmethod
    def from_settings(cls, settings: Settings) -> EgressPolicy:
        """`egress_private` None means: loopback, and that only for a server without auth on loopback, which is a laptop's.

        Errors: InvalidInput when `egress_ports` is no list of ports.
        """
        if settings.egress_private is None:
            private: Private = "loopback" if settings.auth == "none" and is_loopback_host(settings.host) else "none"
        else:
            private = "all" if settings.egress_private else "none"
        return cls(private=private, ports=_read_ports(settings.egress_ports))

    def allows(self, address: Address) -> bool:
        """Whether a connection to this address may be made."""
        address = unwrap(address)
        if address.is_loopback:
            return self.private != "none"
        if is_public(address):
            return address not in _METADATA
        return self.private == "all" and not is_never_asked(address)


def _read_ports(text: str) -> frozenset[int] | None:
    if not text.strip():
        return None
    try:
        ports = frozenset(int(part) for part in text.split(","))
    except ValueError:
        ports = frozenset({0})
    if not all(1 <= port <= 65535 for port in ports):
        raise InvalidInput(f"egress_ports is {text!r}; it takes ports from 1 to 65535, comma-separated", path="$.egress_ports")
    return ports


def is_loopback_host(host: str) -> bool:
    """Whether a server that listens on this host is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


_NAT64 = tuple(ipaddress.IPv6Network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48"))
_COMPATIBLE = ipaddress.IPv6Network("::/96")
# What `is_global` of the oldest supported Python takes for public and is not.  Source: IANA special-purpose address registries.
_SPECIAL = tuple(
    ipaddress.ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "100::/64", "2001::/23", "3fff::/20", "5f00::/16")
)
# Metadata services that are neither link-local nor clearly something else: AWS by IPv6, Alibaba, Oracle, Azure.
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")))


def unwrap(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it stands for one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner: Address | None = address.ipv4_mapped or address.sixtofour
    if inner is None and address.teredo is not None:
        inner = address.teredo[1]
    if inner is None and any(address in network for network in _NAT64):
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if inner is None and address in _COMPATIBLE and int(address) > 1:  # :: and ::1 are themselves
        inner = ipaddress.IPv4Address(int(address))
    return inner or address


def is_public(address: Address) -> bool:
    """Whether everybody on the internet reaches the same host under this address."""
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:
        return False
    return not any(address.version == network.version and address in network for network in _SPECIAL)


def is_never_asked(address: Address) -> bool:
    """Whether nothing of use to anybody can be there, not even in a private network."""
    unusable = address.is_link_local or address.is_unspecified or address.is_multicast
    return unusable or address in _METADATA or (address.version == 4 and address.is_reserved)


class Target(msgspec.Struct, frozen=True):
    """A URL that passed, with the addresses that it may be asked at."""

    url: str
    scheme: str
    host: str
    port: int
    addresses: tuple[str, ...] = ()

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port


def redact(url: str) -> str:
    """The URL without user, password, query and fragment: what may stand in a log or an error."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url[:200]
    for end in "/?#":
        if end in rest:
            netloc, path = rest.split(end, 1)
            rest = netloc.rpartition("@")[2] + (f"/{path}" if end == "/" else "")
            break
    else:
        rest = rest.rpartition("@")[2]
    rest = rest.partition("?")[0].partition("#")[0]
    return f"{scheme}://{rest}"[:200]


def check_url(url: str, policy: EgressPolicy) -> Target:
    """The URL as the client will ask it.  No name is resolved here: a name passes, an address is checked.

    Errors: InvalidInput, Forbidden.
    """
    if len(url) > URL_CHARS_MAX:
        raise InvalidInput(f"the URL has {len(url)} characters; at most {URL_CHARS_MAX} are allowed", path="$.url")
    if not url.startswith(("http://", "https://")):
        raise InvalidInput(f"the URL must begin with http:// or https://: {redact(url)}", path="$.url")
    if any(char <= " " or char in "\\\x7f" for char in url):
        raise InvalidInput(f"the URL has a space, a control character or a backslash: {redact(url)!r}", path="$.url")
    try:
        parsed = Url(url)
    except ValueError as error:
        raise InvalidInput(f"not a URL ({error}): {redact(url)}", path="$.url") from error
    host, port, written = parsed.host_str, parsed.port_or_known_default, _written_host(url)
    if not written or not host or port is None:  # the parser takes `http:///a` for `http://a/`
        raise InvalidInput(f"the URL names no host: {redact(url)}", path="$.url")
    target = Target(str(parsed), parsed.scheme, host, port)
    _check_host(target, written, policy)
    return target


def _written_host(url: str) -> str:
    rest = url.partition("://")[2]
    for end in "/?#":
        rest = rest.partition(end)[0]
    rest = rest.rpartition("@")[2]
    if rest.startswith("["):
        return rest.partition("]")[0] + "]"
    return rest.partition(":")[0]


def _check_host(target: Target, written: str, policy: EgressPolicy) -> None:
    if policy.hosts is not None and target.host not in policy.hosts:
        raise Forbidden(f"the host {target.host} is not one of those that may be asked", host=target.host)
    if policy.ports is not None and target.port not in policy.ports:
        allowed = ", ".join(map(str, sorted(policy.ports)))
        raise Forbidden(
            f"port {target.port} of {target.host} may not be asked; allowed: {allowed}",
            host=target.host,
            hint="setting egress_ports",
        )
    address = literal_address(target.host)
    if address is None:
        return
    if address.version == 4 and written != str(address):
        raise Forbidden(f"the host {written!r} is an unusual spelling of an address; write {address}", host=target.host)
    _check_address(target.host, address, policy)


def literal_address(host: str) -> Address | None:
    """The address that this host is written as; None for a name."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _check_address(host: str, address: Address, policy: EgressPolicy) -> None:
    if not policy.allows(address):
        kind = "a loopback address" if unwrap(address).is_loopback else "not a public address"
        # The address behind a name is not told: it may be one that only this server's resolver knows.
        where = f"{host} is" if literal_address(host) else f"{host} resolves to what is"
        hint = None if policy.private == "all" else "setting egress_private"
        raise Forbidden(f"{where} {kind}; this server does not connect to those", host=host, hint=hint)


async def resolve_checked(url: str, policy: EgressPolicy, *, timeout_s: float = 10.0) -> Target:
    """The URL with the addresses that it may be asked at, all of them checked now.

    Errors: InvalidInput, Forbidden, Unreachable when the name has no address or the resolver did not answer.
    """
    target = check_url(url, policy)
    literal = literal_address(target.host)
    if literal is not None:
        return msgspec.structs.replace(target, addresses=(str(literal),))
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except TimeoutError:
        raise Unreachable(f"the name {target.host} was not resolved within {timeout_s:g} s", host=target.host) from None
    except (socket.gaierror, UnicodeError) as error:
        passing = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        raise Unreachable(
            f"the name {target.host} does not resolve: {error.args[-1]}", host=target.host, passing=passing
        ) from error
    addresses = list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
    for address in addresses:
        _check_address(target.host, ipaddress.ip_address(address), policy)
    return msgspec.structs.replace(target, addresses=tuple(addresses[:ADDRESSES_MAX]))


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Longest times of one request, seconds."""

    connect_s: float = 10.0  # to one address, TLS included
    read_s: float = 30.0  # between two pieces of the answer
    total_s: float | None = None  # of everything, the body included; None: no limit


class Answer:
    """What the last host of the chain answered; its body is read piece by piece while the request is open."""

    def __init__(self, response: Response, target: Target) -> None:
        self._response = response
        self.target = target
        self.status: int = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}

    @property
    def status_line(self) -> str:
        """`404 Not Found`."""
        try:
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            return str(self.status)

    async def read_chunk(self) -> bytes | memoryview | None:
        """The next piece, of any size; None at the end.  Errors: Unreachable when the connection broke or went silent."""
        try:
            chunk = await self._response.body_reader.read_chunk()
        except PyreqwestError as error:
            raise unreachable_error(self.target, error) from error
        return None if chunk is None else memoryview(chunk)

    async def read_at_most(self, limit_bytes: int) -> bytes:
        """The body's beginning; what is beyond the limit is never read."""
        data = bytearray()
        while len(data) < limit_bytes:
            chunk = await self.read_chunk()
            if chunk is None:
                break
            data += chunk
        return bytes(data[:limit_bytes])


@asynccontextmanager
async def open_guarded(
    method: str,
    url: str,
    *,
    policy: EgressPolicy,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    timeouts: Timeouts = Timeouts(),
    redirects_max: int = REDIRECTS_MAX,
) -> AsyncIterator[Answer]:
    """The answer, headers read, body not.  With `redirects_max=0` a redirect is an answer like any other.

    Only GET and HEAD follow redirects: a body is never sent to a second place.
    Errors: InvalidInput, Forbidden, Unreachable, ProtocolError.
    """
    sent = dict(headers or {})
    follows = method in ("GET", "HEAD") and redirects_max > 0
    target = await resolve_checked(url, policy, timeout_s=timeouts.connect_s)
    for hop in range(redirects_max + 1):
        async with _ask(method, target, sent, body, timeouts) as answer:
            location = answer.headers.get("location")
            if not follows or answer.status not in (301, 302, 303, 307, 308) or location is None:
                yield answer
                return
        if hop == redirects_max:
            raise ProtocolError(f"{redact(url)} redirects more than {redirects_max} times")
        following = await _follow(target, location, policy, timeouts)
        if following.origin != target.origin:
            sent = {name: value for name, value in sent.items() if name.lower() not in ("authorization", "cookie")}
        target = following


async def _follow(target: Target, location: str, policy: EgressPolicy, timeouts: Timeouts) -> Target:
    if any(char <= " " or char in "\\\x7f" for char in location):
        raise ProtocolError(f"{redact(target.url)} redirects to something that is no URL")
    # An absolute location is checked as it is written, so that an odd spelling of an address cannot hide behind the parser.
    try:
        next_url = location if "://" in location.partition("?")[0] else str(Url(target.url).join(location))
    except ValueError as error:
        raise ProtocolError(f"{redact(target.url)} redirects to something that is no URL: {error}") from error
    try:
        following = await resolve_checked(next_url, policy, timeout_s=timeouts.connect_s)
    except InvalidInput as error:
        raise ProtocolError(f"{redact(target.url)} redirects to something that is no URL: {error.message}") from error
    except Forbidden as error:
        raise Forbidden(f"{redact(target.url)} redirects to a forbidden place: {error.message}", **error.fields) from error
    if target.scheme == "https" and following.scheme == "http":
        raise Forbidden(f"{redact(target.url)} redirects from https to http: {redact(next_url)}", host=following.host)
    return following


@asynccontextmanager
async def _ask(
    method: str, target: Target, headers: Mapping[str, str], body: bytes | None, timeouts: Timeouts
) -> AsyncIterator[Answer]:
    """Try the checked addresses in their order until one takes the connection."""
    for number, address in enumerate(target.addresses, 1):
        client = pinned_client(target, address, timeouts)
        try:
            try:
                request = client.request(method, target.url).headers(dict(headers))
                if body is not None:
                    request = request.body_bytes(body)
                # By default the client reads 64 KiB of the body before it gives the head: a trickle would never come through.
                stream = request.streamed_read_buffer_limit(0).build_streamed()
            except BuilderError as error:
                raise InvalidInput(
                    f"the request to {redact(target.url)} cannot be built: {_causes(error)}", path="$.url"
                ) from error
            try:
                response = await stream.__aenter__()
            except (ConnectError, ConnectTimeoutError) as error:
                if number < len(target.addresses):
                    continue
                raise unreachable_error(target, error) from error
            except PyreqwestError as error:
                raise unreachable_error(target, error) from error
            try:
                yield Answer(response, target)
            finally:
                await stream.__aexit__(None, None, None)
            return
        finally:
            await client.close()


def plain_client(connect_s: float, read_s: float) -> ClientBuilder:
    """Of a client that does nothing by itself: it follows no redirect, keeps no cookie and decodes no body."""
    return (
        ClientBuilder()
        .no_proxy()
        .follow_redirects(False)
        .referer(False)
        .default_cookie_store(False)
        .gzip(False)
        .brotli(False)
        .zstd(False)
        .deflate(False)
        .connect_timeout(timedelta(seconds=connect_s))
        .read_timeout(timedelta(seconds=read_s))
    )


def pinned_client(target: Target, address: str, timeouts: Timeouts) -> Client:
    """A client that asks this target at this address, which was checked, and nowhere else."""
    builder = plain_client(timeouts.connect_s, timeouts.read_s).user_agent(USER_AGENT)
    if timeouts.total_s is not None:
        builder = builder.timeout(timedelta(seconds=timeouts.total_s))
    if literal_address(target.host) is None:
        builder = builder.resolve(target.host, address, target.port)
    return builder.build()


def unreachable_error(target: Target, error: PyreqwestError) -> Unreachable:
    """What the client met, without the URL, which may hold a password."""
    where = f"{target.host}:{target.port}"
    if isinstance(error, RequestTimeoutError):
        return Unreachable(f"{where} did not answer in time ({_causes(error)})", host=target.host)
    return Unreachable(f"the connection to {where} failed: {_causes(error)}", host=target.host)


def _causes(error: PyreqwestError) -> str:
    """The innermost cause: the outer ones repeat the URL, which may hold a password."""
    if isinstance(error, DetailedPyreqwestError) and error.details.get("causes"):
        return str((error.details["causes"] or [])[-1]["message"])
    return error.message


__all__ = [
    "Answer",
    "EgressPolicy",
    "Target",
    "Timeouts",
    "check_url",
    "is_loopback_host",
    "is_public",
    "literal_address",
    "open_guarded",
    "pinned_client",
    "redact",
    "resolve_checked",
    "unreachable_error",
    "unwrap",
]
