"""Which addresses an HTTP source may be read from: a name is resolved once, checked, and the checked address connected to.

So a name that resolves to something else a moment later (DNS rebinding) leads nowhere, and neither does a redirect.
Source: OWASP, Server-Side Request Forgery Prevention Cheat Sheet.
"""

import ipaddress
import socket
from collections.abc import Callable

from autonomous.sources.batch import SourceProblem

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]
"""Host and port to addresses, as text. Raises OSError."""
Permits = Callable[[Address], bool]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


_ASSIGNED = tuple(map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24")))
"""For protocols, and for relays that are no more (RFC 6890, RFC 7526)."""


def is_public(address: Address) -> bool:
    """Whether an address lies in the public network: not of this machine, a private network, or a link; nor in disguise."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo is not None or (inner is not None and not is_public(inner)):
            return False
        if inner is not None and address.ipv4_mapped is not None:
            return True
        if address.is_site_local:
            return False
    if isinstance(address, ipaddress.IPv4Address) and any(address in network for network in _ASSIGNED):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def permit_all(address: Address) -> bool:
    """For a source that may be read from private networks."""
    del address
    return True


def resolve_host(host: str, port: int) -> list[str]:
    """By the machine's resolver."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def checked_address(host: str, port: int, *, resolve: Resolve, permits: Permits) -> str:
    """One address of a host, all of which are permitted. Raises SourceProblem."""
    try:
        found = [ipaddress.ip_address(text.partition("%")[0]) for text in resolve(host, port)]
    except (OSError, UnicodeError) as error:
        raise SourceProblem(f"the host {host!r} is not found ({error}): correct the url, or see the network") from error
    if not found:
        raise SourceProblem(f"the host {host!r} has no address: correct the url")
    for address in found:
        if not permits(address):
            raise SourceProblem(
                f"the host {host!r} is {address}, an address of this machine or of a private network: if it is meant, write "
                "allow_private = true beside the url in the configuration file"
            )
    return str(found[0])
