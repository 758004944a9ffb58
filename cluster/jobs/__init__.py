"""Entry points of `ray job submit --working-dir . -- python -m cluster.jobs.NAME --config FILE`."""
