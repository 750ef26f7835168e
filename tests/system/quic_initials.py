# SPDX-License-Identifier: BSD-2-Clause
"""
Initials of clients with any ClientHello, sealed as RFC 9001 and RFC 9369 say: a second
implementation, which shares nothing with classify/. For what the vectors do not have: many
connections that are all different, and first flights that never become complete.
"""
import os
import struct

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

import quic_packets as quic

# Salt and prefix of the labels: RFC 9001 section 5.2, RFC 9369 section 3.3.
PROTECTION = {
    quic.VERSION_1: (bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), b"quic "),
    quic.VERSION_2: (bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"), b"quicv2 "),
}


def expand_label(secret, label, length):
    info = struct.pack("!HB", length, 6 + len(label)) + b"tls13 " + label + b"\0"
    return HKDFExpand(hashes.SHA256(), length, info).derive(secret)


def client_keys(version, dcid):
    salt, prefix = PROTECTION[version]
    extract = hmac.HMAC(salt, hashes.SHA256())
    extract.update(dcid)
    secret = expand_label(extract.finalize(), b"client in", 32)
    return tuple(expand_label(secret, prefix + label, length)
                 for label, length in ((b"key", 16), (b"iv", 12), (b"hp", 16)))


def varint(value):
    for length, prefix in ((1, 0), (2, 0x40), (4, 0x80)):
        if value < 1 << 8 * length - 2:
            octets = bytearray(value.to_bytes(length, "big"))
            octets[0] |= prefix
            return bytes(octets)
    raise ValueError(value)


def extension(number, octets):
    return struct.pack("!HH", number, len(octets)) + octets


def client_hello(name, protocols=("h3",), key_share=32):
    """key_share: octets of it; 1,216 with a post-quantum one. It stands before the name."""
    extensions = extension(0x33, os.urandom(key_share))
    if name:
        host = b"\0" + struct.pack("!H", len(name)) + name.encode()
        extensions += extension(0, struct.pack("!H", len(host)) + host)
    if protocols:
        names = b"".join(bytes([len(each)]) + each.encode() for each in protocols)
        extensions += extension(16, struct.pack("!H", len(names)) + names)
    body = b"\x03\x03" + os.urandom(32) + b"\0" + b"\0\2\x13\x01" + b"\1\0"
    body += struct.pack("!H", len(extensions)) + extensions
    return b"\1" + len(body).to_bytes(3, "big") + body


def crypto_frame(offset, octets):
    return b"\x06" + varint(offset) + varint(len(octets)) + octets


def initial(dcid, frames, number=0, scid=b"", version=quic.VERSION_1, size=quic.INITIAL_OCTETS,
            keys=None, token=b""):
    """A packet of size octets at least, padded by PADDING frames (zeros)."""
    key, iv, header_key = keys or client_keys(version, dcid)
    first = 0xc0 | quic.TYPE_BITS[version][quic.INITIAL] << 4 | 1
    head = bytes([first]) + version.to_bytes(4, "big") + bytes([len(dcid)]) + dcid + \
        bytes([len(scid)]) + scid + varint(len(token)) + token
    frames = frames.ljust(max(size - len(head) - 2 - 2 - 16, 4), b"\0")
    head += struct.pack("!HH", 0x4000 | 2 + len(frames) + 16, number)
    nonce = iv[:-2] + bytes(a ^ b for a, b in zip(iv[-2:], head[-2:]))
    packet = bytearray(head + AESGCM(key).encrypt(nonce, frames, head))
    sample = bytes(packet[len(head) + 2:len(head) + 18])
    mask = Cipher(algorithms.AES(header_key), modes.ECB()).encryptor().update(sample)
    packet[0] ^= mask[0] & 0x0f
    packet[len(head) - 2] ^= mask[1]
    packet[len(head) - 1] ^= mask[2]
    return bytes(packet)


def first_flight(name, dcid=None, datagrams=1, **options):
    """A connection's first datagrams: its ClientHello in so many pieces of about the same length."""
    dcid = dcid or os.urandom(8)
    hello_options = {key: options.pop(key) for key in ("protocols", "key_share") if key in options}
    hello = client_hello(name, **hello_options)
    keys = client_keys(options.get("version", quic.VERSION_1), dcid)
    step = -(-len(hello) // datagrams)
    return [initial(dcid, crypto_frame(i * step, hello[i * step:(i + 1) * step]), i, keys=keys, **options)
            for i in range(datagrams)]


def zero_rtt(dcid, size=quic.INITIAL_OCTETS, version=quic.VERSION_1):
    """A 0-RTT packet, whose payload nobody without the ticket's secret can tell from noise."""
    head = quic.long_packet(quic.ZERO_RTT, dcid, scid=b"", version=version)
    return head + struct.pack("!H", 0x4000 | size - len(head) - 2) + os.urandom(size - len(head) - 2)


def forged(dcid, size=quic.INITIAL_OCTETS):
    """An Initial with everything but a tag that matches."""
    head = quic.long_packet(quic.INITIAL, dcid, b"\0", scid=b"")
    return head + struct.pack("!H", 0x4000 | size - len(head) - 2) + os.urandom(size - len(head) - 2)


def forged_in_one(dcid, count=8):
    """A datagram with so many forged Initials: one derivation of keys, and all are tried."""
    return b"".join(forged(dcid, size=quic.INITIAL_OCTETS // count) for _ in range(count))


def in_pieces(dcid, size=quic.INITIAL_OCTETS):
    """
    An Initial with as many CRYPTO frames as go into it: 64 pieces, as many as are kept, and the last
    of them again and again, for which all others are looked at.
    """
    octets = os.urandom(128)
    frames = [crypto_frame(2 * i + 1, octets[2 * i + 1:2 * i + 2]) for i in range(63)]
    last = crypto_frame(16383, octets[:1])
    room = size - 60 - sum(map(len, frames))
    return initial(dcid, b"".join(frames) + last * (room // len(last)), size=size)
