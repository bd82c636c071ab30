"""Outgoing requests: which URLs and addresses pass, and that the checked address is the one that is asked."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from milepost.egress import EgressPolicy, Timeouts, check_url, open_guarded, redact, resolve_checked, unwrap
from milepost.errors import Forbidden, InvalidInput, ProtocolError, Unreachable
from milepost.settings import Settings

NONE, LOOPBACK, ALL = (EgressPolicy(private=private) for private in ("none", "loopback", "all"))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://[0:0:0:0:0:0:0:1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[64:ff9b:1::a9fe:a9fe]/",
        "http://[2002:a9fe:a9fe::]/",
        "http://10.0.0.1/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://100.64.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/",
        "http://[fd00::1]/",
        "http://[fec0::1]/",
        "http://0.0.0.0/",
        "http://[::]/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://192.0.0.9/",
        "http://198.18.0.1/",
        "http://[ff02::1]/",
        "http://[2001:db8::1]/",
        "http://public.example@127.0.0.1/",
        "http://public.example:80@127.0.0.1:8080/",
    ],
)
def test_an_address_that_is_not_public_is_refused(url: str) -> None:
    with pytest.raises(Forbidden):
        check_url(url, NONE)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://127.0.0.1./",
        "http://%31%32%37.0.0.1/",
        "http://①②⑦.⓪.⓪.①/",
        "http://134744072/",
        "http://8.8.2056/",
    ],
)
def test_an_unusual_spelling_of_an_address_is_refused_under_every_policy(url: str) -> None:
    for policy in (NONE, LOOPBACK, ALL):
        with pytest.raises(Forbidden, match="unusual spelling"):
            check_url(url, policy)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://a.example/",
        "file:///etc/passwd",
        "HTTP://a.example/",
        "http:a.example",
        "http://",
        "http:///a",
        "http://?x",
        "http://a b.example/",
        "http://a.example/\r\nX: y",
        "http://a.example\\@127.0.0.1/",
        "http://a.example:99999/",
        "http://[::1",
        "http://[fe80::1%25eth0]/",
        "http://a.example/" + "x" * 9000,
        "/relative",
    ],
)
def test_what_is_no_plain_http_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        check_url(url, ALL)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://a.example/x", "a.example"),
        ("https://A.Example:8443/x?y#z", "a.example"),
        ("http://user:pass@a.example/", "a.example"),
        ("http://127.0.0.1@a.example/", "a.example"),
        ("http://a.example#@127.0.0.1/", "a.example"),
        ("http://a.example?@127.0.0.1/", "a.example"),
        ("http://8.8.8.8/", "8.8.8.8"),
        ("http://[2606:4700:4700:0::1111]/", "[2606:4700:4700::1111]"),
        ("http://bücher.example/", "xn--bcher-kva.example"),
    ],
)
def test_a_public_url_passes_with_the_host_that_will_be_asked(url: str, host: str) -> None:
    assert check_url(url, NONE).host == host


def test_loopback_alone_does_not_open_the_private_network() -> None:
    assert check_url("http://127.0.0.1:9/", LOOPBACK).port == 9
    assert check_url("http://[::1]:9/", LOOPBACK).port == 9
    for url in ("http://10.0.0.1/", "http://100.64.0.1/", "http://192.168.0.9/", "http://[fd00::1]/"):
        with pytest.raises(Forbidden) as refused:
            check_url(url, LOOPBACK)
        assert refused.value.hint == "setting egress_private"
        assert check_url(url, ALL)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "0.0.0.0",
        "[::]",
        "224.0.0.1",
        "[ff02::1]",
        "255.255.255.255",
    ],
)
@pytest.mark.parametrize("policy", [NONE, LOOPBACK, ALL], ids=lambda policy: policy.private)
def test_metadata_services_and_what_is_nobodys_address_stay_refused_when_the_private_network_is_open(
    host: str, policy: EgressPolicy
) -> None:
    with pytest.raises(Forbidden):
        check_url(f"http://{host}/latest/meta-data/", policy)


def test_the_port_that_is_used_must_be_allowed_also_when_the_url_does_not_name_it() -> None:
    policy = EgressPolicy(ports=frozenset({443}))
    assert check_url("https://a.example/", policy)
    with pytest.raises(Forbidden, match="port 80"):
        check_url("http://a.example/", policy)


def test_only_named_hosts_when_hosts_are_named() -> None:
    policy = EgressPolicy(hosts=frozenset({"a.example", "127.0.0.1"}))
    assert check_url("https://a.example/", policy)
    with pytest.raises(Forbidden):
        check_url("https://b.example/", policy)
    with pytest.raises(Forbidden, match="loopback"):  # naming a host does not make its address public
        check_url("http://127.0.0.1/", policy)


@pytest.mark.parametrize(
    ("given", "private"),
    [
        ({}, "loopback"),
        ({"host": "localhost"}, "loopback"),
        ({"host": "::1"}, "loopback"),
        ({"auth": "required"}, "none"),
        ({"host": "0.0.0.0", "auth": "required"}, "none"),
        ({"egress_private": True}, "all"),
        ({"egress_private": False}, "none"),
    ],
)
def test_the_policy_follows_the_settings(given: dict[str, Any], private: str) -> None:
    assert EgressPolicy.from_settings(Settings(**given)).private == private


def test_ports_of_the_settings() -> None:
    assert EgressPolicy.from_settings(Settings(egress_ports="80, 443")).ports == {80, 443}
    for wrong in ("http", "0", "70000"):
        with pytest.raises(InvalidInput, match="egress_ports"):
            EgressPolicy.from_settings(Settings(egress_ports=wrong))


def test_a_teredo_address_is_its_client() -> None:
    address = ipaddress.IPv6Address("2001:0:4136:e378:8000:63bf:3fff:fdd2")
    assert unwrap(address) == ipaddress.IPv4Address("192.0.2.45")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:secret@a.example/x?token=secret#f", "http://a.example/x"),
        ("http://user:secret@a.example", "http://a.example"),
        ("http://user:secret@a.example?token=secret", "http://a.example"),
        ("http://a.example/@x", "http://a.example/@x"),
    ],
)
def test_a_shown_url_has_no_secrets(url: str, shown: str) -> None:
    assert redact(url) == shown


# --- with real sockets ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def server(answer: Callable[[str], bytes]) -> AsyncIterator[tuple[int, list[str]]]:
    """Answers each request with `answer(request head and body)`; yields its port and what was asked."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        for line in head.split("\r\n"):
            name, _, value = line.partition(":")
            if name.lower() == "content-length":
                head += (await reader.readexactly(int(value))).decode()
        asked.append(head)
        writer.write(answer(head))
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1], asked


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Every name resolves to these addresses, for this process's own look-up only; returns the names looked up."""
    looked_up: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return looked_up


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.mark.parametrize("host", ["rebinding.invalid", "REBINDING.invalid", "rebinding.invalid."])
async def test_the_connection_goes_to_the_checked_address_and_nobody_resolves_again(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    looked_up = resolving(monkeypatch, "127.0.0.1")
    async with (
        server(lambda _: OK) as (port, asked),
        open_guarded("GET", f"http://{host}:{port}/a", policy=LOOPBACK) as answer,  # .invalid exists in no resolver
    ):
        assert (answer.status, await answer.read_at_most(100)) == (200, b"hello")
    assert len(looked_up) == 1
    assert f"host: {host.lower()}:{port}" in asked[0].lower()


async def test_one_forbidden_address_among_those_of_a_name_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "93.184.215.14", "10.0.0.7")
    with pytest.raises(Forbidden, match="not a public address") as caught:
        await resolve_checked("http://two.example/", NONE)
    assert "10.0.0.7" not in str(caught.value), "only this server's resolver may know it"


