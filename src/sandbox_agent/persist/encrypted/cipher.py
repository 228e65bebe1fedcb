"""AES-GCM as the encrypted driver uses it: a master key wraps one key per session, which encrypts it.

Everything uses AES-256-GCM with random 96-bit nonces. NIST SP 800-38D considers random nonces safe for 2**32
ciphertexts per key, more than a session can have. The same applies to a master key and its sessions.
Associated data binds each ciphertext to its place, so moving one to another place is detected.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from sandbox_agent.errors import InvalidRequestError, PersistError
from sandbox_agent.extras import require_extra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# Key material, or base64 text of it.
MasterKey: TypeAlias = bytes | str

_KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_ID_BYTES: Final = 8


class UnsealedError(Exception):
    """The bytes are not a ciphertext of this module, or were changed."""


class Sealed(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    rename={
        "form": "enc",
        "key_id": "k",
        "nonce": "n",
        "data": "c",
        "previous": "q",
        "link": "p",
        "kept": "l",
    },
):
    """A ciphertext as it is stored: a JSON object with base64 texts.

    Attributes:
        form: "v2" is bound to the event's index, too. Records, and events of older releases, have "v1".
        key_id: the id of the session key.
        nonce: 12 bytes.
        data: the ciphertext, then the tag of 16 bytes.
        previous: the index of the event before it in the chain, 0 for the first; None: it is in no chain.
        link: the tag of that event.
        kept: of a replaced event, the tag that it had, to which the next event is linked.
    """

    form: Literal["v1", "v2"]
    key_id: str
    nonce: bytes
    data: bytes
    previous: int | None = None
    link: bytes = b""
    kept: bytes = b""

    @property
    def tag(self) -> bytes:
        """What the next event is linked to."""
        return self.kept or self.data[-_TAG_BYTES:]

    @classmethod
    def read(cls, text: bytes) -> Sealed:
        """Read it from JSON; raise UnsealedError if that is not a ciphertext."""
        try:
            return _sealed_decoder.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UnsealedError from error


class WrappedKey(msgspec.Struct, frozen=True):
    """A session's key as it is stored: encrypted with a master key.

    Attributes:
        master: the id of the master key.
        key_id: the id of the session key. It stays the same with another master key.
        nonce: 12 bytes.
        data: the wrapped key.
    """

    master: str
    key_id: str
    nonce: bytes
    data: bytes


_encode: Final = msgspec.json.Encoder().encode
_sealed_decoder: Final = msgspec.json.Decoder(Sealed)


class SessionCipher:
    """Encrypts and decrypts with one session's key.

    Attributes:
        key_id: the key's id.
    """

    def __init__(self, key_id: str, key: bytes) -> None:
        self.key_id: str = key_id
        self._cipher = _aes_gcm()(key)
        self._encrypt = self._cipher.encrypt

    def seal(self, data: bytes, place: Sequence[object]) -> bytes:
        """Return the JSON of ``Sealed``. Opening it requires the same ``place``."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return _encode(Sealed("v1", self.key_id, nonce, self._encrypt(nonce, data, _bound_to(place))))

    def seal_linked(
        self,
        data: bytes,
        bound: bytes,
        previous: int | None = None,
        link: bytes = b"",
        kept: bytes = b"",
        *,
        nonce: bytes | None = None,
    ) -> tuple[bytes, bytes]:
        """Return the JSON of ``Sealed`` with its place in a chain, and its tag.

        Args:
            data: the content.
            bound: ``bind_linked`` of the place, ``previous``, ``link`` and ``kept``.
            previous: as in ``Sealed``.
            link: as in ``Sealed``.
            kept: as in ``Sealed``.
            nonce: one of ``make_nonces``, which may be used once; None: a new one.
        """
        nonce = nonce or secrets.token_bytes(NONCE_BYTES)
        sealed = self._encrypt(nonce, data, bound)
        text = _encode(Sealed("v2", self.key_id, nonce, sealed, previous, link, kept))
        return text, sealed[-_TAG_BYTES:]

    def open(self, sealed: Sealed, place: Sequence[object]) -> bytes:
        """Return the decrypted data; raise UnsealedError if it was changed, or belongs to another place."""
        if sealed.form == "v1":
            bound = _bound_to(place)
        else:
            bound = bind_linked((*place, sealed.previous, sealed.link, sealed.kept))
        return _decrypt(self._cipher, sealed.nonce, sealed.data, bound)


