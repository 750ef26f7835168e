/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/classifier.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "bpf/share_layout.h"
#include "classify/classifier.h"
#include "classify/share-rules.h"
#include "common/pass-fd.h"
#include "common/util.h"
#include "daemon/group-share.h"
#include "daemon/log.h"
#include "daemon/manager.h"
#include "daemon/redeliver.h"
#include "daemon/share.h"
#include "daemon/socket.h"

#define RECEIVE_OCTETS (4 << 20)
#define PAUSE_MAX_USEC (10 * USEC_PER_SEC)
/* One that has lived so long is started again at once. */
#define LIVED_USEC (10 * USEC_PER_SEC)
/* One that has not shown that it is alive for so long is ended (it does so every second). */
#define STILL_USEC (10 * USEC_PER_SEC)

#define N_DESCRIPTORS (CLASSIFIER_RULES - CLASSIFIER_CONTROL + 1)

struct classifier {
	struct share *share;
	pid_t pid; /* 0: none */
	int pidfd;
	int control;
	sd_event_source *exit_source;
	unsigned starts;
	uint64_t started_usec;
	uint64_t next_usec; /* not started again before; 0: at once */
	uint64_t pause_usec;
	uint32_t alive; /* as last seen */
	uint64_t alive_usec;
	int error; /* of the last attempt, so that one that stays is said once */
};

static const char *name_of(const struct classifier *classifier)
{
	return classifier->share->config->share;
}

static struct share_page *page_of(const struct classifier *classifier)
{
	return classifier->share->group->share->page;
}

/* ---- What it is given ---- */

static int rules_to_file(const struct share_rules *rules)
{
	_cleanup_close_ int fd = memfd_create("reuseportd-rules", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return -errno;
	if (write(fd, rules, rules->size) != (ssize_t)rules->size)
		return -EIO;
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
		return -errno;
	return take_fd(&fd);
}

/* In the group; not yet where the program sends to. */
static int open_socket(const struct classifier *classifier, const char **ret_step)
{
	int fd = socket_new(classifier->share->config, ret_step);
	const int octets = RECEIVE_OCTETS;

	if (fd < 0)
		return fd;
	/* The first takes CAP_NET_ADMIN; the second goes as far as net.core.rmem_max. */
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &octets, sizeof(octets)) < 0)
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &octets, sizeof(octets));
	return fd;
}

/* By number less CLASSIFIER_CONTROL. */
static int open_descriptors(
	const struct classifier *classifier, int fds[N_DESCRIPTORS], const char **ret_step)
{
	const struct group_share *share = classifier->share->group->share;

	if (!classifier->share->rules)
		return -ENOMEM;
	*ret_step = "open a raw socket (needs CAP_NET_RAW)";
	fds[CLASSIFIER_RAW_IPV4 - CLASSIFIER_CONTROL] = redeliver_open(AF_INET);
	if (fds[CLASSIFIER_RAW_IPV4 - CLASSIFIER_CONTROL] < 0)
		return fds[CLASSIFIER_RAW_IPV4 - CLASSIFIER_CONTROL];
	fds[CLASSIFIER_RAW_IPV6 - CLASSIFIER_CONTROL] = redeliver_open(AF_INET6);
	fds[CLASSIFIER_SOCKET - CLASSIFIER_CONTROL] = open_socket(classifier, ret_step);
	if (fds[CLASSIFIER_SOCKET - CLASSIFIER_CONTROL] < 0)
		return fds[CLASSIFIER_SOCKET - CLASSIFIER_CONTROL];
	*ret_step = "write its rules";
	fds[CLASSIFIER_RULES - CLASSIFIER_CONTROL] = rules_to_file(classifier->share->rules);
	if (fds[CLASSIFIER_RULES - CLASSIFIER_CONTROL] < 0)
		return fds[CLASSIFIER_RULES - CLASSIFIER_CONTROL];
	*ret_step = "duplicate its maps";
	fds[CLASSIFIER_CHOICES - CLASSIFIER_CONTROL] = fcntl(share->choice_map, F_DUPFD_CLOEXEC, 0);
	fds[CLASSIFIER_PAGE - CLASSIFIER_CONTROL] = fcntl(share->page_map, F_DUPFD_CLOEXEC, 0);
	return fds[CLASSIFIER_CHOICES - CLASSIFIER_CONTROL] < 0 ||
			       fds[CLASSIFIER_PAGE - CLASSIFIER_CONTROL] < 0
		       ? -errno
		       : 0;
}

