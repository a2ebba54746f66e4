"""The composition root: the one command line, the demo, and the container files.

The only package that may import several apps. Start reading at `cli`.
"""
