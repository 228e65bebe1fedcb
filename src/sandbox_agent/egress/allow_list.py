"""The hosts that a sandbox may reach: how they are written, and which names, ports and addresses match."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from sandbox_agent.errors import InvalidRequestError

Address = IPv4Address | IPv6Address

DEFAULT_PORTS = (443, 80)
LOOPBACK: tuple[Address, ...] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
MAX_NAME = 253
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_PORT = re.compile(r"[0-9]{1,5}")
# Translators reach the IPv4 address that is in the last bytes of these.
_NAT64 = IPv6Network("64:ff9b::/96")
# No other IPv6 addresses are assigned to networks of the internet.
_UNICAST = IPv6Network("2000::/3")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the list.

    Attributes:
        host: A name in lower case without a final dot, or an address.
        subdomains: The entry is for all names below this one, and not for the name itself.
        port: The port; None for 443 and 80.
        addresses: Where the host is. None if its name is resolved, and has to have a public address.
    """

    host: str | Address
    subdomains: bool = False
    port: int | None = None
    addresses: tuple[Address, ...] | None = None

    def has_host(self, host: str | Address) -> bool:
        """Return whether the entry is for this host, whatever the port."""
        if isinstance(host, str) and isinstance(self.host, str) and self.subdomains:
            return host.endswith(f".{self.host}")
        return host == self.host

    def has_port(self, port: int) -> bool:
        """Return whether the entry is for this port, whatever the host."""
        return port in DEFAULT_PORTS if self.port is None else port == self.port


class AllowList:
    """The entries of a list.

    Args:
        entries: What the sandbox may reach: a name (``api.anthropic.com``), all names below one
            (``*.npmjs.org``) or an address, each on the ports 443 and 80, or with a port of its own
            (``github.com:22``, ``[2001:db8::1]:8080``). ``name=address`` has the address of the name, which
            may be a private one; ``localhost`` needs a port.

    Raises:
        InvalidRequestError: An entry is invalid, or the list is one string.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        if isinstance(entries, str):  # each of its letters would be a host
            raise InvalidRequestError(f"the allowed hosts are a list: use [{entries!r}], not {entries!r}")
        self.entries: tuple[Entry, ...] = tuple(map(_parse_entry, entries))

    def find(self, host: str | Address, port: int) -> Entry | None:
        """Return the entry that allows this host on this port, or None."""
        fitting = [entry for entry in self.entries if entry.has_host(host) and entry.has_port(port)]
        # An entry that has the address of the name is more exact than one for the domain.
        return min(fitting, key=lambda entry: (entry.addresses is None, entry.subdomains), default=None)

    def ports_of(self, host: str | Address) -> list[int]:
        """Return the ports on which a host is allowed, in ascending order."""
        found: set[int] = set()
        for entry in self.entries:
            if entry.has_host(host):
                found.update(DEFAULT_PORTS if entry.port is None else (entry.port,))
        return sorted(found)


def read_host(text: str) -> str | Address | None:
    """Return the host of a request: a name in lower case without a final dot, an address, or None.

    Names are ASCII, as clients send them. An IPv6 address may be in brackets.
    """
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
        if ":" not in text:
            return None
    if "%" in text:
        return None  # a zone of this machine
    try:
        return plain_address(ip_address(text))
    except ValueError:
        return _read_name(text)


def plain_address(address: Address) -> Address:
    """Return the IPv4 address that is written as an IPv6 one, or else the address."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def is_public(address: Address) -> bool:
    """Return whether an address is one of the internet: not loopback, private, link-local or multicast."""
    address = plain_address(address)
    if address.is_multicast or not address.is_global:
        return False
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _UNICAST or address.teredo is not None:
            return False
        inner = address.sixtofour
        return inner is None or is_public(inner)
    return True


def join_port(host: str | Address, port: int) -> str:
    """Return ``host:port``, as in a URL."""
    return f"[{host}]:{port}" if isinstance(host, IPv6Address) else f"{host}:{port}"


def split_port(text: str) -> tuple[str, int | None]:
    """Return the host and the port of ``host[:port]``. An IPv6 address with a port is in brackets.

    Raises:
        ValueError: The port is invalid.
    """
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")) or text.endswith("]"):
        return text, None
    if not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        raise ValueError(f"'{port}' is not a port")
    return host, int(port)


def _read_name(text: str) -> str | None:
    name = text.removesuffix(".").lower()
    labels = name.split(".")
    if len(name) > MAX_NAME or not name.isascii() or not all(map(_LABEL.fullmatch, labels)):
        return None
    # Resolvers take 127.1, 2130706433 and 0x7f000001 for addresses.
    return None if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]) else name


def _parse_entry(text: str) -> Entry:
    def invalid(why: str) -> InvalidRequestError:
        return InvalidRequestError(
            f"invalid entry {text!r} of the allowed hosts: {why}. Use a name such as api.anthropic.com, "
            "*.npmjs.org or github.com:22, or an address"
        )

    if "/" in text or "@" in text:
        raise invalid("it is for a host, not for a URL or a network")
    left, equals, pinned = text.strip().partition("=")
    try:
        host_text, port = split_port(left)
    except ValueError as error:
        raise invalid(str(error)) from None
    subdomains = host_text.startswith("*.")
    host_text = host_text.removeprefix("*.")
    if "*" in host_text:
        raise invalid("'*' stands only for the part in front of the first dot")
    try:
        host = read_host(host_text.encode("idna").decode() if not host_text.isascii() else host_text)
    except UnicodeError:
        host = None
    if host is None:
        raise invalid(f"'{host_text}' is neither a name nor an address")
    if not isinstance(host, str):
        if subdomains or equals:
            raise invalid("an address has neither subdomains nor another address")
        return Entry(host, port=port, addresses=(host,))
    if equals:
        address = read_host(pinned)
        if subdomains or address is None or isinstance(address, str):
            raise invalid("after '=' there has to be the address of one name")
        return Entry(host, port=port, addresses=(address,))
    if host == "localhost":
        if subdomains or port is None:
            raise invalid("localhost needs a port")
        return Entry(host, port=port, addresses=LOOPBACK)
    return Entry(host, subdomains, port)
