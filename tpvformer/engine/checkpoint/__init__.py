"""Checkpoints: their content, their files, when they are written and how a run goes on from one."""
