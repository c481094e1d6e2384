#!/bin/sh
# Makes .venv-peers, the environment of the libraries that the benchmarks measure against and that pin other versions.
# Run from the root of the repository. PYTHON names the interpreter.
set -e
"${PYTHON:-python3}" -m venv .venv-peers
.venv-peers/bin/pip install --quiet \
    fast-plaid==1.7.0.2110 \
    model2vec==0.10.0 \
    pyseismic-lsr==0.5.4 \
    tokenizers==0.23.3 \
    torch==2.11.0
