/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * reuseportd: options, sockets of its own, privileges, signals; then the event loop.
 */
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <bpf/libbpf.h>
#include <pwd.h>
#include <signal.h>
#include <malloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sysexits.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-event.h>

#include "common/util.h"
#include "daemon/config.h"
#include "daemon/control.h"
#include "daemon/event.h"
#include "daemon/linger.h"
#include "daemon/log.h"
#include "daemon/manager.h"
#include "daemon/monitor.h"
#include "daemon/privileges.h"
#include "daemon/state.h"
#include "daemon/state-config.h"
#include "daemon/store.h"
#include "daemon/takeover.h"

struct options {
	const char *config_directory; /* NULL with --listen alone */
	const char *runtime_directory;
	const char *state_directory; /* NULL: the configuration's */
	bool no_state;               /* the default one could not be made */
	const char *user;
	char **listen;
	size_t n_listen;
	bool check;
	bool refused;    /* by the configuration: a status of its own, so that systemd doesn't try
			    again */
	bool old_config; /* it was refused, and what an earlier daemon served goes on */
	const char *program;
	char **arguments;
	unsigned privileges; /* to keep: PRIVILEGE_... */
	bool no_keeper;      /* nobody is to have descriptors for the next daemon */
};

static void print_help(void)
{
	printf("reuseportd [OPTIONS]\n\n"
	       "Owns SO_REUSEPORT groups and hands their sockets to server processes.\n\n"
	       "  --config DIR             Read DIR/reuseportd.conf and DIR/services.d/*.conf\n"
	       "                           (default /etc/reuseportd, unless --listen is given)\n"
	       "  --listen NAME=URL        Serve without a file: tcp://ADDR:PORT or udp://ADDR:PORT;\n"
	       "                           may be repeated; every user may register\n"
	       "  --runtime-directory DIR  Put worker.sock and control.sock there\n"
	       "                           (default /run/reuseportd)\n"
	       "  --state-directory DIR    Keep the keys of connection IDs there (default:\n"
	       "                           StateDirectory= of the configuration, $STATE_DIRECTORY,\n"
	       "                           or /var/lib/reuseportd)\n"
	       "  --user NAME              Run as that user when started by root\n"
	       "                           (default: User= of the configuration, or reuseport)\n"
	       "  --adopt                  Keep CAP_CHOWN and CAP_NET_RAW when started by\n"
	       "                           root, for reuseport-run --adopt\n"
	       "  --net-admin              Keep CAP_NET_ADMIN when started by root, for\n"
	       "                           reuseportctl kick\n"
	       "  --no-keeper              Start no process that has what the next daemon needs\n"
	       "                           when this one is killed\n"
	       "  --check                  Check the configuration, say what is wrong, and exit\n"
	       "  --help                   Show this\n"
	       "  --version                Show the version\n\n"
	       "Exit status: 0 stopped in order or configuration right, 1 failed, 2 usage,\n"
	       "78 not started because of the configuration.\n");
}

static int parse_options(struct options *options, int argc, char **argv)
{
	enum {
		OPTION_CONFIG = 1,
		OPTION_LISTEN,
		OPTION_RUNTIME,
		OPTION_STATE,
		OPTION_USER,
		OPTION_CHECK,
		OPTION_ADOPT,
		OPTION_NET_ADMIN,
		OPTION_NO_KEEPER
	};
	static const struct option table[] = {
		{"config", required_argument, NULL, OPTION_CONFIG},
		{"listen", required_argument, NULL, OPTION_LISTEN},
		{"runtime-directory", required_argument, NULL, OPTION_RUNTIME},
		{"state-directory", required_argument, NULL, OPTION_STATE},
		{"user", required_argument, NULL, OPTION_USER},
		{"check", no_argument, NULL, OPTION_CHECK},
		{"adopt", no_argument, NULL, OPTION_ADOPT},
		{"net-admin", no_argument, NULL, OPTION_NET_ADMIN},
		{"no-keeper", no_argument, NULL, OPTION_NO_KEEPER},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{0},
	};
	int option;

	while ((option = getopt_long(argc, argv, "h", table, NULL)) >= 0) {
		switch (option) {
		case OPTION_CONFIG:
			options->config_directory = optarg;
			break;
		case OPTION_LISTEN:
			options->listen[options->n_listen++] = optarg;
			break;
		case OPTION_RUNTIME:
			options->runtime_directory = optarg;
			break;
		case OPTION_STATE:
			options->state_directory = optarg;
			break;
		case OPTION_USER:
			options->user = optarg;
			break;
		case OPTION_CHECK:
			options->check = true;
			break;
		case OPTION_ADOPT:
			options->privileges |= PRIVILEGE_ADOPT;
			break;
		case OPTION_NET_ADMIN:
			options->privileges |= PRIVILEGE_NET_ADMIN;
			break;
		case OPTION_NO_KEEPER:
			options->no_keeper = true;
			break;
		case 'h':
			print_help();
			return 0;
		case 'V':
			printf("reuseportd %s\n", VERSION);
			return 0;
		default:
			return -EINVAL; /* getopt_long() has said what */
		}
	}
	if (optind < argc) {
		fprintf(stderr, "reuseportd: unexpected argument '%s'; see --help\n", argv[optind]);
		return -EINVAL;
	}
	if (!options->config_directory && !options->n_listen)
		options->config_directory = "/etc/reuseportd";
	return 1;
}

