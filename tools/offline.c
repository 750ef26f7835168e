/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Answers about packets and connection IDs without a daemon, for tests, for people with a packet
 * capture, and for checking that a balancer in front reads our IDs as we do. Always JSON on stdout.
 */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include <jansson.h>

#include "bpf/quic_header.h"
#include "bpf/quic_lb.h"
#include "classify/flow.h"
#include "common/hex.h"
#include "common/util.h"
#include "tools/offline-initial.h"
#include "tools/offline.h"

#define EXIT_USAGE 2
#define DATAGRAM_MAX 65535
/* Where a short header's connection ID length is not given: that of the reference corpus. */
#define SHORT_DCID_LENGTH 8
static_assert(INITIALS_MAX == FLOW_PACKETS_MAX, "a flow has room for all that may be given");

/* The arguments of one call. */
struct arguments {
	const char *verb;
	const struct ctl_values *values;
};

struct octets {
	uint8_t *data;
	size_t length;
};

static void free_octets(struct octets *octets)
{
	if (octets->data)
		explicit_bzero(octets->data, octets->length);
	free(octets->data);
}

_printf_(2, 3) static int usage_error(const struct arguments *arguments, const char *format, ...)
{
	va_list list;

	fprintf(stderr, "reuseportctl %s: ", arguments->verb);
	va_start(list, format);
	vfprintf(stderr, format, list);
	va_end(list);
	fputc('\n', stderr);
	return -EINVAL;
}

static const char *get(const struct arguments *arguments, int option)
{
	return arguments->values->value[option];
}

static const char *option_name(int option)
{
	return ctl_options[option].name;
}

static int require(const struct arguments *arguments, int option)
{
	if (get(arguments, option))
		return 0;
	return usage_error(arguments, "--%s is missing", option_name(option));
}

static int refuse(const struct arguments *arguments, int option, int with)
{
	if (!get(arguments, option))
		return 0;
	return usage_error(
		arguments, "--%s has no meaning with --%s", option_name(option), option_name(with));
}

static int read_number(const struct arguments *arguments, int option, unsigned minimum,
	unsigned maximum, unsigned *ret_number)
{
	const char *text = get(arguments, option);
	unsigned number = 0;
	size_t i;

	for (i = 0; text[i] >= '0' && text[i] <= '9' && i < 4; i++)
		number = number * 10 + (unsigned)(text[i] - '0');
	if (!i || text[i] || number < minimum || number > maximum)
		return usage_error(arguments, "--%s is '%s', not a number from %u to %u",
			option_name(option), text, minimum, maximum);
	*ret_number = number;
	return 0;
}

/* Octets of an option, which is given as text; their number is from minimum to maximum.
 * *ret_octets is the caller's to free. */
static int read_hex_text(const struct arguments *arguments, int option, const char *text,
	size_t minimum, size_t maximum, struct octets *ret_octets)
{
	size_t n = strlen(text) / 2;
	_cleanup_(free_octets) struct octets octets = {.data = calloc(1, n + 1), .length = n};

	if (!octets.data)
		return usage_error(arguments, "not enough memory");
	for (size_t i = 0; i < 2 * n; i++) {
		int digit = hex_digit(text[i]);

		if (digit < 0)
			return usage_error(arguments, "--%s: '%c' is no hexadecimal digit",
				option_name(option), text[i]);
		octets.data[i / 2] = octets.data[i / 2] << 4 | digit;
	}
	if (text[2 * n])
		return usage_error(arguments, "--%s has an odd number of hexadecimal digits",
			option_name(option));
	if (n < minimum || n > maximum)
		return usage_error(arguments, "--%s has %zu octets, not %zu to %zu",
			option_name(option), n, minimum, maximum);
	ret_octets->data = take_pointer(octets.data);
	ret_octets->length = n;
	return 0;
}

static int read_hex(const struct arguments *arguments, int option, size_t minimum, size_t maximum,
	struct octets *ret_octets)
{
	return read_hex_text(
		arguments, option, get(arguments, option), minimum, maximum, ret_octets);
}

static int read_key(const struct arguments *arguments, struct octets *ret_key)
{
	if (!get(arguments, OPTION_KEY))
		return 0;
	return read_hex(arguments, OPTION_KEY, AES128_OCTETS, AES128_OCTETS, ret_key);
}

static int configure(const struct arguments *arguments, struct quic_lb_config *ret_config,
	unsigned rotation, size_t server_id_length, size_t nonce_length, const uint8_t *key)
{
	if (quic_lb_configure(ret_config, rotation, server_id_length, nonce_length, key) < 0)
		return usage_error(arguments,
			"server ID and nonce have %zu octets together, not %d to %d",
			server_id_length + nonce_length, QUIC_LB_PLAINTEXT_MIN,
			QUIC_LB_PLAINTEXT_MAX);
	return 0;
}

