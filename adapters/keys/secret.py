"""The secret of a key: how it is made, and what of it is kept."""

import hashlib
import secrets

MARK = "lk-"
BYTES = 32
PREFIX_CHARACTERS = len(MARK) + 6  # of the 43 that are random: enough to tell secrets apart


def make_secret() -> str:
    """`lk-` and 256 random bits in letters that need no quotes."""
    return MARK + secrets.token_urlsafe(BYTES)


def prefix_of(secret: str) -> str:
    """What may be shown of a secret."""
    return secret[:PREFIX_CHARACTERS]


def digest_of(secret: str) -> str:
    """What is kept of a secret: SHA-256, in hexadecimal digits.

    A plain hash is enough: no table and no dictionary holds 256 random bits. To look a digest up
    takes no constant time, and need not: the time tells of digests, which nobody can choose
    without the secret.
    """
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()