static int replace(char **field, const char *value)
{
	char *copy = strdup(value);

	if (!copy)
		return -ENOMEM;
	free(*field);
	*field = copy;
	return 0;
}

static int load_config(struct config **ret, char **ret_error, void *user_data)
{
	struct options *options = user_data;
	_cleanup_(config_freep) struct config *config = NULL;
	int result;

	if (options->config_directory)
		result = config_load(&config, options->config_directory, ret_error);
	else
		result = config_new(&config);
	for (size_t i = 0; i < options->n_listen && result >= 0; i++)
		result = config_add_listen(config, options->listen[i], ret_error);
	if (result < 0)
		return result;
	if (options->user && replace(&config->user, options->user) < 0)
		return -ENOMEM;
	if (options->state_directory) {
		if (replace(&config->state_directory, options->state_directory) < 0)
			return -ENOMEM;
		config->state_directory_set = true;
	}
	if (options->no_state && !config->state_directory_set) {
		free(config->state_directory);
		config->state_directory = NULL;
	}
	*ret = take_pointer(config);
	return 0;
}

/* Whether somebody answers at the path; a socket file that nobody listens on is left over. */
static bool is_alive(const struct sockaddr_un *address, int type)
{
	_cleanup_close_ int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	return fd >= 0 && (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 ||
				  errno == EAGAIN);
}

static int listen_unix(const char *directory, const char *name, int type)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	_cleanup_close_ int fd = -1;
	int length;

	length = snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", directory, name);
	if (length < 0 || (size_t)length >= sizeof(address.sun_path)) {
		log_error("cannot listen on %s/%s: the path is longer than %zu octets", directory,
			name, sizeof(address.sun_path) - 1);
		return -ENAMETOOLONG;
	}
	if (is_alive(&address, type)) {
		log_error("cannot listen on %s: another reuseportd answers there; stop it, or use "
			  "another --runtime-directory",
			address.sun_path);
		return -EADDRINUSE;
	}
	unlink(address.sun_path);
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* Anyone may connect: who may do what is decided by the peer's user and groups. */
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
		chmod(address.sun_path, 0666) < 0 || listen(fd, SOMAXCONN) < 0) {
		int error = errno;

		log_error("cannot listen on %s: %s", address.sun_path, strerror(error));
		return -error;
	}
	return take_fd(&fd);
}

/*
 * The socket of a .socket unit, by its FileDescriptorName=, or an earlier daemon's, each with those
 * who wait at it; without one, a socket of our own.
 */
static int open_door(
	struct store *store, const char *directory, const char *name, const char *file, int type)
{
	_cleanup_close_ int fd = store_take_door(store, name, file);

	if (fd == -ENOENT) {
		fd = listen_unix(directory, file, type);
		if (fd >= 0)
			store_put(store, STORE_DOOR, fd, false);
		return take_fd(&fd);
	}
	if (sd_is_socket_unix(fd, type, 1, NULL, 0) <= 0) {
		log_error(
			"cannot listen on descriptor '%s' of LISTEN_FDS: it is not a listening Unix "
			"socket of type %s; see reuseportd-%s.socket",
			name, type == SOCK_SEQPACKET ? "SOCK_SEQPACKET" : "SOCK_STREAM", name);
		return -EINVAL;
	}
	return take_fd(&fd);
}