/* JSON string of octets, null where there are none at all. */
static json_t *hex_value(const uint8_t *octets, size_t length)
{
	static const char digits[] = "0123456789abcdef";
	_cleanup_free_ char *text = NULL;

	if (!octets)
		return json_null();
	text = malloc(2 * length + 1);
	if (!text)
		return NULL;
	for (size_t i = 0; i < length; i++) {
		text[2 * i] = digits[octets[i] >> 4];
		text[2 * i + 1] = digits[octets[i] & 15];
	}
	return json_stringn(text, 2 * length);
}

/* Takes the object. */
static int print_answer(json_t *answer)
{
	int r;

	if (!answer) {
		fprintf(stderr, "reuseportctl: not enough memory\n");
		return EXIT_FAILURE;
	}
	r = json_dumpf(answer, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER);
	json_decref(answer);
	if (r < 0 || putchar('\n') == EOF || fflush(stdout) == EOF) {
		fprintf(stderr, "reuseportctl: cannot write the answer to stdout: %s\n",
			strerror(errno));
		return EXIT_FAILURE;
	}
	return EXIT_SUCCESS;
}

static int explain_packet(const struct arguments *arguments)
{
	static const int others[] = {OPTION_CID, OPTION_INITIAL, OPTION_CONFIG_ROTATION,
		OPTION_SERVER_ID_LENGTH, OPTION_NONCE_LENGTH, OPTION_KEY};
	_cleanup_(free_octets) struct octets datagram = {};
	unsigned cid_length = SHORT_DCID_LENGTH;
	struct quic_packet packet;
	char version[16];

	for (size_t i = 0; i < ARRAY_SIZE(others); i++)
		if (refuse(arguments, others[i], OPTION_PACKET) < 0)
			return EXIT_USAGE;
	if (read_hex(arguments, OPTION_PACKET, 0, DATAGRAM_MAX, &datagram) < 0)
		return EXIT_USAGE;
	if (get(arguments, OPTION_CID_LENGTH) &&
		read_number(arguments, OPTION_CID_LENGTH, 0, 255, &cid_length) < 0)
		return EXIT_USAGE;

	packet = quic_read_packet(datagram.data, datagram.length, cid_length);
	snprintf(version, sizeof(version), "0x%08x", packet.header.version);
	return print_answer(
		json_pack("{s:s, s:o, s:o, s:o}", "kind", quic_kind_name(packet.header.kind),
			"version", packet.has_version ? json_string(version) : json_null(), "dcid",
			hex_value(packet.dcid, packet.header.dcid_length), "scid",
			hex_value(packet.scid, packet.scid_length)));
}

static json_t *unroutable(int error, const struct quic_lb_config *config, const struct octets *cid)
{
	switch (error) {
	case -ENODATA:
		return json_string("the connection ID is empty");
	case -EADDRNOTAVAIL:
		return json_string("config rotation 7 marks a connection ID that names no server");
	case -ENOKEY:
		return json_sprintf("config rotation is %u, not %u", quic_lb_rotation(cid->data[0]),
			config->rotation);
	case -EMSGSIZE:
		return json_sprintf("length is %zu octets, not %zu to %d", cid->length,
			quic_lb_cid_length(config), QUIC_LB_CID_MAX);
	default:
		return json_string(strerror(-error));
	}
}

static int explain_cid(const struct arguments *arguments)
{
	static const int needed[] = {
		OPTION_CONFIG_ROTATION, OPTION_SERVER_ID_LENGTH, OPTION_NONCE_LENGTH};
	_cleanup_(free_octets) struct octets cid = {}, key = {};
	uint8_t server_id[QUIC_LB_SERVER_ID_MAX], nonce[QUIC_LB_NONCE_MAX];
	unsigned rotation, server_id_length, nonce_length;
	struct quic_lb_config config;
	int r;

	for (size_t i = 0; i < ARRAY_SIZE(needed); i++)
		if (require(arguments, needed[i]) < 0)
			return EXIT_USAGE;
	if (refuse(arguments, OPTION_CID_LENGTH, OPTION_CID) < 0 ||
		refuse(arguments, OPTION_INITIAL, OPTION_CID) < 0 ||
		read_hex(arguments, OPTION_CID, 0, 255, &cid) < 0 ||
		read_number(arguments, OPTION_CONFIG_ROTATION, 0, QUIC_LB_ROTATION_MAX, &rotation) <
			0 ||
		read_number(arguments, OPTION_SERVER_ID_LENGTH, QUIC_LB_SERVER_ID_MIN,
			QUIC_LB_SERVER_ID_MAX, &server_id_length) < 0 ||
		read_number(arguments, OPTION_NONCE_LENGTH, QUIC_LB_NONCE_MIN, QUIC_LB_NONCE_MAX,
			&nonce_length) < 0 ||
		read_key(arguments, &key) < 0 ||
		configure(arguments, &config, rotation, server_id_length, nonce_length, key.data) <
			0)
		return EXIT_USAGE;

	r = quic_lb_decode(&config, cid.data, cid.length, server_id, nonce);
	if (r < 0)
		return print_answer(json_pack(
			"{s:b, s:o}", "routable", 0, "reason", unroutable(r, &config, &cid)));
	return print_answer(json_pack("{s:b, s:o, s:o}", "routable", 1, "server_id",
		hex_value(server_id, server_id_length), "nonce", hex_value(nonce, nonce_length)));
}

