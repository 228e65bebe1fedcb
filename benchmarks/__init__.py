"""Benchmarks: our server and SDK beside the published ones, same agent, same work, same run."""