static int make_runtime_directory(const struct options *options, const char *user)
{
	const struct passwd *entry;

	if (mkdir(options->runtime_directory, 0755) < 0 && errno != EEXIST) {
		log_error("cannot create %s: %s", options->runtime_directory, strerror(errno));
		return -errno;
	}
	if (geteuid() != 0)
		return 0;
	entry = getpwnam(user);
	if (entry && chown(options->runtime_directory, entry->pw_uid, entry->pw_gid) < 0) {
		log_error("cannot give %s to user %s: %s", options->runtime_directory, user,
			strerror(errno));
		return -errno;
	}
	return 0;
}

/*
 * Of mode 0700 and the daemon's own: what is there already is not given away, since it may be any
 * directory. *ret_what: what went wrong, for a message.
 */
static int make_private_directory(const char *path, const char *user, const char **ret_what)
{
	const struct passwd *entry = geteuid() == 0 ? getpwnam(user) : NULL;
	uid_t uid = entry ? entry->pw_uid : geteuid();
	_cleanup_close_ int fd = -1;
	struct stat status;
	bool made = mkdir(path, 0700) == 0;

	*ret_what = "create";
	if (!made && errno != EEXIST)
		return -errno;
	*ret_what = "open";
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | (made ? O_NOFOLLOW : 0));
	if (fd < 0 || fstat(fd, &status) < 0)
		return -errno;
	*ret_what = "become the owner of";
	if (status.st_uid == uid)
		return 0;
	if (!made)
		return -EPERM;
	return fchown(fd, uid, entry ? entry->pw_gid : (gid_t)-1) < 0 ? -errno : 0;
}

/* Without the default one the daemon can do all else, so only one that was asked for must be. */
static int make_state_directory(struct options *options, struct config *config)
{
	const char *what;
	bool quic = false;
	int result = make_private_directory(config->state_directory, config->user, &what);

	if (result >= 0)
		return 0;
	for (size_t i = 0; i < config->n_services; i++)
		for (size_t k = 0; k < config->services[i]->n_listeners; k++)
			quic |= config->services[i]->listeners[k]->transport == TRANSPORT_QUIC;
	if (config->state_directory_set) {
		log_error("cannot %s the state directory %s: %s (it has to belong to user %s)",
			what, config->state_directory, strerror(-result), config->user);
		return result;
	}
	if (quic)
		log_warning("cannot %s the state directory %s: %s; keys of connection IDs are lost "
			    "when this process ends; name another with --state-directory",
			what, config->state_directory, strerror(-result));
	options->no_state = true;
	free(config->state_directory);
	config->state_directory = NULL;
	return 0;
}

static int become_user(const struct config *config, unsigned wanted)
{
	const char *step = "", *user = config->user;
	unsigned share = config_shares(config) ? PRIVILEGE_SHARE : 0;
	int result = privileges_drop(user, wanted | share, &step);

	privileges_set_perfmon(false);
	privileges_set_chown(false);
	privileges_set_raw(false);
	if (result == -ENOENT)
		log_error("cannot become user '%s': there is none; create it (systemd-sysusers, or "
			  "useradd --system %s), or name another with --user",
			user, user);
	else if (result < 0)
		log_error("cannot become user '%s': %s: %s", user, step, strerror(-result));
	return result;
}

static void raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

static int on_hangup(sd_event_source *source, const struct signalfd_siginfo *info, void *user_data)
{
	_cleanup_free_ char *error = NULL;

	manager_reload_files(user_data, &error);
	return 0;
}

static int print_bpf(enum libbpf_print_level level, const char *format, va_list arguments)
{
	return level == LIBBPF_WARN && getenv("REUSEPORTD_DEBUG")
		       ? vfprintf(stderr, format, arguments)
		       : 0;
}

static int open_worker_door(struct manager *manager, const struct options *options)
{
	int worker = open_door(manager->store, options->runtime_directory, "worker", "worker.sock",
		SOCK_SEQPACKET);

	return worker < 0 ? worker : client_listen(manager, worker);
}

