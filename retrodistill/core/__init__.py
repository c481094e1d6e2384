"""Shared foundations: errors, files, manifests, stores, the running process and the base class of settings."""