static void free_crypto(struct initial_crypto **crypto)
{
	initial_crypto_free(*crypto);
}

int offline_read_initials(const struct ctl_values *values, json_t **ret)
{
	struct arguments arguments = {.verb = "explain", .values = values};
	_cleanup_(free_crypto) struct initial_crypto *crypto = NULL;
	_cleanup_free_ struct flow *flow = malloc(sizeof(*flow));
	int r;

	if (!flow)
		return EXIT_FAILURE;
	r = initial_crypto_new(&crypto);
	if (r < 0) {
		fprintf(stderr, "reuseportctl explain: cannot use libcrypto: %s\n", strerror(-r));
		return EXIT_FAILURE;
	}
	flow_init(flow);
	for (unsigned i = 0; i < values->n_initials; i++) {
		_cleanup_(free_octets) struct octets datagram = {};

		if (read_hex_text(&arguments, OPTION_INITIAL, values->initials[i], 0, DATAGRAM_MAX,
			    &datagram) < 0)
			return EXIT_USAGE;
		flow_feed(flow, crypto, datagram.data, datagram.length);
	}
	*ret = offline_initial_answer(flow);
	return *ret ? EXIT_SUCCESS : EXIT_FAILURE;
}

static int explain_initial(const struct arguments *arguments)
{
	static const int others[] = {OPTION_CID_LENGTH, OPTION_CONFIG_ROTATION,
		OPTION_SERVER_ID_LENGTH, OPTION_NONCE_LENGTH, OPTION_KEY};
	json_t *answer = NULL;
	int r;

	for (size_t i = 0; i < ARRAY_SIZE(others); i++)
		if (refuse(arguments, others[i], OPTION_INITIAL) < 0)
			return EXIT_USAGE;
	r = offline_read_initials(arguments->values, &answer);
	return r == EXIT_SUCCESS ? print_answer(answer) : r;
}

int offline_explain(const struct ctl_values *values)
{
	struct arguments arguments = {.verb = "explain", .values = values};

	if (require(&arguments, OPTION_OFFLINE) < 0)
		return EXIT_USAGE;
	if (get(&arguments, OPTION_PACKET))
		return explain_packet(&arguments);
	if (get(&arguments, OPTION_CID))
		return explain_cid(&arguments);
	if (get(&arguments, OPTION_INITIAL))
		return explain_initial(&arguments);
	usage_error(&arguments, "--packet HEX, --cid HEX or --initial HEX is missing");
	return EXIT_USAGE;
}

int offline_make_cid(const struct ctl_values *values)
{
	_cleanup_(free_octets) struct octets server_id = {}, nonce = {}, key = {};
	int first_bits = QUIC_LB_SELF_ENCODE_LENGTH;
	uint8_t cid[QUIC_LB_CID_MAX], random;
	struct quic_lb_config config;
	struct arguments arguments = {.verb = "make-cid", .values = values};
	unsigned rotation;
	size_t length;

	if (require(&arguments, OPTION_CONFIG_ROTATION) < 0 ||
		require(&arguments, OPTION_SERVER_ID) < 0 ||
		require(&arguments, OPTION_NONCE) < 0 ||
		read_number(&arguments, OPTION_CONFIG_ROTATION, 0, QUIC_LB_ROTATION_MAX,
			&rotation) < 0 ||
		read_hex(&arguments, OPTION_SERVER_ID, QUIC_LB_SERVER_ID_MIN, QUIC_LB_SERVER_ID_MAX,
			&server_id) < 0 ||
		read_hex(&arguments, OPTION_NONCE, QUIC_LB_NONCE_MIN, QUIC_LB_NONCE_MAX, &nonce) <
			0 ||
		read_key(&arguments, &key) < 0 ||
		configure(&arguments, &config, rotation, server_id.length, nonce.length, key.data) <
			0)
		return EXIT_USAGE;

	if (get(&arguments, OPTION_NO_LENGTH)) {
		if (getrandom(&random, sizeof(random), 0) != sizeof(random)) {
			fprintf(stderr, "reuseportctl make-cid: cannot get random bits: %s\n",
				strerror(errno));
			return EXIT_FAILURE;
		}
		first_bits = random & 0x1f;
	}
	length = quic_lb_encode(&config, server_id.data, nonce.data, first_bits, cid);
	return print_answer(json_pack("{s:o}", "cid", hex_value(cid, length)));
}