static int open_control_door(struct manager *manager, const struct options *options)
{
	int control, result;

	control = open_door(
		manager->store, options->runtime_directory, "control", "control.sock", SOCK_STREAM);
	if (control < 0)
		return control;
	result = monitor_new(&manager->monitor);
	if (result < 0) {
		close_fd(&control);
		return result;
	}
	result = control_new(&manager->control, manager->event, control, manager_methods, manager);
	if (result < 0)
		return result;
	control_set_groups(
		manager->control, manager->config->status_group, manager->config->admin_group);
	control_set_max_connections(manager->control, manager->config->max_connections);
	control_set_accounts(manager->control, manager->accounts);
	control_set_foreign(manager->control, manager->foreign);
	return 0;
}

/* SIGHUP waits until there is something to reload. */
static int watch_signals(sd_event *event)
{
	sigset_t set;
	int result;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	result = sd_event_add_signal(event, NULL, SIGTERM, NULL, NULL);
	if (result >= 0)
		result = sd_event_add_signal(event, NULL, SIGINT, NULL, NULL);
	return result;
}

/* Says why the daemon does not start, and leaves it in "systemctl status" as well. */
static int refuse_to_start(const char *what, int result, const char *error)
{
	const char *text = error ? error : strerror(-result);

	log_error("%s", text);
	sd_notifyf(0, "STATUS=%s: %.*s", what, (int)strcspn(text, "\n"), text);
	return result;
}

/* What an earlier process left. 0: nothing; 1: its state, in *ret and *ret_json. */
static int find_state(
	struct store *store, struct state **ret, uint32_t *ret_entry, json_t **ret_json)
{
	struct state *state = NULL;
	int fd = store_take_only(store, STORE_STATE, ret_entry), result;

	if (fd < 0)
		return 0;
	result = state_open(&state, fd);
	if (result >= 0)
		result = state_read(state, ret_json);
	if (result < 0) {
		log_error("cannot read the state of the earlier daemon: %s%s", strerror(-result),
			result == -EPROTONOSUPPORT ? " (it is another version's; start that one)"
						   : "");
		state_free(state);
		return result;
	}
	*ret = state;
	return 1;
}

/* Whose the keeper is: the user that this daemon is, or becomes. */
static uid_t keeper_user(const struct options *options, const struct config *config)
{
	const char *name = config ? config->user : options->user ? options->user : "reuseport";
	const struct passwd *entry = geteuid() == 0 ? getpwnam(name) : NULL;

	return entry ? entry->pw_uid : geteuid();
}

static int inherit(struct store **ret, const struct options *options, const struct config *config)
{
	_cleanup_free_ char *error = NULL;
	int result = store_new(ret);

	if (result >= 0)
		result = store_find_keeper(
			*ret, options->runtime_directory, keeper_user(options, config), &error);
	if (error)
		log_error("%s", error);
	return result;
}

static void refuse_config(struct options *options, const char *error)
{
	event_tell(NULL, EVENT_RELOAD_REFUSED, &(struct event_about){.reason = error},
		"the configuration is refused, what the earlier daemon served goes on");
	options->old_config = true;
}

/*
 * Goes on from the state, and then makes what runs be as the files say. A mistake in them must not
 * cost what is there.
 */
static int go_on(struct manager **ret, sd_event *event, struct options *options,
	struct config *config, struct store *store, struct state *state, uint32_t entry,
	const json_t *json)
{
	_cleanup_free_ char *error = NULL;
	int result = manager_resume(ret, event, store, state, entry, json, &error);

	if (result < 0) {
		config_free(config);
		return refuse_to_start("Cannot start", result, error);
	}
	if (!config)
		return 0;
	if (manager_reload(*ret, config, &error) < 0) {
		refuse_config(options, error ? error : "out of memory");
	}
	return 0;
}

static int start(struct manager **ret, sd_event *event, struct config *config, struct store *store)
{
	_cleanup_free_ char *error = NULL;
	int result;

	/* Of one that died before there was a state: its sockets have our addresses. */
	store_forget_rest(store, false);
	result = manager_new(ret, event, config, store, &error);
	return result < 0 ? refuse_to_start("Cannot start", result, error) : 0;
}

