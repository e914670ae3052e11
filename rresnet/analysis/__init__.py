"""Answers from the tables: speedups, paired and with intervals. Needs neither Ray nor torch."""
