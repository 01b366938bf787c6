"""The program inside every sandbox container: a supervisor (PID 1) and the processes that run code."""
