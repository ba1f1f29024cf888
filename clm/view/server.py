"""The web server of a viewer: viser, asked to keep to this machine and to stdout's own purposes."""

from __future__ import annotations

import contextlib
import io
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clm.errors import ClmError
from clm.units import shown

HOST, PORT = "127.0.0.1", 8080
_TRIED = 100  # ports, where none is stated


def load_viser() -> Any:
    """The module viser. Raises ClmError where it is not installed."""
    try:
        import viser
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise ClmError(f"The viewer needs the package viser, which {why}.", "Run `pip install 'clm[view]'`.") from None
    return viser


def free_port(host: str, port: int | None) -> int:
    """`port`, or the first free one from `PORT` on. Raises ClmError where it is taken, or `host` is no address of this machine."""
    if port is not None and not 1 <= port <= 65535:
        raise ClmError(f"--port is {port}.", "Use 1 to 65535.")
    if not _is_address(host):
        raise ClmError(f"--host `{shown(host)}` is no address.", "Use 127.0.0.1, or 0.0.0.0 for every network.")
    wanted = range(PORT, PORT + _TRIED) if port is None else [port]
    for number in wanted:
        try:
            with socket.create_server((host, number)):
                return number
        except PermissionError:
            raise ClmError(f"Port {number} is not for this user.", "Pass `--port` 1024 or more.") from None
        except OSError as error:
            if "assign" in str(error):
                raise ClmError(
                    f"--host {host} is no address of this machine.", "Use 127.0.0.1, or 0.0.0.0 for every network."
                ) from None
    if port is None:
        raise ClmError(f"Ports {PORT} to {PORT + _TRIED - 1} are taken.", "Pass a free one with --port.")
    raise ClmError(
        f"Port {port} is taken.", f"Pass another one, such as `--port {port % 65535 + 1}`, or leave --port out."
    )


def _is_address(host: str) -> bool:
    """Whether it can be listened at, if it is this machine's. An empty name would mean every network, unasked."""
    try:
        return bool(host) and bool(socket.getaddrinfo(host, None, socket.AF_INET))
    except (socket.gaierror, UnicodeError):
        return False


@contextmanager
def serving(host: str, port: int) -> Iterator[tuple[Any, int]]:
    """A viser server and its port, stopped afterwards. It says nothing on stdout, and nobody can have it shared over the
    internet."""
    viser = load_viser()
    warnings.filterwarnings("ignore", message="Queued a .* on a closed connection")  # viewers leave when they like
    with contextlib.redirect_stdout(io.StringIO()):
        server = viser.ViserServer(host=host, port=port, verbose=False)
    server.request_share_url = lambda *_args, **_options: None  # a page could ask for it
    try:
        yield server, int(server.get_port())  # another one where somebody took it meanwhile
    finally:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            server.stop()


def where(host: str, port: int) -> str:
    """What to open in a browser, and how from another machine."""
    address = f"http://{host if ':' not in host else f'[{host}]'}:{port}"
    if host not in (HOST, "localhost"):
        return f"{address.replace('0.0.0.0', socket.gethostname())} (open to the network)"
    tunnel = f"ssh -L {port}:localhost:{port} {socket.gethostname()}"
    return f"{address} (from another machine: `{tunnel}`, then the same address)"
