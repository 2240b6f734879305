"""Several processes on one port: a supervisor that serves nobody, and its workers."""