async def test_localhost_is_loopback_by_its_address() -> None:
    with pytest.raises(Forbidden, match="loopback"):
        await resolve_checked("http://localhost/", NONE)
    assert set((await resolve_checked("http://localhost/", LOOPBACK)).addresses) <= {"127.0.0.1", "::1"}


async def test_the_next_address_is_tried_when_one_refuses_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "127.0.0.2", "127.0.0.1")  # nobody listens on the first
    async with (
        server(lambda _: OK) as (port, _),
        open_guarded("GET", f"http://many.invalid:{port}/", policy=LOOPBACK) as answer,
    ):
        assert answer.status == 200


async def test_a_name_without_address_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unreachable, match="does not resolve"):
        await resolve_checked("http://nobody.invalid/", NONE)


async def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    async with (
        server(lambda _: OK) as (port, asked),
        open_guarded("GET", f"http://127.0.0.1:{port}/a", policy=LOOPBACK) as answer,
    ):
        assert answer.status == 200
    assert asked[0].startswith("GET /a HTTP/1.1")


async def test_a_post_sends_headers_and_body_follows_no_redirect_and_reads_a_bounded_answer() -> None:
    reply = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000
    async with (
        server(lambda _: reply) as (port, asked),
        open_guarded(
            "POST",
            f"http://127.0.0.1:{port}/hook",
            policy=LOOPBACK,
            headers={"content-type": "application/json", "webhook-id": "1"},
            body=b'{"a":1}',
        ) as answer,
    ):
        assert answer.status == 307
        assert len(await answer.read_at_most(2048)) == 2048
    assert len(asked) == 1
    assert asked[0].endswith('{"a":1}')
    assert "webhook-id: 1" in asked[0].lower()


