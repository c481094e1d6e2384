"""Students and indexes inside other frameworks: one module per framework, which needs the extra of the same name.

Nothing is imported here: each module imports its framework, and raises a `UserError` that names the extra where it is
missing.
"""
