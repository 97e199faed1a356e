"""Where the pod may connect to besides what the shipped policy lets out: addresses of the spec's own, a port each."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from job.render.text import Json

Network = IPv4Network | IPv6Network
# Where nodes and clouds keep credentials: link-local addresses, also in their IPv6 and NAT64 forms.
METADATA: tuple[Network, ...] = tuple(
    map(ip_network, ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "64:ff9b::a9fe:0/112"))
)
MOST_PORT = 65_535


@dataclass(frozen=True)
class Egress:
    """A range of addresses and a TCP port."""

    network: Network
    port: int

    def rule(self) -> Json:
        """A rule of a NetworkPolicy; metadata inside the range stays closed."""
        holes = [str(kept) for kept in METADATA if kept.version == self.network.version and _within(kept, self.network)]
        block = {"cidr": str(self.network)} | ({"except": holes} if holes else {})
        return {"to": [{"ipBlock": block}], "ports": [{"protocol": "TCP", "port": self.port}]}


def egress_in(text: str) -> Egress:
    """`10.0.0.0/8:9000`, `10.1.2.3:9000` or `fd00::/8:443`. Raises `ValueError` with what is wrong."""
    addresses, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) <= MOST_PORT:
        raise ValueError("has no port at its end")
    if ":" in addresses and "/" not in addresses:
        raise ValueError("is of IPv6 and needs the length of its prefix, such as /128")
    try:
        network = ip_network(addresses)
    except ValueError as error:
        raise ValueError(f"is not a range of addresses: {error}") from None
    if any(_within(network, kept) for kept in METADATA):
        raise ValueError("is link-local, where nodes and clouds keep credentials")
    return Egress(network, int(port))


def policy(name: str, metadata: Json, label: str, wanted: tuple[Egress, ...]) -> Json:
    """A NetworkPolicy for the pods of one run: policies add up, and the shipped one is that of every run."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {
            "podSelector": {"matchLabels": {label: name}},
            "policyTypes": ["Ingress", "Egress"],
            "egress": [egress.rule() for egress in wanted],
        },
    }


def _within(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]
