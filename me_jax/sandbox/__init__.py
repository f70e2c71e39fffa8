"""Runs programs written by a language model: `execute.Sandbox`."""
