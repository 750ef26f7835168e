# SPDX-License-Identifier: BSD-2-Clause
"""
How much longer than on a machine of its own anything may take: scripts/test-kernels emulates one.
"""
import os

PATIENCE = int(os.environ.get("REUSEPORT_TEST_PATIENCE", "1"))
