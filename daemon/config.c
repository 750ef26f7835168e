/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A configuration as data: defaults, construction, names of its values, questions to it.
 *
 * WHY apart from the files that fill it (config-file.c: the directory; config-listen.c: --listen):
 * whoever uses a configuration, or makes one in a test, needs no parser.
 */
#include "daemon/config.h"

#include <string.h>

#include "common/util.h"

const char *transport_name(enum transport transport)
{
	switch (transport) {
	case TRANSPORT_TCP:
		return "tcp";
	case TRANSPORT_UDP:
		return "udp";
	case TRANSPORT_QUIC:
		return "quic";
	}
	return "unknown";
}

static const char *const cid_mode_names[] = {
	[CID_NONE] = "none",
	[CID_QUIC_LB] = "quic-lb",
	[CID_QUIC_LB_PLAIN] = "quic-lb-plain",
	[CID_REGISTERED] = "registered",
	[CID_NGINX] = "nginx",
	[CID_OPAQUE] = "opaque",
};

const char *cid_mode_name(enum cid_mode mode)
{
	return (size_t)mode < ARRAY_SIZE(cid_mode_names) ? cid_mode_names[mode] : "unknown";
}

void config_words_clear(struct config_words *words)
{
	for (size_t i = 0; i < words->n; i++)
		free(words->word[i]);
	free(words->word);
	*words = (struct config_words){0};
}

int config_words_add(struct config_words *words, const char *word)
{
	char **grown = reallocarray(words->word, words->n + 1, sizeof(*grown));

	if (!grown)
		return -ENOMEM;
	words->word = grown;
	grown[words->n] = strdup(word);
	if (!grown[words->n])
		return -ENOMEM;
	words->n++;
	return 0;
}

bool config_words_have(const struct config_words *words, const char *word)
{
	for (size_t i = 0; i < words->n; i++)
		if (strcmp(words->word[i], word) == 0)
			return true;
	return false;
}

static int copy_words(struct config_words *to, const struct config_words *from)
{
	int r = 0;

	for (size_t i = 0; i < from->n && r >= 0; i++)
		r = config_words_add(to, from->word[i]);
	return r;
}

static bool copy_text(char **to, const char *from)
{
	*to = from ? strdup(from) : NULL;
	return *to || !from;
}

struct listener_config *listener_config_copy(const struct listener_config *listener)
{
	struct listener_config *copy = malloc(sizeof(*copy));
	bool good;

	if (!copy)
		return NULL;
	*copy = *listener;
	copy->server_names = copy->protocols = (struct config_words){0};
	good = copy_text(&copy->name, listener->name);
	good &= copy_text(&copy->file, listener->file);
	good &= copy_text(&copy->address_text, listener->address_text);
	good &= copy_text(&copy->bind_to_device, listener->bind_to_device);
	good &= copy_text(&copy->key_file, listener->key_file);
	good &= copy_text(&copy->share, listener->share);
	good &= copy_words(&copy->server_names, &listener->server_names) >= 0;
	good &= copy_words(&copy->protocols, &listener->protocols) >= 0;
	return good ? copy : listener_config_free(copy);
}

struct listener_config *listener_config_free(struct listener_config *listener)
{
	if (!listener)
		return NULL;
	free(listener->name);
	free(listener->file);
	free(listener->address_text);
	free(listener->bind_to_device);
	free(listener->key_file);
	free(listener->share);
	config_words_clear(&listener->server_names);
	config_words_clear(&listener->protocols);
	free(listener);
	return NULL;
}

struct service_config *service_config_free(struct service_config *service)
{
	if (!service)
		return NULL;
	for (size_t i = 0; i < service->n_listeners; i++)
		listener_config_free(service->listeners[i]);
	free(service->listeners);
	free(service->allow_uids);
	free(service->allow_gids);
	free(service->name);
	free(service->file);
	free(service);
	return NULL;
}

void config_free(struct config *config)
{
	if (!config)
		return;
	for (size_t i = 0; i < config->n_services; i++)
		service_config_free(config->services[i]);
	free(config->services);
	free(config->user);
	free(config->state_directory);
	free(config->classifier);
	free(config);
}

void config_freep(struct config **config)
{
	config_free(*config);
	*config = NULL;
}

/* systemd sets $STATE_DIRECTORY for StateDirectory=; several are separated by ':'. */
static char *default_state_directory(void)
{
	const char *directory = getenv("STATE_DIRECTORY");

	if (!directory || directory[0] != '/')
		return strdup("/var/lib/reuseportd");
	return strndup(directory, strcspn(directory, ":"));
}

int config_new(struct config **ret)
{
	struct config *config = calloc(1, sizeof(*config));

	if (!config)
		return -ENOMEM;
	config->user = strdup("reuseport");
	config->state_directory = default_state_directory();
	config->classifier = strdup(CLASSIFIER);
	if (!config->user || !config->state_directory || !config->classifier) {
		config_free(config);
		return -ENOMEM;
	}
	config->status_group = (gid_t)-1;
	config->admin_group = (gid_t)-1;
	config->classifier_percent = 50;
	config->classifier_drop = true;
	config->max_connections = 512;
	config->max_slots = 2048;
	config->max_cids = 1 << 20;
	config->max_messages = 10000;
	config->answer_timeout_usec = 10 * USEC_PER_SEC;
	config->resume_grace_usec = 10 * USEC_PER_SEC;
	*ret = config;
	return 0;
}

