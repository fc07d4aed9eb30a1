"""What `make` calls: one module a command.

`environment` is a script for the system's Python, which runs before anything is
installed; the others run in the environment that it makes.
"""
