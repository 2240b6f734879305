"""Where counters live that outlast a request, or the process."""
