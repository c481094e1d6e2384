"""Core: errors, files, manifests, stores, progress, processes and the base class of settings; knows no other room."""
