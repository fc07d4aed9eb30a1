"""What `make bench` measures.

`frame` runs the sides of a comparison in turn and makes the tables; `client`, `live`,
`apply`, `log_lines` and `grpo_step` are entries; `workers` holds the processes that `clients`,
`guidellm` and `mock_server`, `log_clients` and `log_server`, and `trainers` describe. `paced`
and `sustained` are the loads of `client`.
"""