struct service_config *service_config_new(const char *file)
{
	struct service_config *service = calloc(1, sizeof(*service));

	if (!service)
		return NULL;
	service->max_workers = 1024;
	service->drain_timeout_usec = 5 * 60 * USEC_PER_SEC;
	service->stall_timeout_usec = 10 * USEC_PER_SEC;
	service->file = strdup(file);
	return service->file ? service : service_config_free(service);
}

struct listener_config *listener_config_new(const char *name, const char *file, unsigned line)
{
	struct listener_config *listener = calloc(1, sizeof(*listener));

	if (!listener)
		return NULL;
	listener->line = line;
	listener->backlog = 4096;
	listener->mark = -1;
	listener->lock_filter = true;
	listener->standby_hold = true;
	listener->standby_timeout_usec = 30 * USEC_PER_SEC;
	listener->flow_timeout_usec = 60 * USEC_PER_SEC;
	listener->n_flows = 65536;
	listener->name = strdup(name);
	listener->file = strdup(file);
	return listener->name && listener->file ? listener : listener_config_free(listener);
}

int config_add_service(struct config *config, struct service_config *service)
{
	struct service_config **services =
		reallocarray(config->services, config->n_services + 1, sizeof(*services));

	if (!services)
		return -ENOMEM;
	config->services = services;
	services[config->n_services++] = service;
	return 0;
}

int service_config_add_listener(struct service_config *service, struct listener_config *listener)
{
	struct listener_config **listeners =
		reallocarray(service->listeners, service->n_listeners + 1, sizeof(*listeners));

	if (!listeners)
		return -ENOMEM;
	service->listeners = listeners;
	listeners[service->n_listeners++] = listener;
	return 0;
}

bool listener_config_same_socket(const struct listener_config *a, const struct listener_config *b)
{
	const char *device_a = a->bind_to_device ? a->bind_to_device : "";
	const char *device_b = b->bind_to_device ? b->bind_to_device : "";

	return a->transport == b->transport && a->address_length == b->address_length &&
	       memcmp(&a->address, &b->address, a->address_length) == 0 &&
	       a->ipv6_only == b->ipv6_only && a->free_bind == b->free_bind &&
	       a->transparent == b->transparent && strcmp(device_a, device_b) == 0 &&
	       a->host_id == b->host_id && a->n_flows == b->n_flows &&
	       a->flow_timeout_usec == b->flow_timeout_usec;
}

static bool has_all(const uint32_t *ids, size_t n, const uint32_t *of, size_t n_of)
{
	for (size_t i = 0; i < n_of; i++) {
		bool found = false;

		for (size_t k = 0; k < n; k++)
			found |= ids[k] == of[i];
		if (!found)
			return false;
	}
	return true;
}

static bool same_users(const struct service_config *a, const struct service_config *b)
{
	return a->allow_all == b->allow_all &&
	       has_all(a->allow_uids, a->n_allow_uids, b->allow_uids, b->n_allow_uids) &&
	       has_all(b->allow_uids, b->n_allow_uids, a->allow_uids, a->n_allow_uids) &&
	       has_all(a->allow_gids, a->n_allow_gids, b->allow_gids, b->n_allow_gids) &&
	       has_all(b->allow_gids, b->n_allow_gids, a->allow_gids, a->n_allow_gids);
}

/* The service's listener in the share, or NULL. */
static const struct listener_config *in_share(
	const struct service_config *service, const char *share)
{
	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i]->share &&
			strcmp(service->listeners[i]->share, share) == 0)
			return service->listeners[i];
	return NULL;
}

const struct listener_config *config_shared_by_users(const struct config *config)
{
	for (size_t i = 0; i < config->n_services; i++)
		for (size_t k = 0; k < config->services[i]->n_listeners; k++) {
			const char *share = config->services[i]->listeners[k]->share;

			for (size_t other = 0; share && other < i; other++)
				if (in_share(config->services[other], share) &&
					!same_users(config->services[i], config->services[other]))
					return config->services[i]->listeners[k];
		}
	return NULL;
}

bool listener_config_same_address(const struct listener_config *a, const struct listener_config *b)
{
	if ((a->transport == TRANSPORT_TCP) != (b->transport == TRANSPORT_TCP))
		return false;
	if (a->address_length != b->address_length ||
		memcmp(&a->address, &b->address, a->address_length))
		return false;
	if (!a->bind_to_device || !b->bind_to_device)
		return a->bind_to_device == b->bind_to_device;
	return !strcmp(a->bind_to_device, b->bind_to_device);
}

const struct listener_config *service_config_find_address(
	const struct service_config *service, const struct listener_config *listener)
{
	for (size_t i = 0; i < service->n_listeners; i++) {
		const struct listener_config *other = service->listeners[i];

		if (other != listener && other->address_text &&
			listener_config_same_address(other, listener))
			return other;
	}
	return NULL;
}

bool service_config_allows(
	const struct service_config *service, uid_t uid, const gid_t *gids, size_t n_gids)
{
	if (service->allow_all || uid == 0)
		return true;
	for (size_t i = 0; i < service->n_allow_uids; i++) {
		if (service->allow_uids[i] == uid)
			return true;
	}
	for (size_t i = 0; i < service->n_allow_gids; i++) {
		for (size_t j = 0; j < n_gids; j++) {
			if (service->allow_gids[i] == gids[j])
				return true;
		}
	}
	return false;
}