/* Out of the way of the numbers that they get in the process. */
static int move_up(int *fd)
{
	int moved;

	if (*fd < 0 || *fd > CLASSIFIER_RULES)
		return 0;
	moved = fcntl(*fd, F_DUPFD_CLOEXEC, CLASSIFIER_RULES + 1);
	if (moved < 0)
		return -errno;
	close_fd(fd);
	*fd = moved;
	return 0;
}

static int fill_actions(posix_spawn_file_actions_t *actions, int fds[N_DESCRIPTORS])
{
	int r = posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);

	if (r == 0)
		r = posix_spawn_file_actions_addopen(
			actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
	for (int i = 0; r == 0 && i < N_DESCRIPTORS; i++) {
		r = -move_up(&fds[i]);
		if (r == 0 && fds[i] >= 0)
			r = posix_spawn_file_actions_adddup2(
				actions, fds[i], CLASSIFIER_CONTROL + i);
	}
	return -r;
}

static int spawn(const struct classifier *classifier, int fds[N_DESCRIPTORS], pid_t *ret)
{
	char number[16];
	char *const arguments[] = {"reuseport-classify", (char *)name_of(classifier), number, NULL};
	char *const environment[] = {NULL};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t set;
	int r;

	snprintf(number, sizeof(number), "%u", page_of(classifier)->owner + 1);
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attributes);
	sigfillset(&set);
	posix_spawnattr_setsigdefault(&attributes, &set);
	sigemptyset(&set);
	posix_spawnattr_setsigmask(&attributes, &set);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
	r = fill_actions(&actions, fds);
	if (r == 0)
		r = -posix_spawn(ret, classifier->share->manager->config->classifier, &actions,
			&attributes, arguments, environment);
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	return r;
}

/* ---- Its life ---- */

void classifier_reap_others(const struct manager *manager)
{
	siginfo_t info = {};

	while (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid) {
		pid_t pid = info.si_pid;

		for (const struct share *share = manager->shares; share; share = share->next)
			if (classifier_pid(share->classifier) == pid)
				return;
		waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG);
		info.si_pid = 0;
	}
}

static void forget_process(struct classifier *classifier)
{
	sd_event_source_disable_unref(classifier->exit_source);
	classifier->exit_source = NULL;
	close_fd(&classifier->pidfd);
	close_fd(&classifier->control);
	classifier->pid = 0;
}

static void say_end(const struct classifier *classifier, const siginfo_t *info)
{
	if (info->si_code == CLD_EXITED)
		log_warning(
			"share %s: its classifier (pid %d) ended with %d; until the next one is "
			"there, new connections go to the default service",
			name_of(classifier), classifier->pid, info->si_status);
	else
		log_warning("share %s: its classifier (pid %d) was ended by signal %d (%s); until "
			    "the next one is there, new connections go to the default service",
			name_of(classifier), classifier->pid, info->si_status,
			strsignal(info->si_status));
}

static void start(struct classifier *classifier);

static int on_exit_of_process(sd_event_source *source, int fd, uint32_t events, void *user_data)
{
	struct classifier *classifier = user_data;
	uint64_t now = now_monotonic();
	siginfo_t info = {};

	if (waitid(P_PIDFD, (id_t)fd, &info, WEXITED | WNOHANG) == 0 && info.si_pid == 0)
		return 0;
	say_end(classifier, &info);
	forget_process(classifier);
	if (now - classifier->started_usec >= LIVED_USEC)
		classifier->pause_usec = 0;
	classifier->next_usec = now + classifier->pause_usec;
	classifier->pause_usec = MIN(MAX(2 * classifier->pause_usec, USEC_PER_SEC), PAUSE_MAX_USEC);
	if (classifier->next_usec == now)
		start(classifier);
	return 0;
}

static int watch(struct classifier *classifier)
{
	classifier->pidfd = (int)syscall(SYS_pidfd_open, classifier->pid, 0);
	if (classifier->pidfd < 0)
		return -errno;
	return sd_event_add_io(classifier->share->manager->event, &classifier->exit_source,
		classifier->pidfd, EPOLLIN, on_exit_of_process, classifier);
}

/* What the page says to this one, and of it. */
static void prepare_page(const struct classifier *classifier)
{
	const struct config *config = classifier->share->manager->config;
	struct share_page *page = page_of(classifier);

	page->cpu_percent = config->classifier_percent;
	page->overflow = config->classifier_drop ? SHARE_FOLLOW_DROP : SHARE_FOLLOW_DEFAULT;
	__atomic_store_n(&page->follow, SHARE_FOLLOW, __ATOMIC_RELAXED);
}

