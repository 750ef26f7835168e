/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How the daemon starts reuseport-classify: one process for each share, with these descriptors
 * and nothing else. Its arguments are the name of the share, for people and for messages, and the
 * number that share_page.owner gets when its socket is in the group. Descriptors 0 to 2 are
 * /dev/null, /dev/null and the daemon's standard error. It has no capability, and no_new_privs is
 * set.
 *
 * The classifier ends with 0 on SIGTERM. When the daemon's end of CLASSIFIER_CONTROL is closed (the
 * daemon ended), it goes on until share_page.owner is a higher number than its own, for which it
 * looks once a second at least: another one has taken its place, so it reads what its socket still
 * has, lets go what it holds, and ends. So it does when nothing has come for ten minutes then. An
 * error at the start ends it with 1 and a sentence on standard error.
 */
#pragma once

enum classifier_descriptor {
	/*
	 * SOCK_SEQPACKET to the daemon. Each message has one octet that says nothing and one
	 * descriptor: new rules, in place of those before. Nothing is sent back.
	 */
	CLASSIFIER_CONTROL = 3,
	/*
	 * UDP, bound into the group, at INDEX_CLASSIFIER. The classifier asks for addresses and ECN
	 * itself (IP_PKTINFO, IP_RECVTOS, IPV6_RECVPKTINFO, IPV6_RECVTCLASS); [::] has IPv4 as
	 * well. SO_RCVBUF is set.
	 */
	CLASSIFIER_SOCKET = 4,
	/* Raw, IPPROTO_RAW, connected to 127.0.0.1 and ::1. Not open: the host has no such. */
	CLASSIFIER_RAW_IPV4 = 5,
	CLASSIFIER_RAW_IPV6 = 6,
	/* Maps, bpf/share_layout.h: for mmap(2), shared, to read and write. */
	CLASSIFIER_CHOICES = 7, /* (choice_mask + 1) * sizeof(struct flow_set) octets */
	CLASSIFIER_PAGE = 8,    /* sizeof(struct share_page) octets */
	/* A sealed memfd, classify/share-rules.h; its size is that of the file. */
	CLASSIFIER_RULES = 9,
};
