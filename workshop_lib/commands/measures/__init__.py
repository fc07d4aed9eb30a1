"""What `make bench` measures.

`frame` runs the sides of a comparison in turn and makes the tables; `client_cpu` and
`apply` are entries; `workers` holds the processes, each on its core, that `clients` and
`mock_server` describe.
"""
