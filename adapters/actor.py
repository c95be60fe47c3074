"""Who makes a change, as its event says."""

import getpass


def current_user() -> str:
    """The user as the operating system knows them."""
    try:
        return getpass.getuser().encode(errors="replace").decode()
    except (OSError, KeyError):
        return "unknown"
