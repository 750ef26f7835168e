# SPDX-License-Identifier: BSD-2-Clause
"""
scripts/bench: everything that is measured, side by side in one run. A module for each subject
(packet, growth, path, handover, scale, cids) with measure(run); place.py makes what is measured,
report.py keeps and prints the figures, main.py brings them together.

Counts are asserted and decide the exit status; times decide nothing.
"""
