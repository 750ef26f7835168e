# SPDX-License-Identifier: BSD-2-Clause
"""
QUIC packets as a client or an attacker would send them, and a second implementation of QUIC-LB
connection IDs (draft-ietf-quic-load-balancers-21), written from the draft and sharing nothing with
bpf/quic_lb.h: what the program in the kernel decodes is checked against somebody else's arithmetic.
"""
import os
import random

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

VERSION_1 = 0x00000001  # RFC 9000
VERSION_2 = 0x6b3343cf  # RFC 9369
VERSION_UNKNOWN = 0x1a2a3a4a  # of those that are kept free to be unknown, RFC 9000 section 15

# Types of long-header packets, and their bits in the first octet: RFC 9000 17.2, RFC 9369 3.2.
INITIAL, ZERO_RTT, HANDSHAKE, RETRY = "initial", "0rtt", "handshake", "retry"
TYPE_BITS = {
    VERSION_1: {INITIAL: 0, ZERO_RTT: 1, HANDSHAKE: 2, RETRY: 3},
    VERSION_2: {INITIAL: 1, ZERO_RTT: 2, HANDSHAKE: 3, RETRY: 0},
}

INITIAL_OCTETS = 1200  # smallest datagram with a client's Initial, RFC 9000 section 14.1
UNROUTABLE = 7  # config rotation that names no server, QUIC-LB section 3


def long_packet(kind, dcid, body=b"", scid=b"client", version=VERSION_1, size=0):
    """A long header and what follows it; body first, random octets up to size."""
    bits = TYPE_BITS.get(version, TYPE_BITS[VERSION_1])[kind]
    packet = bytes([0xc0 | bits << 4]) + version.to_bytes(4, "big")
    packet += bytes([len(dcid)]) + dcid + bytes([len(scid)]) + scid + body
    return packet + os.urandom(max(0, size - len(packet)))


def initial(dcid, body=b"", **options):
    options.setdefault("size", INITIAL_OCTETS)
    return long_packet(INITIAL, dcid, body, **options)


def short_packet(dcid, body=b"", size=0):
    """A short header: the ID's length is not on the wire."""
    packet = b"\x40" + dcid + body
    return packet + os.urandom(max(0, size - len(packet)))


class QuicLb:
    """One configuration: what an ID of these lengths says, with a key or in the clear."""

    def __init__(self, rotation, server_id_length, nonce_length, key=None):
        assert 0 <= rotation <= 6
        assert 1 <= server_id_length <= 15 and 4 <= nonce_length <= 18
        assert server_id_length + nonce_length <= 19
        self.rotation = rotation
        self.server_id_length = server_id_length
        self.nonce_length = nonce_length
        self.plaintext_length = server_id_length + nonce_length
        self.key = key
        self.cipher = Cipher(algorithms.AES(key), modes.ECB()) if key else None

    @property
    def cid_length(self):
        return 1 + self.plaintext_length

    def aes_encrypt(self, block):
        return self.cipher.encryptor().update(block)

    def aes_decrypt(self, block):
        return self.cipher.decryptor().update(block)

    def passes(self, octets, numbers):
        """Section 5.4.2.3: with an odd length the octet in the middle is split by its bits."""
        length = len(octets)
        half = (length + 1) // 2
        odd = length % 2
        left, right = bytearray(octets[:half]), bytearray(octets[-half:])
        if odd:
            left[-1] &= 0xf0
            right[0] &= 0x0f
        for number in numbers:
            source, target = (left, right) if number % 2 else (right, left)
            expanded = bytes(source) + bytes(14 - half) + bytes([length, number])
            for i, octet in enumerate(self.aes_encrypt(expanded)[:half]):
                target[i] ^= octet
            if odd:
                left[-1] &= 0xf0
                right[0] &= 0x0f
        if odd:
            return bytes(left[:-1]) + bytes([left[-1] | right[0]]) + bytes(right[1:])
        return bytes(left + right)

    def encode(self, server_id, nonce, first_bits=None, own=b""):
        """first_bits: low bits of the first octet, else the length; own: octets behind the nonce."""
        assert len(server_id) == self.server_id_length and len(nonce) == self.nonce_length
        octets = server_id + nonce
        if self.cipher and self.plaintext_length == 16:
            octets = self.aes_encrypt(octets)
        elif self.cipher:
            octets = self.passes(octets, (1, 2, 3, 4))
        if first_bits is None:
            first_bits = self.plaintext_length + len(own)
        return bytes([self.rotation << 5 | first_bits & 0x1f]) + octets + own

    def decode(self, cid):
        """(server ID, nonce), or None for an ID of another configuration."""
        if not self.cid_length <= len(cid) <= 20 or cid[0] >> 5 != self.rotation:
            return None
        octets = cid[1:self.cid_length]
        if self.cipher and self.plaintext_length == 16:
            octets = self.aes_decrypt(octets)
        elif self.cipher:
            octets = self.passes(octets, (4, 3, 2, 1))
        return octets[:self.server_id_length], octets[self.server_id_length:]


def server_id(slot, host=0):
    """Host ID, zeros, slot: two octets each."""
    return host.to_bytes(2, "big") + b"\0\0" + slot.to_bytes(2, "big")


def configuration_of(listener):
    """The configuration that a GRANT gave for a listener (worker_protocol.Listener)."""
    key = None if listener.key == bytes(16) else listener.key
    return QuicLb(listener.config_rotation, listener.server_id_length, listener.nonce_length, key)


class CidMaker:
    """Makes IDs as a server that got this GRANT would; no nonce comes twice."""

    def __init__(self, listener):
        self.configuration = configuration_of(listener)
        self.server_id = listener.server_id[:listener.server_id_length]
        self.nonce_prefix = listener.nonce_prefix
        self.counter = 0

    def nonce(self):
        self.counter += 1
        rest = self.configuration.nonce_length - len(self.nonce_prefix)
        if rest < 0:
            return os.urandom(self.configuration.nonce_length)
        return self.nonce_prefix + self.counter.to_bytes(rest, "big")

    def make(self, slot=None, host=None, own=b""):
        """slot, host: of another server than the GRANT's."""
        identifier = bytearray(self.server_id)
        if slot is not None:
            identifier[4:6] = slot.to_bytes(2, "big")
        if host is not None:
            identifier[0:2] = host.to_bytes(2, "big")
        return self.configuration.encode(bytes(identifier), self.nonce(), own=own)


def foreign_cid(length, rotation=UNROUTABLE):
    """An ID that no configuration reads, of any length from 1."""
    cid = bytearray(os.urandom(length))
    cid[0] = rotation << 5 | cid[0] & 0x1f
    return bytes(cid)


def unknown_ids(count):
    """IDs as clients make them for their first packets: 8 to 20 random octets, no two alike."""
    return [os.urandom(random.randint(8, 20)) for _ in range(count)]
