"""API keys: who may call what, and how much. Knows nothing of HTTP or of where keys are kept."""

from adapters.keys.record import Budget, Key, RateLimits, Scope
from adapters.keys.ring import Keyring
from adapters.keys.secret import digest_of, make_secret

__all__ = ["Budget", "Key", "Keyring", "RateLimits", "Scope", "digest_of", "make_secret"]
