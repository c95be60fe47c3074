"""Grammars that constrain an answer: bounded here, then compiled in a process that may crash."""