class MasterKeys:
    """The current master key, and older ones for reading.

    Args:
        current: wraps new session keys.
        old: unwrap older session keys.

    Raises:
        InvalidRequestError: a key is not 32 bytes, or base64 text of 32 bytes.
        ImportError: the extra ``encryption`` is not installed.
    """

    def __init__(self, current: MasterKey, old: Sequence[MasterKey] = ()) -> None:
        self._ciphers: dict[str, AESGCM] = {}
        for key in (current, *old):
            material = _material(key)
            # The id and the wrapping key reveal nothing about each other.
            name = hmac.digest(material, b"sandbox-agent: id of a master key", "sha256")[:_ID_BYTES].hex()
            wrapping = hmac.digest(material, b"sandbox-agent: wrapping session keys", "sha256")
            self._ciphers.setdefault(name, _aes_gcm()(wrapping))
        self.current: str = next(iter(self._ciphers))

    def make(self, session_id: str) -> tuple[WrappedKey, SessionCipher]:
        """Return a new random session key."""
        key_id, key = secrets.token_hex(_ID_BYTES), secrets.token_bytes(_KEY_BYTES)
        return self._wrap(session_id, key_id, key), SessionCipher(key_id, key)

    def unwrap(self, session_id: str, wrapped: WrappedKey) -> SessionCipher:
        """Return a session key's cipher; raise PersistError if it was changed, or its master is unknown."""
        return SessionCipher(wrapped.key_id, self._unwrap(session_id, wrapped))

    def rewrap(self, session_id: str, wrapped: WrappedKey) -> WrappedKey:
        """Return the same session key under the current master key. Raises as ``unwrap``."""
        return self._wrap(session_id, wrapped.key_id, self._unwrap(session_id, wrapped))

    def _wrap(self, session_id: str, key_id: str, key: bytes) -> WrappedKey:
        nonce = secrets.token_bytes(NONCE_BYTES)
        place = _key_place(session_id, key_id)
        data = self._ciphers[self.current].encrypt(nonce, key, _bound_to(place))
        return WrappedKey(self.current, key_id, nonce, data)

    def _unwrap(self, session_id: str, wrapped: WrappedKey) -> bytes:
        cipher = self._ciphers.get(wrapped.master)
        if cipher is None:
            raise PersistError(
                f"session '{session_id}' is encrypted with master key {wrapped.master}, which is not among "
                f"those given ({', '.join(self._ciphers)}): give it as key, or in old_keys",
                session_id=session_id,
            )
        try:
            place = _key_place(session_id, wrapped.key_id)
            return _decrypt(cipher, wrapped.nonce, wrapped.data, _bound_to(place))
        except UnsealedError as error:
            raise PersistError(
                f"the key of session '{session_id}' was changed in the store, or belongs to another session: "
                "nothing of the session can be read; restore the store from a copy",
                session_id=session_id,
            ) from error


def make_nonces(count: int) -> bytes:
    """Return so many nonces of 12 bytes, one after another; the operating system is asked once."""
    # What the module secrets calls, at half of its cost.
    return os.urandom(NONCE_BYTES * count)


def _key_place(session_id: str, key_id: str) -> tuple[str, ...]:
    return ("key", session_id, key_id)


def _bound_to(place: Sequence[object]) -> bytes:
    # JSON is unambiguous. It is ASCII here, so a lone surrogate is allowed.
    return json.dumps(place).encode()


def bind_linked(place: Sequence[object]) -> bytes:
    """Return the associated data of a place, followed by ``previous``, ``link`` and ``kept`` of the chain."""
    try:
        # The same JSON in UTF-8, three times as fast.
        return _encode(place)
    except UnicodeEncodeError:
        # Half of a surrogate pair.
        return json.dumps([one.hex() if isinstance(one, bytes) else one for one in place]).encode()


def _decrypt(cipher: AESGCM, nonce: bytes, data: bytes, bound: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(nonce, data, bound)
    except (InvalidTag, ValueError) as error:
        raise UnsealedError from error


def _material(key: MasterKey) -> bytes:
    if isinstance(key, bytes) and len(key) == _KEY_BYTES:
        return key
    try:
        text = key.encode("ascii") if isinstance(key, str) else key
        text = text.strip().translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
        material = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        material = b""
    if len(material) != _KEY_BYTES:
        raise InvalidRequestError(
            f"a master key must be {_KEY_BYTES} random bytes, or base64 text of them: make one with "
            "'openssl rand -base64 32'"
        )
    return material


def _aes_gcm() -> Any:
    require_extra("encryption", "encryption", "cryptography")
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM
