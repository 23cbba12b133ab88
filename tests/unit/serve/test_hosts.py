"""Which Host and Origin headers are let through."""

import pytest
from starlette.datastructures import Headers

from baichuan.errors import UsageError
from baichuan.serve.faults import ApiError
from baichuan.serve.hosts import AllowedHosts

HERE = ["127.0.0.1"]
EVERYWHERE = ["0.0.0.0"]
NAMED = ["127.0.0.1", "api.example.com", "例子.example", "2001:DB8::7"]


def refused(allowed, host=None, origin=None, origins=()):
    """Return the code of the refusal, or None."""
    given = {"host": host, "origin": origin}
    headers = Headers({name: value for name, value in given.items() if value is not None})
    try:
        AllowedHosts(allowed).check(headers, origins)
    except ApiError as error:
        found = error.body.error
        assert len(found.message) <= 500
        assert error.response().status_code == 403
        return found.code
    return None


@pytest.mark.parametrize(
    ("allowed", "host"),
    [
        *((HERE, f"{name}{port}") for name in ("localhost", "127.0.0.1") for port in ("", ":8000")),
        *((HERE, host) for host in ("LOCALHOST.", "127.1.2.3:1", "[::1]", "[::1]:8000", None)),
        (HERE, "[::ffff:127.0.0.1]:8000"),
        *((EVERYWHERE, host) for host in ("192.168.1.5:8000", "[fe80::1]", "0.0.0.0", "localhost")),
        (["::"], "10.0.0.1:80"),
        *((NAMED, host) for host in ("api.example.com", "API.Example.COM.:443", "[2001:db8::7]:1")),
        (NAMED, "xn--fsqu00a.example"),
        (["gpu-server", "fe80::1%eth0"], "[fe80::1]:8000"),
        (["*"], "anything.example"),
    ],
)
def test_names_of_the_server(allowed, host):
    assert refused(allowed, host) is None


@pytest.mark.parametrize("allowed", [HERE, EVERYWHERE, NAMED])
@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("api.example.com.evil.example", "notlocalhost", "localhost@evil.example", "", ":8000"),
        *("localhost:8000:9", "localhost/x", "[localhost]", "[::1", "::1", "127.0.0.1:x", "*"),
        *("localhost, evil.example", "x" * 10_000, "localhost..", "1" * 5000, "127.1"),
    ],
)
def test_other_names(allowed, host):
    assert refused(allowed, host) == "host_not_allowed"


def test_addresses_that_are_not_the_servers():
    for host in ("192.168.1.5", "[2001:db8::8]", "0.0.0.0"):
        assert refused(NAMED, host) == "host_not_allowed"


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("127.0.0.1", "http://127.0.0.1"),
        ("localhost", "https://LOCALHOST:443"),  # behind a proxy with TLS
        ("evil.example", "http://page.example"),
    ],
)
def test_pages_that_may_call(host, origin):
    assert refused(["*"], host, origin, ["http://page.example"]) is None
    assert refused(["*"], host, origin, ["*"]) is None


@pytest.mark.parametrize(
    "origin",
    [
        *("http://evil.example", "null", "", "http://localhost:8001", "https://localhost:8443"),
        *("http://localhost", "file://", "http://page.example:81", "http://page.example.evil"),
        *("https://page.example", "http://localhost:8000@evil.example", "x" * 10_000),
    ],
)
def test_pages_that_may_not(origin):
    assert refused(HERE, "localhost:8000", origin, ["http://page.example"]) == "origin_not_allowed"


@pytest.mark.parametrize(
    "given", ["http://api.example.com", "api.example.com:443", "a b", "", "a/b", "x" * 70]
)
def test_a_host_that_is_none_is_a_usage_error(given):
    with pytest.raises(UsageError, match=r"--allow-host is .*; allowed is a name or an address"):
        AllowedHosts([given])
