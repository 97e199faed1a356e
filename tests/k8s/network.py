"""What a NetworkPolicy must not let out."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network

from tests.k8s.pods import pods
from tests.k8s.render import Document

# Where nodes and clouds keep credentials: link-local, also in its IPv6 and NAT64 forms.
METADATA = [ip_network(text) for text in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "64:ff9b::a9fe:0/112")]
NODE_LOCAL_DNS = ip_network("169.254.20.10/32")
PORTS = {53, 443, 5353, 8333}  # DNS (OpenShift's, too), HTTPS, the try-out's store


def network(documents: list[Document]) -> Iterator[str]:
    policies = [document for document in documents if document["kind"] == "NetworkPolicy"]
    for pod in pods(documents):
        if not any(
            policy["spec"]["podSelector"].get("matchLabels", {}).items() <= pod.labels.items() for policy in policies
        ):
            yield f"{pod.where}: no NetworkPolicy selects it"
    for policy in policies:
        where = f"NetworkPolicy/{policy['metadata']['name']}"
        if set(policy["spec"].get("policyTypes", [])) != {"Ingress", "Egress"}:
            yield f"{where}: policyTypes must be Ingress and Egress"
        for rule in policy["spec"].get("egress", []):
            if rule != {"to": [{"podSelector": policy["spec"]["podSelector"]}]}:  # pods of one set, among themselves
                yield from _egress(where, rule)
        for rule in policy["spec"].get("ingress", []):
            if not rule.get("from"):
                yield f"{where}: everybody may connect to it"


def _egress(where: str, rule: Document) -> Iterator[str]:
    ports = {port.get("port") for port in rule.get("ports", [])}
    if not rule.get("to") or not ports:
        yield f"{where}: a rule without addresses or ports lets everything out"
    if not ports <= PORTS:
        yield f"{where}: ports {sorted(map(str, ports - PORTS))} are open"
    for peer in rule.get("to", []):
        block = peer.get("ipBlock")
        if not block or (ports == {53} and ip_network(block["cidr"]) == NODE_LOCAL_DNS):
            continue
        cidr, excepted = ip_network(block["cidr"]), [ip_network(text) for text in block.get("except", [])]
        for reachable in METADATA:
            if _overlaps(cidr, reachable) and not any(_within(reachable, hole) for hole in excepted):
                yield f"{where}: {reachable} (link-local, metadata) can be reached through {cidr}"


def _overlaps(one: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _within(inner: IPv4Network | IPv6Network, outer: IPv4Network | IPv6Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]