async def test_credentials_do_not_follow_to_another_origin() -> None:
    async with server(lambda _: OK) as (other, asked_there):
        away = f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{other}/b\r\nContent-Length: 0\r\n\r\n".encode()
        async with (
            server(lambda _: away) as (port, asked_here),
            open_guarded(
                "GET", f"http://127.0.0.1:{port}/a", policy=LOOPBACK, headers={"Authorization": "Bearer x", "X-Other": "y"}
            ) as answer,
        ):
            assert answer.status == 200
            assert answer.target.port == other
    assert "authorization: bearer x" in asked_here[0].lower()
    assert "authorization" not in asked_there[0].lower()
    assert "x-other: y" in asked_there[0].lower()


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("http://169.254.169.254/latest/meta-data/", Forbidden),
        ("//10.0.0.1/", Forbidden),
        ("http://2130706433/", Forbidden),
        ("file:///etc/passwd", ProtocolError),
        ("http://[::1", ProtocolError),
        ("gopher://127.0.0.1/", ProtocolError),
    ],
)
async def test_a_redirect_is_checked_like_the_first_url(location: str, error: type[Exception]) -> None:
    reply = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
    async with server(lambda _: reply) as (port, asked):
        with pytest.raises(error):
            async with open_guarded("GET", f"http://127.0.0.1:{port}/", policy=LOOPBACK):
                pass
    assert len(asked) == 1


async def test_redirects_in_a_circle_end() -> None:
    reply = b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"
    async with server(lambda _: reply) as (port, asked):
        with pytest.raises(ProtocolError, match="more than 5 times"):
            async with open_guarded("GET", f"http://127.0.0.1:{port}/", policy=LOOPBACK):
                pass
    assert len(asked) == 6


async def test_a_silent_server_is_unreachable_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(Unreachable, match="in time"):
            async with open_guarded("GET", url, policy=LOOPBACK, timeouts=Timeouts(read_s=0.2)):
                pass


async def test_an_error_does_not_show_the_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(Unreachable) as caught:
        async with open_guarded("GET", f"http://user:secret@127.0.0.1:{port}/", policy=LOOPBACK):
            pass
    assert "secret" not in str(caught.value)
