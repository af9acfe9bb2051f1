"""What the name of a backbone may lead to: code that is run, files that are fetched.

What a user types is done. What a file names, an adapter or a recipe that may be a stranger's, is done only when the
user has said so.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import VpeftError


class NotTrusted(VpeftError):
    """A file names code to run, or something to fetch, and nobody has allowed it."""


@dataclass(frozen=True)
class Trust:
    """What is allowed.

    Attributes:
        code: run code that the name leads to (`py:`).
        download: fetch what is not on this machine from the hub that the name leads to (`hf:`).
    """

    code: bool = True
    download: bool = True

    def require_code(self, name: str) -> None:
        """Raise `NotTrusted` unless code may be run."""
        if not self.code:
            raise NotTrusted(
                f"A file names the backbone {name}, which is code, and code is not run because a file names it. If you"
                f" trust that code, say --trust-code (in Python trust_code=True), or --backbone {name}."
            )


TYPED = Trust()
"""For names that the user has typed."""
