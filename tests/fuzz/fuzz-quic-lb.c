/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Any octets as a configuration and a connection ID of it. What decodes encodes to the same octets,
 * and the server ID alone is the one that comes with the nonce.
 */
#include <stdlib.h>

#include "bpf/quic_lb.h"

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size);

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size)
{
	__u8 server_id[QUIC_LB_SERVER_ID_MAX], nonce[QUIC_LB_NONCE_MAX];
	__u8 alone[QUIC_LB_SERVER_ID_MAX], cid[QUIC_LB_CID_MAX];
	struct quic_lb_config config;
	size_t length;

	if (size < 3 + AES128_OCTETS)
		return 0;
	if (quic_lb_configure(&config, data[0] & 7, data[1] & 15, data[2] & 31,
		    data[0] & 0x80 ? data + 3 : NULL) < 0)
		return 0;
	data += 3 + AES128_OCTETS;
	size -= 3 + AES128_OCTETS;
	if (quic_lb_decode(&config, data, size, server_id, nonce) < 0)
		return 0;
	if (quic_lb_decode(&config, data, size, alone, NULL) < 0 ||
		memcmp(alone, server_id, config.server_id_length) != 0)
		abort();
	length = quic_lb_encode(&config, server_id, nonce, data[0] & 0x1f, cid);
	if (length > size || memcmp(cid, data, length) != 0)
		abort();
	return 0;
}