static int serve(struct manager *manager, sd_event *event, struct options *options)
{
	_cleanup_free_ char *error = NULL;
	int result;

	manager->load = load_config;
	manager->load_data = options;
	manager->program = options->program;
	manager->arguments = options->arguments;
	result = watch_signals(event);
	if (result >= 0)
		result = open_worker_door(manager, options);
	if (result >= 0) {
		result = takeover_run(manager, &error);
		if (result < 0)
			refuse_to_start("Cannot start", result, error);
	}
	if (result == 1) /* the end was asked for meanwhile */
		return 0;
	if (result >= 0)
		result = open_control_door(manager, options);
	if (result >= 0)
		result = manager_keep_state(manager);
	if (result >= 0)
		result = sd_event_add_signal(event, NULL, SIGHUP, on_hangup, manager);
	if (result < 0)
		return result;
	store_guard(manager->store, event, options->runtime_directory, options->program,
		!options->no_keeper);
	sd_event_set_watchdog(event, true);
	sd_notifyf(0, "READY=1\nSTATUS=%s",
		options->old_config ? "Running; the configuration was refused" : "Running");
	event_tell(manager, EVENT_READY, NULL, "reuseportd %s is ready in %s", VERSION,
		options->runtime_directory);
	manager_answer_caller(manager);
	linger_init();
	result = linger_loop(event);
	sd_notify(0, "STOPPING=1\nSTATUS=Stopping");
	manager_stop(manager);
	return result;
}

/* config: NULL where the files are wrong and a state is there, whose configuration goes on. */
static int prepare_process(struct options *options, struct config *config, const json_t *state)
{
	_cleanup_(config_freep) struct config *saved = NULL;
	int result;

	raise_descriptor_limit();
	libbpf_set_print(print_bpf);
	if (!config) {
		result = config_from_json(&saved, json_object_get(state, "config"));
		/* What was guarded before is so from the store. */
		return result < 0 ? result : become_user(saved, options->privileges);
	}
	result = make_runtime_directory(options, config->user);
	if (result >= 0)
		result = make_state_directory(options, config);
	if (result >= 0)
		result = become_user(
			config, options->privileges |
					(config_shared_by_users(config) ? PRIVILEGE_NET_ADMIN : 0));
	return result;
}

static int run(struct options *options)
{
	sd_event *event = NULL;
	struct config *config = NULL;
	struct manager *manager = NULL;
	struct store *store = NULL;
	struct state *state = NULL;
	_cleanup_free_ char *error = NULL;
	json_t *json = NULL;
	uint32_t entry = 0;
	int result, found;

	result = load_config(&config, &error, options);
	if (options->check && result >= 0) {
		printf("%zu services, no mistake found\n", config->n_services);
		config_free(config);
		return 0;
	}
	found = options->check ? 0 : inherit(&store, options, config);
	if (found >= 0 && store)
		found = find_state(store, &state, &entry, &json);
	if (result < 0 && found == 1) {
		refuse_config(options, error ? error : strerror(-result));
		result = 0;
	} else if (result < 0) {
		options->refused = !options->check && result != -ENOMEM;
		refuse_to_start("The configuration can't be used", result, error);
	}
	if (result >= 0 && found < 0)
		result = found;
	if (result >= 0)
		result = prepare_process(options, config, json);
	if (result >= 0)
		result = sd_event_default(&event);
	if (result < 0) {
		config_free(config);
		state_free(state);
		store_free(store);
		json_decref(json);
		return result;
	}
	if (found == 1)
		result = go_on(&manager, event, options, config, store, state, entry, json);
	else
		result = start(&manager, event, config, store);
	json_decref(json);
	if (result >= 0) {
		result = serve(manager, event, options);
		manager_free(manager);
	}
	sd_event_unref(event);
	return result;
}

int main(int argc, char **argv)
{
	struct options options = {.runtime_directory = "/run/reuseportd", .arguments = argv};
	char program[PATH_MAX];
	ssize_t length;
	int result;

	/* What a client can make large goes back to the system with it: without a fixed threshold,
	 * large buffers move into the heap and stay there (mallopt(3)). */
	mallopt(M_MMAP_THRESHOLD, 64 * 1024);
	/* As it is called now: once another one is installed, the link says "(deleted)". */
	length = readlink("/proc/self/exe", program, sizeof(program) - 1);
	program[MAX(length, 0)] = 0;
	options.program = program;
	options.listen = calloc((size_t)argc, sizeof(*options.listen));
	if (!options.listen)
		return EXIT_FAILURE;
	result = parse_options(&options, argc, argv);
	if (result == -EINVAL) {
		free(options.listen);
		return 2;
	}
	if (result > 0)
		result = run(&options);
	free(options.listen);
	if (options.refused)
		return EX_CONFIG;
	return result < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
