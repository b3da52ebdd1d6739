"""
Models as plain data: JSON and named tensors, from which they are rebuilt without running anything
that a file says.

``config.json`` names classes by what the registries in :mod:`sb3_diffrl.sharing.policy` call
them, and every entry is checked against its type and bounds. What tensors there must be follows
from it, so that their names, shapes and dtypes are compared with the headers of the safetensors
files before any is allocated.
"""
