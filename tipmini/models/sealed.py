"""JSON files that carry a digest of themselves, so that damage is told from what was written."""

import hashlib
import re

from tipmini.errors import TipminiError

SEAL = re.compile(rb',\s*"digest":\s*"([^"]*)"\s*\}\s*$')


def sealed(text: str) -> str:
    """A JSON object's text with the SHA-256 of all before it as its last member, `digest`."""
    body = text.rstrip()[:-1].rstrip()
    return f'{body},"digest":"{_digest(body.encode())}"}}\n'


def unsealed(content: bytes) -> bytes:
    """The object without its digest, or as it stands where it has none.

    Raises TipminiError where the digest is of another content.
    """
    if not (seal := SEAL.search(content)):
        return content
    body = content[: seal.start()]
    if seal[1].decode() != _digest(body):
        raise TipminiError("damaged: its digest is of another content")
    return body + b"}\n"


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
