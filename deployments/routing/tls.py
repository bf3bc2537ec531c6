"""TLS between gateways and replicas, with the certificates that Ray uses for its own connections: RAY_USE_TLS=1.

Both ends show their certificate, which must be signed by RAY_TLS_CA_CERT and name the machine's address, as Ray too
wants it. The files are read for each new connection, and by a replica when it starts.
"""

import os
import ssl

SWITCH = "RAY_USE_TLS"
CERTIFICATE, KEY, AUTHORITY = FILES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
"""Environment variables with the paths of PEM files."""


def server_context() -> ssl.SSLContext | None:
    """Return what a replica's port needs; None where Ray has no TLS. Raises ValueError or OSError without the files."""
    return _context(ssl.PROTOCOL_TLS_SERVER)


def client_context() -> ssl.SSLContext | None:
    """Return what a connection to a replica needs; None where Ray has no TLS. Raises as `server_context`."""
    return _context(ssl.PROTOCOL_TLS_CLIENT)


def _context(protocol: int) -> ssl.SSLContext | None:
    if os.environ.get(SWITCH, "0").lower() not in ("1", "true"):
        return None
    if missing := [name for name in FILES if name not in os.environ]:
        raise ValueError(f"{SWITCH} is set, and {', '.join(missing)} is not.")
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(os.environ[AUTHORITY])
    context.load_cert_chain(os.environ[CERTIFICATE], os.environ[KEY])
    return context