/* ret_socket: in the process, and a copy here, for the place in the group. */
static int start_process(struct classifier *classifier, const char **ret_step)
{
	int fds[N_DESCRIPTORS] = {-1, -1, -1, -1, -1, -1, -1}, pair[2];
	int result = open_descriptors(classifier, fds, ret_step);

	if (result >= 0 &&
		socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		result = -errno;
	if (result >= 0) {
		classifier->control = pair[0];
		fds[0] = pair[1];
		prepare_page(classifier);
		*ret_step = "run it";
		result = spawn(classifier, fds, &classifier->pid);
	}
	if (result >= 0) {
		*ret_step = "watch it";
		result = watch(classifier);
	}
	if (result >= 0) {
		*ret_step = "put its socket into the group";
		result = group_share_set_classifier(
			classifier->share->group, fds[CLASSIFIER_SOCKET - CLASSIFIER_CONTROL]);
	}
	/* Not before its socket is there: an earlier daemon's, which goes on so long, ends by it.
	 */
	if (result >= 0)
		__atomic_store_n(&page_of(classifier)->owner, page_of(classifier)->owner + 1,
			__ATOMIC_RELEASE);
	for (int i = 0; i < N_DESCRIPTORS; i++)
		close_fd(&fds[i]);
	return result;
}

/* At once, and to the end: it holds nothing that is not lost with it anyway. */
static void kill_process(struct classifier *classifier)
{
	siginfo_t info;

	if (!classifier->pid)
		return;
	kill(classifier->pid, SIGKILL);
	waitid(P_PID, (id_t)classifier->pid, &info, WEXITED);
	forget_process(classifier);
}

static void start(struct classifier *classifier)
{
	const char *step = "start it";
	int result = start_process(classifier, &step);

	if (result < 0) {
		if (result != classifier->error)
			log_warning(
				"share %s: cannot %s: %s (the classifier %s); new connections go "
				"to the default service, and it is tried again every 10 s",
				name_of(classifier), step, strerror(-result),
				classifier->share->manager->config->classifier);
		kill_process(classifier);
		forget_process(classifier);
		classifier->error = result;
		classifier->next_usec = now_monotonic() + PAUSE_MAX_USEC;
		return;
	}
	classifier->error = 0;
	classifier->starts++;
	classifier->started_usec = classifier->alive_usec = now_monotonic();
	classifier->alive = page_of(classifier)->alive;
	log_info("share %s: classifier started (pid %d)", name_of(classifier), classifier->pid);
}

int classifier_new(struct classifier **ret, struct share *share)
{
	struct classifier *classifier = calloc(1, sizeof(*classifier));

	if (!classifier)
		return -ENOMEM;
	classifier->share = share;
	classifier->pidfd = classifier->control = -1;
	start(classifier);
	*ret = classifier;
	return 0;
}

struct classifier *classifier_free(struct classifier *classifier)
{
	if (!classifier)
		return NULL;
	/* It ends by itself when the next one is there. */
	if (classifier->share->goes_on)
		forget_process(classifier);
	else
		kill_process(classifier);
	free(classifier);
	return NULL;
}

static int send_rules(const struct classifier *classifier, const struct share_rules *rules)
{
	_cleanup_close_ int fd = rules_to_file(rules);

	return fd < 0 ? fd : pass_fd(classifier->control, fd);
}

void classifier_set_rules(struct classifier *classifier, const struct share_rules *rules)
{
	int result;

	if (!classifier || !classifier->pid)
		return;
	result = send_rules(classifier, rules);
	/* Wrong rules are worse than none: the next one gets the right ones at its start. */
	if (result < 0) {
		log_warning("share %s: cannot give its classifier (pid %d) new rules: %s; it is "
			    "started again",
			name_of(classifier), classifier->pid, strerror(-result));
		kill(classifier->pid, SIGKILL);
	}
}

void classifier_tick(struct classifier *classifier)
{
	uint64_t now = now_monotonic();
	uint32_t alive;

	if (!classifier->pid) {
		if (now >= classifier->next_usec)
			start(classifier);
		return;
	}
	alive = __atomic_load_n(&page_of(classifier)->alive, __ATOMIC_RELAXED);
	if (alive != classifier->alive) {
		classifier->alive = alive;
		classifier->alive_usec = now;
	} else if (now - classifier->alive_usec >= STILL_USEC) {
		log_warning("share %s: its classifier (pid %d) stands still, it is started again",
			name_of(classifier), classifier->pid);
		kill(classifier->pid, SIGKILL);
		classifier->alive_usec = now;
	}
}

int classifier_pid(const struct classifier *classifier)
{
	return classifier ? classifier->pid : 0;
}

unsigned classifier_starts(const struct classifier *classifier)
{
	return classifier ? classifier->starts : 0;
}
