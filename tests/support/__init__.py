"""What tests and benchmarks share: servers as child processes, and the npm packages they are held against."""
