"""The program inside every sandbox: a supervisor (PID 1) and the processes that run code.

Standard library only, since it runs on the image's Python without this project's dependencies.
"""
