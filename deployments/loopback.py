"""Keeps a replica's port for calls between deployments on the node's own address.

Ray 2.60 binds that port (`Replica._on_initialized`) to all interfaces, without a token, and unpickles what arrives.
"""

import ray
from ray._common.network_utils import build_address
from ray.serve._private import replica


def keep_to_node() -> None:
    """Called in a deployment's constructor, which runs before its replica opens the port."""
    add_port = replica.add_port_to_grpc_server
    if getattr(add_port, "keeps_to_node", False):
        return
    address = ray.util.get_node_ip_address()

    def on_node(server: object, wanted: str) -> int:
        port = wanted.rpartition(":")[2]
        return int(add_port(server, build_address(address, int(port))))

    on_node.keeps_to_node = True  # type: ignore[attr-defined]
    replica.add_port_to_grpc_server = on_node
