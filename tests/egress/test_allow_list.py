"""Which hosts, ports and addresses match the list, and which entries are refused."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from sandbox_agent.egress.allow_list import AllowList, is_public, read_host, split_port
from sandbox_agent.errors import InvalidRequestError


def allows(entry: str, host: str, port: int = 443) -> bool:
    found = read_host(host)
    return found is not None and AllowList([entry]).find(found, port) is not None


@pytest.mark.parametrize(
    ("entry", "host", "port"),
    [
        ("api.anthropic.com", "api.anthropic.com", 443),
        ("api.anthropic.com", "API.Anthropic.COM.", 80),
        ("API.anthropic.com.", "api.anthropic.com", 443),
        ("*.npmjs.org", "registry.npmjs.org", 443),
        ("*.npmjs.org", "a.b.npmjs.org", 443),
        ("github.com:22", "github.com", 22),
        ("bücher.example", "xn--bcher-kva.example", 443),
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("127.0.0.1:8080", "::ffff:127.0.0.1", 8080),
        ("127.0.0.1:8080", "[::ffff:7f00:1]", 8080),
        ("::1", "[0:0:0:0:0:0:0:1]", 80),
        ("[::1]:8080", "[::1]", 8080),
        ("localhost:8080", "localhost", 8080),
        ("llm.test:8080=127.0.0.1", "llm.test", 8080),
    ],
)
def test_a_host_of_the_list_is_allowed(entry: str, host: str, port: int) -> None:
    assert allows(entry, host, port)


@pytest.mark.parametrize(
    ("entry", "host", "port"),
    [
        ("anthropic.com", "api.anthropic.com", 443),
        ("*.npmjs.org", "npmjs.org", 443),
        ("*.npmjs.org", "evilnpmjs.org", 443),
        ("npmjs.org", "npmjs.org.evil.com", 443),
        ("github.com", "github.com", 22),
        ("github.com:22", "github.com", 443),
        ("localhost:8080", "127.0.0.1", 8080),
        ("127.0.0.1:8080", "localhost", 8080),
        ("*.example.com", "127.0.0.1", 443),
    ],
)
def test_any_other_host_is_not(entry: str, host: str, port: int) -> None:
    assert not allows(entry, host, port)


@pytest.mark.parametrize(
    "host",
    ["127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1.", "a..b", "", ".", "-a.com", "a.com\0",
     "a com", "é.com", "fe80::1%eth0", "[127.0.0.1]", "a" * 64 + ".com", "a." * 127 + "com"],
)  # fmt: skip
def test_what_is_neither_a_name_nor_a_plain_address_is_no_host(host: str) -> None:
    assert read_host(host) is None


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("https://api.anthropic.com", "not for a URL"),
        ("10.0.0.0/8", "or a network"),
        ("user@example.com", "not for a URL"),
        ("*", "stands only for"),
        ("api.*.com", "stands only for"),
        ("", "neither a name nor an address"),
        ("example.com:0", "'0' is not a port"),
        ("example.com:99999", "'99999' is not a port"),
        ("example.com:https", "'https' is not a port"),
        ("localhost", "localhost needs a port"),
        ("*.localhost:80", "localhost needs a port"),
        ("2130706433", "neither a name"),
        ("*.10.0.0.1", "neither subdomains"),
        ("example.com=other.com", "after '='"),
        ("*.example.com=10.0.0.1", "after '='"),
        ("..com", "neither a name"),
    ],
)
def test_an_invalid_entry_is_refused_with_the_reason(entry: str, why: str) -> None:
    with pytest.raises(InvalidRequestError, match="invalid entry") as caught:
        AllowList([entry])
    assert why in str(caught.value)
    assert entry in str(caught.value)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
     "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254",
     "ff02::1", "fec0::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1",
     "64:ff9b::a9fe:a9fe", "2002:7f00:1::1", "2002:a00:1::", "2001:0:7f00:1::", "::127.0.0.1"],
)  # fmt: skip
def test_addresses_of_this_machine_and_its_network_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ip_address(address))


def test_an_entry_with_an_address_is_used_before_one_for_the_domain() -> None:
    found = AllowList(["*.corp.example", "npm.corp.example=10.0.0.5"]).find("npm.corp.example", 443)
    assert found is not None
    assert found.addresses == (ip_address("10.0.0.5"),)


def test_the_ports_of_a_host_are_those_of_all_its_entries() -> None:
    hosts = AllowList(["github.com:22", "*.github.com", "github.com"])
    assert hosts.ports_of("github.com") == [22, 80, 443]
    assert hosts.ports_of("other.com") == []


def test_a_port_is_split_from_names_and_addresses() -> None:
    assert split_port("a.com:1") == ("a.com", 1)
    assert split_port("[::1]:1") == ("[::1]", 1)
    assert split_port("[::1]") == ("[::1]", None)
    assert split_port("::1") == ("::1", None)


def test_a_string_is_no_list_of_hosts() -> None:
    with pytest.raises(InvalidRequestError, match=r"are a list: use \['a\.com'\], not 'a\.com'"):
        AllowList("a.com")
