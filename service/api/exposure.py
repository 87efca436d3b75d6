"""Whether an address can be reached from other machines; it does not know keys' insides."""

import socket
from ipaddress import ip_address

from service.api.keys import Keys
from service.errors import InvalidSettings
from service.settings import Settings


def keys_of(settings: Settings) -> Keys:
    """Read the keys, and refuse to be reached from other machines without any, unless told to.

    Raises:
        InvalidSettings: The file cannot be used, or there is none and the address is public.
    """
    keys = Keys.read(settings.keys_file)
    if not keys and not settings.allow_anonymous and not is_loopback(settings.host):
        raise InvalidSettings(
            f"{settings.host or 'every address'} can be reached from other machines, and nobody is asked for a key; "
            "make a key with `thinnet key NAME` and name its file in THINNET_KEYS_FILE, "
            "or say THINNET_ALLOW_ANONYMOUS=true where everyone who reaches the port may use it"
        )
    return keys


def is_loopback(host: str) -> bool:
    """Return whether an address, or every address of a name, is this machine's own."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None) if host else []
    except OSError:
        return False
    return bool(found) and all(ip_address(str(address[4][0]).split("%")[0]).is_loopback for address in found)
