"""Pipeline stages, offline policy evaluation, the report, benchmarks and the command line."""
