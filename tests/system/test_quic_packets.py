# SPDX-License-Identifier: BSD-2-Clause
"""
The QUIC data plane as seen from outside: packets as anybody may send them, through real sockets,
and which worker's socket each comes out of. What is expected comes from the shared parser and codec
in user space (quic_reader.c) or from a second implementation (quic_packets.py), never from the
program under test.
"""
import json
import random
import subprocess

import pytest

import harness
import quic_packets as quic

VECTORS = harness.ROOT / "tests" / "vectors"


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    """reader(packets, configuration): what quic_reader.c says of each, as (kind, DCID, server ID)."""
    program = tmp_path_factory.mktemp("quic") / "quic_reader"
    harness.run("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", f"-I{harness.ROOT}",
                "-o", program, harness.ROOT / "tests" / "system" / "quic_reader.c")

    def octets(text):
        return None if text == "-" else b"" if text == "." else bytes.fromhex(text)

    def read(packets, configuration, short_length=None):
        if short_length is None:
            short_length = configuration.cid_length
        result = subprocess.run(
            [str(program), str(short_length), str(configuration.rotation),
             str(configuration.server_id_length), str(configuration.nonce_length),
             configuration.key.hex() if configuration.key else "-"],
            input=b"".join(len(p).to_bytes(2, "big") + p for p in packets),
            stdout=subprocess.PIPE, check=True, timeout=60)
        lines = [line.split() for line in result.stdout.decode().splitlines()]
        assert len(lines) == len(packets)
        return [(kind, octets(dcid), octets(server_id)) for kind, dcid, server_id in lines]

    return read


def test_second_codec_makes_and_reads_the_vectors():
    """What the tests below rest on: 8 vectors of the draft and 62 more, each both ways."""
    document = json.loads((VECTORS / "quic-lb-vectors.json").read_text())
    vectors = [v for v in document["vectors"] if v["verified"]] + document["derived_here"]["vectors"]
    for vector in vectors:
        key = bytes.fromhex(vector["key"]) if vector["key"] else None
        server_id, nonce, cid = (
            bytes.fromhex(vector[name]) for name in ("server_id", "nonce", "cid"))
        # The rotation of the ID itself: the draft misprints that of B.2's last one.
        configuration = quic.QuicLb(cid[0] >> 5, len(server_id), len(nonce), key)
        own = cid[configuration.cid_length:]
        assert configuration.decode(cid) == (server_id, nonce), vector["id"]
        assert configuration.encode(server_id, nonce, cid[0] & 0x1f, own) == cid, vector["id"]
    assert len(vectors) == 70


def test_both_codecs_agree_on_every_legal_length(reader):
    """120 pairs of lengths, in the clear and encrypted, 50 IDs each: 12,000 server IDs."""
    chance = random.Random(21)
    n = 0
    for server_id_length in range(1, 16):
        for nonce_length in range(4, min(18, 19 - server_id_length) + 1):
            for key in (None, chance.randbytes(16)):
                configuration = quic.QuicLb(
                    chance.randrange(7), server_id_length, nonce_length, key)
                ids = [chance.randbytes(server_id_length) for _ in range(50)]
                room = 19 - server_id_length - nonce_length
                cids = [configuration.encode(each, chance.randbytes(nonce_length),
                                             own=chance.randbytes(chance.randint(0, room)))
                        for each in ids]
                packets = [quic.initial(cid, size=0) for cid in cids]
                assert reader(packets, configuration) == [
                    ("initial", cid, each) for cid, each in zip(cids, ids)]
                assert [configuration.decode(cid)[0] for cid in cids] == ids
                n += len(ids)
    assert n == 12000
